"""A job store whose disk, file or lock fails: the reason is told, and nothing that was acknowledged is lost."""

import functools
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cjm_worker_ext.extensions.stores import JobChange, JobFilter, StoredJob
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


def test_read_only_folder(tmp_path):
    run("read_only", tmp_path / "jobs.db", "4m")


def test_locked_by_another_program(tmp_path):
    run("locked", tmp_path / "jobs.db")


def test_corrupt_file(tmp_path):
    run("corrupt", tmp_path / "jobs.db")


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
