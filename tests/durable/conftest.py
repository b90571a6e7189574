"""What the tests of durable jobs share."""

import pytest


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    "Where the store is, as `cjm-worker-jobs` takes it."
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    words = dict(word.split("=", 1) for word in request.getfixturevalue("postgres").dsn().split())
    return f"postgresql://{words['user']}@/{words['dbname']}?host={words['host']}"
