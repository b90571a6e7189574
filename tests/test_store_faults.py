"""A job store whose disk, file or lock fails: the reason is told, and nothing that was acknowledged is lost."""

import functools
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cjm_worker_ext.errors import StoreFailed
from cjm_worker_ext.extensions.stores import JobChange, JobFilter, Retention, StoredJob
from cjm_worker_ext.jobs import BaseJob, utc_now
from cjm_worker_ext.stores import sqlite
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

program = str(Path(__file__).with_name("store_programs.py"))


@functools.cache
def can_mount():
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode
    )


def run(name, path, size=None):
    if size and not can_mount():
        pytest.skip("this system does not let users mount in a namespace")
    before = ["unshare", "-Urm"] if size else []
    command = [*before, sys.executable, program, name, str(path), *([size] if size else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stdout + done.stderr


def test_disk_full(tmp_path):
    run("disk_full", tmp_path / "jobs.db", "4m")


def test_disk_full_during_recovery(tmp_path):
    run("disk_full_at_recovery", tmp_path / "jobs.db", "4m")


def test_read_only_folder(tmp_path):
    run("read_only", tmp_path / "jobs.db", "4m")


def test_locked_by_another_program(tmp_path):
    run("locked", tmp_path / "jobs.db")


def test_corrupt_file(tmp_path):
    run("corrupt", tmp_path / "jobs.db")


def jobs_in(path):
    "What an app finds that opens a store: all jobs, and those that wait."
    store = SQLiteJobStore(path)
    owner = store.open("text")
    try:
        waiting = store.claim(owner, 1000, time.time())
        if problems := [job.problem for job in waiting if job.problem is not None]:
            raise StoreFailed(problems[0])
        ids = [job.id for job in store.list_jobs(JobFilter(), None, 1000).jobs]
        found = {job.id: job for job in store.find(ids)}
    finally:
        store.close(owner)
    for job in (*waiting, *found.values()):
        job.owner = None
    return found, [job.id for job in waiting], {job.id: job for job in waiting}


def test_a_flipped_byte_is_told_or_harmless(tmp_path):
    "Never is a job missing or another one than it was."
    path, chance = tmp_path / "jobs.db", random.Random(14)
    store = SQLiteJobStore(path)
    owner = store.open("text")
    for i in range(60):
        params = json.dumps({"text": "word " * 30, "number": i})
        job = StoredJob(f"{chance.getrandbits(80):020x}{i:012x}", "text", "p", utc_now(), rank=i, params=params)
        if not i % 3:
            job.status, job.result = "completed", '"fine"'
        store.write(owner, [JobChange(job)])
    store.close(owner)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    whole, told = path.read_bytes(), 0
    right = jobs_in(path)
    assert len(right[0]) == 60 and len(right[1]) == 40
    for _ in range(150):
        place = chance.randrange(len(whole))
        (tmp_path / "copy.db-wal").unlink(missing_ok=True)
        flipped = bytes([whole[place] ^ 1 << chance.randrange(8)])
        (tmp_path / "copy.db").write_bytes(whole[:place] + flipped + whole[place + 1 :])
        try:
            assert jobs_in(tmp_path / "copy.db") == right, place
        except StoreFailed as e:
            told += 1
            remedies = "restore it from a backup", "choose another path", "use a later one"
            assert any(remedy in str(e) for remedy in remedies), (place, str(e))
    assert told > 20, told


def test_a_later_version_upgrades_the_tables_and_keeps_the_jobs(tmp_path, monkeypatch):
    store = SQLiteJobStore(tmp_path / "jobs.db")
    owner = store.open("text")
    store.write(owner, [JobChange(StoredJob("j1", "text", "p", status="completed"))])
    store.close(owner)
    monkeypatch.setattr(sqlite, "UPGRADES", [*sqlite.UPGRADES, "ALTER TABLE jobs ADD COLUMN colour TEXT; SELECT 1"])
    owner = store.open("text")
    assert [job.id for job in store.list_jobs(JobFilter()).jobs] == ["j1"]
    store.close(owner)
    with sqlite3.connect(tmp_path / "jobs.db") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(sqlite.UPGRADES),)
        assert db.execute("SELECT colour FROM jobs").fetchall() == [(None,)]


def test_an_upgrade_that_fails_changes_nothing(tmp_path, monkeypatch):
    store = SQLiteJobStore(tmp_path / "jobs.db")
    store.close(store.open("text"))
    monkeypatch.setattr(
        sqlite, "UPGRADES", [*sqlite.UPGRADES, "ALTER TABLE jobs ADD COLUMN colour TEXT; SELECT nonsense"]
    )
    with pytest.raises(sqlite.StoreFailed, match="no such column: nonsense"):
        store.open("text")
    monkeypatch.undo()
    store.close(store.open("text"))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and any(path.iterdir())] == []


