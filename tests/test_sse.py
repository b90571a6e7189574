"""The event stream under real servers, with clients that read, that do not, and that people use."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from harness import until_now

HERE = Path(__file__).parent
TERMINAL = [["job:completed", {"job_id": f"j{n}"}, 1, 0] for n in range(5)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    "uvicorn with `sse_app`, as a process of its own."

    def __init__(self, *options, log: Path, app="sse_app:app", **environment):
        self.port, self.log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        self.out = log.open("w")
        self.http = httpx.Client(timeout=120)
        path = os.pathsep.join([str(HERE), str(HERE.parent), environment.pop("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", app, "--port", str(self.port), *options],
            env={**os.environ, **environment, "PYTHONPATH": path},
            stdout=self.out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def connect(self, path="/events", receive_buffer=0, last_event_id="") -> socket.socket:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", self.port))
        header = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        return sock

    def post(self, path, body=None):
        return self.http.post(self.url + path, json=body).raise_for_status().json()

    def stats(self):
        return self.http.get(self.url + "/stats").json()

    def wait_for_clients(self, count):
        deadline = time.monotonic() + 120
        while (found := self.stats()["clients"]) != count:
            assert time.monotonic() < deadline, f"{found} clients, expected {count}"
            time.sleep(0.05)

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(120)
        self.http.close()
        self.out.close()


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(*options, **environment):
        servers.append(Server(*options, log=tmp_path / f"server{len(servers)}.log", **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def read_until(sock: socket.socket, ending: bytes) -> bytes:
    data, deadline = bytearray(), time.monotonic() + 120
    while ending not in data[-140_000:] or not data.endswith(b"\r\n"):  # the end of an HTTP chunk
        more = sock.recv(65536)
        assert more, f"closed before {ending!r}: {data[-500:]!r}"
        assert time.monotonic() < deadline, f"no {ending!r} in {len(data)} bytes: {data[-500:]!r}"
        data += more
    return bytes(data)


def read_events(stream: str) -> list[tuple[str, str, dict]]:
    "What the standard makes of a stream: (id, type, data)."
    events, last_id, kind, data = [], "", "message", []
    for line in stream.replace("\r\n", "\n").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((last_id, kind, json.loads("\n".join(data))))
            kind, data = "message", []
        elif field == "data":
            data.append(value)
        elif field == "event":
            kind = value
        elif field == "id":
            last_id = value
    return events


# ------------------------------------------------------------------------------------------------ the end of a server
def test_a_server_in_a_thread_ends_with_its_streams(tmp_path):
    """No signal at all: `should_exit` is set by the program, as FastHTML's JupyUvi does."""
    code = """
import socket, threading, time, uvicorn, sse_app
server = uvicorn.Server(uvicorn.Config(sse_app.app, port=0, log_level="warning"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started: time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]
sockets = []
for _ in range(5):
    sockets.append(socket.create_connection(("127.0.0.1", port)))
    sockets[-1].sendall(b"GET /events HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    assert sockets[-1].recv(10)
server.should_exit = True
thread.join(120)
assert not thread.is_alive()
print("ended")
"""
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout == "ended\n"


@pytest.mark.parametrize(
    ("options", "environment", "sign"),
    [
        pytest.param([], {}, signal.SIGINT, id="ctrl-c"),
        pytest.param(["--loop", "asyncio", "--http", "h11"], {}, signal.SIGINT, id="asyncio and h11"),
        pytest.param([], {}, signal.SIGTERM, id="terminate"),
        pytest.param(["--lifespan", "off"], {"FORCED_EXIT": "1"}, signal.SIGINT, id="forced, as FastHTML does"),
        pytest.param(["--workers", "2"], {}, signal.SIGINT, id="two workers"),
        pytest.param(["--reload"], {}, signal.SIGINT, id="ctrl-c under reload"),
    ],
)
def test_one_signal_ends_the_server(serve, options, environment, sign):
    server = serve(*options, **environment)
    clients = [server.connect() for _ in range(50)]
    for client in clients:
        read_until(client, b"event: snapshot")
    if "--workers" in options:  # one that still imports its modules would say so
        until_now(lambda: server.log.read_text().count("Application startup complete") == 2, what="the start of both")
    # a terminal sends Ctrl-C to the whole group; a signal from elsewhere goes to one process
    os.killpg(server.process.pid, sign) if sign == signal.SIGINT else server.process.send_signal(sign)
    server.process.wait(120)  # a server that waits for its streams would wait for ever
    text = server.log.read_text()
    assert "Traceback" not in text and "ERROR" not in text, text
    for client in clients:
        assert read_to_end(client).endswith(b"0\r\n\r\n")  # ended, not torn


