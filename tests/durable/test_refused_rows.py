"""A stored job that the app does not take any more fails alone."""

import asyncio

import pytest
from harness import run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.extensions.stores import JobChange, JobFilter
from cjm_worker_ext.jobs import BaseJob
from cjm_worker_ext.stores.rows import Rows
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


class Panic(BaseException):
    "As pyo3's PanicException."


def double(n):
    return 2 * n


class StrictApp(BaseJobManager):
    error: BaseException = ValueError("one is not allowed any more")

    def create_job(self, plugin_id, params):
        if params.get("n") == 1:
            raise self.error
        return super().create_job(plugin_id, params)


def leave_jobs(path, status, change=None):
    "Leave three jobs in a store, as a dead app does."
    store, rows = SQLiteJobStore(path), Rows("refused", WorkerConfig())
    owner, ids = store.open("refused"), []
    for n in range(3):
        row = rows.new(BaseJob("double", {"n": n}), owner)
        if n == 1 and change:
            row = row.changed(**change)
        ids.append(row.id)
        assert not store.write(owner, [JobChange(row, "")])
        if status != "pending":
            row = row.changed(status=status, attempts=1)
            assert not store.write(owner, [JobChange(row, "pending")])
    store.close(owner)
    return ids


def found(store, ids):
    rows = {row.id: row for row in store.list_jobs(JobFilter(worker_type="refused")).jobs}
    return [(rows[job_id].status, rows[job_id].error_type) for job_id in ids]


async def play(path, ids, expected, error=None):
    app = StrictApp if error is not None else BaseJobManager
    store = SQLiteJobStore(path)
    manager = app("refused", plugins={"double": double}, job_store=store, worker_config=WorkerConfig(max_workers=1))
    if error is not None:
        manager.error = error
    async with manager:
        jobs = [await manager.find_job(job_id) for job_id in ids]
        async with asyncio.timeout(120):
            for job in jobs:
                await manager.wait(job)
        await until(lambda: found(store, ids) == expected)
        assert (await manager.find_job(ids[1])).params in ({"n": 1}, {})


ERRORS = [ValueError("one is not allowed any more"), Panic("rust"), asyncio.CancelledError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_job_that_the_app_refuses_costs_no_other(tmp_path, error):
    ids = leave_jobs(tmp_path / "waits.db", "pending")
    expected = [("completed", None), ("failed", type(error).__name__), ("completed", None)]
    run(play(tmp_path / "waits.db", ids, expected, error))
    ids = leave_jobs(tmp_path / "ran.db", "running")
    run(play(tmp_path / "ran.db", ids, [("failed", "JobLost")] * 3, error))


BROKEN = [
    {"params": "[1]"},
    {"params": "no JSON"},
    {"metadata": "[1]"},
    {"retry": "[]"},
    {"retry": '{"attempts": "x"}'},
]


@pytest.mark.parametrize("change", BROKEN, ids=str)
@pytest.mark.parametrize("status", ["pending", "running"])
def test_a_row_that_cannot_be_read_costs_no_other(tmp_path, change, status):
    ids = leave_jobs(tmp_path / "jobs.db", status, change)
    if status == "running":
        expected = [("failed", "JobLost")] * 3
    elif "retry" in change:
        expected = [("completed", None)] * 3
    else:
        error_type = "RefusedType" if change == {"params": "no JSON"} else "TypeError"
        expected = [("completed", None), ("failed", error_type), ("completed", None)]
    run(play(tmp_path / "jobs.db", ids, expected))