@pytest.mark.parametrize("jump", [-1e8, 1e8], ids=["back", "forward"])
def test_a_clock_that_was_wrong_for_a_while_hides_no_job_of_a_time(tmp_path, jump):
    "The history has no index of times; each part is more rows than jobs of two processes may be out of order."
    began, store = 1.7e9, SQLiteJobStore(tmp_path / "jobs.db", retention=Retention(max_jobs=None))
    owner = store.open("text")
    for start in (began, began + jump, began + 10_000):
        jobs = [StoredJob(BaseJob("p").id, "text", "p", utc_now(start + i), status="completed") for i in range(2000)]
        store.write(owner, [JobChange(job) for job in jobs])

    def count(where):
        page = store.list_jobs(where, limit=10_000)
        found = len(page.jobs)
        while page.after is not None:
            page = store.list_jobs(where, page.after, 10_000)
            found += len(page.jobs)
        return found

    wrong = 2000 if jump > 0 else 0
    assert count(JobFilter(since=utc_now(began))) == 4000 + wrong
    assert count(JobFilter(since=utc_now(began), until=utc_now(began + 20_000))) == 4000
    assert count(JobFilter(until=utc_now(began + 20_000))) == 6000 - wrong
    assert count(JobFilter(since=utc_now(began + 1000), until=utc_now(began + 10_500))) == 1500
    store.close(owner)


def test_a_backup_of_a_store_in_use_is_taken_over_elsewhere(tmp_path):
    "The copy has the rows of a living owner, and neither its lock nor its notes."
    store = SQLiteJobStore(tmp_path / "jobs.db")
    owner = store.open("text")
    jobs = [StoredJob(f"j{i}", "text", "p", utc_now(), owner=owner, params=params) for i, params in enumerate(PARAMS)]
    store.write(owner, [JobChange(job) for job in jobs])
    store.hold("j0")
    store.write(owner, [JobChange(job.changed(status="running"), "pending") for job in jobs[:2]])
    with sqlite3.connect(tmp_path / "jobs.db") as db, sqlite3.connect(tmp_path / "copy.db") as copy:
        db.backup(copy)
    db.close()
    copy.close()
    shutil.copytree(tmp_path / "jobs.db-files", tmp_path / "copy.db-files")
    restored = SQLiteJobStore(tmp_path / "copy.db")
    second = restored.open("text")
    assert [(job.id, job.status, job.problem) for job in restored.recover(second)] == [
        ("j0", "running", None),
        ("j1", "running", None),
    ]
    claimed = restored.claim(second, 9, time.time())
    assert [(job.id, job.params, job.problem) for job in claimed] == [("j2", PARAMS[2], None), ("j3", "{}", None)]
    assert store.write(owner, [JobChange(job.changed(status="failed"), job.status) for job in jobs[2:]]) == {}
    restored.close(second)
    store.close(owner)


PARAMS = ("{}", "{}", '"' + "x" * 2_000_000 + '"', "{}")
