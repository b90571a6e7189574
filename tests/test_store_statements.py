"""No statement of a store's daily work reads the whole table of jobs, however many old ones it has."""

import sqlite3
from dataclasses import replace

import pytest

from cjm_worker_ext.extensions.stores import JobChange, JobFilter, Retention, StoredJob
from cjm_worker_ext.jobs import BaseJob, utc_now
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


@pytest.fixture
def statements(monkeypatch):
    "All that SQLite is told, with values."
    found = []
    connect = sqlite3.connect

    def traced(*arguments, **options):
        db = connect(*arguments, **options)
        db.set_trace_callback(found.append)
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    return found


def use(path):
    "Call each method, so that it finds something."
    store, other = (SQLiteJobStore(path, retention=Retention(max_jobs=2, max_age_seconds=0.001)) for _ in range(2))
    owner = store.open("text")
    jobs = [StoredJob(BaseJob("p").id, "text", "p", utc_now(), key=f"k{i}", rank=i) for i in range(12)]
    store.write(owner, [JobChange(job) for job in jobs])
    assert store.write(owner, [JobChange(replace(jobs[0], id="new"))]) == {"new": jobs[0].id}
    second = other.open("text")
    assert len(other.claim(second, 5, 20.0, ("q",), False)) == 5
    assert len(store.claim(owner, 9, 20.0)) == 9
    assert store.ask(jobs[0].id, "cancel") and store.asked(owner)
    ends = [
        JobChange(replace(job, status="completed", owner=owner), "pending")
        for job in store.find([jobs[0].id, jobs[8].id])
    ]
    assert store.write(owner, ends) == {}
    store.write(owner, [], [jobs[8].id])
    for where in (JobFilter(), JobFilter(statuses=("failed",)), JobFilter(worker_type="text", text="p", since="2000")):
        store.list_jobs(where)
    assert store.forget([jobs[8].id]) == 1
    other.close(second)
    store.recover(owner)
    mine = [JobChange(replace(job, status="failed", owner=None), "pending") for job in store.claim(owner, 99, 20.0)]
    assert store.write(owner, mine) == {}
    while store.prune():
        pass
    store.close(owner)


def test_each_look_at_jobs_uses_an_index(tmp_path, statements):
    use(tmp_path / "jobs.db")
    work = [said for said in statements if said.startswith(("SELECT", "UPDATE", "DELETE")) and "jobs" in said]
    assert len(work) > 40
    db = sqlite3.connect(tmp_path / "jobs.db")
    db.create_function("holds_text", -1, lambda *values: False)
    scans = {
        said
        for said in work
        for *_, step in db.execute(f"EXPLAIN QUERY PLAN {said}")
        if step.startswith("SCAN jobs") and "ORDER BY seq LIMIT" not in said  # that reads the oldest ones, and no more
    }
    assert scans == set()
