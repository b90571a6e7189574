"""Places on Ray, as the manager sees them, with a stand-in for Ray: asked for, lost, given back. tests/on_ray has a real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from backend_scenes import Events, ended, running
from harness import is_alive, run, until, until_now

from cjm_worker_ext import BaseJobManager, Retry, WorkerConfig
from cjm_worker_ext.backends.hosts import Node
from cjm_worker_ext.backends.ray import RayBackend, RayPlaces

TESTS = Path(__file__).parent
STAND_IN = TESTS / "ray_stand_in"
ENDS = ("job:completed", "job:failed", "job:cancelled")


@pytest.fixture(autouse=True)
def how(monkeypatch):
    "What says how the stand-in behaves."
    monkeypatch.syspath_prepend(str(TESTS / "agents"))
    monkeypatch.syspath_prepend(str(STAND_IN))
    return lambda **options: monkeypatch.setenv("STAND_IN_RAY", json.dumps(options))


def manager_of(*, config=None, events=None, retry=None, **options):
    return BaseJobManager(
        "on ray",
        worker_config=config or WorkerConfig(),
        plugins={name: f"agent_plugins:{name}" for name in ("run_until", "pid")},
        backend=RayBackend(**options),
        event_broadcaster=events,
        retry=retry,
    )


def places_of(manager) -> RayPlaces:
    return manager._engine.backend.places


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def processes_of(job) -> tuple[int, int, int, int]:
    "Driver, actor, agent and worker."
    worker = job.worker_pid % Node.PIDS
    agent = parent(worker)
    return parent(parent(agent)), parent(agent), agent, worker


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().split())


def one_end(events: Events, job) -> str:
    (kind,) = [kind for kind, data in events.seen if kind in ENDS and data["job_id"] == job.id]
    return kind


# ---------------------------------------------------------------- the number of places
def test_each_worker_has_a_place_of_its_own(how, tmp_path):
    how(cpus=3)

    async def scene():
        async with manager_of(config=WorkerConfig(max_workers=3)) as manager:
            jobs = [await running(manager, "run_until", folder=str(tmp_path)) for _ in range(3)]
            assert len({processes_of(job)[1] for job in jobs}) == 3
            nodes = manager._make_backend.nodes()
            assert [(node.workers, node.lanes) for node in nodes] == [(1, 1)] * 3
            assert {worker.node for worker in manager.workers()} == {node.host for node in nodes}
            (tmp_path / "go on").touch()
            assert [(await manager.wait(job.id, 120)).status for job in jobs] == ["completed"] * 3

    run(scene())


def test_jobs_wait_for_places_and_say_why(how, caplog, tmp_path):
    how(cpus=1)

    async def scene():
        async with manager_of(config=WorkerConfig(max_workers=2)) as manager:
            first = await running(manager, "run_until", folder=str(tmp_path))
            second = await manager.start_job("run_until", folder=str(tmp_path))
            words = "Ray has not given 1 place yet: each needs 1 CPU; free in the whole cluster: 0 CPU"
            await until(lambda: words in caplog.text, what="a reason")
            assert second.status == "pending"
            os.kill(processes_of(first)[1], signal.SIGKILL)
            await until(lambda: second.status == "running", what="the other's place")
            (tmp_path / "go on").touch()
            assert (await manager.wait(second.id, 120)).status == "completed"

    with caplog.at_level("INFO"):
        run(scene())


def test_max_lanes(how, caplog, tmp_path):
    how(cpus=3)

    async def scene():
        async with manager_of(config=WorkerConfig(max_workers=3), max_lanes=1) as manager:
            first = await running(manager, "run_until", folder=str(tmp_path))
            second = await manager.start_job("run_until", folder=str(tmp_path))
            await until(lambda: "max_lanes=1 are in use" in caplog.text, what="a reason")
            assert len(places_of(manager).records) == 1
            (tmp_path / "go on").touch()
            assert [(await manager.wait(job.id, 120)).status for job in (first, second)] == ["completed"] * 2

    with caplog.at_level("INFO"):
        run(scene())


def test_idle_places_are_given_back_and_busy_ones_are_not(how, tmp_path):
    how(cpus=2)

    async def scene():
        events = Events()
        async with manager_of(config=WorkerConfig(max_workers=2), idle_seconds=0.2, events=events) as manager:
            busy = await running(manager, "run_until", folder=str(tmp_path))
            idle = await ended(manager, "pid")
            await until(lambda: len(places_of(manager).records) == 1, what="a place is given back")
            assert (idle.status, busy.status) == ("completed", "running")
            await until(lambda: not is_alive(idle.result), what="the end of the idle worker")
            await asyncio.sleep(0.5)  # too short a time would only make the test find nothing
            assert [place.retires for place in places_of(manager).records.values()] == [None], "it is to be given back"
            assert busy.status == "running"
            (tmp_path / "go on").touch()
            actor = processes_of(busy)[1]
            assert (await manager.wait(busy.id, 120)).status == "completed"
            await until(lambda: not places_of(manager).records and not is_alive(actor), what="the other is given back")
            assert (await ended(manager, "pid")).status == "completed", "places are asked for again"
        reasons = [data["reason"] for kind, data in events.seen if kind == "worker:recycled"]
        assert reasons[0] == "its Ray place was idle for 0.2 s"

    run(scene())


def test_a_worker_that_starts_is_not_idle():
    async def scene():
        events = Events()
        async with manager_of(idle_seconds=0.02, events=events) as manager:
            assert (await ended(manager, "pid")).status == "completed"
        kinds = [kind for kind, _ in events.seen]
        assert "worker:recycled" not in kinds[: kinds.index("job:completed")]

    run(scene())


def test_spare_workers_keep_their_places(how):
    how(cpus=2)

    async def scene():
        config = WorkerConfig(max_workers=1, standby_workers=1)
        async with manager_of(config=config, idle_seconds=0.1) as manager:
            assert (await ended(manager, "pid")).status == "completed"
            await until(lambda: len(places_of(manager).records) == 2, what="a place for the spare")
            await until(lambda: len(places_of(manager).records) == 1, what="one is given back")
            (worker,) = await until(manager.workers)
            await asyncio.sleep(0.5)  # too short a time would only make the test find nothing
            assert [w.pid for w in manager.workers()] == [worker.pid]

    run(scene())


# ---------------------------------------------------------------- what is lost
@pytest.mark.parametrize("retry", [None, Retry(2, on=("lost",), delay_seconds=0)], ids=["once", "retry"])
@pytest.mark.parametrize("victim", ["actor", "agent", "driver"])
def test_what_is_killed_costs_the_jobs_there(victim, retry, tmp_path):
    async def scene():
        events = Events()
        async with manager_of(events=events, retry=retry) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            driver, actor, agent, worker = processes_of(job)
            os.kill({"actor": actor, "agent": agent, "driver": driver}[victim], signal.SIGKILL)
            if retry is None:
                await manager.wait(job.id, 120)
                assert (job.status, job.error_type) == ("failed", "NodeLost"), job.error
            else:
                await until(lambda: runs(tmp_path) == 2, what="a second run")
                assert not is_alive(worker), "it runs twice at the same time"
                (tmp_path / "go on").touch()
                await manager.wait(job.id, 120)
                assert (job.status, job.attempts) == ("completed", 2)
            assert runs(tmp_path) == job.attempts
            assert (await ended(manager, "pid")).status == "completed"
            for pid in (actor, agent, worker):
                await until(lambda pid=pid: not is_alive(pid), what="the end of the place")
        assert one_end(events, job) == f"job:{job.status}"

    run(scene())


def test_a_place_that_ray_calls_dead_is_left_only_when_its_worker_is(how, tmp_path):
    "Ray says that of a node which it cannot reach, also if the manager can."
    lies = tmp_path / "lies"
    how(lies=str(lies))

    async def scene():
        retry = Retry(2, on=("lost",), delay_seconds=0)
        async with manager_of(retry=retry, idle_seconds=None) as manager:  # a place that idles is not given back
            job = await running(manager, "run_until", folder=str(tmp_path))
            _, actor, _, worker = processes_of(job)
            lies.touch()
            await until(lambda: not is_alive(worker), what="the end of the worker")
            await until(lambda: runs(tmp_path) == 2, what="a second run")
            (tmp_path / "go on").touch()
            await manager.wait(job.id, 120)
            assert (job.status, job.attempts) == ("completed", 2)
            assert len(places_of(manager).records) == 1
            assert (await ended(manager, "pid")).status == "completed"
            await until(lambda: not is_alive(actor), what="the end of the place")

    run(scene())


APP = """
import asyncio, os, sys
from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.backends.ray import RayBackend

