"""When a job runs again, how often, and what it leaves behind; also in the moments in which something else happens."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from backend_scenes import Events
from harness import is_alive, run, time_is_up, until

from cjm_worker_ext import BaseJobManager, JobStatus, Retry, WorkerConfig
from cjm_worker_ext.errors import ConfigError, JobFailed
from cjm_worker_ext.testing import InProcessBackend

NAMES = ("flaky", "flaky_stream", "stuck", "echo", "touch_and_wait", "pid_of_worker", "exit_now")
NOW = {"delay_seconds": 0.0, "jitter": 0.0}
LATER = {"delay_seconds": 600.0, "jitter": 0.0}


def make(events: Events | None = None, backend=None, resources=None, retry=None, **config) -> BaseJobManager:
    return BaseJobManager(
        "retries",
        plugins={name: f"plugins_for_tests:{name}" for name in NAMES},
        worker_config=WorkerConfig(**{"cancel_grace_seconds": 0.05, **config}),
        event_broadcaster=events,
        resource_manager=resources,
        retry=retry,
        **({} if backend is None else {"backend": backend}),
    )


def told(events: Events, job, kind: str = "") -> list:
    "The events of a job, or what those of one kind say."
    mine = [(name, data) for name, data in events.seen if data.get("job_id") == job.id]
    return [data for name, data in mine if name == kind] if kind else [name for name, _ in mine]


async def time_is_up_in(manager, job, attempt: int) -> None:
    "Let the timeout of one attempt be over, once its plugin is at work."
    log = Path(job.params["log"])
    await until(lambda: log.exists() and log.read_text().count("\n") == attempt and job.status == "running")
    await time_is_up(manager, job)


ENDS = ("job:completed", "job:failed", "job:cancelled")


def one_end(events: Events, job) -> bool:
    kinds = told(events, job)
    return [kind for kind in kinds if kind in ENDS] == [kinds[-1]] == [f"job:{job.status}"]


# ---------------------------------------------------------------- for each reason


@pytest.mark.parametrize(
    "how, reason, words",
    [
        ("crash", "crashed", "exited with code 7"),
        ("hang", "timeout", "it ran longer than its timeout of 600 s"),
        ("deaf", "timeout", "it ran longer than its timeout of 600 s"),
        ("transient", "transient", "the network is away"),
        ("attribute", "transient", "busy"),
        ("memory", "resource", "no room"),
        ("input", "input", "not a number"),
        ("fatal", "fatal", "broken for good"),
        ("value", "failed", "no good"),
    ],
)
def test_a_job_runs_again_for_the_reasons_that_were_asked_for(how, reason, words, tmp_path):
    async def scene():
        events = Events()
        async with make(events) as manager:
            options = {"timeout": 600} if reason == "timeout" else {}
            params = {"log": str(tmp_path / how), "how": how}
            job = await manager.submit_job("flaky", params, retry=Retry(3, on=(reason,), **NOW), **options)
            if reason == "timeout":
                for attempt in (1, 2):
                    await time_is_up_in(manager, job, attempt)
            assert await job == "attempt 3"
            assert (job.attempts, job.error, job.error_type, job.exception) == (3, None, None, None)
            others = tuple(r for r in ("crashed", "timeout", "lost") if r != reason)
            params["log"] += "-other"
            other = await manager.submit_job("flaky", params, retry=Retry(3, on=others, **NOW), **options)
            if reason == "timeout":
                await time_is_up_in(manager, other, 1)
            await manager.wait(other.id, 120)
            assert (other.status, other.attempts) == ("failed", 1), "nobody asked for this reason"
        again = told(events, job, "job:retrying")
        assert [(data["attempt"], data["reason"], data["delay"]) for data in again] == [(1, reason, 0), (2, reason, 0)]
        assert all(words in data["error"] and data["plugin_id"] == "flaky" for data in again), again
        assert one_end(events, job) and one_end(events, other) and told(events, job).count("job:started") == 3
        assert told(events, job).count("job:queued") == 1

    run(scene())


def test_after_the_last_attempt_the_job_ends_as_its_last_attempt_did(tmp_path):
    async def scene():
        events = Events()
        async with make(events) as manager:
            params = {"log": str(tmp_path / "log"), "how": "value", "good": 9}
            job = await manager.submit_job("flaky", params, retry=Retry(2, on=("failed",), **NOW))
            with pytest.raises(JobFailed, match="no good 2") as found:
                await job
            assert found.value.error_type == job.error_type == "ValueError" and "plugins_for_tests" in str(
                job.traceback
            )
            assert (job.attempts, (tmp_path / "log").read_text().count("\n")) == (2, 2)
        assert one_end(events, job) and len(told(events, job, "job:retrying")) == 1

    run(scene())


def test_without_retry_a_job_runs_once_and_a_job_may_decline_what_the_manager_says(tmp_path):
    async def scene():
        async with make() as manager:
            job = await manager.start_job("flaky", log=str(tmp_path / "1"), how="transient")
            await manager.wait(job.id, 120)
            assert (job.attempts, job.error_type) == (1, "TransientError")
        async with make(retry={"flaky": Retry(3, **NOW), "": Retry(2, on=("failed",), **NOW)}) as manager:
            assert await (await manager.start_job("flaky", log=str(tmp_path / "2"), how="transient")) == "attempt 3"
            params = {"log": str(tmp_path / "3"), "how": "transient"}
            job = await manager.submit_job("flaky", params, retry=None)
            await manager.wait(job.id, 120)
            assert job.attempts == 1
            job = await manager.start_job("exit_now")
            await manager.wait(job.id, 120)
            assert job.attempts == 1, "the others are tried again for another reason"

    run(scene())


def test_a_job_cannot_be_tried_again_for_a_reason_that_does_not_exist():
    async def scene():
        async with make() as manager:
            with pytest.raises(ConfigError, match="retry must be a Retry"):
                await manager.submit_job("echo", retry=3)
            assert manager.get_all_jobs() == []

    with pytest.raises(ConfigError, match="on must be a tuple of crashed"):
        Retry(on=("boredom",))
    with pytest.raises(ConfigError, match="retry must be a Retry, a dict"):
        make(retry=5)
    run(scene())


def test_what_a_hook_raises_is_a_failure_as_well():
    class Manager(BaseJobManager):
        asked = 0

        def prepare_execute_request(self, job):
            self.asked += 1
            if self.asked < 3:
                raise OSError("the disk is away")
            return job.params

    async def scene():
        events = Events()
        options = {"retry": Retry(3, on=("failed",), **NOW), "event_broadcaster": events}
        async with Manager("hooks", plugins={"echo": "plugins_for_tests:echo"}, **options) as manager:
            job = await manager.start_job("echo", value=5)
            assert await job == 5
            assert job.attempts == 1, "it went to a worker once"
        assert [(d["reason"], d["error"]) for d in told(events, job, "job:retrying")] == [
            ("failed", "the disk is away")
        ] * 2

    run(scene())


# ---------------------------------------------------------------- while it waits


async def waiting(manager, tmp_path, retry: Retry, how="transient", **options):
    "A job that has failed once and waits for its next attempt."
    params = {"log": str(tmp_path / "log"), "how": how}
    job = await manager.submit_job("flaky", params, retry=retry, **options)
    await until(lambda: (tmp_path / "log").exists() and job.status == "pending", what="the wait for an attempt")
    return job


@pytest.mark.parametrize("how", ["transient", "crash"])
def test_while_it_waits_it_is_pending_and_holds_no_worker(how, tmp_path):
    async def scene():
        async with make() as manager:
            job = await waiting(manager, tmp_path, Retry(3, **LATER), how, timeout=5)
            assert (job.attempts, job.started_at, job.completed_at, job.progress) == (1, None, None, None)
            assert manager.get_queue_position(job.id) is None
            assert await (await manager.start_job("echo", value=1)) == 1
            assert job.status == "pending"

    run(scene())


@pytest.mark.parametrize("how", ["transient", "crash"])
def test_a_cancel_while_it_waits_ends_it_at_once(how, tmp_path):
    async def scene():
        events = Events()
        async with make(events) as manager:
            job = await waiting(manager, tmp_path, Retry(3, **LATER), how, key="only one")
            assert await manager.cancel_job(job.id)
            assert (job.status, job.attempts, job.error, job.duration_seconds) == ("cancelled", 1, None, None)
            again = await manager.submit_job("echo", {"value": 2}, key="only one", on_duplicate="refuse")
            assert await again == 2, "its key is free"
        assert one_end(events, job)

    run(scene())


def test_a_cancel_after_the_timeout_is_not_followed_by_another_attempt(tmp_path):
    "The timeout has interrupted the job already, and the plugin still cleans up."

    async def scene():
        events, started, go_on = Events(), tmp_path / "started", tmp_path / "go on"
        async with make(events, cancel_grace_seconds=30) as manager:
            params = {"started": str(started), "go_on": str(go_on)}
            job = await manager.submit_job("stuck", params, timeout=600, retry=Retry(5, **NOW))
            await until(lambda: started.exists() and started.read_text() == "runs")
            await time_is_up(manager, job)
            await until(lambda: started.read_text() == "cleans up")
            cancelling = asyncio.create_task(manager.cancel_job(job.id))
            await asyncio.sleep(0)
            go_on.touch()
            assert not await asyncio.wait_for(cancelling, 120), "it had run out of time before"
            assert (job.status, job.error_type, job.attempts) == ("failed", "JobTimeout", 1)
        assert one_end(events, job) and not told(events, job, "job:retrying")

    run(scene())


def test_a_job_that_is_cancelled_while_it_runs_is_not_tried_again(tmp_path):
    async def scene():
        async with make() as manager:
            every = Retry(5, on=("crashed", "lost", "timeout", "failed"), **NOW)
            params = {"log": str(tmp_path / "log"), "how": "deaf"}
            job = await manager.submit_job("flaky", params, retry=every)
            await until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text())
            assert await manager.cancel_job(job.id)
            assert (job.status, job.attempts) == ("cancelled", 1)
            assert await (await manager.start_job("echo", value=1)) == 1
            assert (tmp_path / "log").read_text().count("\n") == 1

    run(scene())


def test_a_shutdown_cancels_what_waits_to_be_tried_again(tmp_path):
    async def scene():
        events = Events()
        async with make(events) as manager:
            job = await waiting(manager, tmp_path, Retry(3, **LATER))
        assert (job.status, job.error, job.attempts) == ("cancelled", "the manager was shut down", 1)
        assert one_end(events, job)

    run(scene())


def test_a_drain_tries_it_now_and_once(tmp_path):
    async def scene():
        manager = make()
        job = await waiting(manager, tmp_path, Retry(9, **LATER))
        await manager.shutdown(drain=True)
        assert (job.status, job.error_type, job.attempts) == ("failed", "TransientError", 2)
        manager = make()
        (tmp_path / "log").write_text("1\n")  # the second attempt works
        params = {"log": str(tmp_path / "log"), "how": "transient"}
        job = await manager.submit_job("flaky", params, retry=Retry(9, **LATER))
        await until(lambda: job.attempts == 1 and job.status == "pending")
        await manager.shutdown(drain=True)
        assert (job.status, job.result, job.attempts) == ("completed", "attempt 3", 2)

    run(scene())


def test_a_worker_killed_between_two_attempts_costs_no_attempt(tmp_path):
    async def scene():
        async with make() as manager:
            job = await waiting(manager, tmp_path, Retry(3, delay_seconds=0.5, factor=1, jitter=0))
            (worker,) = manager.workers()
            os.kill(worker.pid, 9)
            assert await job == "attempt 3"
            assert job.attempts == 3 and not is_alive(worker.pid)

    run(scene())


def test_the_waits_grow_and_other_jobs_go_first(tmp_path):
    async def scene():
        events = Events()
        async with make(events) as manager:
            retry = Retry(4, delay_seconds=0.01, factor=3, max_delay_seconds=0.05, jitter=0)
            params = {"log": str(tmp_path / "log"), "how": "transient", "good": 4}
            job = await manager.submit_job("flaky", params, retry=retry)
            assert await job == "attempt 4"
        delays = [data["delay"] for data in told(events, job, "job:retrying")]
        assert delays == [0.01, pytest.approx(0.03), 0.05]

    run(scene())


# ---------------------------------------------------------------- chunks, and who is told


@pytest.mark.parametrize("backend, how", [(None, "value"), (None, "crash"), (InProcessBackend, "value")])
def test_positions_of_chunks_go_on_and_the_result_holds_those_of_the_last_attempt(backend, how, tmp_path):
    async def scene():
        events = Events()
        async with make(events, backend) as manager:
            params = {"log": str(tmp_path / "log"), "how": how, "good": 2}
            job = await manager.submit_job("flaky_stream", params, retry=Retry(2, on=("failed", "crashed"), **NOW))
            found = [chunk async for chunk in manager.stream(job.id)]
            first = found[:-4]  # a crash may swallow the last ones
            assert first == ["1.0", "1.1", "1.2", "1.3"][: len(first)] and found[-4:] == ["2.0", "2.1", "2.2", "2.3"]
            if how == "value":
                assert len(first) == 4
            assert job.result == ["2.0", "2.1", "2.2", "2.3"] and job.chunks_dropped == 0
            assert manager.get_job_chunks(job.id) == (0, found)
            assert [chunk async for chunk in manager.stream(job.id, start=len(first))] == job.result
        position = 0
        for data in told(events, job, "job:chunk"):
            assert data["index"] == position, "positions go on"
            position += len(data["chunks"])
        assert one_end(events, job)

    run(scene())


def test_a_resource_manager_sees_the_worker_free_between_attempts(tmp_path):
    class Resources:
        def __init__(self):
            self.states = {}
            self.seen = []

        def register_worker(self, pid, worker_type):
            self.states[pid] = {}

        def update_worker_state(self, pid, **state):
            self.states[pid] |= state
            self.seen.append((state.get("status"), state.get("job_id")))

        def unregister_worker(self, pid):
            del self.states[pid]

    async def scene():
        resources = Resources()
        async with make(resources=resources) as manager:
            job = await waiting(manager, tmp_path, Retry(2, **LATER))
            await until(lambda: resources.seen[-1] == ("idle", None))
            (state,) = resources.states.values()
            assert state["plugin_id"] == "flaky", "it is still loaded"
            assert ("running", job.id) in resources.seen
        assert resources.states == {}

    run(scene())


def test_with_many_that_crash_every_job_is_done_once_in_the_end(tmp_path):
    async def scene():
        events = Events()
        async with make(events, max_workers=2, hold_after_crashes=0) as manager:
            jobs = []
            for i in range(12):
                params = {"log": str(tmp_path / f"{i}"), "how": ("crash", "transient", "hang")[i % 3], "good": 2}
                jobs.append(await manager.submit_job("flaky", params, timeout=600, retry=Retry(2, **NOW)))
            hanging = asyncio.gather(*(time_is_up_in(manager, job, 1) for job in jobs[2::3]))
            ended = [job async for job in manager.as_completed(jobs)]
            await hanging
            assert sorted(job.id for job in ended) == sorted(job.id for job in jobs)
            assert [(job.status, job.attempts) for job in jobs] == [(JobStatus.COMPLETED, 2)] * 12
            assert manager._engine.scheduler.delayed == 0
            await until(lambda: not manager._engine.timers._handles, what="the start of the last worker")
        assert all(one_end(events, job) for job in jobs)
        assert all(Path(tmp_path / f"{i}").read_text().count("\n") == 2 for i in range(12))

    run(scene())
