"The soak itself: submits, checks, and looks at memory."

from __future__ import annotations

import asyncio
import random
import time

import psutil

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.policies import Recycle

MIB = 1 << 20
LEAK_KIB = 1024  # What a job leaks
ROOM = (
    8 * MIB
)  # What a worker may have over its limit: the leak of the job after which it is looked at, and its buffers
GROWTH = 48 * MIB  # What the app may have more than after its first jobs


class Soak:
    "Runs jobs that leak on two workers; `problems` says what went wrong."

    def __init__(self, seconds: float, say=print) -> None:
        self.seconds, self.say = seconds, say
        self.limit = 160 * MIB  # Of a worker
        self.problems: list[str] = []
        self.jobs = 0
        self.pids: set[int] = set()  # Of workers that have run jobs
        self.most = self.first = self.last = 0  # Resident bytes: of a worker, and of the app at first and at last
        self.most_descriptors = 0

    async def run(self) -> None:
        config = WorkerConfig(max_workers=2, standby_workers=1, max_finished_jobs=100)
        manager = BaseJobManager(
            "soak",
            plugins={"leak": "soak_plugins:leak"},
            worker_config=config,
            recycle=Recycle(max_rss_bytes=self.limit),
        )
        end, told_at = time.monotonic() + self.seconds, time.monotonic()
        async with manager:
            submits = asyncio.create_task(self._submit(manager, end))
            while not submits.done():
                self._look(manager)
                if time.monotonic() - told_at > 60:
                    told_at = time.monotonic()
                    self.say(self.summary())
                await asyncio.wait([submits], timeout=0.2)
            submits.result()
        if self.last > self.first + GROWTH:
            self.problems.append(f"the app grew from {self.first / MIB:.0f} to {self.last / MIB:.0f} MiB")

    async def _submit(self, manager: BaseJobManager, end: float) -> None:
        async def user(seed: int) -> None:
            rng = random.Random(seed)
            while time.monotonic() < end:
                self.jobs += 1
                number = self.jobs
                job = await manager.start_job("leak", number=number, kib=LEAK_KIB, seconds=rng.choice([0, 0.002, 0.02]))
                job = await manager.wait(job.id, 60)
                if job.result != number * 3:
                    self.problems.append(f"job {job.id}: {job.status}, {job.result!r}, {job.error}")
                self.pids.add(job.worker_pid)

        await asyncio.gather(*(user(seed) for seed in range(4)))

    def _look(self, manager: BaseJobManager) -> None:
        for info in manager.workers():
            try:
                resident = psutil.Process(info.pid).memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.most = max(self.most, resident)
            if resident > self.limit + ROOM:
                self.problems.append(f"worker {info.pid} has {resident / MIB:.0f} MiB")
        app = psutil.Process()
        self.last = app.memory_info().rss
        self.most_descriptors = max(self.most_descriptors, app.num_fds())
        if self.jobs > 200 and not self.first:
            self.first = self.last

    def summary(self) -> str:
        return (
            f"{self.jobs:,} jobs on {len(self.pids):,} workers, {len(self.problems)} problems; a worker had {self.most / MIB:.0f} MiB "
            f"at most (limit {self.limit / MIB:.0f}), the app {self.first / MIB:.0f} MiB at first and {self.last / MIB:.0f} "
            f"at last, {self.most_descriptors} descriptors at most" + "".join(f"\n  {p}" for p in self.problems[:20])
        )
