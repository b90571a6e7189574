"""Machines, agents and connections that fail: one end for each job, nothing left behind, nothing run twice unasked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agent_process import TESTS, TOKEN, AgentProcess
from backend_scenes import Events, ended, running
from harness import is_alive, run, until, until_now
from proxy import Proxy

from cjm_worker_ext import BaseJobManager, Retry, WorkerConfig
from cjm_worker_ext.backends.hosts import HostsBackend, NodeLink

ENDS = ("job:completed", "job:failed", "job:cancelled")
TIMES = {"connect_seconds": 1.0, "ping_seconds": 0.1, "lease_seconds": 1.0, "lost_seconds": 1.6}


@pytest.fixture
def agent():
    with AgentProcess("--workers", "2") as agent:
        yield agent


def manager_of(*hosts, config=None, events=None, retry=None, **options):
    names = ("run_until", "pid", "say", "numbers", "large")
    backend = HostsBackend(list(hosts), token=TOKEN, **{**TIMES, **options})
    return BaseJobManager(
        "agents",
        worker_config=config or WorkerConfig(),
        plugins={name: f"agent_plugins:{name}" for name in names},
        backend=backend,
        event_broadcaster=events,
        retry=retry,
    )


def real(pid: int) -> int:
    "The process id on its machine."
    assert pid > NodeLink.PIDS
    return pid % NodeLink.PIDS


def runs(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "runs").read_text().split()]


def one_end(events: Events, job) -> str:
    (kind,) = [kind for kind, data in events.seen if kind in ENDS and data["job_id"] == job.id]
    return kind


async def gone(pid: int):
    await until(lambda: not is_alive(pid), what="the end of a worker")


# ---------------------------------------------------------------- processes
def test_a_killed_worker_costs_its_own_job(agent, tmp_path):
    async def scene():
        events = Events()
        async with manager_of(agent.host, config=WorkerConfig(max_workers=2), events=events) as manager:
            first = await running(manager, "run_until", folder=str(tmp_path))
            second = await running(manager, "run_until", folder=str(tmp_path))
            os.kill(real(first.worker_pid), signal.SIGKILL)
            await manager.wait(first.id, 30)
            assert (first.error_type, "was killed by SIGKILL" in first.error) == ("WorkerCrashed", True), first.error
            (tmp_path / "go on").touch()
            await manager.wait(second.id, 30)
            assert second.result == real(second.worker_pid)
        assert [one_end(events, job) for job in (first, second)] == ["job:failed", "job:completed"]

    run(scene())


def test_a_killed_agent_loses_its_jobs_and_is_used_again(agent, tmp_path):
    async def scene():
        events = Events()
        async with manager_of(agent.host, events=events) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            waiting = await manager.start_job("pid")
            agent.kill()
            await gone(real(job.worker_pid))
            await manager.wait(job.id, 30)
            assert (job.status, job.error_type) == ("failed", "NodeLost")
            assert f"{agent.host}: " in job.error and "may have run in part" in job.error
            assert waiting.status == "pending"
            agent.start()
            await manager.wait(waiting.id, 30)
            assert (waiting.status, waiting.attempts) == ("completed", 1)
        assert [one_end(events, j) for j in (job, waiting)] == ["job:failed", "job:completed"]
        assert runs(tmp_path) == [real(job.worker_pid)]

    run(scene())


def test_an_agent_that_ends_says_so(agent, tmp_path):
    async def scene():
        async with manager_of(agent.host, lost_seconds=600) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            agent.signal(signal.SIGTERM)
            await manager.wait(job.id, 30)
            assert (job.error_type, "the agent has ended" in job.error) == ("NodeLost", True), job.error
            assert not is_alive(real(job.worker_pid))

    run(scene())


def test_a_silent_agent_is_given_up_and_its_job_runs_elsewhere(agent, tmp_path):
    "The agent stands still, and so cannot kill its worker; its guard does, before the job runs elsewhere."

    async def scene():
        events = Events()
        with AgentProcess("--workers", "2") as other:
            retry = Retry(2, on=("lost",), delay_seconds=0)
            async with manager_of(agent.host, other.host, events=events, retry=retry, placement="fill") as manager:
                job = await running(manager, "run_until", folder=str(tmp_path))
                first = real(job.worker_pid)
                assert [node.workers for node in manager._make_backend.nodes()] == [1, 0]
                agent.signal(signal.SIGSTOP)
                await until(lambda: len(runs(tmp_path)) == 2, what="a second run")
                assert not is_alive(first), "it runs twice at the same time"
                agent.signal(signal.SIGCONT)
                (tmp_path / "go on").touch()
                await manager.wait(job.id, 30)
                assert (job.status, job.attempts, len(runs(tmp_path))) == ("completed", 2, 2)
                await until(lambda: manager._make_backend.nodes()[0].is_up, what="the thawed agent")
                assert (await ended(manager, "pid")).status == "completed"
        assert one_end(events, job) == "job:completed"

    run(scene())


APP = """
import asyncio, sys
from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.backends.hosts import HostsBackend

