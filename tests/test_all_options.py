"""Every option of every public constructor, and of a job, with values that nobody has thought of.

Each is either taken and works, or refused at once by an error that names the option, what was found and what is allowed.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys

import pytest
from fastcore.docments import docments
from harness import run

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends.hosts import HostsBackend
from cjm_worker_ext.backends.ray import RayBackend
from cjm_worker_ext.config import NumberRule, number_rules
from cjm_worker_ext.errors import ConfigError, ProtocolError
from cjm_worker_ext.extensions.stores import Retention
from cjm_worker_ext.integrations.broadcasters import Broadcasters
from cjm_worker_ext.integrations.channel_postgres import PostgresChannel
from cjm_worker_ext.integrations.channel_redis import RedisChannel
from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel
from cjm_worker_ext.integrations.metrics import MetricsBroadcaster
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.policies import Lane, Recycle, Retry
from cjm_worker_ext.stores.postgres import PostgresJobStore
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

ODD = {
    "inf": math.inf, "-inf": -math.inf, "nan": math.nan, "-1": -1, "0": 0, "10**400": 10**400, "10**5000": 10**5000,
    "2**63": 2**63, "1e300": 1e300, "1e-300": 1e-300, "True": True, "text": "5", "surrogate": "\ud800", "NUL": "a\0b",
    "long": "x" * 10**6, "empty": "", "bytes": b"5", "list": [], "in a tuple": ([],), "surrogate in a tuple": ("\ud800",),
    "NUL in a dict": {"a": "\0"}, "number in a tuple": (10**5000,),
}  # fmt: skip
NUMBERS = (int, float)


def echo(x):
    return x


# What each needs at least
CLASSES = {
    WorkerConfig: {}, Recycle: {}, Retry: {}, Lane: {}, Retention: {}, SQLiteJobStore: {"path": "jobs.db"},
    PostgresJobStore: {"dsn": "host=nowhere"}, SSEBroadcaster: {}, SQLiteChannel: {"path": "events.db"}, RedisChannel: {},
    PostgresChannel: {"dsn": "host=nowhere"}, Broadcasters: {"broadcasters": []}, MetricsBroadcaster: {},
    ProcessResourceManager: {}, HostsBackend: {"hosts": ["gpu1:7000"]}, RayBackend: {},
    BaseJobManager: {"worker_type": "text"},
}  # fmt: skip
# Anything is right for them, or they are checked where they are used
OPEN = {
    "category", "backend", "plugin_manager_factory", "gpu", "nodes", "snapshot", "authorize", "visible", "registry", "tls",
    "resources", "stream", "token", "path", "dsn", "url", "runtime_env", "address", "retention", "broadcasters", "channel",
    "allowed_hosts", "buckets", "hosts",
}  # fmt: skip
ALL = [
    (cls, name)
    for cls in CLASSES
    for name, parameter in inspect.signature(cls).parameters.items()
    if name not in OPEN and parameter.kind is not parameter.VAR_KEYWORD
]


@pytest.mark.filterwarnings("ignore:manager .*supports_streaming")
@pytest.mark.parametrize("cls, name", ALL, ids=[f"{cls.__name__}-{name}" for cls, name in ALL])
def test_an_odd_value_is_taken_or_refused_by_name(cls, name):
    default = inspect.signature(cls).parameters[name].default
    for what, value in ODD.items():
        try:
            cls(**(CLASSES[cls] | {name: value}))
        except (ConfigError, ProtocolError) as e:
            message = str(e)
            assert name.removesuffix("s") in message and len(message) < 3000, (what, message[:500])
            message.encode()  # logs and pages can show it
        except ImportError:
            pytest.skip("a package is missing")
        else:
            if isinstance(default, NUMBERS) and not isinstance(default, bool):
                assert isinstance(value, NUMBERS) and not isinstance(value, bool) and abs(value) < 2**63, what
                assert math.isfinite(value), what
            if isinstance(default, bool):
                assert isinstance(value, bool), what
            assert name == "plugins" or what not in ("10**400", "10**5000", "surrogate", "NUL"), what


# ---------------------------------------------------------------- a manager with them


def test_the_largest_number_of_every_setting_works():
    "All at once, and the smallest times with them where a job can still end."
    rules = {name: rule.most for name, rule in number_rules(WorkerConfig) if name != "standby_workers"}
    recycle = Recycle(**{name: rule.most for name, rule in number_rules(Recycle)})
    retry = Retry(**{name: rule.most for name, rule in number_rules(Retry)})
    assert all(
        0 < retry.wait_after(attempts, 1.0) <= 2 * retry.max_delay_seconds for attempts in (1, 2, 50, sys.maxsize)
    )

    async def scene():
        config = WorkerConfig(**rules)
        async with BaseJobManager("largest", plugins={"echo": echo}, worker_config=config, recycle=recycle) as manager:
            jobs = [await manager.submit_job("echo", x=n, priority=n * 10**12, retry=retry) for n in (0, -1, 1)]
            assert [(await manager.wait(job, 120)).result for job in jobs] == [0, -1, 1]
            assert [await manager.run("echo", x=x) for x in range(3)] == [0, 1, 2]
            await manager.shutdown(20)

    run(scene())


OPTIONS = ["timeout", "priority", "delay_seconds", "key", "on_duplicate", "retry"]


@pytest.mark.parametrize("store", [None, "committed", "behind"])
def test_an_odd_option_of_a_job_hurts_nobody(store, tmp_path):
    async def scene():
        kept = store and SQLiteJobStore(tmp_path / "jobs.db", durability=store)
        async with BaseJobManager("odd", plugins={"echo": echo}, job_store=kept) as manager:
            for option in OPTIONS:
                for what, value in ODD.items():
                    try:
                        job = await manager.submit_job("echo", {"x": 1}, **({"key": "k"} | {option: value}))
                    except ConfigError as e:
                        assert option in str(e) and len(str(e)) < 3000, (option, what)
                        continue
                    assert what in ("0", "-1", "1e-300", "text", "long", "1e300", "2**63"), (option, what)
                    # a timeout of 0 may come too late for such a short job
                    ends = ("failed", "completed") if option == "timeout" else ("completed",)
                    assert (await manager.wait(job, 120)).status in ends
                assert await manager.run("echo", x=option) == option and manager.store_trouble is None

    run(scene())


def test_an_odd_argument_of_a_call_hurts_nobody(tmp_path):
    async def scene():
        store = SQLiteJobStore(tmp_path / "jobs.db")
        manager = BaseJobManager("odd", plugins={"echo": echo}, job_store=store)
        async with manager:
            job = await manager.submit_job("echo", x=1)
            await manager.wait(job, 120)
            calls = {
                "priority": lambda value: manager.set_priority(job, value),
                "start": lambda value: manager.stream(job, value),
                "last": lambda value: manager.get_job_chunks(job, value),
                "deadline": lambda value: manager.drain_on(deadline=value),
                "signum": manager.drain_on,
                "limit": lambda value: manager.map("echo", [], "x", limit=value),
            }
            for name, call in calls.items():
                for what in ("inf", "nan", "10**400", "10**5000", "2**63", "True", "text", "list", "1e300"):
                    with pytest.raises(ConfigError, match=name):
                        call(ODD[what])
            for what in ("inf", "nan", "10**400", "10**5000", "2**63", "True", "text", "list", "1e300"):
                for name, call in {
                    "timeout": lambda value: manager.wait(job, value),
                    "timeout ": manager.shutdown,
                    "limit": lambda value: manager.job_history(limit=value),
                }.items():
                    with pytest.raises(ConfigError, match=name.strip()):
                        await call(ODD[what])
            slow = await manager.submit_job("echo", x=1, delay_seconds=60)
            with pytest.raises(TimeoutError):  # a deadline that has passed is no mistake
                await manager.wait(slow, -1)
            assert await manager.run("echo", x=2) == 2

    run(scene())


@pytest.mark.parametrize("settings", [WorkerConfig, Retry, Recycle, Lane])
def test_the_documentation_of_settings_says_their_bounds(settings):
    said = docments(settings)
    assert all(said[field.name] for field in dataclasses.fields(settings) if field.name != "_")
    usual = NumberRule(int).most, NumberRule(float).most
    for name, rule in number_rules(settings):
        if rule.least:
            assert f">= {rule.least}" in said[name] or f"{rule.least} to {rule.most:,}" in said[name], (
                name,
                said[name],
            )
        if rule.most not in usual:
            assert f"{rule.least} to {rule.most:,}" in said[name], (name, said[name])
    assert settings is Lane or "WorkerConfig" in settings.__doc__ or f"{usual[1]:,}" in settings.__doc__
