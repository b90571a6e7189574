"""W11: how fast events reach many clients over HTTP, and whether one that reads nothing changes that.

Servers, all under uvicorn with uvloop and httptools, in a process of their own:
  ours           SSEBroadcaster
  ours-redis     the same with a RedisChannel: every event goes to a Redis server on this machine and back
  plain          the least that does it: an ASGI app, a deque and a future per client, joined where several wait
  transport      the limit: no ASGI, no task; ready bytes are written to each connection in a loop
  sse-starlette  one asyncio.Queue per client, given an event as its documentation does; its JSON is made once
  sse-bytes      the same, given ready bytes: nothing is serialised per client
The clients are raw sockets in one further process, which counts events and takes the time from publication to arrival.
Two bursts at most are on the way: the next one follows when the clients have had, on average, the one before the last.
A single client gets one at a time, so that its latency is that of an event and not of a queue.
"""

from __future__ import annotations

import asyncio
import collections
import json
import multiprocessing
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

BURSTS = {"single": 1, "burst": 16}  # events published together
MARK = b'"t":'
HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
App = tuple[Any, Callable[[int], Awaitable[None]], Callable[[], int]]  # the ASGI app, publish (padding), clients


# ---------------------------------------------------------------------------------------------------------- servers
def payload(padding: int) -> dict[str, object]:
    "The data of an event of usual size; the time stands last, and is what clients look for."
    data: dict[str, object] = {"seq": 1, "at": "2026-01-01T00:00:00Z", "worker_type": "text", "job_id": "j" * 32}
    return {**data, **({"padding": "x" * padding} if padding else {}), "t": time.monotonic_ns()}


def as_json(padding: int) -> str:
    return json.dumps(payload(padding), separators=(",", ":"))


def as_frame(padding: int) -> bytes:
    return b"id: 12345678-%d\nevent: job:started\ndata: %s\n\n" % (time.monotonic_ns(), as_json(padding).encode())


def ours() -> App:
    from cjm_worker_ext.integrations.sse import SSEBroadcaster

    events = SSEBroadcaster()
    return events.endpoint, lambda padding: events.broadcast("job:started", payload(padding)), lambda: events.clients


def ours_with_redis() -> App:
    from benchmarks.w17_channels import broadcaster

    events = broadcaster("redis", os.environ["BENCHMARK_REDIS"])
    return events.endpoint, lambda padding: events.broadcast("job:started", payload(padding)), lambda: events.clients


class Waiting:
    "A client of the plain loop."

    def __init__(self) -> None:
        self.frames: collections.deque[bytes] = collections.deque()
        self.waiter: asyncio.Future[None] | None = None


def plain() -> App:
    clients: set[Waiting] = set()

    async def pump(client: Waiting, send: Any) -> None:
        create_future, frames = asyncio.get_running_loop().create_future, client.frames
        while True:
            if not frames:
                client.waiter = create_future()
                await client.waiter
                client.waiter = None
            if len(frames) > 1:
                body = b"".join(frames)
                frames.clear()
            else:
                body = frames.popleft()
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(HEAD)
        await send({"type": "http.response.body", "body": b":\n", "more_body": True})
        clients.add(client := Waiting())
        task = asyncio.create_task(pump(client, send))
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()
        clients.discard(client)

    async def publish(padding: int) -> None:
        frame = as_frame(padding)
        for client in clients:
            client.frames.append(frame)
            if client.waiter is not None and not client.waiter.done():
                client.waiter.set_result(None)

    return app, publish, lambda: len(clients)


def transport() -> App:
    connections: set[asyncio.Transport] = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(HEAD)
        await send({"type": "http.response.body", "body": b":\n", "more_body": True})
        connections.add(connection := receive.__self__.transport)
        while (await receive())["type"] != "http.disconnect":
            pass
        connections.discard(connection)

    async def publish(padding: int) -> None:
        frame = as_frame(padding)
        chunk = b"%x\r\n%b\r\n" % (len(frame), frame)
        for connection in connections:
            if connection.get_write_buffer_size() < 1 << 16:
                connection.write(chunk)

    return app, publish, lambda: len(connections)


def sse_starlette(ready: bool) -> App:
    from sse_starlette import EventSourceResponse

    clients: set[asyncio.Queue[Any]] = set()

    async def stream():
        clients.add(mine := asyncio.Queue())
        try:
            yield b":\n"
            while True:
                yield await mine.get()
        finally:
            clients.discard(mine)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await EventSourceResponse(stream())(scope, receive, send)

    async def publish(padding: int) -> None:
        event: Any = as_frame(padding) if ready else {"event": "job:started", "data": as_json(padding)}
        if not ready:
            event["id"] = f"12345678-{time.monotonic_ns()}"
        for client in clients:
            client.put_nowait(event)

    return app, publish, lambda: len(clients)


