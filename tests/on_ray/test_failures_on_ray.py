"""Actors, nodes, drivers and apps that are killed: one end for each job, nothing left behind, nothing run twice unasked."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from backend_scenes import Events, ended, running
from harness import is_alive, run, until
from remote_scenes import a_killed_app_leaves_nothing, a_lost_machine_costs_its_job, manager_on, one_end, real, runs

from cjm_worker_ext import BaseJobManager, Retry, WorkerConfig
from cjm_worker_ext.backends.ray import RayBackend


def manager_of(address, *, config=None, events=None, retry=None, **options):
    backend = RayBackend(address, **{"num_cpus": 0.1, **options})
    return manager_on(backend, config=config, events=events, retry=retry)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def actor_of(job) -> int:
    "The process of the actor, whose agent has started the worker."
    pid = parent(parent(real(job.worker_pid)))
    assert "ray::RayPlace" in Path(f"/proc/{pid}/cmdline").read_text()
    return pid


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def records_of(manager):
    return manager._engine.backend.places.records


# ---------------------------------------------------------------- what is killed
def test_a_killed_worker_costs_its_own_job_and_the_place_is_used_again(cluster, tmp_path):
    async def scene():
        events = Events()
        async with manager_of(cluster.address, events=events) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            actor = actor_of(job)
            os.kill(real(job.worker_pid), signal.SIGKILL)
            await manager.wait(job.id, 30)
            assert (job.error_type, "was killed by SIGKILL" in job.error) == ("WorkerCrashed", True), job.error
            (tmp_path / "go on").touch()
            after = await running(manager, "run_until", folder=str(tmp_path))
            await manager.wait(after.id, 30)
            assert after.status == "completed" and parent(parent(after.result)) == actor
        assert [one_end(events, j) for j in (job, after)] == ["job:failed", "job:completed"]

    run(scene())


def test_a_killed_actor_loses_its_job_and_another_one_is_placed(cluster, tmp_path):
    async def scene():
        events = Events()
        manager = manager_of(cluster.address, events=events)
        await a_lost_machine_costs_its_job(
            manager, events, tmp_path, lambda job: os.kill(actor_of(job), signal.SIGKILL)
        )

    run(scene())


def test_a_job_of_a_killed_actor_runs_again_if_that_was_asked_for(cluster, tmp_path):
    async def scene():
        events = Events()
        retry = Retry(2, on=("lost",), delay_seconds=0)
        async with manager_of(cluster.address, events=events, retry=retry) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            os.kill(actor_of(job), signal.SIGKILL)
            await until(lambda: len(runs(tmp_path)) == 2, what="a second run")
            assert not is_alive(runs(tmp_path)[0]), "it runs twice at the same time"
            (tmp_path / "go on").touch()
            await manager.wait(job.id, 30)
            assert (job.status, job.attempts, len(runs(tmp_path))) == ("completed", 2, 2)
        assert one_end(events, job) == "job:completed"

    run(scene())


def test_a_silent_agent_is_given_up(cluster, tmp_path):
    "It stands still, and so cannot kill its worker; its guard does."

    async def scene():
        events = Events()
        async with manager_of(cluster.address, events=events, lease_seconds=1.0, lost_seconds=1.6) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            actor = actor_of(job)
            os.kill(parent(real(job.worker_pid)), signal.SIGSTOP)
            await manager.wait(job.id, 30)
            assert not is_alive(real(job.worker_pid)), "it runs on although it was given up"
            assert (job.status, job.error_type) == ("failed", "NodeLost")
            assert (await ended(manager, "pid")).status == "completed"
            await until(lambda: not is_alive(actor), what="the end of the actor that Ray was told to kill")
        assert one_end(events, job) == "job:failed"

    run(scene())


def test_a_node_whose_raylet_is_killed_loses_its_jobs(cluster, tmp_path):
    async def scene():
        events = Events()
        node = cluster.add_node(num_cpus=1, resources={"doomed": 2}, object_store_memory=80 << 20)
        pid = node.all_processes["raylet"][0].process.pid
        try:
            config = WorkerConfig(max_workers=2)
            place = {"resources": {"doomed": 1}}
            async with manager_of(cluster.address, config=config, events=events, **place) as manager:
                jobs = [await running(manager, "run_until", folder=str(tmp_path)) for _ in range(2)]
                waiting = await manager.start_job("pid")
                os.kill(pid, signal.SIGKILL)
                for job in jobs:
                    await manager.wait(job.id, 30)
                    assert (job.status, job.error_type) == ("failed", "NodeLost"), job.error
                    assert not is_alive(real(job.worker_pid))
                assert waiting.status == "pending"
                places = manager._engine.backend.places
                await until(lambda: "has not given 1 place yet: " in places.why(), what="a reason")
                again = cluster.add_node(num_cpus=1, resources={"doomed": 2}, object_store_memory=80 << 20)
                try:
                    await manager.wait(waiting.id, 60)
                    assert (waiting.status, waiting.attempts) == ("completed", 1)
                finally:
                    await manager.shutdown()
                    cluster.remove_node(again)
            assert [one_end(events, job) for job in (*jobs, waiting)] == ["job:failed"] * 2 + ["job:completed"]
            assert sorted(runs(tmp_path)) == sorted(real(job.worker_pid) for job in jobs)
        finally:
            cluster.remove_node(node)

    run(scene())


def test_a_killed_driver_costs_the_places_and_another_one_is_started(cluster, tmp_path):
    async def scene():
        events = Events()
        async with manager_of(cluster.address, events=events) as manager:
            job = await running(manager, "run_until", folder=str(tmp_path))
            actor = actor_of(job)
            waiting = await manager.start_job("pid")
            manager._engine.backend.places._driver._process.kill()
            await manager.wait(job.id, 30)
            assert (job.status, job.error_type) == ("failed", "NodeLost")
            await until(lambda: not is_alive(real(job.worker_pid)), what="the end of the worker")
            await until(lambda: not is_alive(actor), what="the end of the actor")
            await manager.wait(waiting.id, 60)
            assert (waiting.status, waiting.attempts) == ("completed", 1)
        assert [one_end(events, j) for j in (job, waiting)] == ["job:failed", "job:completed"]

    run(scene())


@pytest.mark.parametrize("whose", ["a cluster", "its own Ray"])
def test_a_killed_app_leaves_nothing(whose, cluster, tmp_path):
    backend = (
        "from cjm_worker_ext.backends.ray import RayBackend as Backend; "
        "backend = Backend(sys.argv[2] or None, num_cpus=0.1, lease_seconds=50, lost_seconds=60)"
    )

    def others(app, child):
        actor, (driver,) = parent(parent(runs(tmp_path)[0])), {*children(app)} - {child}
        own = children(driver)
        assert bool(own) == (whose == "its own Ray")
        return driver, actor, *own

    address = cluster.address if whose == "a cluster" else ""
    a_killed_app_leaves_nothing(backend, tmp_path, address, others=others, seconds=1.0)


# ---------------------------------------------------------------- places
def test_places_are_given_back_when_idle_and_asked_for_under_load(cluster, tmp_path):
    async def scene():
        async with manager_of(cluster.address, config=WorkerConfig(max_workers=3), idle_seconds=1.0) as manager:
            jobs = [await running(manager, "run_until", folder=str(tmp_path)) for _ in range(3)]
            actors = {actor_of(job) for job in jobs}
            assert len(actors) == 3
            await asyncio.sleep(2)  # longer than the idle time: a place whose worker has a job is not idle
            assert len(manager.workers()) == 3
            (tmp_path / "go on").touch()
            for job in jobs:
                await manager.wait(job.id, 30)
            assert [job.status for job in jobs] == ["completed"] * 3
            await until(lambda: not records_of(manager), what="the places are given back")
            await until(lambda: not any(map(is_alive, actors)), what="the end of the actors")
            assert (await ended(manager, "pid")).status == "completed"

    run(scene())


def test_jobs_wait_for_places_and_say_why(cluster, caplog, tmp_path):
    async def scene():
        place = {"resources": {"rare": 1}}
        async with manager_of(cluster.address, **place) as manager:
            with caplog.at_level("INFO"):
                job = await manager.start_job("pid")
                words = "Ray has not given 1 place yet: each needs 0.1 CPU and 1 rare, and no node has as much"
                await until(lambda: words in caplog.text, what="a reason")
            assert job.status == "pending"
            node = cluster.add_node(num_cpus=1, resources={"rare": 1}, object_store_memory=80 << 20)
            try:
                await manager.wait(job.id, 60)
                assert (job.status, job.attempts) == ("completed", 1)
            finally:
                await manager.shutdown()
                cluster.remove_node(node)

    run(scene())


def test_a_runtime_environment_that_cannot_be_made_is_told(cluster):
    async def scene():
        env = {"working_dir": "file:///no/such/archive.zip"}
        async with manager_of(cluster.address, runtime_env=env) as manager:
            job = await ended(manager, "pid")
            assert job.status == "failed" and "Ray: " in job.error, job.error

    run(scene())


def test_a_runtime_environment_brings_code_and_variables(cluster, tmp_path):
    "The plugin lies in a folder that only the app knows; Ray carries it."

    async def scene():
        (tmp_path / "brought_plugin.py").write_text("import os\n\ndef greet():\n    return os.environ['GREETING']\n")
        env = {"working_dir": str(tmp_path), "env_vars": {"GREETING": "hello"}}
        backend = RayBackend(cluster.address, num_cpus=0.1, runtime_env=env)
        async with BaseJobManager("brought", plugins={"greet": "brought_plugin:greet"}, backend=backend) as manager:
            job = await ended(manager, "greet")
            assert (job.status, job.result) == ("completed", "hello"), job.error

    run(scene())


def test_no_cluster_at_an_address_is_told_and_asked_again(caplog):
    async def scene():
        async with manager_of("127.0.0.1:9") as manager:
            job = await manager.start_job("pid")
            await until(lambda: "Ray is asked again soon" in caplog.text, 60, what="a reason")
            assert job.status == "pending"

    with caplog.at_level("INFO"):
        run(scene())
