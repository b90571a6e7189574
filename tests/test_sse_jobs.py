"""Jobs that run while 500 clients watch, one of which reads nothing and one a byte a second."""

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_sse import Server

HEALTHY, ROUND = 498, {"jobs": 10, "pages": 100}
CEILING = 16 << 20  # Bytes; either bad client leaves more than that unread


@pytest.fixture
def server(tmp_path):
    server = Server("--loop", "uvloop", "--http", "httptools", app="sse_jobs_app:app", log=tmp_path / "server.log")
    yield server
    server.stop()


@pytest.fixture
def bad_clients(server):
    "Connects the client that reads nothing and the one that reads a byte a second."
    stop, sockets = threading.Event(), []

    def drip(sock):
        with contextlib.suppress(OSError):
            while not stop.wait(1):
                sock.recv(1)

    def connect():
        sockets.extend(server.connect(receive_buffer=4096) for _ in range(2))
        threading.Thread(target=drip, args=(sockets[1],), daemon=True).start()

    yield connect
    stop.set()
    for sock in sockets:
        sock.close()


def test_jobs_beside_500_clients(server, bad_clients):
    """Nobody waits for the two bad clients: they stay connected and unread from before the first of their jobs until
    every job has ended and every healthy client knows of it."""
    rounds = 4
    alone = [server.post("/jobs", ROUND) for _ in range(2)]
    command = [sys.executable, str(Path(__file__).with_name("sse_clients.py"))]
    command += [str(server.port), str(HEALTHY), str(2 * rounds * ROUND["jobs"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
        watchdog = threading.Timer(120, clients.kill)
        watchdog.start()
        try:
            assert clients.stdout.readline() == "ready\n"
            watched = [server.post("/jobs", ROUND) for _ in range(rounds)]  # the heap is now as large as jobs make it
            bad_clients()
            server.wait_for_clients(HEALTHY + 2)
            before = server.stats()
            burdened = [server.post("/jobs", ROUND) for _ in range(rounds)]
            after = server.stats()
            answer = json.loads(clients.stdout.readline() or "null")
        finally:
            watchdog.cancel()
            clients.kill()
    for part in (alone, watched, burdened):
        print([round(r["seconds"], 2) for r in part])
    statuses = [status for part in (alone, watched, burdened) for r in part for status in r["statuses"]]
    assert set(statuses) == {"completed"}
    server.wait_for_clients(2)  # the bad ones were there all the time, and the healthy have gone with all they wanted
    final = server.stats()
    assert answer == {"clients": HEALTHY, "seen": [final["ends"][2 * ROUND["jobs"] :]]}
    assert len(final["ends"]) == len(set(final["ends"])) == len(statuses)
    assert final["in_order"] and final["dropped"] == 0
    unread = after["bytes"] - before["bytes"]
    assert unread > 2 * CEILING, "too little for the ceiling to mean anything"
    grown = after["rss"] - before["rss"]
    print(f"{grown >> 20} MiB more, {unread >> 20} MiB unread by two, largest buffer {after['unread']}")
    assert grown < CEILING, f"{grown >> 20} MiB more, for {unread >> 20} MiB that two clients did not read"
    assert "ERROR" not in server.log.read_text()