SERVERS: dict[str, Callable[[], App]] = {
    "ours": ours,
    "ours-redis": ours_with_redis,
    "plain": plain,
    "transport": transport,
    "sse-starlette": lambda: sse_starlette(False),
    "sse-bytes": lambda: sse_starlette(True),
}


class Publisher:
    "Publishes in the server's process, on its loop, and is told by the clients' process how far they are."

    def __init__(self, publish: Callable[[int], Awaitable[None]], told: socket.socket, window: int) -> None:
        self._publish, self._told, self._window = publish, told, window  # bursts on the way
        self._done, self._news = 0, asyncio.Event()
        told.setblocking(False)
        asyncio.get_running_loop().add_reader(told.fileno(), self._listen)

    def _listen(self) -> None:
        (self._done,) = struct.unpack("q", self._told.recv(1 << 12)[-8:])
        self._news.set()

    async def _until(self, done: int) -> None:
        while self._done < done:
            self._news.clear()
            await self._news.wait()

    async def run(self, burst: int, seconds: float, least: int, padding: int) -> dict[str, float]:
        "Publish for so long, at least so many events, until all have arrived; returns what it took."
        self._done = sent = 0
        began, cpu = time.perf_counter(), time.process_time()
        while sent < least or time.perf_counter() - began < seconds:
            await self._until(sent - self._window * burst + 1)
            for _ in range(burst):
                await self._publish(padding)
            sent += burst
            await asyncio.sleep(0)
        await self._until(sent)
        return {"events": sent, "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def serve(peer: str, window: int, listener: socket.socket, told: socket.socket, orders: Any) -> None:
    "The server's process: answers `(clients, burst, seconds, least, padding)` until it is killed."
    import uvicorn
    import uvloop

    prepare(0)
    app, publish, count = SERVERS[peer]()
    config = uvicorn.Config(
        app, log_level="critical", loop="uvloop", http="httptools", lifespan="off", access_log=False
    )
    server = uvicorn.Server(config)

    async def obey() -> None:
        publisher, loop = Publisher(publish, told, window), asyncio.get_running_loop()
        while True:
            clients, *order = await loop.run_in_executor(None, orders.recv)
            while count() < clients:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            figures = await publisher.run(*order)
            full = sum(connection.flow.write_paused for connection in server.server_state.connections)
            orders.send({**figures, "full": full})

    async def main() -> None:
        await asyncio.gather(server.serve([listener]), obey())

    uvloop.run(main())


# ---------------------------------------------------------------------------------------------------------- clients
def prepare(core: int) -> None:
    "Keep this process on a core of its own, where there are two, and let it have a descriptor for each client."
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connect(port: int, reads: bool) -> socket.socket:
    "A client that has had the beginning of its stream, or one that will never read, with buffers as small as can be."
    sock = socket.socket()
    sock.settimeout(20)
    if not reads:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
    sock.connect(("127.0.0.1", port))
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = b""
    while reads and (b"\r\n\r\n" not in head or head.count(b"\n", head.index(b"\r\n\r\n") + 4) < 2):
        head += sock.recv(4096)
    return sock


class Readers:
    "All clients, in one process: counts what arrives, and takes the time of one read in seven."

    def __init__(self, port: int, tell: socket.socket, orders: Any) -> None:
        self.port, self.tell, self.orders = port, tell, orders
        self.poll, self.sockets, self.reading = select.epoll(), [], 0
        self.poll.register(orders.fileno(), select.EPOLLIN)
        self.rest: dict[int, bytes] = {}
        self.reads = 0
        self._begin(1)

    def _begin(self, burst: int) -> None:
        self.burst, self.total, self.acknowledged = burst, 0, 0
        self.delays: list[int] = []
        self.cpu = time.process_time()

    def obey(self) -> None:
        order, argument = self.orders.recv()
        if order == "connect":
            for _ in range(argument):
                self.sockets.append(connect(self.port, True))
                self.poll.register(self.sockets[-1].fileno(), select.EPOLLIN)
            self.reading += argument
        elif order == "stick":
            self.sockets.append(connect(self.port, False))
        elif order == "begin":
            self._begin(argument)
        else:
            delays = sorted(self.delays)
            self.orders.send([delays[len(delays) * share // 100] / 1e6 for share in (50, 99)])
        self.orders.send(time.process_time() - self.cpu)

    def read(self, descriptor: int) -> None:
        data = os.read(descriptor, 1 << 15)
        if not data:
            raise RuntimeError("the server closed a connection of a healthy reader")
        if data[-2:] != b"\r\n" or descriptor in self.rest:  # not the end of an HTTP chunk: a mark may be cut in two
            data = self.rest.pop(descriptor, b"") + data
            end = len(data) if data[-2:] == b"\r\n" else data.rfind(b"\n") + 1
            if end < len(data):
                self.rest[descriptor], data = data[end:], data[:end]
        self.total += data.count(MARK)
        self.reads += 1
        if self.reads % 7 == 0 and MARK in data:
            stamp = data[data.rindex(MARK) + len(MARK) :].split(b"}", 1)[0]
            self.delays.append(time.monotonic_ns() - int(stamp))

    def run(self) -> None:
        orders = self.orders.fileno()
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor == orders:
                    self.obey()
                else:
                    self.read(descriptor)
            if self.reading and self.total >= (self.acknowledged + self.burst) * self.reading:
                self.acknowledged = self.total // self.reading // self.burst * self.burst
                self.tell.send(struct.pack("q", self.acknowledged))


def read(port: int, tell: socket.socket, orders: Any) -> None:
    "The clients' process: obeys until it is killed."
    prepare(1)
    Readers(port, tell, orders).run()


# ------------------------------------------------------------------------------------------------------ measurement
class Bench:
    "One server and its clients, each in a process that dies with this one."

    def __init__(self, peer: str, window: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        told, tell = socket.socketpair()
        self.server, servers_end = spawn.Pipe()
        self.readers, readers_end = spawn.Pipe()
        port = listener.getsockname()[1]
        server = spawn.Process(target=serve, args=(peer, window, listener, told, servers_end), daemon=True)
        readers = spawn.Process(target=read, args=(port, tell, readers_end), daemon=True)
        self.processes = [server, readers]
        for process in self.processes:
            process.start()
        for end in (listener, told, tell, servers_end, readers_end):
            end.close()  # theirs alone now: if one of them ends, the other side sees it

    def close(self) -> None:
        for process in reversed(self.processes):  # clients first: they complain if the server goes
            process.kill()
            process.join(5)

    def order(self, order: str, argument: int = 0) -> Any:
        self.readers.send((order, argument))
        return self.readers.recv()

    def run(self, clients: int, burst: int, seconds: float, least: int, padding: int = 0) -> dict[str, float]:
        "Figures of one phase; `clients` are all that there are, reading or not."
        self.order("begin", burst)
        self.server.send((clients, burst, seconds, least, padding))
        figures = self.server.recv()
        figures["p50_ms"], figures["p99_ms"] = self.order("end")
        figures["readers_cpu"] = self.readers.recv()
        return figures


def shown(phase: dict[str, float], clients: int) -> dict[str, float]:
    deliveries = phase["events"] * clients
    return {
        "per_s": deliveries / phase["seconds"],
        "per_cpu_s": deliveries / phase["cpu"],  # of the server's processor time
        "p50_ms": phase["p50_ms"],
        "p99_ms": phase["p99_ms"],
        "server_busy": phase["cpu"] / phase["seconds"],  # 1 is a whole core
        "clients_busy": phase["readers_cpu"] / phase["seconds"],
    }


def measure(peer: str, clients: int, quick: bool) -> dict[str, float]:
    "Figures named `mode/figure`; first without, then with a client that reads nothing."
    if peer == "ours-redis" and "BENCHMARK_REDIS" not in os.environ:
        from benchmarks.w17_channels import served

        with served("redis") as os.environ["BENCHMARK_REDIS"]:
            return measure(peer, clients, quick)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < clients + 100:
        raise NotImplementedError(f"{clients} clients need more descriptors than the {hard} allowed here")
    bench, figures = Bench(peer, 1 if clients == 1 else 2), {}
    seconds = 0.3 if quick else 0.8
    try:
        bench.order("connect", clients)
        bench.run(clients, 4, 0.1, 8)  # warm
        for stuck in (0, 1):
            if stuck:
                bench.order("stick")
                if not bench.run(clients + 1, 2, 0, 32, padding=1 << 13)["full"]:
                    raise RuntimeError("the stuck client is not stuck")
            for mode, burst in BURSTS.items():
                phase = bench.run(clients + stuck, burst, seconds, 4 * burst)
                name = mode + "-stuck" * stuck
                figures |= {f"{name}/{figure}": value for figure, value in shown(phase, clients).items()}
    finally:
        bench.close()
    return figures
