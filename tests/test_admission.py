"""`MemoryAdmission` under load: never too much, always in order, with real processes that fill real memory."""

import asyncio
import random
import sys
import time

import pytest

from cjm_worker_ext.integrations import resources as resources_module
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.resources_admission import Demand, MemoryAdmission
from cjm_worker_ext.integrations.resources_limits import MemoryRoom
from cjm_worker_ext.jobs import BaseJob, JobStatus, utc_now

MIB = 1024**2
LIMIT = 400 * MIB


class Machine:
    "Memory as it would be if only the jobs of a test used it."

    def __init__(self, monkeypatch):
        self.used = 0
        monkeypatch.setattr(resources_module, "_memory_room", self.room)

    def room(self) -> MemoryRoom:
        return MemoryRoom(LIMIT, LIMIT - self.used, "test", "test")


def finish(job: BaseJob) -> None:
    job.completed_at = utc_now()
    job.status = JobStatus.COMPLETED


def needs(job: BaseJob) -> Demand:
    return Demand(job.params["bytes"])


@pytest.mark.parametrize("seed", range(5))
def test_many_jobs_at_once_never_take_more_than_there_is_and_start_in_order(monkeypatch, seed):
    chance, machine = random.Random(seed), Machine(monkeypatch)
    resources = ProcessResourceManager(interval_seconds=0.005)
    admission = MemoryAdmission(resources, needs)
    jobs = [BaseJob("fill", {"bytes": chance.randint(1, 200) * MIB}) for _ in range(60)]
    started, running = [], {}

    async def run(job: BaseJob) -> None:
        assert await admission.validate_resources(job) is None
        started.append(job)
        running[job.id] = job.params["bytes"]
        assert sum(running.values()) <= LIMIT
        await asyncio.sleep(chance.random() * 0.01)  # loading: its memory does not show yet
        machine.used += job.params["bytes"]
        await asyncio.sleep(chance.random() * 0.01)
        machine.used -= job.params["bytes"]
        del running[job.id]
        finish(job)

    async def main() -> None:
        async with asyncio.timeout(120):
            await asyncio.gather(*(run(job) for job in jobs))

    asyncio.run(main())
    resources.close()
    assert started == jobs
    assert machine.used == 0


def test_waiting_jobs_cost_no_more_looks_than_the_interval_allows(monkeypatch):
    machine = Machine(monkeypatch)
    machine.used = LIMIT
    resources = ProcessResourceManager(interval_seconds=0.1)
    admission = MemoryAdmission(resources, needs, timeout_seconds=0.5)

    async def main() -> list[str | None]:
        jobs = [BaseJob("fill", {"bytes": MIB}, id=f"j{n}") for n in range(100)]
        return await asyncio.gather(*(admission.validate_resources(job) for job in jobs))

    began = time.monotonic()
    reasons = asyncio.run(main())
    assert len(resources.history()) <= 2 + (time.monotonic() - began) / 0.1
    assert all("(waited 0.5 s)" in reason for reason in reasons)
    resources.close()
    assert not resources._sampler.running


def test_the_sampler_ends_with_the_loop(monkeypatch):
    Machine(monkeypatch)
    resources = ProcessResourceManager(interval_seconds=0.01)
    admission = MemoryAdmission(resources, needs)

    async def main() -> None:
        assert await admission.validate_resources(BaseJob("fill", {"bytes": MIB})) is None
        assert resources._sampler.running  # the job has not been seen on a worker

    asyncio.run(main())  # and now its loop is gone
    deadline = time.monotonic() + 120
    while resources._sampler.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not resources._sampler.running
    resources.close()


FILL = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    block = bytearray(int(line))
    block[::4096] = b"x" * len(block[::4096])
    print("full", flush=True)
    sys.stdin.readline()
    del block
    print("empty", flush=True)
"""


class Worker:
    "A real process that does one job after another, and is reported as a manager would report it."

    @classmethod
    async def start(cls, resources: ProcessResourceManager) -> "Worker":
        self = cls()
        self.resources = resources
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", FILL, stdin=pipe, stdout=pipe, start_new_session=True
        )
        await self.process.stdout.readline()
        resources.register_worker(self.process.pid, "test")
        return self

    async def tell(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdout.readline()

    async def run(self, job: BaseJob) -> None:
        pid = self.process.pid
        self.resources.update_worker_state(pid, job_id=job.id, plugin_id=job.plugin_id, status="running")
        await self.tell(str(job.params["bytes"]))
        await asyncio.sleep(0.03)
        await self.tell("done")
        finish(job)
        self.resources.update_worker_state(pid, job_id=None, status="idle")

    async def end(self) -> None:
        self.process.kill()
        await self.process.wait()
        self.resources.unregister_worker(self.process.pid)


def test_real_processes_stay_below_the_limit(monkeypatch):
    resources = ProcessResourceManager(interval_seconds=0.02)

    def used() -> int:
        return sum(row.rss_bytes or 0 for row in resources._records.rows())

    monkeypatch.setattr(resources_module, "_memory_room", lambda: MemoryRoom(LIMIT, LIMIT - used(), "test", "test"))
    admission = MemoryAdmission(resources, needs)
    peak = 0

    def watch(snapshot) -> None:
        nonlocal peak
        peak = max(peak, sum(row.rss_bytes or 0 for row in snapshot.workers))

    async def main() -> None:
        idle = [await Worker.start(resources) for _ in range(4)]
        workers = list(idle)

        async def do(job: BaseJob) -> None:
            assert await admission.validate_resources(job) is None
            worker = idle.pop()
            await worker.run(job)
            idle.append(worker)

        with resources.sampling(watch):
            async with asyncio.timeout(120):
                await asyncio.gather(*(do(BaseJob("fill", {"bytes": 110 * MIB})) for _ in range(12)))
        for worker in workers:
            await worker.end()

    asyncio.run(main())
    resources.close()
    assert 110 * MIB < peak <= LIMIT
