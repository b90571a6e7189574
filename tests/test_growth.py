"""Nothing grows: memory with jobs, threads and descriptors with cancels and crashes."""

from __future__ import annotations

import gc
import os
import tracemalloc

from harness import holdings, run, targets, until

from cjm_worker_ext import BaseJobManager, WorkerConfig


def make(*names: str, **config) -> BaseJobManager:
    return BaseJobManager("growth", "tests", plugins=targets(*names, "echo"), worker_config=WorkerConfig(**config))


def test_20000_tiny_jobs():
    async def scene():
        async with make("tiny", max_finished_jobs=100) as manager:

            async def many(count: int) -> int:
                for start in range(0, count, 500):
                    jobs = [await manager.start_job("tiny", n=n) for n in range(start, start + 500)]
                    await manager.wait(jobs[-1].id, 120)
                    assert jobs[0].result == start
                del jobs
                gc.collect()
                return tracemalloc.get_traced_memory()[0]

            await many(1000)
            tracemalloc.start(1)
            try:
                before = await many(500)
                after = await many(2000)
                assert after - before < 200_000, f"{after - before:,} bytes more after 2,000 jobs"
            finally:
                tracemalloc.stop()
            await many(17_000)
            assert len(manager.get_all_jobs()) == 100

    run(scene())


def test_50_cancels_and_50_crashes():
    async def scene():
        async with make("spin", "kill_self", max_workers=2, max_finished_jobs=10, hold_after_crashes=0) as manager:

            async def days(count: int) -> tuple[int, int]:
                for _ in range(count):
                    crash, spin = await manager.start_job("kill_self"), await manager.start_job("spin")
                    await until(lambda spin=spin: spin.status == "running")
                    assert await manager.cancel_job(spin.id)
                    assert (await manager.wait(crash.id, 120)).error_type == "WorkerCrashed"
                await manager.wait((await manager.start_job("echo")).id, 120)
                return holdings()

            before = await days(3)
            after = await days(50)
            assert after[0] <= before[0] + 8 and after[1] <= before[1], (before, after)

    run(scene())


def test_a_crash_is_noticed_beyond_descriptor_1023():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:

        async def scene():
            async with make("kill_self") as manager:
                job = await manager.wait((await manager.start_job("kill_self")).id, 120)
                assert job.error_type == "WorkerCrashed"

        run(scene())
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_uploads_and_results_are_bounded_in_bytes():
    async def scene():
        config = WorkerConfig(max_finished_bytes=20 << 20)
        plugins = {"double": lambda scan: scan + scan}
        async with BaseJobManager("growth", plugins=plugins, worker_config=config) as manager:
            for _ in range(30):
                job = await manager.wait((await manager.start_job("double", scan=bytes(1 << 20))).id, 30)
                assert len(job.result) == 2 << 20, job.error
            jobs = manager.get_all_jobs()
            kept = sum(len(job.result) + len(job.params.get("scan", b"")) for job in jobs)
            assert jobs[-1].id == job.id and kept <= 20 << 20 and len(jobs) >= 9

    run(scene())


def test_a_job_says_that_its_stream_lost_its_beginning():
    def count(n):
        yield from range(n)

    async def scene():
        config = WorkerConfig(max_buffered_chunks=100)
        async with BaseJobManager("growth", plugins={"count": count}, worker_config=config) as manager:
            job = await manager.wait((await manager.start_job("count", n=5000)).id, 120)
            assert job.chunks_dropped == 5000 - len(job.result) > 0 and job.result[-1] == 4999

    run(scene())
