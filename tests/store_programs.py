"""Programs that use an SQLite store and are killed, stopped, or run where the disk is full. Run: NAME PATH."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cjm_worker_ext.errors import StoreFailed
from cjm_worker_ext.extensions.stores import JobChange, StoredJob
from cjm_worker_ext.jobs import BaseJob, utc_now
from cjm_worker_ext.stores.journal import JobJournal
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


def say(*words):
    print(*words, flush=True)


def row(owner, **fields):
    return StoredJob(BaseJob("p").id, "text", "p", utc_now(), owner=owner, rank=time.time(), **fields)


class Host:
    "Collects what a journal tells."

    def __init__(self):
        self.seen, self.changed = [], asyncio.Event()

    def __getattr__(self, name):
        def take(*arguments):
            self.seen.append((name, *arguments))
            self.changed.set()

        return take

    async def sees(self, name, seconds=20):
        async with asyncio.timeout(seconds):
            while not (found := [event for event in self.seen if event[0] == name]):
                self.changed.clear()
                await self.changed.wait()
        return found


async def settled(journal, job, was):
    done = asyncio.get_running_loop().create_future()
    journal.write(job, was, lambda refused, error: done.set_result((refused, error)))
    return await asyncio.wait_for(done, 120)


# ---------------------------------------------------------------- owners
def own(path):
    "Have a pending, a running and an ended job, and then wait to be killed."
    store = SQLiteJobStore(path)
    owner = store.open("text")
    jobs = [row(owner, status=status) for status in ("pending", "running", "completed")]
    held = row(owner, status="running")
    assert store.hold(held.id)
    store.write(owner, [JobChange(job) for job in [*jobs, held]])
    say(owner, *(job.id for job in jobs), held.id)
    sys.stdin.read()


def recover(path):
    "Look for what a dead owner has left, as soon as told to."
    store = SQLiteJobStore(path)
    owner = store.open("text")
    say("ready")
    sys.stdin.readline()
    say(*(job.id for job in store.recover(owner)))
    sys.stdin.read()


def write(path):
    "Write jobs through all their states, and say what was committed, until killed."
    store = SQLiteJobStore(path)
    owner = store.open("text")
    left = store.recover(owner)
    lost = [JobChange(replace(job, status="failed", owner=None), "running") for job in left if not job.is_final]
    assert store.write(owner, lost, [job.id for job in left if job.is_final]) == {}
    number = 0
    while True:
        group = [row(owner, params=f'"{"x" * (2_000_000 if number % 50 == 7 else 50)}"') for _ in range(1 + number % 5)]
        for status, was in (("pending", ""), ("running", "pending"), ("completed", "running")):
            group = [replace(job, status=status) for job in group]
            store.write(owner, [JobChange(job, was) for job in group])
            say(status, *(job.id for job in group))
        number += 1


# ---------------------------------------------------------------- faults
def filled(path):
    "Fill the disk; the file that is in the way."
    filler = path.parent / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    return filler


async def disk_full_at_recovery(path):
    "An owner dies while the disk is full: it is told once, and what the owner has left is settled when there is room."
    tries = 0

    class Counting(SQLiteJobStore):
        def recover(self, owner):
            nonlocal tries
            tries += 1
            return super().recover(owner)

    dead = SQLiteJobStore(path)
    owner = dead.open("text")
    jobs = [row(owner, status="running") for _ in range(2000)]
    dead.write(owner, [JobChange(job) for job in jobs])
    journal = JobJournal(Counting(path), "text", host := Host())
    await journal.open()
    filler = filled(path)
    dead.close(owner)
    await host.sees("on_trouble")
    first = tries
    async with asyncio.timeout(30):
        while tries < first + 4:  # noqa: ASYNC110  - the thread tries, and tells nobody
            await asyncio.sleep(0.01)
    assert [event[0] for event in host.seen] == ["on_trouble"], host.seen
    assert "free some space on its disk" in journal.trouble, journal.trouble
    filler.unlink()
    ((_, left),) = await host.sees("on_recovered")
    assert {job.id for job in left} == {job.id for job in jobs}
    host.seen = [event for event in host.seen if event[1] != host.seen[0][1]]
    await host.sees("on_trouble")
    assert journal.trouble is None
    assert await journal.close(5)


async def disk_full(path):
    "The disk is full for a while: new jobs fail, and the acknowledged one goes on when there is room."
    store = SQLiteJobStore(path)
    journal = JobJournal(store, "text", host := Host())
    journal.GIVE_UP = 0.5
    await journal.open()
    job, large = row(journal.owner), row(journal.owner, status="running")
    await journal.add(job)
    await journal.add(large)
    filler = filled(path)
    failed = 0
    for _ in range(50):  # what is left in the last page of a file is used up first
        try:
            await journal.add(row(journal.owner, params='"' + "x" * 50_000 + '"'))
        except StoreFailed as e:
            assert "free some space on its disk" in str(e), e
            failed += 1
    assert failed > 40, failed
    end = asyncio.create_task(settled(journal, replace(job, status="failed", error="x" * 100_000), "pending"))
    await host.sees("on_trouble")
    assert not end.done()
    filler.unlink()
    assert await end == (None, None)
    assert store.find([job.id])[0].error == "x" * 100_000
    _, error = await settled_beside_others(
        journal, replace(large, status="completed", result="x" * 50_000_000), "running"
    )
    assert "No space left on device" in str(error), error
    assert await settled(journal, replace(large, status="failed", error=str(error)), "running") == (None, None)
    assert [file for file in Path(f"{path}-files").iterdir()] == []
    assert await journal.close(5)


async def settled_beside_others(journal, job, was):
    "One change that is too large, while others are written."
    end = asyncio.create_task(settled(journal, job, was))
    while not end.done():
        await journal.add(row(journal.owner))
        await asyncio.wait([end], timeout=0.05)
    return end.result()


def read_only(path):
    "The folder cannot be written: opening says so; what is there can be read."
    store = SQLiteJobStore(path)
    owner = store.open("text")
    job = row(owner)
    store.write(owner, [JobChange(job)])
    store.close(owner)
    subprocess.run(["mount", "-o", "remount,ro", str(path.parent)], check=True)
    for one in (path, path.with_name("new.db")):
        try:
            SQLiteJobStore(one).open("text")
            raise AssertionError("opened")
        except StoreFailed as e:
            assert "let this process write the file and its folder" in str(e) or "Read-only file system" in str(e), e


async def locked(path):
    "Another program holds the lock: new jobs fail, and the acknowledged one waits."
    store = SQLiteJobStore(path, busy_seconds=0.2)
    journal = JobJournal(store, "text", host := Host())
    await journal.open()
    job = row(journal.owner)
    await journal.add(job)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        await journal.add(row(journal.owner))
        raise AssertionError("acknowledged")
    except StoreFailed as e:
        assert "database is locked (SQLITE_BUSY); another program holds its lock" in str(e), e
    end = asyncio.create_task(settled(journal, replace(job, status="running"), "pending"))
    await host.sees("on_trouble")
    other.execute("ROLLBACK")
    assert await end == (None, None)
    await journal.add(row(journal.owner))
    assert await journal.close(5)


async def corrupt(path):
    "Bytes of the file have changed: each call says so, and nothing hangs."
    store = SQLiteJobStore(path)
    owner = store.open("text")
    jobs = [row(owner, params='"' + "x" * 500 + '"') for _ in range(500)]
    store.write(owner, [JobChange(job) for job in jobs])
    store.close(owner)
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
    db.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 200)
    store = SQLiteJobStore(path)
    journal = JobJournal(store, "text", Host())
    try:
        await journal.open()
        await journal.add(row(journal.owner))
        raise AssertionError("acknowledged")
    except StoreFailed as e:
        assert "restore it from a backup" in str(e), e
    try:
        store.find([jobs[0].id])
        raise AssertionError("found")
    except StoreFailed as e:
        assert "restore it from a backup" in str(e), e
    await journal.close(5)


def main():
    name, path = sys.argv[1], Path(sys.argv[2])
    if len(sys.argv) > 3:  # a small disk of its own, in a namespace of this process
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sys.argv[3]}", "tmpfs", str(path.parent)], check=True)
    run = globals()[name]
    if asyncio.iscoroutinefunction(run):
        asyncio.run(run(path))
    else:
        run(path)
    say("ok")


if __name__ == "__main__":
    assert shutil.which("mount") and os.name == "posix"
    main()
