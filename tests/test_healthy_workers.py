"""Nothing that an app does to well-behaved jobs costs a worker: thousands of random cancels, timeouts, streams and bursts.

`HEALTHY_STEPS` makes it longer, `HEALTHY_SEED` chooses another run.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from harness import run

from cjm_worker_ext import BaseJob, BaseJobManager, WorkerConfig
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

STEPS, SEED = int(os.environ.get("HEALTHY_STEPS", "400")), int(os.environ.get("HEALTHY_SEED", "1"))
NAMES = ("sleep", "count", "talk", "data", "numbers", "chunks", "length", "nap", "steps", "Batched")


class Lost:
    "A broadcaster that notes the loss of a worker."

    def __init__(self) -> None:
        self.events: list[str] = []

    async def broadcast(self, event_type: str, data: dict[str, Any]) -> None:
        if event_type in ("worker:crashed", "worker:stopped", "worker:recycled"):
            self.events.append(f"{event_type} {data}")


class Steps:
    "What an app may do at any time."

    def __init__(self, manager: BaseJobManager, dice: random.Random) -> None:
        self.manager, self.dice = manager, dice

    def some_job(self) -> tuple[str, dict[str, Any]]:
        dice = self.dice
        size = int(2 ** dice.uniform(1, 21))
        return dice.choice(
            [
                ("sleep", {"seconds": dice.uniform(0, 0.005)}),
                ("count", {"times": size // 10}),
                ("talk", {"times": dice.randrange(200)}),
                ("data", {"size": size}),
                ("numbers", {"size": size // 4}),
                ("length", {"value": bytes(size)}),
                ("nap", {"seconds": dice.uniform(0, 0.005)}),
                ("Batched", {"seconds": dice.uniform(0, 0.005)}),
            ]
        )

    async def a_moment(self) -> None:
        "Nothing, some turns of the loop, or up to 3 ms; mostly about as long as a job takes to begin."
        turns = self.dice.randrange(8)
        if turns == 7:
            await asyncio.sleep(self.dice.uniform(0, 0.003))
        for _ in range(turns):
            await asyncio.sleep(0)

    async def ends(self, job: BaseJob, *allowed: str) -> None:
        await self.manager.wait(job.id, 120)
        assert job.status in allowed and (job.status != "failed" or job.error_type == "JobTimeout"), (
            job.status,
            job.error,
            job.traceback,
        )

    async def complete(self) -> None:
        plugin_id, params = self.some_job()
        await self.ends(await self.manager.submit_job(plugin_id, params), "completed")

    async def cancel(self) -> None:
        plugin_id, params = self.some_job()
        job = await self.manager.submit_job(plugin_id, params)
        await self.a_moment()
        await self.manager.cancel_job(job.id)
        await self.ends(job, "completed", "cancelled")

    async def cancel_a_long_one(self) -> None:
        job = await self.manager.start_job(self.dice.choice(["sleep", "nap"]), seconds=600)
        await self.a_moment()
        await self.manager.cancel_job(job.id)
        await self.ends(job, "cancelled")

    async def run_out_of_time(self) -> None:
        plugin_id, params = self.dice.choice([self.some_job(), ("sleep", {"seconds": 600}), ("nap", {"seconds": 600})])
        job = await self.manager.submit_job(plugin_id, params, timeout=self.dice.uniform(0.0001, 0.005))
        await self.ends(job, "completed", "failed")

    async def stream(self) -> None:
        plugin_id, times = self.dice.choice(["chunks", "steps"]), self.dice.randrange(1, 300)
        params = {"times": times} | ({"size": int(2 ** self.dice.uniform(0, 16))} if plugin_id == "chunks" else {})
        job = await self.manager.submit_job(plugin_id, params)
        leave_after, cancels = self.dice.randrange(400), self.dice.random() < 0.5
        read = 0
        async for _ in self.manager.stream(job.id):
            read += 1
            if read > leave_after:
                break
        if cancels:
            await self.manager.cancel_job(job.id)
        await self.ends(job, "completed", "cancelled")

    async def burst(self) -> None:
        jobs = [await self.manager.submit_job(*self.some_job()) for _ in range(self.dice.randrange(30))]
        await self.a_moment()
        for job in jobs:
            if self.dice.random() < 0.4:
                await self.manager.cancel_job(job.id)
        for job in jobs:
            await self.ends(job, "completed", "cancelled")

    async def several(self) -> None:
        await asyncio.gather(*(self.one()() for _ in range(self.dice.randrange(2, 6))))

    def one(self) -> Callable[[], Awaitable[None]]:
        return self.dice.choice([self.complete, self.cancel, self.cancel_a_long_one, self.run_out_of_time, self.stream])

    def any(self) -> Callable[[], Awaitable[None]]:
        return self.dice.choice([self.one(), self.one(), self.burst, self.several])


@pytest.mark.parametrize(("workers", "durability"), [(1, None), (3, None), (1, "behind"), (2, "committed")])
def test_no_healthy_worker_is_lost(workers, durability, tmp_path):
    async def scene():
        bus = Lost()
        config = WorkerConfig(max_workers=workers, cancel_grace_seconds=40, hold_after_crashes=0)
        plugins = {name: f"healthy_plugins:{name}" for name in NAMES}
        store = durability and SQLiteJobStore(tmp_path / "jobs.db", durability=durability)
        options = {"worker_config": config, "event_broadcaster": bus, "job_store": store}
        async with BaseJobManager("healthy", plugins=plugins, **options) as manager:
            steps = Steps(manager, random.Random(SEED * 1000 + workers))
            for number in range(STEPS):
                step = steps.any()
                await step()
                assert not bus.events, f"step {number}, {step.__name__}: {bus.events}"
            pids = {worker.pid for worker in manager.workers()}
            assert len(pids) == workers

    run(scene(), seconds=max(120, STEPS))
