"""What the tests of machines that fail share: managers whose workers run elsewhere, and what becomes of their jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from backend_scenes import Events, running
from harness import is_alive, until_now

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends.hosts import Node

TESTS = Path(__file__).parent
ENDS = ("job:completed", "job:failed", "job:cancelled")
PLUGINS = ("run_until", "pid", "crash", "say", "numbers", "large", "note", "print_and_return", "yield_print_return")


def manager_on(backend, *, config=None, events=None, retry=None) -> BaseJobManager:
    return BaseJobManager(
        "remote",
        worker_config=config or WorkerConfig(),
        plugins={name: f"agent_plugins:{name}" for name in PLUGINS},
        backend=backend,
        event_broadcaster=events,
        retry=retry,
    )


def real(pid: int) -> int:
    "The process id on its machine."
    assert pid > Node.PIDS
    return pid % Node.PIDS


def show_real_pids(monkeypatch: pytest.MonkeyPatch) -> None:
    "From now on managers name the process ids that their machine knows, so that a test can signal them."
    make = Node.__init__

    def without_position(self, host, position, *rest):
        make(self, host, 0, *rest)

    monkeypatch.setattr(Node, "__init__", without_position)


def runs(folder: Path) -> list[int]:
    "The processes in which `run_until` has run."
    return [int(line) for line in (folder / "runs").read_text().split()]


def one_end(events: Events, job) -> str:
    (kind,) = [kind for kind, data in events.seen if kind in ENDS and data["job_id"] == job.id]
    return kind


async def a_lost_machine_costs_its_job(
    manager: BaseJobManager,  # With one worker; it is closed at the end
    events: Events,  # What it tells
    folder: Path,
    lose: Callable[..., object],  # Called with the running job
    bring_back: Callable[..., object] = lambda waiting: None,  # Called with the next job, once the first has failed
):
    async with manager:
        job = await running(manager, "run_until", folder=str(folder))
        waiting = await manager.start_job("pid")
        lose(job)
        await manager.wait(job.id, 120)
        assert not is_alive(real(job.worker_pid)), "it runs on although it was given up"
        assert (job.status, job.error_type) == ("failed", "NodeLost")
        assert "may have run in part" in job.error
        bring_back(waiting)
        await manager.wait(waiting.id, 120)
        assert (waiting.status, waiting.attempts) == ("completed", 1)
    assert [one_end(events, j) for j in (job, waiting)] == ["job:failed", "job:completed"]
    assert runs(folder) == [real(job.worker_pid)]
    return job


async def a_loop_that_stands_still_costs_no_worker(
    manager: BaseJobManager,  # With one worker, on one machine; it is closed at the end
    folder: Path,
):
    "It stands still while the agent answers pings for more than `lost_seconds`."
    async with manager:
        job = await running(manager, "run_until", folder=str(folder))
        (node,) = manager._engine.backend.nodes
        link = node.link
        enough = link._heard + 2 * link._settings.lost_seconds / link._settings.ping_seconds
        until_now(lambda: link._heard > enough, what="answers of the agent")
        (folder / "go on").touch()
        await manager.wait(job.id, 120)
        assert (job.status, job.result) == ("completed", real(job.worker_pid)), job.error
        assert node.is_up


APP = """
import asyncio, os, sys
from cjm_worker_ext import BaseJobManager

async def main():
    {backend}
    manager = BaseJobManager("app", plugins={{"run_until": "agent_plugins:run_until"}}, backend=backend)
    job = await manager.start_job("run_until", folder=sys.argv[1])
    while not job.progress_message:
        await asyncio.sleep(0.01)
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.read(0, 1)
        os._exit(0)
    await manager.wait(job.id)

asyncio.run(main())
"""


def a_killed_app_leaves_nothing(
    backend: str,  # A line of Python that makes `backend`; further arguments are in `sys.argv[2:]`
    folder: Path,
    *arguments: str,
    others: Callable[[int, int], Iterable[int]] = lambda app, child: (),  # What else must end
    seconds: float = 20.0,  # For the worker to end; the lease is far longer
) -> None:
    "Also if a child that it has forked lives on."
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS, TESTS / "agents"]))}
    command = [sys.executable, "-c", APP.format(backend=backend), str(folder), *arguments]
    app = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child = int(app.stdout.readline())
        (worker,), found = runs(folder), others(app.pid, child)
    finally:
        app.kill()
        app.wait(120)
    # long before the lease is over: the end of its connection is what ends the worker
    until_now(lambda: not is_alive(worker), seconds, what="the end of the worker")
    for pid in found:
        until_now(lambda pid=pid: not is_alive(pid), what=f"the end of {pid}")
    assert is_alive(child)
    app.stdin.close()
    app.stdout.close()
    until_now(lambda: not is_alive(child), what="the end of the child")
