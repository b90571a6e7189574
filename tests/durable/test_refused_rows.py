"""A stored job that the app does not take any more fails alone."""

import asyncio
import shutil
import sqlite3
import time

import pytest
from harness import run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.extensions.stores import JobChange, JobFilter
from cjm_worker_ext.jobs import BaseJob
from cjm_worker_ext.stores.rows import Rows
from cjm_worker_ext.stores.sqlite import SQLiteJobStore
from cjm_worker_ext.stores.sqlite_files import PayloadFiles


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


def leave_large_jobs(path, status):
    "As `leave_jobs`: the second one has parameters in a file, and so has its result."
    large = "x" * (PayloadFiles.LARGE + 1)
    ids = leave_jobs(path, "pending", {"params": f'{{"n": 1, "text": "{large}"}}'})
    store = SQLiteJobStore(path)
    owner = store.open("refused")
    jobs = store.claim(owner, 9, time.time())
    if status != "pending":
        store.write(owner, [JobChange(job.changed(status="running", attempts=1), "pending") for job in jobs])
    if status == "completed":  # and not told
        store.write(owner, [JobChange(job.changed(status=status, result=f'"{large}"'), "running") for job in jobs])
    store.close(owner)
    return ids


def lose_files(path, job_id):
    shutil.rmtree(f"{path}-files")


def change_byte(path, job_id):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE jobs SET plugin_id = 'Double' WHERE id = ?", (job_id,))
    db.close()


def change_to_no_text(path, job_id):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE jobs SET traceback = CAST(x'ff' AS TEXT) WHERE id = ?", (job_id,))
    db.close()


class Ends:
    def __init__(self):
        self.told = []

    async def broadcast(self, event_type, data):
        if event_type in ("job:completed", "job:failed"):
            self.told.append(data["job_id"])


@pytest.mark.parametrize("damage", [lose_files, change_byte, change_to_no_text], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("status", ["pending", "running", "completed"])
def test_a_row_of_which_a_part_is_damaged_or_gone_costs_no_other(tmp_path, damage, status):
    path, bus = tmp_path / "jobs.db", Ends()
    ids = leave_large_jobs(path, status)
    damage(path, ids[1])

    async def play():
        config = WorkerConfig(max_workers=1)
        async with BaseJobManager(
            "refused",
            plugins={"double": double},
            job_store=SQLiteJobStore(path),
            worker_config=config,
            event_broadcaster=bus,
        ) as manager:
            assert await manager.run("double", n=5) == 10
            await until(lambda: set(bus.told) >= set(ids))
            assert manager.store_trouble is None

    run(play())
    expected = {"pending": "completed", "running": "failed", "completed": "completed"}[status]
    with sqlite3.connect(path) as db:
        rows = dict(db.execute("SELECT id, status FROM jobs").fetchall())
        error = "SELECT error_type FROM jobs WHERE id = ?"
        (error_type,) = db.execute(error, (ids[1],)).fetchone()
    db.close()
    assert [rows[job_id] for job_id in ids] == [expected, "failed" if status == "pending" else expected, expected]
    assert error_type == {"pending": "UnreadableJob", "running": "JobLost", "completed": None}[status]


def test_a_damaged_end_in_another_process_wakes_who_waits_for_it_and_for_others(tmp_path):
    path = tmp_path / "jobs.db"
    store = SQLiteJobStore(path)

    async def play():
        config = WorkerConfig(max_workers=0)
        async with BaseJobManager(
            "refused", plugins={"double": double}, job_store=store, worker_config=config
        ) as manager:
            jobs = [await manager.submit_job("double", n=n) for n in range(2)]
            other = SQLiteJobStore(path)
            owner = other.open("refused")
            mine = other.claim(owner, 9, time.time())
            with sqlite3.connect(path) as db:  # before the others can look
                db.execute(
                    "CREATE TRIGGER damage AFTER UPDATE OF status ON jobs BEGIN UPDATE jobs SET result = '\"no\"'"
                    f" WHERE id = '{jobs[0].id}' AND new.id = id AND new.status = 'completed'; END"
                )
            db.close()
            ends = [JobChange(job.changed(status="completed", result='"fine"', owner=None), "pending") for job in mine]
            assert not other.write(owner, ends)
            async with asyncio.timeout(60):
                damaged, whole = [await manager.wait(job) for job in jobs]
            assert (whole.result, damaged.result) == ("fine", None)
            assert "is damaged" in damaged.error
            other.close(owner)

    run(play())
