"""Machines, agents and connections that fail: one end for each job, nothing left behind, nothing run twice unasked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import pytest
from agent_process import TOKEN, AgentProcess
from backend_scenes import Events, ended, running
from harness import is_alive, run, until, until_now
from proxy import Proxy
from remote_scenes import (
    a_killed_app_leaves_nothing,
    a_loop_that_stands_still_costs_no_worker,
    a_lost_machine_costs_its_job,
    manager_on,
    one_end,
    real,
    runs,
)

from cjm_worker_ext import Retry, WorkerConfig
from cjm_worker_ext.backends.hosts import HostsBackend, Node

TIMES = {"connect_seconds": 1.0, "ping_seconds": 0.1, "lease_seconds": 1.0, "lost_seconds": 1.6}


@pytest.fixture
def agent():
    with AgentProcess("--workers", "2") as agent:
        yield agent


def manager_of(*hosts, config=None, events=None, retry=None, **options):
    backend = HostsBackend(list(hosts), token=TOKEN, **{**TIMES, **options})
    return manager_on(backend, config=config, events=events, retry=retry)


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
            await manager.wait(first.id, 120)
            assert (first.error_type, "was killed by SIGKILL" in first.error) == ("WorkerCrashed", True), first.error
            (tmp_path / "go on").touch()
            await manager.wait(second.id, 120)
            assert second.result == real(second.worker_pid)
        assert [one_end(events, job) for job in (first, second)] == ["job:failed", "job:completed"]

    run(scene())


def test_a_killed_agent_loses_its_jobs_and_is_used_again(agent, tmp_path):
    def bring_back(waiting):
        assert waiting.status == "pending"
        agent.start()

    async def scene():
        events = Events()
        manager = manager_of(agent.host, events=events)
        job = await a_lost_machine_costs_its_job(manager, events, tmp_path, lambda job: agent.kill(), bring_back)
        assert f"{agent.host}: " in job.error

    run(scene())


def test_an_app_whose_loop_stands_still_keeps_its_workers(agent, tmp_path):
    run(a_loop_that_stands_still_costs_no_worker(manager_of(agent.host), tmp_path))


def test_a_machine_that_is_lost_while_the_loop_stands_still(agent, tmp_path):
    async def scene():
        async with manager_of(agent.host) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            (node,) = manager._engine.backend.nodes
            session = node.link.session
            agent.kill()
            until_now(lambda: node.link.session != session, what="the end of the workers, which the loop is not told")
            await manager.wait(job.id, 120)
            assert (job.error_type, "was silent for 1.6 s" in job.error) == ("NodeLost", True), job.error

    run(scene())


APP = """
import asyncio, sys
sys.path[:0] = {path!r}
from remote_scenes import manager_on
from backend_scenes import running
from cjm_worker_ext.backends.hosts import HostsBackend

async def main():
    async with manager_on(HostsBackend([{host!r}], token={token!r}, **{times!r})) as manager:
        job = await running(manager, "run_until", folder={folder!r})
        print(job.worker_pid, flush=True)
        await manager.wait(job.id)
        print(job.error_type, repr(job.error), flush=True)

