"""A caller that is cancelled while its job is written leaves no job behind that nobody can end."""

import asyncio
import threading

import pytest
from harness import run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.extensions.stores import JobFilter
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


def double(n):
    return 2 * n


class ToldStore(SQLiteJobStore):
    "Says when a new job is committed, and can wait before that."

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.began, self.committed, self.gate = threading.Event(), threading.Event(), threading.Event()
        self.gate.set()

    def write(self, owner, changes, told=()):
        is_new = any(not was for _, was in changes)
        if is_new:
            self.began.set()
            assert self.gate.wait(120)
        refused = super().write(owner, changes, told)
        if is_new:
            self.committed.set()
        return refused


def an_app(folder, durability="committed", **config):
    store = ToldStore(folder / "jobs.db", durability=durability)
    return BaseJobManager("left", plugins={"double": double}, job_store=store, worker_config=WorkerConfig(**config))


async def turns_until(event):
    "Let the loop turn until something has happened in a thread; no turn comes after that."
    while not event.is_set():  # noqa: ASYNC110  - each turn matters
        await asyncio.sleep(0)


def statuses(manager):
    return sorted(job.status for job in manager.job_store.list_jobs(JobFilter(worker_type="left"), limit=1000).jobs)


@pytest.mark.parametrize("key", [None, "one of its kind"])
@pytest.mark.parametrize("durability", ["committed", "behind"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("moment", ["during the commit", "after the commit"])
def test_a_submit_that_is_cancelled_leaves_no_job_and_frees_its_key(tmp_path, key, durability, workers, moment):
    if durability == "behind" and key is None:
        pytest.skip("nothing is waited for")

    async def play():
        async with an_app(tmp_path, durability, max_workers=workers) as manager:
            store = manager.job_store
            if workers:
                await manager.run(
                    "double", n=0
                )  # its worker is idle: the row of the next job says at once that it runs
            store.began.clear()
            store.committed.clear()
            if moment == "during the commit":
                store.gate.clear()
            submit = asyncio.create_task(manager.submit_job("double", {"n": 1}, key=key))
            await turns_until(store.began if moment == "during the commit" else store.committed)
            submit.cancel()
            await asyncio.wait([submit])
            assert submit.cancelled()
            store.gate.set()
            async with asyncio.timeout(120):
                while (found := statuses(manager)) != ["cancelled"] + ["completed"] * workers:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                    assert "failed" not in found
            # The manager hears of the commit a moment later, and until then the key is in use.
            await until(lambda: all(job.status.is_final for job in manager.get_all_jobs()))
            if workers:
                job = await manager.submit_job("double", {"n": 2}, key=key)
                assert (await manager.wait(job, 120)).result == 4
            await until(lambda: all(job.status.is_final for job in manager.get_all_jobs()))

    run(play())


def test_cancels_in_every_moment_leave_no_job(tmp_path):
    async def play():
        async with an_app(tmp_path, max_workers=1) as manager:
            await manager.run("double", n=0)
            kept = 1

            async def submit(turns):
                nonlocal kept
                job = asyncio.create_task(manager.submit_job("double", {"n": turns}))
                for _ in range(turns):
                    await asyncio.sleep(0)
                job.cancel()
                await asyncio.wait([job])
                kept += not job.cancelled()

            for turns in range(150):
                await submit(turns)
            async with asyncio.timeout(120):
                while not {"completed", "cancelled"}.issuperset(found := statuses(manager)):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert found.count("completed") == kept

    run(play())


def test_a_submit_that_is_cancelled_during_a_shutdown_leaves_no_job_for_the_next_life(tmp_path):
    async def play():
        async with an_app(tmp_path, max_workers=1) as manager:
            store = manager.job_store
            store.gate.clear()
            submit = asyncio.create_task(manager.submit_job("double", {"n": 1}))
            await turns_until(store.began)
            closing = asyncio.create_task(manager.shutdown())
            await asyncio.sleep(0)
            submit.cancel()
            await asyncio.wait([submit])
            store.gate.set()
            await closing
            assert submit.cancelled() and statuses(manager) == ["cancelled"]

    run(play())
