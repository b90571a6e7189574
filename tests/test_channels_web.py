"""Several web processes that share their events: browsers that die and go on elsewhere, many clients, a channel that dies."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import postgres_server
import pytest
import redis_server
from test_sse import Server, read_events, read_until

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(bool(redis_server.missing()), reason=redis_server.missing() or "-")


@pytest.fixture
def redis():
    with redis_server.RedisServer() as server:
        yield server


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(channel, *options):
        log = tmp_path / f"server{len(servers)}.log"
        servers.append(Server(*options, log=log, app="sse_channel_app:app", CHANNEL=channel))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


class Browser:
    "Reads a stream, and each time it is cut off goes on in another process, with the last id that it has."

    def __init__(self, servers):
        self.servers, self.last_id, self.rest, self.seen, self.kinds = servers, "", b"", [], []
        self.sock, self.lives = None, 0

    def live(self, events: int) -> None:
        "Connect to the next process, read so many ends of jobs, or until the connection breaks, and die."
        server = self.servers[self.lives % len(self.servers)]
        self.lives += 1
        self.sock = server.connect(last_event_id=self.last_id)
        body, found, deadline = b"", 0, time.monotonic() + 120
        try:
            while found < events:
                more = self.sock.recv(65536)
                if not more:
                    return
                assert time.monotonic() < deadline, (len(self.seen), self.kinds[-20:])  # heartbeats come all the time
                body += more
                *whole, body = body.replace(b"\r\n", b"\n").split(b"\n\n")
                for frame in whole:
                    found += self.take(frame.decode(errors="replace"))
                    if found == events:
                        break
        finally:
            # as a browser that is killed: the connection is reset, whatever is on its way
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.sock.close()

    def take(self, frame: str) -> bool:
        fields = dict(line.partition(": ")[::2] for line in frame.split("\n") if ": " in line)
        self.last_id = fields.get("id", self.last_id)
        self.kinds.append(fields.get("event"))
        if fields.get("event") in ("job:completed", "job:failed", "job:cancelled"):
            self.seen.append(json.loads(fields["data"])["job_id"])
            return True
        return False

    def live_until(self, count: int) -> list[str]:
        deadline = time.monotonic() + 90
        while len(self.seen) < count:
            assert time.monotonic() < deadline, (len(self.seen), count, self.kinds[-20:])
            self.live(min(random.randint(1, 40), count - len(self.seen)))
        return self.seen


def channel_of(kind, redis, tmp_path):
    return f"redis {redis.url}" if kind == "redis" else f"sqlite {tmp_path / 'events.db'}"


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_a_browser_that_dies_and_goes_on_in_another_process_sees_every_end_once(kind, serve, redis, tmp_path):
    "Jobs run in one process; the browser hops over three, and a second one starts from the position of the beginning."
    servers = [serve(channel_of(kind, redis, tmp_path)) for _ in range(3)]
    started = servers[0].post("/jobs", {"jobs": 200})
    browsers = [Browser(servers), Browser(servers[::-1])]
    for browser in browsers:
        browser.last_id = started["since"]
        assert browser.live_until(200) == started["jobs"]
        assert browser.lives > 5
        assert not {"resync", "gap", "stale"} & set(browser.kinds)


def test_three_workers_behind_one_port(serve, redis):
    "As `uvicorn --workers 3`: whoever answers, the browser sees every end once and in order."
    server = serve(f"redis {redis.url}", "--workers", "3")
    pids, deadline = set(), time.monotonic() + 120
    while len(pids) < 3:
        assert time.monotonic() < deadline, pids
        with socket.create_connection(("127.0.0.1", server.port)) as sock:  # a new connection may reach another one
            sock.sendall(b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while more := sock.recv(65536):
                answer += more
        pids.add(json.loads(answer.partition(b"\r\n\r\n")[2])["pid"])
    started = server.post("/jobs", {"jobs": 100})
    browser = Browser([server])
    browser.last_id = started["since"]
    assert browser.live_until(100) == started["jobs"]
    assert not {"resync", "gap"} & set(browser.kinds)


def test_a_process_that_is_stopped_sends_the_ends_of_its_jobs(serve, redis):
    "Its manager cancels what runs when uvicorn stops, and a browser elsewhere hears of it: `aclose` waits for that."
    one, other = serve(f"redis {redis.url}"), serve(f"redis {redis.url}")
    started = one.post("/jobs", {"jobs": 3, "plugin": "spin"})
    os.kill(one.process.pid, signal.SIGTERM)
    one.process.wait(120)
    browser = Browser([other])
    browser.last_id = started["since"]
    assert sorted(browser.live_until(3)) == sorted(started["jobs"])


def test_500_clients_of_each_process_and_one_reading_connection(serve, redis):
    servers = [serve(f"redis {redis.url}") for _ in range(2)]
    command = [sys.executable, HERE / "sse_clients.py"]
    clients = [
        subprocess.Popen([*command, str(server.port), "500", "60"], stdout=subprocess.PIPE, text=True)
        for server in servers
    ]
    try:
        for process in clients:
            assert process.stdout.readline() == "ready\n"
        connections = [c for c in redis.client().client_list() if c["name"] == "cjm-worker-ext"]
        reading = [c for c in connections if c["cmd"] == "xread"]
        assert len(reading) == 2  # one of each process
        assert len(connections) <= 4  # and one that appends, of a process that has published
        jobs = servers[0].post("/jobs", {"jobs": 60})["jobs"]
        for process in clients:
            found = json.loads(process.communicate(timeout=120)[0])
            assert found["clients"] == 500 and found["seen"] == [sorted(jobs, key=jobs.index)]
    finally:
        for process in clients:
            process.kill()
            process.wait(120)


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_the_server_of_the_channel_is_killed_while_browsers_hop(kind, serve, tmp_path):
    "It comes back with its data, several times: every end arrives once and in order."
    module = redis_server if kind == "redis" else postgres_server
    if module.missing():
        pytest.skip(module.missing())
    with redis_server.RedisServer() if kind == "redis" else postgres_server.PostgresServer() as server:
        address = server.url if kind == "redis" else server.dsn()
        servers = [serve(f"{kind} {address}") for _ in range(3)]
        since, count, rounds = servers[0].stats()["position"], 40, 3 if kind == "redis" else 1
        browser, told = Browser(servers), threading.Event()
        browser.last_id = since
        failed = []

        def browse():
            try:
                browser.live_until(count * rounds)
            except BaseException as e:  # noqa: BLE001  - shown by the test
                failed.append(e)
            told.set()

        thread = threading.Thread(target=browse, daemon=True)
        thread.start()
        for n in range(rounds):
            (server.kill if kind == "redis" else server.crash)()
            servers[n].post("/publish", {"first": n * count, "count": count})
            server.start()
            deadline = time.monotonic() + 120
            while len(browser.seen) < (n + 1) * count:
                assert not failed and time.monotonic() < deadline, (failed, len(browser.seen), browser.kinds[-10:])
                time.sleep(0.02)
        assert told.wait(120) and not failed, failed
        assert browser.seen == [f"n{n}" for n in range(count * rounds)]
        assert "resync" not in browser.kinds and "gap" not in browser.kinds


def test_without_the_data_every_browser_is_told_to_begin_anew(serve, redis):
    servers = [serve(f"redis {redis.url}") for _ in range(2)]
    since = servers[0].stats()["position"]
    socks = [server.connect(last_event_id=since) for server in servers]
    servers[0].post("/publish", {"first": 0, "count": 5})
    for sock in socks:
        read_until(sock, b'"n":4')  # else they could be sent after the loss
    redis.kill()
    redis.wipe()
    redis.start()
    for sock in socks:
        read_until(sock, b'{"reason":"restarted"}')
    servers[1].post("/publish", {"first": 5, "count": 5})
    ids = []
    for sock in socks:
        text = read_until(sock, b'"n":9')
        ids.append([event_id for event_id, kind, _ in read_events(text.decode()) if kind == "job:completed"])
        sock.close()
    assert ids[0] == ids[1] and len(set(ids[0])) == 5
