"""Integrations that raise, hang, are absent or written for somebody else: no job's outcome or pace depends on them."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from harness import Ticker, run, targets

from cjm_worker_ext import BaseJobManager, WorkerConfig


class Resources:
    "A look-alike written for an earlier manager: exactly these keywords."

    def __init__(self, harm=lambda: None):
        self.harm, self.calls = harm, []

    def register_worker(self, pid, worker_type):
        self.calls.append(("register", pid))
        self.harm()

    def unregister_worker(self, pid):
        self.calls.append(("unregister", pid))
        self.harm()

    def update_worker_state(
        self, pid, job_id=..., plugin_id=..., plugin_name=..., loaded_plugin_resource=..., config=..., status=...
    ):
        self.calls.append(("update", pid))
        self.harm()


class Broadcaster:
    "A look-alike with a further parameter, that returns an int."

    def __init__(self, harm=None):
        self.harm, self.events = harm, []

    async def broadcast(self, event_type, data, retry=None):
        self.events.append((event_type, json.loads(json.dumps(data, allow_nan=False))))
        if self.harm is not None:
            await self.harm()
        return len(self.events)


class Metadata:
    is_configured = True

    def __init__(self, name):
        self.name = name

    def get_unique_id(self):
        return "id-of-" + self.name


class Registry:
    "A look-alike whose parameter is called otherwise."

    def __init__(self, harm=lambda: None):
        self.harm = harm

    def get_plugins_by_category(self, category):
        return [Metadata("echo")]

    def get_plugin(self, unique_id):
        self.harm()
        return Metadata(unique_id)

    def load_plugin_config(self, unique_id):
        return {}


def make(**integrations) -> BaseJobManager:
    plugins = targets("echo", "kill_self", "raise_value_error", "count", "sleep", "progress_then")
    config = WorkerConfig(max_workers=2, shutdown_timeout_seconds=1.0)
    return BaseJobManager("integrations", "tests", plugins=plugins, worker_config=config, **integrations)


OUTCOMES = {"echo": "completed", "kill_self": "failed", "raise_value_error": "failed", "count": "completed"}


async def a_day(manager: BaseJobManager) -> list:
    jobs = [await manager.start_job(name, **({"n": 50} if name == "count" else {})) for name in OUTCOMES]
    victim = await manager.start_job("sleep", seconds=600)
    assert await manager.cancel_job(victim.id)
    for job in jobs:
        await manager.wait(job.id, 120)
    assert {job.plugin_id: str(job.status) for job in jobs} == OUTCOMES
    return [*jobs, victim]


def test_without_any():
    async def scene():
        async with make() as manager:
            await a_day(manager)

    run(scene())


def test_events_and_pids_exactly_once_and_in_order():
    async def scene():
        bus, resources = Broadcaster(), Resources()
        async with make(event_broadcaster=bus, resource_manager=resources, plugin_registry=Registry()) as manager:
            jobs = await a_day(manager)
        assert [data["seq"] for _, data in bus.events] == list(range(1, len(bus.events) + 1))
        assert all(data["worker_type"] == "integrations" and data["at"] for _, data in bus.events)
        for job in jobs:
            life = [kind for kind, data in bus.events if data.get("job_id") == job.id and kind.startswith("job:")]
            life = [kind for kind in life if kind not in ("job:chunk", "job:progress")]
            started = ["job:started"] if job.started_at else []
            assert life == ["job:queued", *started, f"job:{job.status}"]
        chunks = [c for kind, data in bus.events if kind == "job:chunk" for c in data["chunks"]]
        assert chunks == list(range(50))
        pids = {data["pid"] for kind, data in bus.events if kind == "worker:started"}
        for pid in pids:
            life = [kind for kind, data in bus.events if data.get("pid") == pid and kind.startswith("worker:")]
            assert life[0] == "worker:started" and life[-1] in ("worker:crashed", "worker:stopped") and len(life) <= 3
            calls = [call for call, other in resources.calls if other == pid]
            assert calls[0] == "register" and calls[-1] == "unregister"
            assert calls.count("register") == calls.count("unregister") == 1

    run(scene())


def fail() -> None:
    raise RuntimeError("an integration fails")


async def fail_later() -> None:
    fail()


async def cancel_itself() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("harm", [fail_later, cancel_itself])
def test_integrations_that_raise(harm):
    async def scene():
        bus, resources = Broadcaster(harm), Resources(fail)
        manager = make(event_broadcaster=bus, resource_manager=resources, plugin_registry=Registry(fail))
        async with manager:
            jobs = await a_day(manager)
        ends = [kind for kind, data in bus.events if kind in ("job:completed", "job:failed", "job:cancelled")]
        assert len(ends) == len(jobs), "events were lost"
        pids = {pid for call, pid in resources.calls if call == "register"}
        assert sorted(pid for call, pid in resources.calls if call == "unregister") == sorted(pids)

    run(scene())


def test_integrations_that_hang_delay_no_job():
    "They go on after the shutdown only: a job that waited for one of them, or a shutdown, would never end."
    go_on = threading.Event()

    async def scene():
        hang = asyncio.Event()
        manager = make(event_broadcaster=Broadcaster(hang.wait), resource_manager=Resources(lambda: go_on.wait(600)))
        await a_day(manager)
        await manager.shutdown()

    try:
        run(scene())
    finally:
        go_on.set()


def test_a_registry_that_hangs_delays_no_other_plugin():
    answers, hanging = threading.Event(), {"count"}

    class Hanging(Registry):
        def get_plugin(self, unique_id):
            assert unique_id not in hanging or answers.wait(120)
            return Metadata(unique_id)

    async def scene():
        async with make(plugin_registry=Hanging()) as manager, Ticker() as ticker:
            waiting = asyncio.create_task(manager.start_job("count", n=5))  # nothing is known of it yet
            echo = await manager.wait((await manager.start_job("echo")).id, 120)
            hanging.add("echo")  # from now on it runs with what is known
            again = await manager.wait((await manager.start_job("echo")).id, 120)
            assert (str(echo.status), str(again.status), waiting.done()) == ("completed", "completed", False)
            answers.set()
            assert str((await manager.wait((await waiting).id, 120)).status) == "completed"
        assert ticker.gap < 0.1, "the event loop waited for the registry"

    run(scene())
