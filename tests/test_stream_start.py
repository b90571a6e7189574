"""Reading a job's chunks from a position on: while it runs, after its end, and where the chunks are gone."""

from __future__ import annotations

import asyncio

import pytest
from harness import run, targets, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import StreamGap


def make(**config) -> BaseJobManager:
    settings = WorkerConfig(cancel_grace_seconds=0.2, **config)
    return BaseJobManager("streams", plugins=targets("count", "count_slowly", "sleep"), worker_config=settings)


async def take(stream, count: int) -> list:
    taken = [await anext(stream) for _ in range(count)]
    await stream.aclose()
    return taken


async def read_all(stream) -> list:
    return [chunk async for chunk in stream]


def test_a_reader_that_left_continues_while_the_job_runs():
    async def scene():
        async with make() as manager:
            job = await manager.start_job("count_slowly")
            assert await take(manager.stream(job.id), 3) == [0, 1, 2]
            assert await take(manager.stream(job.id, start=3), 2) == [3, 4]
            assert await take(manager.stream(job.id, 2), 3) == [2, 3, 4]
            assert not job.status.is_final

    run(scene())


def test_a_position_that_is_still_to_come_is_waited_for():
    async def scene():
        async with make() as manager:
            blocker = await manager.start_job("sleep", seconds=600)
            job = await manager.start_job("count_slowly")  # pending: there is no chunk at all
            ahead = asyncio.create_task(take(manager.stream(job.id, 5), 1))
            await until(lambda: blocker.status == "running")
            assert not ahead.done()
            await manager.cancel_job(blocker.id)
            assert await ahead == [5]
            beyond = asyncio.create_task(read_all(manager.stream(job.id, 10**9)))
            await until(lambda: len(manager.get_job_chunks(job.id)[1]) > 5)
            assert not beyond.done()
            await manager.cancel_job(job.id)
            assert await beyond == [] == await read_all(manager.stream(job.id, 10**9))

    run(scene())


def test_every_position_of_a_job_that_has_ended():
    async def scene():
        async with make(max_buffered_chunks=10) as manager:
            job = await manager.wait((await manager.start_job("count", n=30)).id, 120)
            first, kept = manager.get_job_chunks(job.id)
            assert kept == list(range(first, 30)) and first >= 10
            for start in range(first):
                with pytest.raises(
                    StreamGap, match=f"the first {first} of 30 chunks were dropped, .* start at {first}"
                ):
                    manager.stream(job.id, start)
            for start in range(first, 40):
                assert await read_all(manager.stream(job.id, start)) == list(range(start, 30))

    run(scene())
