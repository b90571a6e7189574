"""The state of a job is written last: whoever sees it in another thread sees all that belongs to it."""

from __future__ import annotations

from typing import Any

import pytest
from harness import run, targets, until

from cjm_worker_ext import BaseJob, BaseJobManager, WorkerConfig

NAMES = ("echo", "count", "raise_value_error", "exit_now", "unpicklable_result", "LoadFails", "sleep", "hold_lock")


class Watched(BaseJob):
    "Keeps what a reader would see at the moment in which a state is written."

    def __setattr__(self, name: str, value: Any):
        object.__setattr__(self, name, value)
        if name == "status":
            seen = self.__dict__.setdefault("seen", {})
            seen.setdefault(str(value), {k: v for k, v in vars(self).items() if k != "seen"})


class Manager(BaseJobManager):
    def create_job(self, plugin_id, params):
        return Watched(plugin_id, params)


ENDS: dict[str, tuple[str, dict, dict, str]] = {
    "completed": ("echo", {"value": {"a": [1, 2]}}, {}, "completed"),
    "completed with chunks": ("count", {"n": 3}, {}, "completed"),
    "completed by a thread": ("echo", {"value": b"x" * (20 << 20)}, {}, "completed"),
    "raised": ("raise_value_error", {}, {}, "failed"),
    "crashed": ("exit_now", {}, {}, "failed"),
    "not serialisable": ("unpicklable_result", {}, {}, "failed"),
    "not loaded": ("LoadFails", {}, {}, "failed"),
    "out of time": ("sleep", {"seconds": 600}, {"timeout": 0.05}, "failed"),
    "out of time and deaf": ("hold_lock", {}, {"timeout": 0.05}, "failed"),
    "cancelled": ("sleep", {"seconds": 600}, {}, "cancelled"),
    "cancelled and deaf": ("hold_lock", {}, {}, "cancelled"),
}


@pytest.mark.parametrize("end", ENDS)
def test_everything_is_there_when_the_state_is_written(end):
    plugin_id, params, options, status = ENDS[end]

    async def scene():
        config = WorkerConfig(cancel_grace_seconds=0.1)
        async with Manager("ends", "tests", plugins=targets(*NAMES), worker_config=config) as manager:
            job = await manager.submit_job(plugin_id, params, **options)
            if status == "cancelled":
                await until(lambda: job.status == "running")
                assert await manager.cancel_job(job.id)
            await manager.wait(job.id, 120)
        final = {k: v for k, v in vars(job).items() if k != "seen"}
        assert list(job.seen) == ["pending", "running", status]
        assert job.seen[status] == final
        running = job.seen["running"]
        assert running["started_at"] and running["worker_pid"] == job.worker_pid and running["attempts"] == 1
        assert running["completed_at"] is None and running["result"] is None and running["error"] is None
        assert job.completed_at and (job.result is not None) == (status == "completed")
        assert bool(job.error and job.error_type) == (status == "failed")

    run(scene())


def test_a_job_that_never_ran():
    async def scene():
        config = WorkerConfig(python="/no/such/python")
        async with Manager("ends", "tests", plugins=targets(*NAMES), worker_config=config) as manager:
            lost = await manager.wait((await manager.start_job("echo")).id, 120)
        async with Manager("ends", "tests", plugins=targets(*NAMES)) as manager:
            first, waiting = [await manager.start_job("sleep", seconds=600) for _ in range(2)]
            await until(lambda: first.status == "running")
            assert await manager.cancel_job(waiting.id)
        for job, status in ((lost, "failed"), (waiting, "cancelled"), (first, "cancelled")):
            assert list(job.seen)[-1] == status == job.status
            assert job.seen[status] == {k: v for k, v in vars(job).items() if k != "seen"}
            assert job.completed_at and (job.started_at is None) == (job is not first)

    run(scene())


@pytest.mark.parametrize("name", ["on_job_ended", "on_job_completed"])
@pytest.mark.parametrize("how", ["class", "instance"])
def test_a_hook_of_the_end_is_called_wherever_it_is_set(name, how):
    "A manager calls no hook that does nothing, so it has to see both ways in which an app sets one."

    async def scene():
        heard = []
        own = {name: lambda self, job: heard.append(job.id)} if how == "class" else {}
        manager = type("Own", (BaseJobManager,), own)("ends", plugins={"pid": "os:getpid"})
        if how == "instance":
            setattr(manager, name, lambda job: heard.append(job.id))
        async with manager:
            job = await manager.wait((await manager.start_job("pid")).id, 120)
        assert heard == [job.id]

    run(scene())
