"""What all tests share."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from postgres_server import PostgresServer, missing

# A shell that starts a command in the background lets it ignore Ctrl-C, and so would the programs that are tested here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no fault.
settings.register_profile("patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    "A server of this run's own; a test takes a database of its own with `postgres.dsn()`."
    if why := missing():
        pytest.skip(why)
    with PostgresServer(fsync="off") as server:
        yield server