def read_to_end(sock: socket.socket) -> bytes:
    data, deadline = b"", time.monotonic() + 120
    while more := sock.recv(65536):
        data += more
        assert time.monotonic() < deadline, f"still open: {data[-200:]!r}"
    return data


@pytest.mark.parametrize("blocked", [True, False])
def test_a_stuck_client_does_not_hold_up_the_end(serve, blocked):
    """Neither one to which nothing more can be sent, nor one that has just not read the last bit."""
    server = serve()
    stuck = server.connect(receive_buffer=4096)
    healthy = server.connect("/events?event=none")
    read_until(healthy, b"event: snapshot")
    server.wait_for_clients(2)
    if blocked:
        server.post("/publish", [["job:started", {"job_id": "a"}, 500, 20_000]])
    while not server.stats()["unread"]:
        server.post("/publish", [["job:started", {"job_id": "a"}, 1, 20_000]])
    server.process.send_signal(signal.SIGINT)
    server.process.wait(120)
    assert stuck.recv(1)


def test_a_reload_does_not_wait_for_streams(serve, tmp_path):
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "module.py").write_text("")
    server = serve("--reload", "--reload-dir", str(watched))
    clients = [server.connect() for _ in range(50)]
    epochs = {read_until(c, b"event: snapshot").partition(b"id: ")[2][:8] for c in clients}
    began = time.monotonic()
    while "Reloading" not in server.log.read_text():  # the watcher may begin late, and knows only later changes
        assert time.monotonic() - began < 30, server.log.read_text()
        (watched / "module.py").write_text("changed = True")
        time.sleep(0.1)
    for client in clients:
        read_to_end(client)
    began = time.monotonic()
    while "Finished server process" not in server.log.read_text():
        assert time.monotonic() - began < 30, server.log.read_text()
        time.sleep(0.02)
    again = server.connect(last_event_id=epochs.pop().decode() + "-0")  # the socket is the reloader's and stays open
    assert b'event: resync\ndata: {"reason":"unknown"}' in read_until(again, b"event: snapshot")


# ------------------------------------------------------------------------------------------------ many, and bad ones
async def read_ticks(server, count):
    "A healthy client: reads `count` ticks, in order."
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /events?event=tick HTTP/1.1\r\nHost: localhost\r\n\r\n")
    seen = []
    while len(seen) < count:
        line = await asyncio.wait_for(reader.readline(), 120)
        assert line
        if line.startswith(b"data: ") and b'"at"' in line:
            seen.append(json.loads(line[6:])["tick"])
    writer.close()
    assert seen == list(range(count))


def test_500_clients_one_stuck_one_slow(serve):
    """Memory stays bounded, and neither publishing nor the healthy ones wait: they have got everything while the stuck client
    and the slow one are still connected."""
    server = serve("--loop", "uvloop", "--http", "httptools", STUCK="600", MAX_BYTES=str(1 << 20))
    stuck = server.connect(receive_buffer=4096)
    slow = server.connect(receive_buffer=4096)
    ticks = 10

    async def drip():
        slow.setblocking(False)
        with contextlib.suppress(ConnectionError):
            while True:
                with contextlib.suppress(BlockingIOError):
                    slow.recv(1)
                await asyncio.sleep(1)

    async def publish_all():
        await asyncio.to_thread(server.wait_for_clients, 500)
        async with httpx.AsyncClient(timeout=120) as client:
            before = (await client.get(server.url + "/stats")).json()["rss"]
            for n in range(ticks):  # 4 MB that only the two slow ones want, and then a tick for all others
                body = [["job:started", {"job_id": "a"}, 200, 20_000], ["tick", {"tick": n}, 1, 0]]
                (await client.post(server.url + "/publish", json=body)).raise_for_status()
            return before, (await client.get(server.url + "/stats")).json()["rss"]

    async def main():
        dripping = asyncio.create_task(drip())
        healthy = [asyncio.create_task(read_ticks(server, ticks)) for _ in range(498)]
        before, after = await publish_all()
        await asyncio.wait_for(asyncio.gather(*healthy), 120)
        await asyncio.to_thread(server.wait_for_clients, 2)  # the stuck one and the slow one
        dripping.cancel()
        return before, after

    before, after = asyncio.run(main())
    assert after - before < 16 << 20, f"{(after - before) >> 20} MiB more, for 40 MB that two clients did not read"
    assert "ERROR" not in server.log.read_text()
    stuck.close()
    slow.close()


