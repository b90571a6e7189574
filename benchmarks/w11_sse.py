"""W11: how fast events reach many clients over HTTP, and whether one that reads nothing changes that.

    python benchmarks/w11_sse.py                          # everything, a table at the end
    python benchmarks/w11_sse.py --clients 500 --rounds 5 --json out.jsonl

Servers, all under uvicorn with uvloop and httptools, each in a process of its own:
  ours    SSEBroadcaster
  plain   the least that does it: an ASGI app, a deque and a future per client, bytes joined that wait together
  plain1  the same with one send per event
  queue   sse-starlette with one asyncio.Queue per client, given an event as its documentation does; JSON made once
  bytes   the same, given ready bytes: nothing is serialised per client
The clients are raw sockets in one further process, which counts events and takes the time from publication to arrival.
Needs uvicorn, uvloop, httptools, starlette and sse-starlette.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import multiprocessing
import os
import platform
import select
import socket
import statistics
import sys
import time
from pathlib import Path

KINDS = ("ours", "plain", "plain1", "queue", "bytes")
MARK = b'"t":'


# ---------------------------------------------------------------------------------------------------------- servers
def payload() -> dict[str, object]:
    return {"seq": 1, "at": "2026-01-01T00:00:00Z", "worker_type": "text", "job_id": "j" * 32, "t": time.monotonic_ns()}


def ours():
    from cjm_worker_ext.integrations.sse import SSEBroadcaster

    events = SSEBroadcaster(max_events=4096)
    return events.endpoint, lambda: events.broadcast("job:started", payload()), lambda: events.clients


def encoded() -> bytes:
    data = json.dumps(payload(), separators=(",", ":"))
    return b"id: 12345678-%d\nevent: job:started\ndata: %s\n\n" % (time.monotonic_ns(), data.encode())


class Client(list):
    "[deque, waiter], told apart by identity"

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def plain(join: bool):
    clients: set[Client] = set()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b":\n", "more_body": True})
        buffer: collections.deque[bytes] = collections.deque()
        client = Client((buffer, None))
        clients.add(client)
        create_future = asyncio.get_running_loop().create_future

        async def pump():
            while True:
                if not buffer:
                    client[1] = create_future()
                    await client[1]
                    client[1] = None
                if join and len(buffer) > 1:
                    body = b"".join(buffer)
                    buffer.clear()
                else:
                    body = buffer.popleft()
                await send({"type": "http.response.body", "body": body, "more_body": True})

        task = asyncio.create_task(pump())
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()
        clients.discard(client)

    async def broadcast():
        body = encoded()
        for client in clients:
            client[0].append(body)
            if client[1] is not None and not client[1].done():
                client[1].set_result(None)

    return app, broadcast, lambda: len(clients)


def queue(ready: bool):
    from sse_starlette import EventSourceResponse

    clients: set[asyncio.Queue] = set()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError

        async def stream():
            mine: asyncio.Queue = asyncio.Queue()
            clients.add(mine)
            try:
                yield b":\n"
                while True:
                    yield await mine.get()
            finally:
                clients.discard(mine)

        await EventSourceResponse(stream())(scope, receive, send)

    async def broadcast():
        if ready:
            event = encoded()
        else:
            data = json.dumps(payload(), separators=(",", ":"))
            event = {"event": "job:started", "id": f"12345678-{time.monotonic_ns()}", "data": data}
        for client in clients:
            client.put_nowait(event)

    return app, broadcast, lambda: len(clients)


def serve(kind: str, sock: socket.socket, events: int, burst: int, window: int, pipe) -> None:
    """Publish `events` events in bursts; the next burst follows when the readers have, on average, that before the last."""
    import uvicorn

    make = {"ours": ours, "plain": lambda: plain(True), "plain1": lambda: plain(False)}
    make |= {"queue": lambda: queue(False), "bytes": lambda: queue(True)}
    app, broadcast, count = make[kind]()

    async def drive(server: uvicorn.Server) -> None:
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        acknowledged = asyncio.Event()
        done = 0

        def on_pipe() -> None:
            nonlocal done
            while pipe.poll():
                done = max(done, pipe.recv())
                acknowledged.set()

        expected = await loop.run_in_executor(None, pipe.recv)
        while count() < expected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        loop.add_reader(pipe.fileno(), on_pipe)
        began, cpu = time.perf_counter(), time.process_time()
        for sent in range(0, events, burst):
            while sent - done >= window * burst:
                acknowledged.clear()
                await acknowledged.wait()
            for _ in range(burst):
                await broadcast()
            await asyncio.sleep(0)
        while done < events:
            acknowledged.clear()
            await acknowledged.wait()
        pipe.send((time.perf_counter() - began, time.process_time() - cpu))
        loop.remove_reader(pipe.fileno())
        await asyncio.sleep(0.1)
        server.should_exit = server.force_exit = True

    async def main() -> None:
        config = uvicorn.Config(
            app, log_level="critical", loop="uvloop", http="httptools", lifespan="off", access_log=False
        )
        server = uvicorn.Server(config)
        await asyncio.gather(server.serve([sock]), drive(server))

    import uvloop

    uvloop.run(main())
    os._exit(0)


# ---------------------------------------------------------------------------------------------------------- readers
def read(port: int, clients: int, stuck: int, events: int, burst: int, pause: float, pipe) -> None:
    """Open the connections, count events, say when all clients have got so many, and note how long one in 17 took."""
    poll = select.epoll()
    sockets = []
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for number in range(clients + stuck):
        sock = socket.create_connection(("127.0.0.1", port))
        sockets.append(sock)
        sock.sendall(request)
        if number >= clients:
            continue
        head = b""
        while b"\r\n\r\n" not in head or head.count(b"\n", head.index(b"\r\n\r\n") + 4) < 2:
            head += sock.recv(65536)
        poll.register(sock.fileno(), select.EPOLLIN)
    pipe.send(clients + stuck)
    cpu = time.process_time()
    total = number = acknowledged = 0
    delays: list[int] = []
    rest: dict[int, bytes] = {}
    while total < events * clients:
        for descriptor, _ in poll.poll():
            data = os.read(descriptor, 1 << 18)
            if data[-2:] != b"\r\n" or rest:  # not the end of an HTTP chunk: a mark may be cut in two
                if not data:
                    raise RuntimeError("the server closed a connection of a healthy reader")
                data = rest.pop(descriptor, b"") + data
                end = len(data) if data[-2:] == b"\r\n" else data.rfind(b"\n") + 1
                if end < len(data):
                    rest[descriptor], data = data[end:], data[:end]
            total += data.count(MARK)
            number += 1
            if number % 17 == 0 and MARK in data:
                stamp = data[data.rindex(MARK) + len(MARK) :].split(b"}", 1)[0]
                delays.append(time.monotonic_ns() - int(stamp))
        if pause:
            time.sleep(pause)
        if total >= (acknowledged + burst) * clients:  # on average; what is on the way is bounded by the window
            acknowledged = total // clients // burst * burst
            pipe.send(acknowledged)
    delays.sort()
    cpu = time.process_time() - cpu
    pipe.send([delays[len(delays) // 2] / 1e6, delays[len(delays) * 99 // 100] / 1e6, cpu / events / clients * 1e6])
    os._exit(0)


# ---------------------------------------------------------------------------------------------------------- rounds
def run_once(
    kind: str, clients: int, stuck: int, burst: int, deliveries: int, window: int, pause: float
) -> dict[str, object]:
    spawn = multiprocessing.get_context("spawn")
    events = max(burst * 4, deliveries // clients // burst * burst)
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    to_server, server_end = spawn.Pipe()
    to_reader, reader_end = spawn.Pipe()
    port = sock.getsockname()[1]
    server = spawn.Process(target=serve, args=(kind, sock, events, burst, window, server_end), daemon=True)
    server.start()
    reader = spawn.Process(target=read, args=(port, clients, stuck, events, burst, pause, reader_end), daemon=True)
    reader.start()
    seconds = cpu = None
    while True:
        message = to_reader.recv()
        if isinstance(message, list):
            p50, p99, reader_us = message
            break
        to_server.send(message)
    seconds, cpu = to_server.recv()
    server.join()
    reader.join()
    sock.close()
    delivered = events * clients
    return {
        "kind": kind, "clients": clients, "stuck": stuck, "burst": burst, "events": events,
        "per_second": delivered / seconds, "cpu_us": cpu / delivered * 1e6, "reader_us": reader_us, "p50_ms": p50, "p99_ms": p99,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 100, 500, 2000])
    parser.add_argument("--bursts", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--stuck", type=int, nargs="+", default=[0, 1], help="clients that read nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=int, default=2, help="bursts on the way at the same time")
    parser.add_argument(
        "--pause",
        type=float,
        default=0,
        help="seconds that the readers rest after each look, so that they cost less than the server",
    )
    parser.add_argument("--deliveries", type=int, default=200_000, help="per run; a fifth of it with one client")
    parser.add_argument("--json", type=Path, help="append one line per run")
    options = parser.parse_args()
    versions = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    print(json.dumps(versions), file=sys.stderr)
    header = f"{'clients':>7} {'burst':>5} {'stuck':>5} {'kind':>7} {'per s':>9} {'CPU us':>7} {'reader':>7} {'p50 ms':>7} {'p99 ms':>7} {'ours/it':>8}"
    print(header)
    for clients in options.clients:
        for burst in options.bursts:
            for stuck in options.stuck:
                runs: dict[str, list[dict[str, object]]] = {kind: [] for kind in options.kinds}
                deliveries = options.deliveries if clients > 1 else options.deliveries // 5
                for _ in range(options.rounds):  # interleaved: a slow phase of the machine hits all alike
                    for kind in options.kinds:
                        result = run_once(kind, clients, stuck, burst, deliveries, options.window, options.pause)
                        runs[kind].append(result)
                        if options.json:
                            with options.json.open("a") as file:
                                file.write(json.dumps({**versions, **result}) + "\n")
                medians = {
                    kind: {
                        k: statistics.median(r[k] for r in rows)
                        for k in ("per_second", "cpu_us", "reader_us", "p50_ms", "p99_ms")
                    }
                    for kind, rows in runs.items()
                }
                for kind, m in medians.items():
                    ratio = medians["ours"]["per_second"] / m["per_second"] if "ours" in medians else float("nan")
                    row = f"{clients:>7} {burst:>5} {stuck:>5} {kind:>7} {m['per_second']:>9.0f} {m['cpu_us']:>7.2f}"
                    row += f" {m['reader_us']:>7.2f}"
                    print(f"{row} {m['p50_ms']:>7.2f} {m['p99_ms']:>7.2f} {ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
