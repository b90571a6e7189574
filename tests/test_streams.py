"""Streams: readers that are slow, late, many, or leave, and jobs that end in the middle."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest
from harness import is_alive, let_pass, run, targets, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import StreamGap

NAMES = (
    "count",
    "count_and_log",
    "count_slowly",
    "count_then_fail",
    "count_then_crash",
    "echo",
    "Counted",
    "progress_then",
)


def make(**config) -> BaseJobManager:
    return BaseJobManager("streams", "tests", plugins=targets(*NAMES), worker_config=WorkerConfig(**config))


async def collect(chunks) -> list:
    return [chunk async for chunk in chunks]


def test_all_chunks_in_order_for_every_reader():
    async def scene():
        async with make() as manager:
            job = await manager.start_job("count", n=5000)
            first, second = await asyncio.gather(*(collect(manager.stream(job.id)) for _ in range(2)))
            late = await collect(manager.stream(job.id))
            assert first == second == late == list(range(5000)) == job.result

    run(scene())


def lines_in(path: str) -> int:
    return Path(path).read_text().count("\n") if os.path.exists(path) else 0


async def standstill(path: str) -> int:
    "Wait until the plugin makes no more progress; the lines that it has written."
    before = -1
    while (now := lines_in(path)) != before or not now:
        before = now
        await asyncio.sleep(0.3)
    return now


def test_a_slow_reader_pauses_the_plugin(tmp_path):
    async def scene():
        path = str(tmp_path / "log")
        async with make(max_buffered_chunks=100) as manager:
            job = await manager.start_job("count_and_log", n=20_000, path=path)
            chunks = manager.stream(job.id)
            assert (await anext(chunks))[0] == 0
            written = await standstill(path)
            assert written < 10_000 and job.status == "running", (
                f"{written} chunks were made for a reader that took one"
            )
            rest = await collect(chunks)
            assert [n for n, _ in rest] == list(range(1, 20_000))
            assert (await manager.wait(job.id, 120)).status == "completed"

    run(scene())


def test_a_reader_that_leaves_lets_the_plugin_go_on(tmp_path):
    async def scene():
        path = str(tmp_path / "log")
        async with make(max_buffered_chunks=100) as manager:
            job = await manager.start_job("count_and_log", n=20_000, path=path)
            async for _ in manager.stream(job.id):
                await standstill(path)
                break
            assert (await manager.wait(job.id, 120)).status == "completed"

    run(scene())


def test_a_reader_whose_task_is_cancelled_lets_the_plugin_go_on(tmp_path):
    async def scene():
        async with make(max_buffered_chunks=100) as manager:
            job = await manager.start_job("count_and_log", n=20_000, path=str(tmp_path / "log"))

            async def read_slowly():
                async for _ in manager.stream(job.id):
                    await asyncio.sleep(60)

            reader = asyncio.create_task(read_slowly())
            await standstill(str(tmp_path / "log"))
            reader.cancel()
            assert (await manager.wait(job.id, 120)).status == "completed"

    run(scene())


def test_a_stream_that_nobody_ever_reads_is_no_reader(tmp_path):
    async def scene():
        async with make(max_buffered_chunks=100) as manager:
            job = await manager.start_job("count_and_log", n=20_000, path=str(tmp_path / "log"))
            manager.stream(job.id)  # for example a response whose client went before it began
            gc.collect()
            assert (await manager.wait(job.id, 120)).status == "completed"

    run(scene())


def test_a_late_reader_learns_of_the_gap():
    async def scene():
        async with make(max_buffered_chunks=50) as manager:
            job = await manager.wait((await manager.start_job("count", n=200)).id, 120)
            with pytest.raises(StreamGap, match="the first 150 of 200 chunks .*max_buffered_chunks"):
                manager.stream(job.id)
            assert job.result == list(range(150, 200))

    run(scene())


@pytest.mark.parametrize("plugin_id,error", [("count_then_fail", "ValueError"), ("count_then_crash", "WorkerCrashed")])
def test_the_end_of_the_job_is_the_end_of_the_stream(plugin_id, error):
    async def scene():
        async with make() as manager:
            job = await manager.start_job(plugin_id, n=10)
            assert await collect(manager.stream(job.id)) == list(range(10))
            assert job.status == "failed" and job.error_type == error

    run(scene())


def test_cancel_in_the_middle_of_a_stream():
    async def scene():
        async with make(cancel_grace_seconds=30) as manager:
            job = await manager.start_job("count_slowly")
            got = []
            async for chunk in manager.stream(job.id):
                got.append(chunk)
                if chunk == 5:
                    assert await manager.cancel_job(job.id)
            assert got == list(range(len(got))) and len(got) >= 6 and is_alive(job.worker_pid)

    run(scene())


def test_cancel_of_a_stream_that_is_paused_keeps_the_worker(tmp_path):
    async def scene():
        path = str(tmp_path / "log")
        async with make(max_buffered_chunks=100, cancel_grace_seconds=15) as manager:
            before = await manager.wait((await manager.start_job("Counted")).id, 120)
            job = await manager.start_job("count_and_log", n=20_000, path=path)
            chunks = manager.stream(job.id)
            await anext(chunks)
            await standstill(path)
            assert await asyncio.wait_for(manager.cancel_job(job.id), 120)
            after = await manager.wait((await manager.start_job("Counted")).id, 120)
            assert before.result == after.result, "the worker was killed, though its plugin listens"
            assert len(await collect(chunks)) < 20_000

    run(scene())


@pytest.mark.parametrize("n", [50, 101, 150, 300, 1000])
def test_a_slow_reader_of_an_ended_job_holds_nobody_up(n):
    async def scene():
        async with make(max_buffered_chunks=100, reader_timeout_seconds=None) as manager:
            await manager.wait((await manager.start_job("echo")).id, 120)
            job = await manager.start_job("count", n=n)
            chunks = manager.stream(job.id)
            got = [await anext(chunks)]
            await until(lambda: job.status.is_final or log_of(manager, job)._paused, what="the end or a pause")
            if n <= 100 or job.status.is_final:
                new = await manager.start_job("echo", value="new")
                assert (await manager.wait(new.id, 120)).result == "new"
            got += await collect(chunks)
            assert got == list(range(n))
            new = await manager.start_job("echo", value="newer")
            assert (await manager.wait(new.id, 120)).result == "newer"

    run(scene())


def test_shutdown_ends_every_stream():
    async def scene():
        manager = make()
        job = await manager.start_job("count_slowly")
        queued = await manager.start_job("count", n=3)
        readers = [asyncio.create_task(collect(manager.stream(j.id))) for j in (job, job, queued)]
        await until(lambda: job.status == "running")
        await manager.shutdown()
        first, second, third = await asyncio.wait_for(asyncio.gather(*readers), 5)
        assert first == second and third == []

    run(scene())


def test_progress_arrives_rising_and_ends_at_one():
    async def scene():
        async with make() as manager:
            job = await manager.start_job("progress_then", n=50)
            seen = []

            async def watch():
                while not job.status.is_final:
                    if job.progress is not None and (not seen or seen[-1] != job.progress):
                        seen.append(job.progress)
                    await asyncio.sleep(0.001)

            await asyncio.gather(watch(), manager.wait(job.id, 120))
            assert seen == sorted(seen) and len(seen) > 3 and job.progress == 1.0 and job.progress_message == "step 50"

    run(scene())


# readers that stop


def log_of(manager: BaseJobManager, job):
    return manager._engine.jobs.find(job.id).chunks


async def paused_by_a_reader(manager: BaseJobManager, n: int = 20_000, path: str = os.devnull):
    "A job that waits for its reader, and the reader, which has read one chunk."
    job = await manager.start_job("count_and_log", n=n, path=path)
    chunks = manager.stream(job.id)
    assert (await anext(chunks))[0] == 0
    await until(lambda: log_of(manager, job)._paused, what="a pause")
    return job, chunks


def test_a_reader_that_stops_holds_the_job_up_for_a_bounded_time():
    async def scene():
        async with make(max_buffered_chunks=100, reader_timeout_seconds=0.2) as manager:
            job = await manager.start_job("count_and_log", n=20_000, path=os.devnull)
            chunks = manager.stream(job.id)  # the variable holds it, whatever the loop does
            async for _ in chunks:
                break
            waiting = asyncio.create_task(manager.wait(job.id, 120))  # another task: it may wait while this one reads
            assert (await waiting).status == "completed" and job.chunks_dropped > 0
            got = [0]
            with pytest.raises(StreamGap, match=r"were dropped while their reader did not ask .*reader_timeout_secon"):
                async for n, _ in chunks:
                    got.append(n)
            assert got == list(range(len(got))) and len(got) <= job.chunks_dropped
            first, kept = manager.get_job_chunks(job.id)
            assert await collect(manager.stream(job.id, first)) == kept

    run(scene())


def test_a_stream_that_a_variable_holds_unread_holds_the_job_up_for_a_bounded_time():
    async def scene():
        async with make(max_buffered_chunks=100, reader_timeout_seconds=0.2) as manager:
            job = await manager.start_job("count_and_log", n=20_000, path=os.devnull)
            chunks = manager.stream(job.id)
            assert (await asyncio.create_task(manager.wait(job.id, 120))).status == "completed"
            with pytest.raises(StreamGap, match="chunks 0 to "):
                await anext(chunks)

    run(scene())


@pytest.mark.parametrize("read", [0, 1])
def test_a_wait_does_not_wait_for_a_stream_of_its_own_task(read):
    async def scene():
        async with make(max_buffered_chunks=100, reader_timeout_seconds=None) as manager:
            job = await manager.start_job("count_and_log", n=20_000, path=os.devnull)
            chunks = manager.stream(job.id)
            for _ in range(read):
                await anext(chunks)
            assert (await manager.wait(job.id, 120)).status == "completed"
            with pytest.raises(StreamGap):
                await collect(chunks)

    run(scene())


def test_a_wait_in_another_task_leaves_the_reader_its_chunks():
    async def scene():
        async with make(max_buffered_chunks=100, reader_timeout_seconds=None) as manager:
            job, chunks = await paused_by_a_reader(manager)
            waiting = asyncio.create_task(manager.wait(job.id))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.5)
            assert [n for n, _ in await collect(chunks)] == list(range(1, 20_000))
            assert (await waiting).status == "completed"

    run(scene())


def test_a_drain_does_not_wait_for_a_stream_of_its_own_task():
    async def scene():
        manager = make(max_buffered_chunks=100, reader_timeout_seconds=None)
        job, _chunks = await paused_by_a_reader(manager)
        await manager.shutdown(120, drain=True)
        assert job.status == "completed"

    run(scene())


def test_a_slow_reader_that_still_asks_loses_nothing():
    async def scene():
        async with make(max_buffered_chunks=100, reader_timeout_seconds=60) as manager:
            job, chunks = await paused_by_a_reader(manager)
            got = [0]
            for _ in range(30):  # longer than the limit in all, but each chunk much shorter
                let_pass(10)
                await asyncio.sleep(0)
                got.append((await anext(chunks))[0])
            await until(lambda: log_of(manager, job)._paused, what="the next pause")
            assert job.status == "running"
            got += [n for n, _ in await collect(chunks)]
            assert got == list(range(20_000)) and (await manager.wait(job.id, 120)).status == "completed"

    run(scene(), 600)


def test_of_several_readers_only_the_one_that_stops_loses_chunks():
    async def scene():
        async with make(max_buffered_chunks=100, reader_timeout_seconds=0.3) as manager:
            job = await manager.start_job("count_and_log", n=20_000, path=os.devnull)
            stopped, *others = [manager.stream(job.id) for _ in range(3)]
            await anext(stopped)
            readers = [asyncio.create_task(collect(other)) for other in others]
            for chunks in await asyncio.wait_for(asyncio.gather(*readers), 120):
                assert [n for n, _ in chunks] == list(range(20_000))
            with pytest.raises(StreamGap):
                await collect(stopped)

    run(scene())


@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_a_job_whose_reader_has_stopped_can_be_ended(end):
    async def scene():
        config = {"max_buffered_chunks": 100, "reader_timeout_seconds": None, "cancel_grace_seconds": 20}
        async with make(**config, job_timeout_seconds=1.5 if end == "timeout" else None) as manager:
            job, chunks = await paused_by_a_reader(manager, n=10**9)
            if end == "cancel":
                assert await asyncio.create_task(manager.cancel_job(job.id))
            await asyncio.wait_for(asyncio.create_task(manager.wait(job.id)), 120)
            assert (job.status, job.error_type) == (
                ("cancelled", None) if end == "cancel" else ("failed", "JobTimeout")
            )
            assert is_alive(job.worker_pid), "its plugin listens, so its worker is not killed"
            rest = [n for n, _ in await collect(chunks)]
            assert rest == list(range(1, len(rest) + 1)), "what was kept is still there, without a gap"

    run(scene())