async def main():
    backend = RayBackend(lease_seconds=50, lost_seconds=60)
    manager = BaseJobManager("app", plugins={"run_until": "agent_plugins:run_until"}, backend=backend)
    job = await manager.start_job("run_until", folder=sys.argv[1])
    while not job.progress_message:
        await asyncio.sleep(0.01)
    child = os.fork()
    if child == 0:
        os.read(0, 1)
        os._exit(0)
    print(job.worker_pid, child, flush=True)
    await manager.wait(job.id)

asyncio.run(main())
"""


def test_a_killed_app_leaves_nothing(tmp_path):
    "Also if a child that it has forked lives on."
    path = os.pathsep.join(map(str, [TESTS.parent, TESTS, TESTS / "agents", STAND_IN]))
    app = subprocess.Popen(
        [sys.executable, "-c", APP, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        pid, child = map(int, app.stdout.readline().split())
        agent = parent(worker := pid % Node.PIDS)
        driver = parent(parent(agent))
    finally:
        app.kill()
        app.wait(120)
    # long before the lease is over: the end of its connection is what ends each of them
    for gone in (worker, driver):
        until_now(lambda gone=gone: not is_alive(gone), what=f"the end of {gone}")
    assert is_alive(child)
    app.stdin.close()
    app.stdout.close()
    until_now(lambda: not is_alive(child), what="the end of the child")
    os.kill(agent, signal.SIGTERM)  # its lease is a minute


# ---------------------------------------------------------------- a Ray that is not there
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"fails": "pip: no package of this name"}, "Ray: pip: no package of this name"),
        ({"wrong": "runtime_env['pip'] must be of type str or list"}, "TypeError: runtime_env['pip'] must be"),
    ],
)
def test_what_cannot_start_is_refused_at_once(how, setting, said):
    how(**setting)

    async def scene():
        async with manager_of() as manager:
            job = await ended(manager, "pid")
            assert (job.status, job.error_type) == ("failed", "WorkersExhausted")
            assert said in job.error

    run(scene())


def test_a_cluster_that_comes_later_is_used(how, caplog, tmp_path):
    how(needs=str(tmp_path / "cluster"))

    async def scene():
        async with manager_of() as manager:
            job = await manager.start_job("pid")
            await until(lambda: "Ray is asked again soon: ConnectionError: no cluster is here" in caplog.text)
            assert job.status == "pending"
            (tmp_path / "cluster").touch()
            await manager.wait(job.id, 120)
            assert (job.status, job.attempts) == ("completed", 1)

    with caplog.at_level("INFO"):
        run(scene())


def test_an_address_where_nothing_answers_is_named(how, caplog):
    async def scene():
        with socket.socket() as taken:  # bound, and nobody listens
            taken.bind(("127.0.0.1", 0))
            address = "{}:{}".format(*taken.getsockname())
            async with manager_of(address=address) as manager:
                job = await manager.start_job("pid")
                await until(lambda: f"ConnectionError: no Ray answers at {address}: " in caplog.text)
                assert job.status == "pending"

    run(scene(), 15)


def test_a_ray_that_does_not_answer_holds_nothing_up(how):
    how(blocks=True)

    async def scene():
        async with manager_of() as manager:
            job = await manager.start_job("pid")
            driver = (await until(lambda: places_of(manager)._driver))._process
            assert places_of(manager).why() == "Ray is not connected yet"
            words = "Ray is not connected yet; it says: client.cc:7: the token is missing"
            await until(lambda: places_of(manager).why() == words, what="what Ray says")
            places_of(manager)._hear({"said": "I 1] RPC error: InvalidAuthToken: it is missing"})
            assert "it says: RPC error: InvalidAuthToken: it is missing; set RAY_AUTH_MODE" in places_of(manager).why()
        assert job.status == "cancelled" and driver.returncode in (1, -signal.SIGKILL)  # or faster than the signal

    run(scene(), 15)


# ---------------------------------------------------------------- the token
def test_the_token_is_shown_nowhere(caplog, tmp_path):
    async def scene():
        async with manager_of() as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            (node,) = manager._engine.backend.nodes
            token = node._settings.token
            assert len(token) > 40
            for pid in processes_of(job):
                for name in ("cmdline", "environ"):
                    assert token.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
            os.kill(processes_of(job)[1], signal.SIGKILL)
            await manager.wait(job.id, 120)
            assert (await ended(manager, "pid")).status == "completed"
            (other,) = manager._engine.backend.nodes
            assert other._settings.token != token
            assert token not in caplog.text + job.error

    with caplog.at_level("DEBUG"):
        run(scene())