async def main():
    backend = HostsBackend([sys.argv[1]], token=sys.argv[2])
    manager = BaseJobManager("app", plugins={"run_until": "agent_plugins:run_until"}, backend=backend)
    job = await manager.start_job("run_until", folder=sys.argv[3])
    await manager.wait(job.id)

asyncio.run(main())
"""


def test_a_killed_app_leaves_nothing(agent, tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    app = subprocess.Popen([sys.executable, "-c", APP, agent.host, TOKEN, str(tmp_path)], env=env)
    try:
        until_now(lambda: (tmp_path / "runs").exists() and runs(tmp_path), what="a job")
    finally:
        app.kill()
        app.wait(10)
    until_now(lambda: not is_alive(runs(tmp_path)[0]), what="the end of the worker")


# ---------------------------------------------------------------- connections
def test_delays_change_nothing(agent):
    async def scene():
        with Proxy(agent.port) as proxy:
            proxy.delay = 0.02
            async with manager_of(proxy.host) as manager:
                assert (await ended(manager, "say", words="hello")).result == 5
                job = await manager.start_job("numbers", count=5000)
                assert [n async for n in manager.stream(job.id)] == list(range(5000))
                assert len((await ended(manager, "large", count=3_000_000)).result) == 3_000_000
                job = await manager.start_job("run_until", folder="/no such folder")
                assert (await manager.wait(job.id, 30)).error_type == "FileNotFoundError"

    run(scene())


def test_a_link_that_is_cut_and_mended_costs_nothing(agent, tmp_path):
    async def scene():
        with Proxy(agent.port) as proxy:
            async with manager_of(proxy.host, lease_seconds=20, lost_seconds=30) as manager:
                job = await running(manager, "run_until", folder=str(tmp_path))
                for count in (2, 3, 4):
                    proxy.cut(*[n for n in range(count) if n != 1])  # 1 is the worker's own connection
                    await until(lambda count=count: len(proxy._pairs) > count, what="a new link")
                    await until(lambda: manager._make_backend.nodes()[0].is_up, what="a new link")
                (tmp_path / "go on").touch()
                await manager.wait(job.id, 30)
                assert (job.status, job.attempts, len(runs(tmp_path))) == ("completed", 1, 1)

    run(scene())


def test_a_worker_whose_connection_is_cut_is_lost(agent, tmp_path):
    async def scene():
        events = Events()
        with Proxy(agent.port) as proxy:
            async with manager_of(proxy.host, events=events, lease_seconds=20, lost_seconds=30) as manager:
                job = await running(manager, "run_until", folder=str(tmp_path))
                proxy.cut(1)
                await manager.wait(job.id, 30)
                assert (job.error_type, "the connection was cut" in job.error) == ("NodeLost", True), job.error
                await gone(real(job.worker_pid))
                assert (await ended(manager, "pid")).status == "completed"
        assert one_end(events, job) == "job:failed" and len(runs(tmp_path)) == 1

    run(scene())


@pytest.mark.parametrize("ways", [{"up", "down"}, {"up"}, {"down"}])
def test_a_network_that_swallows_everything(ways, agent, tmp_path):
    "Whichever direction is lost: the worker is dead when the manager gives it up."

    async def scene():
        with Proxy(agent.port) as proxy:
            async with manager_of(proxy.host) as manager:
                job = await running(manager, "run_until", folder=str(tmp_path))
                proxy.silent_ways = ways
                await manager.wait(job.id, 30)
                assert not is_alive(real(job.worker_pid)), "it runs on although it was given up"
                assert (job.status, job.error_type) == ("failed", "NodeLost")
                proxy.silent_ways = set()
                assert (await ended(manager, "pid")).status == "completed"

    run(scene())


# ---------------------------------------------------------------- places
def test_workers_wait_for_a_machine_and_say_why(agent, caplog):
    async def scene():
        agent.kill()
        async with manager_of(agent.host) as manager:
            with caplog.at_level("INFO"):
                job = await manager.start_job("pid")
                await until(lambda: "no machine has room" in caplog.text, what="a reason")
            assert agent.host in caplog.text and job.status == "pending"
            agent.start()
            assert (await manager.wait(job.id, 30)).status == "completed"

    run(scene())


def test_lanes_are_those_of_the_machine_for_all_managers(agent):
    "One manager has more workers than the machine takes; the jobs of the other wait for a lane."

    async def scene():
        async with manager_of(agent.host, config=WorkerConfig(max_workers=2)) as first:
            jobs = [await first.start_job("pid") for _ in range(2)]
            await asyncio.gather(*(first.wait(job.id, 30) for job in jobs))
            await until(lambda: len(first.workers()) == 2)
            async with manager_of(agent.host) as second:
                job = await second.start_job("pid")
                await until(lambda: "2 of 2 lanes" in second._engine.backend.nodes[0].why_not, what="a reason")
                assert job.status == "pending"
                await first.shutdown()
                assert (await second.wait(job.id, 30)).status == "completed"

    run(scene())


@pytest.mark.parametrize("placement", ["spread", "fill"])
def test_spread_and_fill(placement, agent):
    async def scene():
        with AgentProcess("--workers", "2") as other:
            config = WorkerConfig(max_workers=2)
            async with manager_of(agent.host, other.host, config=config, placement=placement) as manager:
                backend = manager._make_backend
                first = await ended(manager, "pid")
                jobs = [await manager.start_job("say", words="x" * 1000) for _ in range(2)]
                await until(lambda: len(manager.workers()) == 2, what="two workers")
                await asyncio.gather(*(manager.wait(job.id, 30) for job in jobs))
                assert first.status == "completed"
                assert sorted(node.workers for node in backend.nodes()) == ([1, 1] if placement == "spread" else [0, 2])
                assert backend.nodes()[0].workers == (1 if placement == "spread" else 2)

    run(scene())


def test_a_drained_machine_gets_no_more_workers(agent):
    async def scene():
        with AgentProcess("--workers", "2") as other:
            async with manager_of(agent.host, other.host, placement="fill") as manager:
                backend = manager._make_backend
                before = await ended(manager, "pid")
                (used,) = [node.host for node in backend.nodes() if node.workers]
                backend.drain(used)
                await until(lambda: not any(n.workers for n in backend.nodes() if n.host == used), what="a drain")
                after = await ended(manager, "pid")
                assert after.result != before.result
                assert [node.host for node in backend.nodes() if node.workers] != [used]
                backend.drain(used, on=False)
                assert all(node.is_up for node in backend.nodes())

    run(scene())
