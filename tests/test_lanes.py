"""Plugins with contradictory requirements beside each other under one manager: each in its lane, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from agents.agent_process import TOKEN, AgentProcess
from harness import run, until

import cjm_worker_ext
from cjm_worker_ext import BaseJobManager, Lane, WorkerConfig
from cjm_worker_ext.backends.hosts import HostsBackend
from cjm_worker_ext.backends.local import LocalBackend
from cjm_worker_ext.engine.engine import Engine
from cjm_worker_ext.errors import ConfigError, PluginLoadError, UnknownPlugin, WorkersExhausted
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

LIBRARY = """
import os, sys
from pathlib import Path
VERSION = {version!r}

def {function}(text):
    return VERSION, os.getpid(), sys.prefix, text.split()

def meet(folder, others):
    "Return once as many jobs run at the same time."
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < others:
        pass
    return VERSION

class Batches:
    max_batch_size = 4
    def execute(self, n):
        return n
    def execute_batch(self, batch):
        return [(VERSION, params["n"]) for params in batch]

async def later(n):
    return VERSION, n

def hang(ctx):
    ctx.progress(None, "runs")
    while True:
        pass

def crash():
    os._exit(7)

def env(name):
    return os.environ.get(name)
"""


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    "A library in two versions that contradict each other: a virtualenv has one of them, a folder on a path the other."
    folder = tmp_path_factory.mktemp("environments")
    home = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, timeout=120)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    found = [str(Path(cjm_worker_ext.__file__).parent.parent), sysconfig.get_path("purelib")]
    (site / "app.pth").write_text("\n".join(found))  # stands for `pip install cjm-worker-ext`
    (site / "wording.py").write_text(LIBRARY.format(version="1.9", function="split"))
    (folder / "path").mkdir()
    (folder / "path" / "wording.py").write_text(LIBRARY.format(version="2.0", function="tokens"))
    return {
        "old": Lane(python=str(home / "bin" / "python"), environment={"PYTHONPATH": "", "LANE": "old"}),
        "new": Lane(environment={"PYTHONPATH": str(folder / "path")}),
    }


@pytest.fixture(scope="module")
def agent():
    with AgentProcess("--workers", "8") as agent:
        yield agent


@pytest.fixture(params=["local", "agent"])
def backend(request):
    if request.param == "local":
        return LocalBackend
    return HostsBackend([request.getfixturevalue("agent").host], token=TOKEN)


NAMES = ("split", "tokens", "meet", "Batches", "later", "hang", "crash", "env")


def make(lanes, backend, max_workers=4, job_store=None, **config):
    plugins = {f"{lane}-{name}": {"target": f"wording:{name}", "lane": lane} for lane in lanes for name in NAMES}
    plugins["pid"] = "os:getpid"
    settings = WorkerConfig(max_workers=max_workers, lanes=lanes, **config)
    return BaseJobManager("lanes", worker_config=settings, plugins=plugins, backend=backend, job_store=job_store)


def by_lane(manager) -> dict[str | None, set[int]]:
    found: dict[str | None, set[int]] = {}
    for worker in manager.workers():
        found.setdefault(worker.lane, set()).add(worker.pid)
    return found


def test_contradicting_plugins_run_at_the_same_time(lanes, backend, tmp_path):
    async def scene():
        async with make(lanes, backend) as manager:
            jobs = [await manager.start_job(f"{lane}-meet", folder=str(tmp_path), others=2) for lane in lanes]
            assert [(await manager.wait(job.id, 120)).result for job in jobs] == ["1.9", "2.0"]
            old = await manager.run("old-split", text="To Be")
            new = await manager.run("new-tokens", text="To Be")
            assert (old[0], new[0], old[2] == new[2]) == ("1.9", "2.0", False)
            assert lanes["old"].python == old[2] + "/bin/python"
            assert await manager.run("old-env", name="LANE") == "old"
            assert await manager.run("new-env", name="LANE") is None
            assert (await manager.run("pid")) not in (old[1], new[1])

    run(scene())


def test_a_job_runs_on_a_worker_of_its_lane_and_never_elsewhere(lanes, backend):
    async def scene():
        async with make(lanes, backend, max_workers=2, standby_workers=1) as manager:
            order = ["old-later", "new-later", "old-Batches", "new-Batches"] * 25
            jobs = [await manager.start_job(plugin, n=n) for n, plugin in enumerate(order)]
            for n, (plugin, job) in enumerate(zip(order, jobs, strict=True)):
                await manager.wait(job.id, 120)
                version = "1.9" if plugin.startswith("old") else "2.0"
                assert (job.status, job.result) == ("completed", (version, n)), job.error
            assert len(manager.workers()) <= 3

    run(scene())


def test_short_jobs_are_sent_ahead_within_their_lane(lanes, monkeypatch):
    ahead, send = [], LocalBackend.execute_ahead

    def counted(self, worker, order):
        ahead.append(order.plugin.lane)
        return send(self, worker, order)

    monkeypatch.setattr(LocalBackend, "execute_ahead", counted)
    monkeypatch.setattr(Engine, "SHORT", 60.0)

    async def scene():
        async with make(lanes, LocalBackend, max_workers=2) as manager:
            for lane in lanes:
                await manager.load_plugin(f"{lane}-env")
            jobs = [await manager.start_job(f"{('old', 'new')[n % 2]}-env", name="LANE") for n in range(200)]
            for n, job in enumerate(jobs):
                await manager.wait(job.id, 120)
                assert (job.status, job.result) == ("completed", ("old", None)[n % 2]), job.error

    run(scene())
    assert ahead, "none was sent ahead"


@pytest.mark.parametrize("durability", ["committed", "behind"])
def test_jobs_of_a_store_run_in_their_lane_in_the_next_life_too(lanes, backend, durability, tmp_path):
    def with_store(**config):
        store = SQLiteJobStore(tmp_path / "jobs.db", durability=durability)
        return make(lanes, backend, job_store=store, **config)

    async def first_life():
        async with with_store(max_workers=0) as manager:  # only submits
            return [(await manager.start_job(f"{lane}-later", n=n)).id for n in range(20) for lane in lanes]

    async def next_life(ids):
        async with with_store(max_workers=2) as manager:
            for n, job_id in enumerate(ids):
                job = await manager.wait(job_id, 120)
                assert (job.status, job.result) == ("completed", (("1.9", "2.0")[n % 2], n // 2)), job.error

    run(next_life(run(first_life())), 120)


def test_one_place_is_shared_and_nobody_waits_for_ever(lanes, backend):
    "The only place changes hands: an idle worker makes room, and a busy lane lets the other one in."

    async def scene():
        async with make(lanes, backend, max_workers=1) as manager:
            for plugin, version in (("old-split", "1.9"), ("new-tokens", "2.0"), ("old-split", "1.9")):
                assert (await manager.run(plugin, text="a"))[0] == version
                assert len(by_lane(manager)) == 1
            flood = [await manager.start_job("old-split", text="a") for _ in range(40)]
            other = await manager.submit_job("new-tokens", {"text": "b"}, priority=1)
            await manager.wait(other.id, 120)
            before = sum(job.status == "completed" for job in flood)
            assert before <= 15, f"{before} jobs of the other lane went first"
            assert [(await manager.wait(job.id, 120)).status for job in flood] == ["completed"] * 40

    run(scene())


def test_a_lane_has_no_more_workers_than_it_may(lanes):
    async def scene():
        limited = {"old": lanes["old"], "new": Lane(environment=lanes["new"].environment, max_workers=1)}
        async with make(limited, LocalBackend, max_workers=3) as manager:
            jobs = [await manager.start_job("new-tokens", text="a") for _ in range(6)]
            assert len({(await manager.wait(job.id, 120)).result[1] for job in jobs}) == 1
            assert len(by_lane(manager)["new"]) == 1

    run(scene())


@pytest.mark.parametrize("alone", [False, True])
def test_crash_cancel_and_kill_in_a_lane(lanes, backend, alone):
    async def scene():
        async with make(lanes, backend, cancel_grace_seconds=0.2, one_plugin_per_worker=alone) as manager:
            assert (await manager.run("new-tokens", text="a"))[0] == "2.0"
            job = await manager.wait((await manager.start_job("old-crash")).id, 120)
            assert (job.error_type, "exited with code 7" in job.error) == ("WorkerCrashed", True), job.error
            assert (await manager.run("old-split", text="a"))[0] == "1.9"
            job = await manager.start_job("old-hang")
            await until(lambda: job.progress_message, what="the beginning of the job")
            await manager.cancel_job(job.id)
            assert (await manager.wait(job.id, 120)).status == "cancelled"
            assert (await manager.run("old-split", text="a"))[0] == "1.9"
            pid = manager.workers()[-1].pid
            for worker in manager.workers():
                if worker.lane == "new":
                    pid = worker.pid
            os.kill(pid % 10_000_000, signal.SIGKILL)
            await until(lambda: pid not in [worker.pid for worker in manager.workers()])
            assert (await manager.run("new-tokens", text="a"))[0] == "2.0"

    run(scene())


def test_load_reload_and_unload_in_a_lane(lanes, backend):
    async def scene():
        async with make(lanes, backend) as manager:
            await asyncio.gather(*[manager.load_plugin(f"{lane}-{name}") for lane, name in LOADS])
            loaded = {(worker.lane, worker.plugin_ids) for worker in manager.workers()} - {(None, ())}
            assert loaded == {("old", ("old-split",)), ("new", ("new-tokens",))}
            await manager.reload_plugin("old-split")
            await manager.unload_plugin("new-tokens")
            loaded = {(worker.lane, worker.plugin_ids) for worker in manager.workers()} - {(None, ())}
            assert loaded == {("old", ("old-split",)), ("new", ())}
            job = await manager.wait((await manager.start_job("old-tokens", text="a")).id, 120)
            assert job.error_type == "PluginLoadError", "version 1.9 has no such function"
            with pytest.raises(PluginLoadError):
                await manager.load_plugin("new-split")

    run(scene())


LOADS = (("old", "split"), ("new", "tokens"))


def test_a_broken_lane_fails_its_own_jobs_alone(lanes, backend):
    async def scene():
        broken = {**lanes, "gone": Lane(python="/opt/gone/bin/python")}
        async with make(broken, backend) as manager:
            bad = [await manager.start_job("gone-split", text="a") for _ in range(3)]
            good = [await manager.start_job("old-split", text="a"), await manager.start_job("pid")]
            for job in bad:
                await manager.wait(job.id, 120)
                assert job.error_type == "WorkersExhausted" and "/opt/gone/bin/python" in job.error, job.error
                assert "lane 'gone'" in job.error or "127.0.0.1" in job.error, job.error
            assert [(await manager.wait(job.id, 120)).status for job in good] == ["completed"] * 2
            with pytest.raises(WorkersExhausted, match="/opt/gone/bin/python"):
                await manager.load_plugin("gone-split")
            assert (await manager.run("new-tokens", text="a"))[0] == "2.0"

    run(scene())


class Registry:
    def __init__(self, **metadata):
        self.metadata = metadata

    def get_plugins_by_category(self, category):
        return list(self.metadata.values())

    def get_plugin(self, plugin_id):
        return self.metadata.get(plugin_id)

    def load_plugin_config(self, plugin_id):
        return {}


def test_metadata_of_a_registry_names_the_lane_and_may_change_it(lanes):
    async def scene():
        registry = Registry(
            words={"target": "wording:env", "lane": "old"}, wrong={"target": "os:getpid", "lane": "odl"}
        )
        manager = BaseJobManager(
            "lanes", plugin_registry=registry, worker_config=WorkerConfig(max_workers=2, lanes=lanes)
        )
        async with manager:
            assert await manager.run("words", name="LANE") == "old"
            registry.metadata["words"]["lane"] = "new"
            assert await manager.run("words", name="LANE") is None
            assert set(by_lane(manager)) == {"old", "new"}
            with pytest.raises(UnknownPlugin, match=r"'wrong': there is no lane 'odl'; .*'old', 'new'"):
                await manager.start_job("wrong")
            registry.metadata["words"]["lane"] = None
            job = await manager.wait((await manager.start_job("words", name="LANE")).id, 120)
            assert job.error_type == "PluginLoadError", "the app has no such library"

    run(scene())


def test_a_plugin_in_code_names_a_lane_that_is_there(lanes):
    with pytest.raises(ConfigError, match=r"plugin 'a': there is no lane 'odl'; .* has 'old', 'new'"):
        BaseJobManager(
            "lanes", plugins={"a": {"target": "m:a", "lane": "odl"}}, worker_config=WorkerConfig(lanes=lanes)
        )
    with pytest.raises(ConfigError, match="a mapping has a 'target', a 'lane' or both"):
        BaseJobManager("lanes", plugins={"a": {"tarteg": "m:a"}})
    with pytest.raises(ConfigError, match="names no attribute"):
        BaseJobManager("lanes", plugins={"a": {"target": "m.a"}})


def test_cards_of_a_lane_are_refused_for_other_machines(agent):
    async def scene():
        config = WorkerConfig(lanes={"cards": Lane(gpus=(0,))})
        backend, plugins = HostsBackend([agent.host], token=TOKEN), {"pid": "os:getpid"}
        manager = BaseJobManager("lanes", worker_config=config, plugins=plugins, backend=backend)
        with pytest.raises(ConfigError, match="gpus, of WorkerConfig or of a lane, is for this machine"):
            await manager.start_job("pid")

    run(scene())


def test_each_lane_has_its_cards(lanes):
    async def scene():
        cards = {
            name: Lane(python=lane.python, environment=lane.environment, gpus=("GPU-" + name,))
            for name, lane in lanes.items()
        }
        async with make(cards | {"none": Lane(gpus=())}, LocalBackend, gpus=("GPU-default",)) as manager:
            for name in ("old", "new"):
                assert await manager.run(f"{name}-env", name="CUDA_VISIBLE_DEVICES") == "GPU-" + name
            assert {worker.device for worker in manager.workers() if worker.lane} == {"GPU-old", "GPU-new"}

    run(scene())