def test_a_client_that_reads_nothing_is_disconnected(serve):
    server = serve(STUCK="1")
    stuck, healthy = server.connect(receive_buffer=4096), server.connect("/events?event=none")
    read_until(healthy, b"event: snapshot")
    server.wait_for_clients(2)
    server.post("/publish", [["job:started", {"job_id": "a"}, 500, 20_000]])  # more than all buffers hold
    server.wait_for_clients(1)
    stuck.close()
    healthy.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_that_leaves_with_a_request_on_its_way_is_forgotten(serve, loop):
    "uvicorn tells the end of a connection to its newest request only, which waits for the stream."
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = serve("--loop", loop, "--http", "httptools")
    sock = server.connect()
    read_until(sock, b"\n\n\r\n")
    sock.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    server.post("/publish", [["job:completed", {"job_id": "a"}, 1, 0]])
    read_until(sock, b"\n\n\r\n")
    sock.close()
    deadline = time.monotonic() + 120
    while server.stats()["clients"]:
        server.post("/publish", [["job:completed", {"job_id": "a"}, 3, 0]])
        assert time.monotonic() < deadline, "the stream goes on without a client"
    assert "Traceback" not in server.log.read_text()


def test_a_client_that_fell_behind_gets_one_gap_and_every_end(serve):
    server = serve(MAX_EVENTS="100")
    client = server.connect(receive_buffer=4096)
    head = read_until(client, b"event: snapshot")
    for n in range(6):  # far more than buffers and log hold, with ends of jobs in between
        server.post(
            "/publish",
            [["job:progress", {"job_id": "p", "round": n}, 400, 20_000], TERMINAL[0][:1] + [{"job_id": f"e{n}"}, 1, 0]],
        )
    text = head + read_until(client, b'"job_id":"e5","at"')
    server.post("/publish", [["last", {}, 1, 0]])  # and then it goes on as before
    text += read_until(client, b"event: last")
    read = read_events(unchunked(text))
    kinds = [kind for _, kind, _ in read]
    assert kinds.count("gap") == 1 and kinds[kinds.index("gap") + 1] == "snapshot", kinds
    assert [d["job_id"] for _, k, d in read if k == "job:completed"] == [f"e{n}" for n in range(6)]
    gap = next(d for _, k, d in read if k == "gap")
    assert gap["missed"] > 0
    snapshot = read[kinds.index("gap") + 1][2]
    assert {item["job_id"] for item in snapshot["items"]} == {"p", *(f"e{n}" for n in range(6))}


@pytest.mark.parametrize("options", [[], ["--loop", "uvloop", "--http", "httptools"]], ids=["h11", "httptools"])
def test_a_client_that_reads_at_once_survives_a_burst(serve, options):
    """10,000 broadcasts without a pause: it gets every one, or is told how many it has missed."""
    server = serve(*options)
    client = server.connect()
    head = read_until(client, b"event: snapshot")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_until, client, b'"n":9999')
        server.post("/publish", [["job:completed", {"job_id": "a", "burst": True}, 10_000, 0]])
        read = read_events(unchunked(head + reading.result()))
    seen = [data["n"] for _, kind, data in read if kind == "job:completed"]
    missed = sum(data["missed"] for _, kind, data in read if kind == "gap")
    assert seen == sorted(set(seen)) and len(seen) + missed == 10_000
    client.close()


