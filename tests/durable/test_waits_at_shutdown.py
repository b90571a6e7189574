"""Whoever waits for a job that stays in the store is told so, whenever the shutdown comes."""

import asyncio

import pytest
from harness import run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import JobFailed, ManagerClosed, StoreFailed
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


def wait_for_file(path):
    import pathlib
    import time

    while not pathlib.Path(path).exists():
        time.sleep(0.005)


def double(n):
    return 2 * n


class AwayStore(SQLiteJobStore):
    away = False

    def write(self, owner, changes, told=()):
        if self.away:
            raise StoreFailed("the store is away")
        return super().write(owner, changes, told)


def an_app(folder, worker_type="waits", store=SQLiteJobStore, durability="committed", **config):
    plugins = {"wait_for_file": wait_for_file, "double": double}
    return BaseJobManager(
        worker_type, plugins=plugins, job_store=store(folder / "jobs.db", durability=durability),
        worker_config=WorkerConfig(**{"max_workers": 1, "shutdown_timeout_seconds": 5.0} | config),
    )  # fmt: skip


@pytest.mark.parametrize("durability", ["committed", "behind"])
@pytest.mark.parametrize("drain", [False, True])
def test_nobody_hangs_whose_run_meets_a_shutdown(tmp_path, durability, drain):
    async def play():
        for turns in range(0, 40, 4):
            folder = tmp_path / str(turns)
            folder.mkdir()
            manager = await an_app(folder, durability=durability).__aenter__()
            runs = [asyncio.create_task(manager.run("double", n=n)) for n in range(20)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await manager.shutdown(drain=drain)
            async with asyncio.timeout(120):
                ends = await asyncio.gather(*runs, return_exceptions=True)
            assert all(isinstance(end, int | JobFailed | ManagerClosed) for end in ends), ends

    run(play())


def test_a_job_that_stays_has_no_end_for_a_group(tmp_path):
    async def read(jobs, found):
        async for job in jobs:
            assert job.status.is_final
            found.append(job.status)

    async def play():
        async with an_app(tmp_path) as manager:
            go = str(tmp_path / "go")
            jobs = [await manager.start_job("wait_for_file", path=go) for _ in range(3)]
            await until(lambda: jobs[0].status == "running")
            of_these, of_many = [], []
            many = manager.submit_many("wait_for_file", [{"path": go}] * 3)
            reads = [
                asyncio.create_task(read(manager.as_completed(jobs), of_these)),
                asyncio.create_task(read(many, of_many)),
            ]
            await until(lambda: len(manager.get_all_jobs()) == 6)
            await manager.shutdown()
            async with asyncio.timeout(120):
                ends = await asyncio.gather(*reads, return_exceptions=True)
            assert [type(end) for end in ends] == [ManagerClosed, ManagerClosed]
            assert (of_these, of_many) == (["cancelled"], [])
            with pytest.raises(ManagerClosed, match="the job stays in the store"):
                await manager.wait(jobs[2])
            assert [chunk async for chunk in manager.stream(jobs[2])] == []

    run(play())


def test_during_a_drain_nobody_waits_for_a_job_of_others(tmp_path):
    async def play():
        go = tmp_path / "go"
        async with an_app(tmp_path, max_workers=0) as web, an_app(tmp_path) as manager:
            busy = await manager.start_job("wait_for_file", path=str(go))
            await until(lambda: busy.status == "running")
            later = await web.submit_job("double", {"n": 1}, delay_seconds=600)
            closing = asyncio.create_task(manager.shutdown(drain=True))
            await asyncio.sleep(0)
            for call in (manager.wait(later.id), manager.cancel_job(later.id)):
                with pytest.raises(ManagerClosed, match=f"job {later.id}: .* the job stays in the store"):
                    await asyncio.wait_for(call, 120)
            go.touch()
            await closing
            assert busy.status == "completed"

    run(play())


def test_an_end_that_the_store_does_not_take_in_time_keeps_nobody(tmp_path):
    async def play():
        go = tmp_path / "go"
        manager = await an_app(tmp_path, store=AwayStore, shutdown_timeout_seconds=1.0).__aenter__()
        job = await manager.start_job("wait_for_file", path=str(go))
        await until(lambda: job.status == "running")
        waits = asyncio.create_task(manager.wait(job))
        await asyncio.sleep(0)
        manager.job_store.away = True
        go.touch()
        await until(lambda: manager.store_trouble is not None)
        await manager.shutdown()
        with pytest.raises(
            ManagerClosed, match="it has ended, and the manager was shut down before the store had its end"
        ):
            await asyncio.wait_for(waits, 120)

    run(play())
