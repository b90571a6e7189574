"""Many jobs that are submitted to a store together are few commits, and none of them is forgotten."""

import asyncio
import threading
from contextlib import aclosing

import pytest
from harness import run, until

from cjm_worker_ext import BaseJobManager, JobStatus, WorkerConfig
from cjm_worker_ext.errors import NotSerializable
from cjm_worker_ext.extensions.stores import JobFilter
from cjm_worker_ext.stores.journal import JobJournal
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


class CountingStore(SQLiteJobStore):
    "Knows how many transactions had new jobs."

    commits_of_new = 0

    def write(self, owner, changes, told=()):
        self.commits_of_new += any(not was for _, was in changes)
        return super().write(owner, changes, told)


def an_app(folder, **config):
    return BaseJobManager(
        "groups", plugins={"double": double}, worker_config=WorkerConfig(**{"max_workers": 1} | config),
        job_store=CountingStore(folder / "jobs.db"),
    )  # fmt: skip


def double(n):
    return 2 * n


def test_many_jobs_are_few_commits(tmp_path, monkeypatch):
    # Nothing runs, and nothing is looked for, so the thread that writes has no other reason to wake up in the middle of a group
    for pause in ("POLL", "RECOVER", "PRUNE"):
        monkeypatch.setattr(JobJournal, pause, 600.0)

    async def play():
        async with an_app(tmp_path, max_workers=0) as manager:
            jobs = manager.submit_many("double", ({"n": n} for n in range(200)))
            first_end = asyncio.ensure_future(anext(jobs))
            await until(lambda: len(manager.get_all_jobs()) == 200)
            assert manager.job_store.commits_of_new == 4
            first_end.cancel()
            await asyncio.wait([first_end])

    run(play())


def test_many_jobs_keep_their_order(tmp_path):
    async def play():
        async with an_app(tmp_path) as manager:
            jobs = [job async for job in manager.submit_many("double", ({"n": n} for n in range(200)))]
            assert sorted(job.result for job in jobs) == list(range(0, 400, 2))
            rows = manager.job_store.find([job.id for job in sorted(jobs, key=lambda job: job.params["n"])])
            assert [row.rank for row in rows] == sorted(row.rank for row in rows)
            results = [n async for n in manager.map("double", range(100), "n")]
            assert results == list(range(0, 200, 2))

    run(play())


def test_a_limit_of_the_queue_holds(tmp_path):
    async def play():
        async with an_app(tmp_path, max_pending_jobs=3) as manager:
            assert [n async for n in manager.map("double", range(20), "n", limit=100)] == list(range(0, 40, 2))

    run(play())


def test_jobs_that_were_submitted_with_one_that_is_refused(tmp_path):
    async def play():
        async with an_app(tmp_path) as manager:
            items = [{"n": 1}, {"n": threading.Lock()}, {"n": 2}]
            with pytest.raises(NotSerializable):
                async with aclosing(manager.submit_many("double", items)) as ended:
                    async for _ in ended:
                        pass
            assert [(await manager.wait(job)).result for job in manager.get_all_jobs()] == [2, 4]
            with pytest.raises(NotSerializable):
                async with aclosing(manager.map("double", items)) as results:
                    async for _ in results:
                        pass
            jobs = [await manager.wait(job) for job in manager.get_all_jobs()]
            assert len(jobs) == 4 and all(job.status.is_final for job in jobs)

    run(play())


def test_whoever_stops_while_jobs_are_submitted_leaves_none_behind(tmp_path):
    async def play():
        async with an_app(tmp_path) as manager:
            results = manager.map("double", range(40), "n")
            step = asyncio.ensure_future(anext(results))
            await asyncio.sleep(0)  # the first ones are on their way to the store
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
            await results.aclose()
            await manager.run("double", n=1)
            found = manager.job_store.list_jobs(JobFilter(), limit=100).jobs
            assert all(row.status in ("cancelled", "completed") for row in found)
            assert not [job for job in manager.get_all_jobs() if job.status is JobStatus.RUNNING]

    run(play())
