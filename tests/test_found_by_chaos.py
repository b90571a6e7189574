"""Faults that the chaos driver has found, one scene each."""

from __future__ import annotations

import threading
import time

from harness import Ticker, run, targets, until

from cjm_worker_ext import BaseJobManager


class Recorder:
    def __init__(self):
        self.events = []

    async def broadcast(self, event_type, data):
        self.events.append((event_type, data))


def test_chunks_that_come_after_an_interrupt_are_not_told_under_wrong_positions():
    async def scene():
        bus = Recorder()
        async with BaseJobManager("found", plugins=targets("count"), event_broadcaster=bus) as manager:
            for _ in range(5):
                job = await manager.start_job("count", n=5000, pad=500)
                async for _chunk in manager.stream(job.id):
                    break
                time.sleep(0.03)  # noqa: ASYNC251  - what the worker has yielded meanwhile comes after the interrupt
                await manager.cancel_job(job.id)
        for job_id in {data["job_id"] for kind, data in bus.events if kind == "job:chunk"}:
            position = 0
            for kind, data in bus.events:
                if kind == "job:chunk" and data["job_id"] == job_id:
                    assert data["index"] == position + data.get("dropped", 0), (data["index"], position)
                    assert data["chunks"][0][0] == data["index"]
                    position = data["index"] + len(data["chunks"])

    run(scene())


def test_a_drain_that_runs_out_of_time_cancels_what_is_left():
    async def scene():
        async with BaseJobManager("found", plugins=targets("sleep")) as manager:
            job = await manager.start_job("sleep", seconds=60.0)
            await until(lambda: job.status == "running")
            await manager.shutdown(timeout=0.3, drain=True)
            assert (job.status, job.error) == ("cancelled", "the manager was shut down"), job

    run(scene())


class Registry:
    "Answers at once, and hangs later."

    def __init__(self):
        self.hangs = False

    def get_plugins_by_category(self, category):
        return []

    def get_plugin(self, plugin_id):
        if self.hangs:
            threading.Event().wait(0.8)
        return {"name": plugin_id}

    def load_plugin_config(self, plugin_id):
        return {}


def test_a_registry_that_was_fast_never_holds_the_loop():
    async def scene():
        registry = Registry()
        async with BaseJobManager("found", plugins=targets("echo"), plugin_registry=registry) as manager:
            for n in range(5):
                await manager.wait((await manager.start_job("echo", value=n)).id, 120)
            registry.hangs = True
            async with Ticker() as ticker:
                await manager.wait((await manager.start_job("echo")).id, 120)
            assert ticker.gap < 0.5, f"the loop stood still for {ticker.gap:.2f} s"

    run(scene())
