"""The ready-made job stores keep the contracts of their protocol."""

import subprocess
import sys

import pytest

from cjm_worker_ext.extensions.contract_tests import JobStoreTests
from cjm_worker_ext.extensions.contracts import check_contracts
from cjm_worker_ext.extensions.store_contracts import JobStoreSuite
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


class TestSQLiteJobStore(JobStoreTests):
    options = {}

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.path = tmp_path / "jobs.db"

    def make(self):
        return SQLiteJobStore(self.path, **self.options)

    def again(self, store):
        return SQLiteJobStore(store.path, **self.options)

    def die(self, store, owner):
        store.locks.release(owner, remove=False)  # what the system does at a death; test_store_owners.py kills for real


class TestSQLiteJobStoreOnTheDisk(TestSQLiteJobStore):
    options = {"synchronous": "FULL", "durability": "behind"}


class WithoutOwnerCheck(SQLiteJobStore):
    def _change(self, db, owner, changes, refused):
        for change in changes:
            row = db.execute("SELECT owner FROM jobs WHERE id = ?", (change.job.id,)).fetchone()
            super()._change(db, row[0] if row else owner, [change], refused)


def test_a_store_that_forgets_the_owner_is_found(tmp_path):
    class Suite(JobStoreSuite):
        def make(self):
            return WithoutOwnerCheck(tmp_path / "jobs.db")

        def again(self, store):
            return WithoutOwnerCheck(store.path)

    report = check_contracts(Suite())
    assert report.broken == ["only_its_owner_changes_a_job", "shared_jobs_are_claimed_from_others"], report


def test_the_command_checks_a_store(tmp_path):
    (tmp_path / "shop_jobs.py").write_text(
        "import tempfile\n"
        "from cjm_worker_ext.stores.sqlite import SQLiteJobStore\n"
        "def store() -> SQLiteJobStore:\n"
        "    return SQLiteJobStore(tempfile.mkdtemp() + '/jobs.db')\n"
    )
    code = "import sys; from cjm_worker_ext.commands.check import main; sys.exit(main(['shop_jobs:store']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "shop_jobs:store as JobStoreProtocol" in done.stdout, done.stdout + done.stderr
    assert "claim follows the rank" in done.stdout and "broken" not in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
