"""`PostgresJobStore` keeps the contracts of its protocol."""

import sys

import pytest

from cjm_worker_ext.extensions.contract_tests import JobStoreTests
from cjm_worker_ext.stores.postgres import PostgresJobStore
from cjm_worker_ext.stores.postgres_sessions import process_identity


class TestPostgresJobStore(JobStoreTests):
    options = {}

    @pytest.fixture(autouse=True)
    def database(self, postgres):
        self.dsn = postgres.dsn()

    def make(self):
        return PostgresJobStore(self.dsn, **self.options)

    def again(self, store):
        return PostgresJobStore(self.dsn, **self.options)

    def die(self, store, owner):
        "As after a death: its session has ended, and its process is gone; test_postgres_owners.py kills for real."
        if sys.platform != "linux":
            pytest.skip("only Linux tells which processes are gone; elsewhere the lease has to run out")
        store._session.close()
        gone = " ".join([*process_identity().split()[:3], "0"])
        with store._sessions.any() as db:
            db.execute("UPDATE owners SET process = %s WHERE id = %s", (gone, owner))


class TestPostgresJobStoreInAnotherSchema(TestPostgresJobStore):
    options = {"schema": 'jobs of "größe"', "durability": "behind"}
