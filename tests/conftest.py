"""What all tests share."""

import signal
from collections.abc import Iterator

import no_deadlines  # noqa: F401  - for all tests with hypothesis
import pytest
from postgres_server import PostgresServer, missing

# A shell that starts a command in the background lets it ignore Ctrl-C, and so would the programs that are tested here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    "A server of this run's own; a test takes a database of its own with `postgres.dsn()`."
    if why := missing():
        pytest.skip(why)
    with PostgresServer(fsync="off") as server:
        yield server
