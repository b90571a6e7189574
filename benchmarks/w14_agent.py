"""W14: workers behind an agent on this machine, beside local ones and beside a bare TCP connection.

local, agent, ray: one job and its answer, one after the other (the job of W1), in turns of a hundred; `ray` is a lane that
a Ray on this machine has placed, if Ray is installed
64 MiB: the same bytes as a result, and over a TCP connection from another process into fresh memory
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

TOKEN, SIZE = "of a benchmark", 64 << 20


@contextlib.contextmanager
def agent() -> Iterator[str]:
    "The address of an agent."
    command = [sys.executable, "-c", "from cjm_worker_ext.commands.agent import main; main()"]
    env = {**os.environ, "CJM_WORKER_AGENT_TOKEN": TOKEN}
    process = subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, env=env, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[2].rstrip(":")
    finally:
        process.terminate()
        process.wait(30)


def serve_bytes(port: int) -> None:
    "Answer each byte with 64 MiB."
    data = bytes(SIZE)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while sock.recv(1):
            sock.sendall(data)


def raw_tcp(count: int) -> list[float]:
    "Seconds for 64 MiB over TCP, each time into fresh memory."
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("spawn").Process(
            target=serve_bytes, args=(listener.getsockname()[1],), daemon=True
        )
        process.start()
        sock, _ = listener.accept()
    found = []
    with sock:
        for _ in range(count + 1):
            began, memory, done = time.perf_counter(), memoryview(bytearray(SIZE)), 0
            sock.send(b"x")
            while done < SIZE:
                done += sock.recv_into(memory[done:])
            found.append(time.perf_counter() - began)
    process.join(30)
    return found[1:]


def measure(quick: bool) -> dict[str, float]:
    from cjm_worker_ext import BaseJobManager
    from cjm_worker_ext.backends.hosts import HostsBackend
    from cjm_worker_ext.backends.local import LocalBackend
    from cjm_worker_ext.backends.ray import RayBackend

    plugins: Any = {"noop": "benchmarks.w14_agent:noop", "large": "benchmarks.w14_agent:large"}

    async def seconds(manager: BaseJobManager, plugin: str, count: int) -> list[float]:
        found = []
        for _ in range(count):
            began = time.perf_counter()
            job = await manager.wait((await manager.start_job(plugin)).id)
            found.append(time.perf_counter() - began)
            assert job.status == "completed", job
        return found

    async def run(host: str) -> dict[str, float]:
        backends: dict[str, Any] = {"local": LocalBackend, "agent": HostsBackend([host], token=TOKEN)}
        if importlib.util.find_spec("ray") is not None:
            backends["ray"] = RayBackend()
        figures: dict[str, float] = {}
        async with contextlib.AsyncExitStack() as stack:
            managers = {
                name: await stack.enter_async_context(BaseJobManager(name, plugins=plugins, backend=backend))
                for name, backend in backends.items()
            }
            times: dict[str, list[float]] = {name: [] for name in managers}
            for turn in range(6 if quick else 30):
                for name, manager in managers.items():
                    found = await seconds(manager, "noop", 100)
                    times[name] += found if turn else []
            for name, found in times.items():
                figures[f"{name}_p50_us"] = statistics.median(found) * 1e6
            for name, manager in managers.items():
                found = (await seconds(manager, "large", 4 if quick else 12))[1:]
                figures[f"{name}_64mib_ms"] = statistics.median(found) * 1e3
        return figures

    with agent() as host:
        figures = asyncio.run(run(host))
    figures["tcp_64mib_ms"] = statistics.median(raw_tcp(3 if quick else 11)) * 1e3
    return figures


LARGE = bytes(SIZE)


def noop() -> None:
    "The job of W1."


def large() -> bytes:
    return LARGE
