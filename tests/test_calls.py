"""Calls that return results: who gives one up gives up its jobs, and many items are read only as far as they are needed."""

import asyncio
import contextlib
import threading

import pytest

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import JobFailed


def manager_of(**plugins):
    return BaseJobManager("calls", plugins=plugins, worker_config=WorkerConfig(max_workers=2))


def endless(n):
    while True:
        pass


def echo(n):
    if n == 13:
        raise ValueError("unlucky")
    return n


async def have_ended(manager, count):
    "The states of the jobs, once they have all ended."
    jobs = manager.get_all_jobs()
    assert len(jobs) == count
    return [str((await manager.wait(job, 120)).status) for job in jobs]


def test_who_gives_up_a_run_gives_up_its_job():
    async def scene():
        async with manager_of(endless=endless) as manager:
            caller = asyncio.create_task(manager.run("endless", n=1))
            while not any(worker.job_id for worker in manager.workers()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            assert await have_ended(manager, 1) == ["cancelled"]

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["break", "failure", "cancel"])
def test_who_leaves_a_map_leaves_no_jobs(how):
    async def read(manager):
        items = [1, 13] if how == "failure" else [1]
        names = ["echo"] * len(items) + ["endless"] * 3
        if how == "cancel":
            names[0] = "endless"

        async def chosen(plugin, params, **options):
            return await submit(names.pop(0), params, **options)

        submit, manager.submit_job = manager.submit_job, chosen
        results = manager.map("echo", [*items, 2, 3, 4], "n")
        async with contextlib.aclosing(results):
            async for result in results:
                assert result == 1
                if how == "break":
                    break

    async def scene():
        async with manager_of(echo=echo, endless=endless) as manager:
            reader = asyncio.create_task(read(manager))
            if how == "cancel":
                while len(manager.get_all_jobs()) < 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, JobFailed):
                await reader
            states = await have_ended(manager, 5 if how == "failure" else 4)
            assert sorted(states) == sorted(
                {"break": ["completed"], "failure": ["completed", "failed"], "cancel": ["cancelled"]}[how]
                + ["cancelled"] * 3
            )

    asyncio.run(scene())


def test_a_map_reads_no_more_items_than_its_limit():
    read = []

    def items():
        for n in range(12):
            read.append(n)
            yield n

    async def scene():
        async with manager_of(echo=echo) as manager:
            seen = []
            async for result in manager.map("echo", items(), "n", limit=3):
                seen.append(result)
                assert len(read) <= len(seen) + 3
            assert seen == list(range(12))

    asyncio.run(scene())


@pytest.mark.parametrize("limit", [1, 3])
def test_many_items_without_await_in_their_order(limit):
    "Four results with errors raised take three lines, whatever the length of the items."
    threads = []

    def show(counts, total):
        for _ in counts:
            threads.append((threading.current_thread(), total))
            yield

    with manager_of(echo=echo).blocking() as manager:
        assert list(manager.map("echo", range(12), "n", limit=limit, progress=show)) == list(range(12))
        assert set(threads) == {(threading.current_thread(), 12)} and len(threads) == 13
        with pytest.raises(JobFailed, match="unlucky"):
            for _ in manager.map("echo", range(100), "n", limit=limit):
                pass
        assert len(manager.get_all_jobs()) <= 12 + 13 + limit + 1