def unchunked(response: bytes) -> str:
    body, text = response.partition(b"\r\n\r\n")[2], b""
    while body:
        size, _, body = body.partition(b"\r\n")
        text, body = text + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return text.decode()


def test_heartbeats_and_headers(serve):
    server = serve(HEARTBEAT="0.2")
    for path in ("/events", "/mounted/"):
        client = server.connect(path)
        data = read_until(client, b"\r\n:\n\r\n")
        head = data.partition(b"\r\n\r\n")[0].decode().lower().splitlines()
        for line in (
            "content-type: text/event-stream; charset=utf-8",
            "cache-control: no-store, no-transform",
            "x-accel-buffering: no",
        ):
            assert line in head, head
        client.close()
    server.wait_for_clients(0)  # that a client has gone is noticed without sending to it
    assert httpx.post(server.url + "/events").status_code == 405


# ------------------------------------------------------------------------------------------------ clients of others
def drive(server, started):
    "Three rounds of ends of jobs, with a broken connection between them and events while nobody listens."
    for n in range(3):
        cut = [["cut", {}, 0, 0]] if n else []
        answer = server.post("/publish", cut + [[kind, {**data, "round": n}, 1, 0] for kind, data, *_ in TERMINAL])
        assert answer["cut"] == len(cut)  # somebody was connected, and was cut off
        started()
    server.post("/publish", [["job:cancelled", {"job_id": "last"}, 1, 0]])


def expected():
    return [[f"j{n}", r] for r in range(3) for n in range(5)] + [["last", None]]


def test_httpx_client(serve):
    server = serve()
    seen, last_id = [], ""

    async def listen(connected):
        nonlocal last_id
        async with httpx.AsyncClient(timeout=120) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    async with client.stream(
                        "GET", server.url + "/events", headers={"Last-Event-ID": last_id}
                    ) as response:
                        kind = event_id = data = ""
                        async for line in response.aiter_lines():
                            field, _, value = line.partition(": ")
                            if field == "id":
                                event_id = value
                            elif field == "event":
                                kind = value
                            elif field == "data":
                                data = value
                            elif not line:
                                last_id = event_id or last_id
                                connected.set()
                                if kind.startswith("job:"):
                                    found = json.loads(data)
                                    seen.append([found["job_id"], found.get("round")])
                                    if found["job_id"] == "last":
                                        return

    async def main():
        connected = asyncio.Event()
        listener = asyncio.create_task(listen(connected))
        await asyncio.wait_for(connected.wait(), 120)
        await asyncio.to_thread(drive, server, lambda: server.wait_for_clients(1))
        await asyncio.wait_for(listener, 120)

    asyncio.run(main())
    assert seen == expected()


def test_curl(serve, tmp_path):
    """curl does not come back by itself: a loop around it does, with the last id, as scripts do."""
    curl = shutil.which("curl")
    assert curl, "curl is not installed; apt-get install curl"
    server = serve()
    out = tmp_path / "stream"
    script = """
last=""
while ! grep -q '"last"' "$OUT"; do
  curl -sN --max-time 60 -H "Last-Event-ID: $last" "$URL" >> "$OUT"
  last=$(sed -n 's/^id: //p' "$OUT" | tail -1)
  echo >> "$OUT"
done
"""
    out.touch()
    shell = subprocess.Popen(["bash", "-c", script], env={**os.environ, "OUT": str(out), "URL": server.url + "/events"})
    try:
        server.wait_for_clients(1)
        drive(server, lambda: server.wait_for_clients(1))
        deadline = time.monotonic() + 120
        while '"last"' not in out.read_text():
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.05)
        server.post("/publish", [["cut", {}, 0, 0]])
        shell.wait(120)
    finally:
        shell.kill()
    read = [[d["job_id"], d.get("round")] for _, kind, d in read_events(out.read_text()) if kind.startswith("job:")]
    assert read == expected()


NODE_CLIENT = """
import { EventSource } from 'eventsource'
const source = new EventSource(process.argv[2])
const seen = []
source.addEventListener('snapshot', () => { console.log('connected') })
for (const kind of ['job:completed', 'job:cancelled']) {
  source.addEventListener(kind, event => {
    const data = JSON.parse(event.data)
    seen.push([data.job_id, data.round ?? null])
    if (data.job_id === 'last') {
      console.log(JSON.stringify({ seen }))
      source.close()
    }
  })
}
"""