asyncio.run(main())
"""


def test_an_app_that_was_stopped_is_told_that_it_was(agent, tmp_path):
    program = APP.format(path=sys.path, host=agent.host, token=TOKEN, times=TIMES, folder=str(tmp_path))
    app = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        pid = real(int(app.stdout.readline()))
        app.send_signal(signal.SIGSTOP)
        until_now(lambda: not is_alive(pid), what="the end of the lease")
        app.send_signal(signal.SIGCONT)
        error = app.stdout.readline()
        assert error.startswith("NodeLost ") and "this app's process stood still" in error, error
    finally:
        app.kill()
        app.communicate(timeout=120)


def test_an_agent_that_ends_says_so(agent, tmp_path):
    async def scene():
        async with manager_of(agent.host, lost_seconds=600) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            agent.signal(signal.SIGTERM)
            await manager.wait(job.id, 120)
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
                await manager.wait(job.id, 120)
                assert (job.status, job.attempts, len(runs(tmp_path))) == ("completed", 2, 2)
                await until(lambda: manager._make_backend.nodes()[0].is_up, what="the thawed agent")
                assert (await ended(manager, "pid")).status == "completed"
        assert one_end(events, job) == "job:completed"

    run(scene())


def test_workers_killed_at_any_moment_run_no_job_twice(agent, tmp_path):
    "Also the order that meets a dead worker: it goes to another one, or its job has failed and did not run again."

    async def scene():
        events, chosen = Events(), random.Random(15)
        config = WorkerConfig(max_workers=2, hold_after_crashes=0)
        async with manager_of(agent.host, config=config, events=events) as manager:
            jobs = []
            for n in range(300):
                jobs.append(await manager.start_job("note", folder=str(tmp_path), job=n))
                if n % 10 == 0:
                    await asyncio.sleep(chosen.random() / 50)
                    for worker in manager.workers():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(real(worker.pid), signal.SIGKILL)
                await manager.wait(jobs[-1].id, 120)
        assert {job.error_type for job in jobs} <= {None, "WorkerCrashed"}
        assert sum(job.status == "completed" for job in jobs) > 200
        for job in jobs:
            assert one_end(events, job) == f"job:{job.status}"
        lines = Counter((tmp_path / "jobs").read_text().split())
        assert set(lines.values()) == {1}
        assert {str(n) for n, job in enumerate(jobs) if job.status == "completed"} <= set(lines)

    run(scene())


def test_output_comes_before_the_answer(agent):
    "Also more of it than a pipe holds, and a last line without an end."

    async def scene():
        async with manager_of(agent.host) as manager:
            for n in (0, 1, 20, 3000):
                job = await manager.start_job("print_and_return", n=n)
                await manager.wait(job.id, 120)
                lines = manager.get_job_output(job.id)
                assert (job.status, lines[-1]) == ("completed", "last line"), (n, lines[-2:])
                assert n == 0 or lines[-2].startswith(f"line {n - 1} x")

    run(scene())


def test_output_is_not_overtaken_by_an_answer(agent, tmp_path):
    "The agent finds frames, output and the answer all at once."

    async def scene():
        async with manager_of(agent.host, lease_seconds=20, lost_seconds=30) as manager:
            job = await manager.start_job("yield_print_return", folder=str(tmp_path))
            await until((tmp_path / "began").exists)
            agent.signal(signal.SIGSTOP)
            (tmp_path / "go on").touch()
            await until((tmp_path / "done").exists, what="the end of the job")
            await asyncio.sleep(0.05)  # for its answer; too short a time would only make the test find nothing
            agent.signal(signal.SIGCONT)
            await manager.wait(job.id, 120)
            assert manager.get_job_output(job.id) == ["said last"]

    run(scene())


def test_an_order_that_its_worker_has_not_read_goes_to_another(agent):
    async def scene():
        async with manager_of(agent.host) as manager:
            before = await ended(manager, "pid")
            pid = real(before.worker_pid)
            os.kill(pid, signal.SIGSTOP)
            job = await manager.start_job("pid")
            (process,) = manager._engine.backend.nodes[0].processes.values()
            link = manager._engine.backend.nodes[0].link
            heard = link._heard
            await until(lambda: link._heard > heard + 1, what="a ping after the order")
            assert process.read < process._frames._sent
            os.kill(pid, signal.SIGKILL)
            await manager.wait(job.id, 120)
            assert (job.status, job.attempts) == ("completed", 1), job
            assert job.result == real(job.worker_pid) != pid

    run(scene())


def test_an_agent_that_is_started_again_at_once(agent, tmp_path):
    "It knows nothing of the workers of the one before, so nobody waits for them."

    async def scene():
        async with manager_of(agent.host, lease_seconds=100, lost_seconds=200) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            agent.kill()
            agent.start()
            await manager.wait(job.id, 120)
            assert (job.status, job.error_type) == ("failed", "NodeLost")
            assert (await ended(manager, "pid")).status == "completed"

    run(scene())


def test_a_killed_app_leaves_nothing(agent, tmp_path):
    backend = (
        "from cjm_worker_ext.backends.hosts import HostsBackend as Backend; "
        "backend = Backend([sys.argv[2]], token=sys.argv[3], lease_seconds=50, lost_seconds=60)"
    )
    a_killed_app_leaves_nothing(backend, tmp_path, agent.host, TOKEN)


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
                assert (await manager.wait(job.id, 120)).error_type == "FileNotFoundError"

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
                await manager.wait(job.id, 120)
                assert (job.status, job.attempts, len(runs(tmp_path))) == ("completed", 1, 1)

    run(scene())


def test_a_mended_link_hears_of_earlier_ends_at_once(agent, tmp_path):
    "The agent tells them right behind its last line, so both may arrive together: with the delay they surely do."

    async def scene():
        with Proxy(agent.port) as proxy:
            proxy.delay = 0.02
            config = WorkerConfig(max_workers=2, hold_after_crashes=0)
            async with manager_of(proxy.host, config=config, lease_seconds=20, lost_seconds=30) as manager:
                crashed = await ended(manager, "crash")
                assert crashed.error_type == "WorkerCrashed"
                job = await running(manager, "run_until", folder=str(tmp_path))
                proxy.cut(0)  # the link
                await until(lambda: len(proxy._pairs) > 3, what="a new link")  # after the link and two workers
                await until(lambda: manager._make_backend.nodes()[0].is_up, what="a new link")
                (tmp_path / "go on").touch()
                assert (await manager.wait(job.id, 120)).status == "completed"

    run(scene())


def test_an_app_without_descriptors_starts_its_worker_later(agent, monkeypatch):
    from cjm_worker_ext.backends import hosts

    tries = []

    class NoneLeft(hosts.RemoteProcess):
        def __init__(self, *args):
            tries.append(args)
            if len(tries) < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            super().__init__(*args)

    async def scene():
        monkeypatch.setattr(hosts, "RemoteProcess", NoneLeft)
        async with manager_of(agent.host) as manager:
            assert (await ended(manager, "pid")).status == "completed"

    run(scene())


def test_a_worker_whose_connection_is_cut_is_lost(agent, tmp_path):
    async def scene():
        events = Events()
        with Proxy(agent.port) as proxy:
            async with manager_of(proxy.host, events=events, lease_seconds=20, lost_seconds=30) as manager:
                job = await running(manager, "run_until", folder=str(tmp_path))
                proxy.cut(1)
                await manager.wait(job.id, 120)
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
                await manager.wait(job.id, 120)
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
            with pytest.raises(TimeoutError, match=f"is still pending .*no machine has room: {agent.host}: "):
                await manager.wait(job.id, 0.01)
            agent.start()
            assert (await manager.wait(job.id, 120)).status == "completed"

    run(scene())


def test_places_are_those_of_the_machine_for_all_managers(agent):
    "One manager has more workers than the machine takes; the jobs of the other wait for a place."

    async def scene():
        async with manager_of(agent.host, config=WorkerConfig(max_workers=2)) as first:
            jobs = [await first.start_job("pid") for _ in range(2)]
            await asyncio.gather(*(first.wait(job.id, 120) for job in jobs))
            await until(lambda: len(first.workers()) == 2)
            async with manager_of(agent.host) as second:
                job = await second.start_job("pid")
                await until(lambda: "2 of 2 places" in second._engine.backend.nodes[0].why_not, what="a reason")
                assert job.status == "pending"
                await first.shutdown()
                assert (await second.wait(job.id, 120)).status == "completed"

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
                await asyncio.gather(*(manager.wait(job.id, 120) for job in jobs))
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


def test_a_worker_that_ends_before_its_start_is_known_is_heard(agent, tmp_path, monkeypatch):
    "The agent says on its link that the worker has ended, and on the worker's own connection that it has started."
    python, ask = tmp_path / "python", Node._ask
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)

    async def ask_and_hear_of_the_end_first(node, session, worker, order):
        answer = await ask(node, session, worker, order)
        await until(lambda: node._asked[worker], what="the end of the worker")
        return answer

    monkeypatch.setattr(Node, "_ask", ask_and_hear_of_the_end_first)

    async def scene():
        config = WorkerConfig(python=str(python), restart_policy="backoff", max_restart_attempts=1)
        async with manager_of(agent.host, config=config) as manager:
            job = await ended(manager, "pid")
            assert job.error_type == "WorkersExhausted" and "exited with code 3" in job.error

    run(scene())


def test_a_machine_that_is_left_while_a_worker_starts_there_gets_no_job(agent, monkeypatch):
    ask, left = Node._ask, []

    async def scene():
        with AgentProcess() as other:
            async with manager_of(agent.host, other.host) as manager:

                async def ask_and_leave_the_first(node, session, worker, order):
                    answer = await ask(node, session, worker, order)
                    if not left:
                        left.append(node)
                        manager._engine.backend.remove(node, "it is left")
                    return answer

                monkeypatch.setattr(Node, "_ask", ask_and_leave_the_first)
                job = await ended(manager, "pid")
                assert job.status == "completed" and job.worker_pid // Node.PIDS != left[0].position

    run(scene())
