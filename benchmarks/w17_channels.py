"""W17: how fast events go from one web process to a client of another one, through a channel.

Three processes: one publishes, one has a client, and the channel's server, where there is one. All are started here, on
this machine; the server listens on loopback or on a Unix socket. The time is taken from the broadcast in one process to
the moment when the client's bytes are handed to the server of the other one.
  paced: 10,000 events a second, ten each millisecond
  flood: as fast as they go, with at most 2,000 on the way
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RATE, WINDOW = 10_000, 2_000
MARK = b'"t":'


@contextlib.contextmanager
def served(kind: str) -> Iterator[str]:
    "The address of a fresh channel."
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # has the servers that tests start
    if kind == "redis":
        import redis_server

        if redis_server.missing():
            raise NotImplementedError(redis_server.missing())
        with redis_server.RedisServer("--appendfsync", "everysec") as server:  # its default
            yield server.url
    elif kind == "postgres":
        import postgres_server

        if postgres_server.missing():
            raise NotImplementedError(postgres_server.missing())
        with postgres_server.PostgresServer() as pg:
            yield pg.dsn()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield str(Path(folder, "events.db"))


def broadcaster(kind: str, address: str) -> Any:
    from cjm_worker_ext.integrations.sse import SSEBroadcaster

    if kind == "redis":
        from cjm_worker_ext.integrations.channel_redis import RedisChannel as Channel
    elif kind == "postgres":
        from cjm_worker_ext.integrations.channel_postgres import PostgresChannel as Channel  # type: ignore[assignment]
    else:
        from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel as Channel  # type: ignore[assignment]
    return SSEBroadcaster(channel=Channel(address))


def payload(n: int) -> dict[str, object]:
    "An event of usual size; the time stands last."
    return {
        "seq": n,
        "at": "2026-01-01T00:00:00Z",
        "worker_type": "text",
        "job_id": f"{n:032}",
        "t": time.monotonic_ns(),
    }


def listen(kind: str, address: str, orders: Any) -> None:
    "The process with the client: answers each `count` with the delays, in ns, as soon as so many events have come."
    delays: list[int] = []
    news = asyncio.Event()

    async def send(message: Any) -> None:
        now = time.monotonic_ns()
        for part in message.get("body", b"").split(MARK)[1:]:
            delays.append(now - int(part[: part.index(b"}")]))
        news.set()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def main() -> None:
        events, loop = broadcaster(kind, address), asyncio.get_running_loop()
        await events.ready()
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "query_string": b"", "headers": []}
        client = loop.create_task(events.endpoint(scope, receive, send))
        await news.wait()
        orders.send("ready")
        while count := await loop.run_in_executor(None, orders.recv):
            while len(delays) < count:
                news.clear()
                await news.wait()
            orders.send(list(delays))
            delays.clear()
        client.cancel()
        await events.aclose()

    asyncio.run(main())


async def paced(events: Any, seconds: float) -> int:
    loop, sent = asyncio.get_running_loop(), 0
    began = loop.time()
    while sent < RATE * seconds:
        due = min(int((loop.time() - began) * RATE), int(RATE * seconds))
        for n in range(sent, due):
            await events.broadcast("job:started", payload(n))
        sent = max(sent, due)
        await asyncio.sleep(0.001)
    return sent


async def flood(events: Any, seconds: float) -> int:
    loop, sent = asyncio.get_running_loop(), 0
    first, began = int(events.position.partition("-")[2]), loop.time()
    while loop.time() - began < seconds:
        if sent - (int(events.position.partition("-")[2]) - first) < WINDOW:
            for n in range(50):
                await events.broadcast("job:started", payload(n))
            sent += 50
        await asyncio.sleep(0)
    return sent


def measure(kind: str, quick: bool) -> dict[str, float]:
    "Figures named `mode/figure`."
    seconds, figures = (1.0 if quick else 4.0), {}
    with served(kind) as address:
        spawn = multiprocessing.get_context("spawn")
        orders, theirs = spawn.Pipe()
        process = spawn.Process(target=listen, args=(kind, address, theirs), daemon=True)
        process.start()

        async def main() -> None:
            events, ask = broadcaster(kind, address), asyncio.to_thread
            await events.ready()
            assert await ask(orders.recv) == "ready"
            for name, run in (("warm", paced), ("paced", paced), ("flood", flood)):
                began, cpu = time.perf_counter(), time.process_time()
                count = await run(events, 0.3 if name == "warm" else seconds)
                orders.send(count)
                delays = sorted(await ask(orders.recv))
                spent = time.perf_counter() - began
                if name != "warm":
                    figures[f"{name}/per_s"] = count / spent
                    figures[f"{name}/p50_ms"] = delays[len(delays) // 2] / 1e6
                    figures[f"{name}/p99_ms"] = delays[len(delays) * 99 // 100] / 1e6
                    figures[f"{name}/publisher_cpu_us"] = (time.process_time() - cpu) / count * 1e6
            orders.send(0)
            await events.aclose()

        try:
            asyncio.run(main())
            process.join(10)
        finally:
            process.kill()
    return figures