@pytest.fixture(scope="session")
def eventsource_package(tmp_path_factory):
    npm = shutil.which("npm")
    assert npm and shutil.which("node"), "npm is not installed; the event stream is tested with Node's EventSource"
    folder = tmp_path_factory.mktemp("node")
    (folder / "client.mjs").write_text(NODE_CLIENT)
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), "eventsource@4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_node_eventsource(serve, eventsource_package):
    server = serve()
    command = ["node", str(eventsource_package / "client.mjs"), server.url + "/events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout.readline() == "connected\n", node.stderr.read()
            drive(server, lambda: server.wait_for_clients(1))
            result = json.loads(node.stdout.readline() or node.stderr.read())
            node.wait(120)
        finally:
            node.kill()
    assert result["seen"] == expected()


# ------------------------------------------------------------------------------------------------ other frameworks
def test_behind_middleware_of_starlette():
    """A middleware of the kind that wraps `receive` and `send` neither holds events back nor hides the client's end."""
    code = """
import asyncio, json, socket, uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route
from cjm_worker_ext.integrations.sse import SSEBroadcaster

events = SSEBroadcaster()

async def passes(request, call_next):
    return await call_next(request)

middleware = [Middleware(BaseHTTPMiddleware, dispatch=passes), Middleware(GZipMiddleware)]
app = Starlette(routes=[Route("/", events.endpoint)], middleware=middleware)

async def main():
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started: await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\nAccept-Encoding: gzip\\r\\n\\r\\n")
    await asyncio.wait_for(reader.readuntil(b"snapshot"), 120)
    await events.broadcast("job:completed", {"job_id": "a"})
    await asyncio.wait_for(reader.readuntil(b"job:completed"), 120)
    writer.close()
    async with asyncio.timeout(120):
        while events.clients: await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    await asyncio.wait_for(reader.readuntil(b"snapshot"), 120)
    with socket.socket() as silent:  # it reads nothing, and would hold up the end of the server
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(("127.0.0.1", port))
        silent.send(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        async with asyncio.timeout(120):
            while events.clients < 2: await asyncio.sleep(0.01)
        for n in range(400):
            await events.broadcast("job:chunk", {"job_id": "a", "chunk": f"{n}" + "x" * 20_000})
            await asyncio.sleep(0)
        server.should_exit = True
        await asyncio.wait_for(serving, 120)
    print("ended")

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )  # fmt: skip
    assert done.stdout == "ended\n" and done.stderr == "", done.stderr


FRAMEWORKS = {
    "fastapi": "from fastapi import FastAPI; app = FastAPI(); app.add_route('/events', events.endpoint)",
    "fasthtml": """
from fasthtml.common import FastHTML, signal_shutdown
from starlette.routing import Route
app = FastHTML()
shutdown = signal_shutdown()  # patches uvicorn: its first signal is a forced exit
app.routes.insert(0, Route('/events', events.endpoint))
""",
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_under_another_framework(framework, serve, tmp_path):
    """The endpoint is a route, events arrive, and one Ctrl-C ends the server."""
    pytest.importorskip(framework)
    start = "from cjm_worker_ext.integrations.sse import SSEBroadcaster\nevents = SSEBroadcaster()\n"
    publish = """
@app.post('/publish')
async def publish():
    await events.broadcast('job:completed', {'job_id': 'a'})
    return {}
"""
    (tmp_path / "other_app.py").write_text(start + FRAMEWORKS[framework] + publish)
    server = serve(app="other_app:app", PYTHONPATH=str(tmp_path))
    clients = [server.connect() for _ in range(50)]
    for client in clients:
        read_until(client, b"event: snapshot")
    server.post("/publish")
    for client in clients:
        read_until(client, b'event: job:completed\ndata: {"job_id":"a"}')
    server.process.send_signal(signal.SIGINT)
    server.process.wait(120)
    assert "integrations/sse" not in server.log.read_text()  # no traceback through the stream
