"""Owners of an SQLite store are real processes here: killed, stopped, forked, and several that recover at once."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cjm_worker_ext.stores.sqlite import SQLiteJobStore

program = str(Path(__file__).with_name("store_programs.py"))


@contextmanager
def started(name, path):
    command = [sys.executable, program, name, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def looker(tmp_path):
    "A store with an owner that looks at what others have."
    store = SQLiteJobStore(tmp_path / "jobs.db")
    owner = store.open("text")
    yield store, owner
    store.close(owner)


def test_a_killed_owner_is_recovered_at_once(tmp_path, looker):
    store, owner = looker
    with started("own", tmp_path / "jobs.db") as process:
        dead, pending, running, ended, held = process.stdout.readline().split()
        assert store.recover(owner) == []
        process.kill()
        process.wait()
        assert {job.id for job in store.recover(owner)} == {running, ended}
        assert {job.id for job in store.claim(owner, 5, time.time(), from_others=False)} == {pending, held}
        assert not list((tmp_path / "jobs.db-owners").glob(f"{dead}*"))


def test_a_stopped_owner_keeps_what_runs(tmp_path, looker):
    store, owner = looker
    with started("own", tmp_path / "jobs.db") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        for _ in range(20):
            assert store.recover(owner) == []
        process.send_signal(signal.SIGCONT)


def test_one_of_many_recovers(tmp_path, looker):
    path = tmp_path / "jobs.db"
    with (
        started("own", path) as process,
        started("recover", path) as a,
        started("recover", path) as b,
        started("recover", path) as c,
    ):
        _, _, running, ended, _ = process.stdout.readline().split()
        for helper in (a, b, c):
            assert helper.stdout.readline() == "ready\n"
        process.kill()
        process.wait()
        for helper in (a, b, c):
            helper.stdin.write("\n")
            helper.stdin.flush()
        found = [job_id for helper in (a, b, c) for job_id in helper.stdout.readline().split()]
        assert sorted(found) == sorted([running, ended])


@pytest.mark.parametrize("seed", range(3))
def test_what_was_committed_survives_kills_at_any_point(tmp_path, seed):
    path, chance = tmp_path / "jobs.db", random.Random(seed)
    said: dict[str, str] = {}
    for _ in range(8):
        with started("write", path) as process:
            for _ in range(chance.randrange(1, 60)):
                status, *ids = process.stdout.readline().split()
                said |= dict.fromkeys(ids, status)
            process.kill()
            rest = process.stdout.read()
            for line in rest.splitlines()[: None if rest.endswith("\n") else -1]:
                status, *ids = line.split()
                said |= dict.fromkeys(ids, status)
    store = SQLiteJobStore(path)
    found = {job.id: job for job in store.find(list(said))}
    assert len(said) > 100 and found.keys() == said.keys()
    steps = ["pending", "running", "completed"]
    for job_id, status in said.items():
        job = found[job_id]
        if job.status == "failed":  # it ran when its process was killed, and was recovered
            assert status != "completed"
        else:
            assert steps.index(job.status) >= steps.index(status)
        assert job.params in ('"' + "x" * 50 + '"', '"' + "x" * 2_000_000 + '"')
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (ended,) = db.execute("SELECT ended FROM counts").fetchone()
        assert ended == db.execute("SELECT count(*) FROM jobs WHERE status IN ('completed', 'failed')").fetchone()[0]
        named = {name for (name,) in db.execute("SELECT name FROM files")}
    there = {file.name for file in Path(f"{path}-files").iterdir()} if Path(f"{path}-files").exists() else set()
    assert named <= there
