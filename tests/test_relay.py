"""A process in between changes nothing: the scenes of every backend through a relay, and what its own end costs."""

from __future__ import annotations

import os
import signal

import pytest
from backend_scenes import SCENES, Events, ended, maker, running
from harness import is_alive, run, until
from relay import RelayBackend

from cjm_worker_ext import WorkerConfig
from cjm_worker_ext.backends.base import Backend, ExitReason

make = maker(RelayBackend)


@pytest.mark.parametrize("scene", SCENES)
def test_scene(scene, tmp_path):
    run(SCENES[scene](make, tmp_path, simulated=False))


def relay_of(manager) -> RelayBackend:
    return manager._engine.backend


def test_a_worker_is_killed_behind_the_relay():
    async def scene():
        async with make("work", "add") as manager:
            job = await running(manager, "work")
            os.kill(job.worker_pid, signal.SIGKILL)
            await manager.wait(job.id, 120)
            assert (job.status, job.error_type, job.exception.exitcode) == ("failed", "WorkerCrashed", -9)
            after = await ended(manager, "add", a=1)
            assert (after.result, after.attempts) == (2, 1) and after.worker_pid != job.worker_pid
            assert [end.reason for end in relay_of(manager).exits] == [ExitReason.CRASHED]

    run(scene())


def test_the_relay_is_killed():
    async def scene():
        events = Events()
        async with make("work", "add", config=WorkerConfig(max_workers=2), event_broadcaster=events) as manager:
            jobs = [await running(manager, "work") for _ in range(2)]
            waiting = [await manager.start_job("add", a=1) for _ in range(3)]
            relay = relay_of(manager)
            os.kill(relay.process.pid, signal.SIGKILL)
            for job in [*jobs, *waiting]:
                await manager.wait(job.id, 120)
            assert [job.status for job in [*jobs, *waiting]] == ["failed"] * 5
            assert {job.error_type for job in jobs} == {"NodeLost"}
            assert {job.error_type for job in waiting} == {"WorkersExhausted"}
            assert "the relay has ended" in jobs[0].error and "the relay has ended" in waiting[0].error
            lost = [end for end in relay.exits if end.reason is ExitReason.LOST]
            assert {end.pid for end in lost} == {job.worker_pid for job in jobs}
            for end in lost:
                await until(lambda end=end: not is_alive(end.pid), what="the end of a worker without its relay")
            late = await ended(manager, "add", a=1)
            assert (late.error_type, manager.workers()) == ("WorkersExhausted", [])
        crashed = {(data["pid"], data["reason"]) for kind, data in events.seen if kind == "worker:crashed"}
        assert crashed == {(job.worker_pid, "was lost") for job in jobs}

    run(scene())


def test_an_order_that_meets_a_dead_worker_goes_to_another():
    async def scene():
        async with make("add") as manager:
            first = await ended(manager, "add", a=1)
            relay = relay_of(manager).process.pid
            os.kill(relay, signal.SIGSTOP)
            os.kill(first.worker_pid, signal.SIGKILL)
            await until(lambda: not is_alive(first.worker_pid))
            job = await manager.start_job("add", a=2)
            assert job.status == "running", "the order is on its way"
            os.kill(relay, signal.SIGCONT)
            await manager.wait(job.id, 120)
            assert (job.status, job.result) == ("completed", 3) and job.worker_pid != first.worker_pid

    for _ in range(5):  # which of the two the relay sees first is open
        run(scene())


def test_a_relay_is_a_backend():
    names = [name for name in vars(Backend) if name[0] != "_"]
    assert [name for name in names if name not in vars(RelayBackend)] == []
