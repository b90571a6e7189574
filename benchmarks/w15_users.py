"""W15: many users of one model, and many async jobs on one worker, for this library and for model servers.

A peer that is a library is asked in the app's process; a server is asked over HTTP on loopback, with connections that
stay open and a client that costs as little as possible.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import w15_model as served
from benchmarks.peer_services import free_port
from benchmarks.works import Figures, percentile

USERS = 32
now = time.perf_counter


class Asked:
    "One way to have the model's answers."

    async def open(self, kind: str) -> None:
        raise NotImplementedError

    async def ask(self, user: int, number: int) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        pass


class Ours(Asked):
    async def open(self, kind):
        self.jobs = served.manager(kind)
        await self.jobs.__aenter__()

    async def ask(self, user, number):
        return await served.answer_of(self.jobs, number)

    async def close(self):
        await self.jobs.shutdown()


class InProcess(Asked):
    "The floor: the model in a thread of the app, a queue, and nothing that could be killed."

    async def open(self, kind):
        from concurrent.futures import ThreadPoolExecutor

        self.kind, self.most = kind, served.MOST if kind == "batch" else 1
        self.model, self.pool = served.Model(), ThreadPoolExecutor(1)
        self.queue: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._work())

    async def _work(self):
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            deadline = loop.time() + served.WAIT
            while len(batch) < self.most:
                try:
                    batch.append(self.queue.get_nowait())
                except asyncio.QueueEmpty:
                    try:
                        batch.append(await asyncio.wait_for(self.queue.get(), deadline - loop.time()))
                    except TimeoutError:
                        break
            answers = await loop.run_in_executor(self.pool, self.model, [number for number, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)

    async def ask(self, user, number):
        if self.kind == "async":
            await asyncio.sleep(served.PAUSE)
            return 2 * number
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((number, future))
        return await future

    async def close(self):
        self.task.cancel()


class Connection(asyncio.Protocol):
    "Asks one thing at a time; knows as much of HTTP as these servers say."

    def __init__(self) -> None:
        self.data = b""
        self.answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport):
        self.transport = transport

    def ask(self, path: str, body: bytes) -> asyncio.Future[bytes]:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.answer = asyncio.get_running_loop().create_future()
        return self.answer

    def data_received(self, data):
        self.data += data
        head, gap, body = self.data.partition(b"\r\n\r\n")
        if not gap or self.answer is None:
            return
        if b"transfer-encoding: chunked" in head:
            if not body.endswith(b"\r\n0\r\n\r\n"):
                return
            body = body.split(b"\r\n", 2)[1]  # such a short body is one chunk
        elif len(body) < int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0]):
            return
        self.data, answer, self.answer = b"", self.answer, None
        if head[9:12] == b"200":
            answer.set_result(body)
        else:
            answer.set_exception(RuntimeError(f"{head[:40]!r} {body[:200]!r}"))

    def connection_lost(self, error):
        if self.answer is not None:
            self.answer.set_exception(ConnectionError("the server closed the connection"))


class Server(Asked):
    "A server in a process of its own."

    name, path = "", "/predict"

    def command(self, kind: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.w15_model", self.name, kind, str(self.port)]

    async def open(self, kind):
        self.port = free_port()
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self.command(kind), stdout=quiet, stderr=quiet)
        await self.connect(PEOPLE[kind])

    async def connect(self, people: int) -> None:
        "Wait until the server answers, then open a connection for each user."
        loop, end = asyncio.get_running_loop(), now() + 60
        while True:
            try:
                _, first = await loop.create_connection(Connection, "127.0.0.1", self.port)
                self.connections = [first]
                await self.ask(0, 1)
                break
            except (OSError, RuntimeError):
                if now() > end:
                    raise
                await asyncio.sleep(0.1)
        for _ in range(people - 1):
            self.connections.append((await loop.create_connection(Connection, "127.0.0.1", self.port))[1])

    async def ask(self, user, number):
        return int(await self.connections[user].ask(self.path, b'{"number": %d}' % number))

    async def close(self):
        from benchmarks.works import children

        for connection in self.connections:
            connection.transport.abort()
        for pid in [self.process.pid, *children(self.process.pid)]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self.process.wait()


class OursHttp(Server):
    name = "ours-http"


class LitServe(Server):
    name = "litserve"

    async def open(self, kind):
        needs("litserve")
        await super().open(kind)


class MLServer(Server):
    "With one inference process. It wants an older FastAPI than LitServe, so it may live in an environment of its own."

    path = "/v2/models/model/infer"
    wait = 0.01  # it forms batches of a few jobs with `WAIT`, and has a quarter more jobs per second with this

    def command(self, kind):
        command = os.environ.get("BENCHMARK_MLSERVER") or shutil.which("mlserver")
        if command is None:
            raise NotImplementedError("mlserver is not installed; BENCHMARK_MLSERVER may name its command")
        self.folder = tempfile.TemporaryDirectory()
        server = {
            "host": "127.0.0.1", "http_port": self.port, "grpc_port": free_port(), "metrics_endpoint": None,
            "debug": False, "parallel_workers": 1, "metrics_dir": self.folder.name,
            "environments_dir": self.folder.name,
        }  # fmt: skip
        model = {"name": "model", "implementation": f"benchmarks.w15_mlserver.{kind.title()}"}
        batches = {"max_batch_size": served.MOST, "max_batch_time": self.wait} if kind == "batch" else {}
        for name, settings in {"settings": server, "model-settings": model | batches}.items():
            (Path(self.folder.name) / f"{name}.json").write_text(json.dumps(settings))
        return [command, "start", self.folder.name]

    async def ask(self, user, number):
        values = {"name": "number", "shape": [1, 1], "datatype": "INT64", "data": [number]}
        body = await self.connections[user].ask(self.path, json.dumps({"inputs": [values]}).encode())
        return json.loads(body)["outputs"][0]["data"][0]

    async def close(self):
        await super().close()
        self.folder.cleanup()


def needs(module: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise NotImplementedError(f"{module} is not installed")


def start_ray(kind: str, http: dict[str, Any]) -> Any:  # A handle
    needs("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    if not ray.is_initialized():
        ray.init(
            num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error",
            object_store_memory=256 << 20,
        )  # fmt: skip
        serve.start(http_options=http, logging_config={"log_level": "ERROR", "enable_access_log": False})
    return serve.run(served.ray_deployment(kind), name="model", route_prefix="/")


class RayHandle(Asked):
    "Asked through a handle, in the process of the app."

    async def open(self, kind):
        loop = asyncio.get_running_loop()
        self.handle = await loop.run_in_executor(None, start_ray, kind, {"location": "NoServer"})

    async def ask(self, user, number):
        return await self.handle.remote(number)


class RayHttp(Server):
    "Asked through its HTTP proxy."

    path, port = "/", 0

    async def open(self, kind):
        self.port = self.port or free_port()
        options = {"host": "127.0.0.1", "port": self.port}
        await asyncio.get_running_loop().run_in_executor(None, start_ray, kind, options)
        await self.connect(PEOPLE[kind])

    async def close(self):
        for connection in self.connections:
            connection.transport.abort()


PEERS: dict[str, type[Asked]] = {
    "ours": Ours,
    "ours-http": OursHttp,
    "asyncio": InProcess,
    "litserve": LitServe,
    "ray-serve": RayHandle,
    "ray-http": RayHttp,
    "mlserver": MLServer,
}
PEOPLE = {"single": USERS, "batch": USERS, "async": served.PLACES}


async def checked(peer: Asked, user: int, number: int) -> None:
    answer = await peer.ask(user, number)
    if answer != 2 * number:
        raise RuntimeError(f"asked for twice {number}, got {answer}")


async def closed_loop(peer: Asked, seconds: float) -> Figures:
    "Each user asks again as soon as there is an answer; the first second is not counted."
    times: list[float] = []
    begins = now() + min(1.0, seconds / 2)
    ends = begins + seconds

    async def user(number: int) -> None:
        asked = number * 1_000_000
        while (start := now()) < ends:
            asked += 1
            await checked(peer, number, asked)
            if begins <= (end := now()) < ends:
                times.append(end - start)

    await asyncio.gather(*(user(number) for number in range(USERS)))
    return {
        "jobs_per_s": len(times) / seconds,
        "p50_ms": percentile(times, 0.5) * 1e3,
        "p99_ms": percentile(times, 0.99) * 1e3,
    }


async def users(peer: Asked, quick: bool) -> Figures:
    "One model that does a job at a time, then the same model in batches."
    figures: Figures = {}
    for kind in ("single", "batch"):
        await peer.open(kind)
        await checked(peer, 0, 1)
        found = await closed_loop(peer, 1 if quick else 3)
        figures |= {f"{kind}/{name}": value for name, value in found.items()}
        await peer.close()
    return figures


async def together(peer: Asked, quick: bool) -> Figures:
    "So many async jobs that each wait, handed over at once: how long all take, less one wait."
    await peer.open("async")
    times = []
    for _ in range(3 if quick else 7):
        began = now()
        await asyncio.gather(*(checked(peer, user, user) for user in range(served.PLACES)))
        times.append(now() - began)
    await peer.close()
    return {"over_sleep_ms": (statistics.median(times[1:]) - served.PAUSE) * 1e3}


def measure(peer_name: str, work: str, quick: bool) -> Figures:
    peer = PEERS[peer_name]()
    work_of = {"W15-users": users, "W15-async": together}[work]
    if isinstance(peer, Server):  # the client is not what is measured
        import uvloop

        return uvloop.run(work_of(peer, quick))
    return asyncio.run(work_of(peer, quick))
