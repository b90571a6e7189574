"""Which job goes next: priority, aging, delay, key and position; and many jobs as they end."""

from __future__ import annotations

import asyncio
import os

import pytest
from backend_scenes import Events
from harness import let_pass, run, until

from cjm_worker_ext import BaseJob, BaseJobManager, WorkerConfig
from cjm_worker_ext.backends.local import LocalBackend
from cjm_worker_ext.errors import ConfigError, DuplicateJob, JobFailed, QueueFull, UnknownJob, UnknownPlugin
from cjm_worker_ext.testing import InProcessBackend

NAMES = ("echo", "touch_and_wait", "raise_value_error", "exit_now", "count", "sleep")
BACKENDS = pytest.mark.parametrize("backend", [LocalBackend, InProcessBackend])


class Order(BaseJobManager):
    "Remembers the values of the jobs in the order in which they went to a worker."

    def __init__(self, **config):
        options = {name: config.pop(name) for name in ("event_broadcaster", "backend") if name in config}
        plugins = {name: f"plugins_for_tests:{name}" for name in NAMES}
        super().__init__("order", plugins=plugins, worker_config=WorkerConfig(**config), **options)
        self.order: list = []

    def prepare_execute_request(self, job):
        self.order.append(job.params.get("value"))
        return job.params


async def busy(manager, tmp_path):
    "Keep the only worker busy; returns the job, and how to let it end."
    started, go_on = tmp_path / "started", tmp_path / "go on"
    job = await manager.start_job("touch_and_wait", started=str(started), go_on=str(go_on))
    await until(started.exists)
    return job, go_on.touch


# ---------------------------------------------------------------- priority


@BACKENDS
def test_urgent_jobs_go_first_and_equal_ones_in_the_order_of_their_arrival(backend, tmp_path):
    async def scene():
        events = Events()
        async with Order(backend=backend, event_broadcaster=events) as manager:
            _, end = await busy(manager, tmp_path)
            jobs = [
                await manager.submit_job("echo", {"value": (p, i)}, priority=p)
                for i, p in enumerate((0, 5, 0, -1, 5, 1))
            ]
            order = [(5, 1), (5, 4), (1, 5), (0, 0), (0, 2), (-1, 3)]
            positions = {job.params["value"]: manager.get_queue_position(job.id) for job in jobs}
            assert positions == {value: place for place, value in enumerate(order, start=1)}
            end()
            for job in jobs:
                await job
                assert manager.get_queue_position(job.id) is None
            assert manager.order[1:] == order
        assert [data["ahead"] for kind, data in events.seen if kind == "job:queued"] == [0, 0, 1, 2, 3, 4, 5]

    run(scene())


def test_a_pending_job_can_be_moved(tmp_path):
    async def scene():
        async with Order() as manager:
            first, end = await busy(manager, tmp_path)
            a, b, c = [await manager.submit_job("echo", {"value": v}) for v in "abc"]
            manager.set_priority(c.id, 2)
            assert [manager.get_queue_position(j.id) for j in (a, b, c)] == [2, 3, 1]
            manager.set_priority(a.id, -1)
            manager.set_priority(first.id, 9)  # it runs already
            manager.set_priority(c.id, 3)
            assert [manager.get_queue_position(j.id) for j in (a, b, c, first)] == [3, 2, 1, None]
            with pytest.raises(
                ConfigError, match="priority must be a whole number from -1000000000000 to 1000000000000, got 'high'"
            ):
                manager.set_priority(a.id, "high")
            with pytest.raises(UnknownJob):
                manager.set_priority("nobody", 1)
            assert await manager.cancel_job(b.id)
            assert [manager.get_queue_position(j.id) for j in (a, b, c)] == [2, None, 1]
            end()
            assert [await a, await c] == ["a", "c"] and manager.order == [None, "c", "a"]
            manager.set_priority(a.id, 5)  # it has ended
            assert a.status == "completed"

    run(scene())


def test_a_job_that_has_waited_long_enough_overtakes_an_urgent_one(tmp_path):
    async def scene():
        async with Order(priority_aging_seconds=0.02) as manager:
            _, end = await busy(manager, tmp_path)
            patient = await manager.submit_job("echo", {"value": "patient"}, priority=-2)
            since = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() - since > 0.2)  # worth ten priorities
            urgent = await manager.submit_job("echo", {"value": "urgent"}, priority=5)
            end()
            await urgent, await patient
            assert manager.order[1:] == ["patient", "urgent"]

    run(scene())


def test_a_steady_flow_of_urgent_jobs_starves_nobody():
    async def scene():
        async with Order(priority_aging_seconds=0.01) as manager:
            patient = None

            async def flow():
                while patient is None or not patient.status.is_final:
                    await asyncio.gather(*[await manager.submit_job("echo", priority=10) for _ in range(5)])

            user = asyncio.create_task(flow())
            await until(lambda: len(manager.order) > 5)
            patient = await manager.submit_job("echo", {"value": "patient"})
            await asyncio.wait_for(user, 120)
            assert patient.result == "patient"

    run(scene())


# ---------------------------------------------------------------- delay


@BACKENDS
def test_a_delayed_job_waits_for_its_time_and_others_pass_it(backend):
    async def scene():
        async with Order(backend=backend) as manager:
            await manager.load_plugin("echo")
            loop = asyncio.get_running_loop()
            began = loop.time()
            late = await manager.submit_job("echo", {"value": "late"}, delay_seconds=600, priority=9)
            assert await (await manager.submit_job("echo", {"value": "now"})) == "now"
            assert (late.status, late.attempts, manager.get_queue_position(late.id)) == ("pending", 0, None)
            let_pass(598)
            assert await late == "late" and loop.time() - began >= 600
            assert manager.order == ["now", "late"]

    run(scene(), 900)


def test_a_delay_does_not_count_as_time_to_run():
    async def scene():
        async with Order() as manager:
            job = await manager.submit_job("echo", {"value": 1}, delay_seconds=600, timeout=500)
            let_pass(600)
            assert await job == 1 and job.duration_seconds < 100
            job = await manager.submit_job("sleep", {"seconds": 600}, delay_seconds=0.1, timeout=0.1)
            with pytest.raises(JobFailed, match=r"longer than its timeout of 0\.1 s"):
                await job

    run(scene(), 900)


def test_a_delayed_job_can_be_cancelled_and_counts_as_pending():
    async def scene():
        events = Events()
        async with Order(max_pending_jobs=2, event_broadcaster=events) as manager:
            jobs = [await manager.submit_job("echo", delay_seconds=600) for _ in range(2)]
            with pytest.raises(QueueFull, match="2 jobs are pending"):
                await manager.submit_job("echo")
            assert await manager.cancel_job(jobs[0].id)
            assert (jobs[0].status, jobs[0].attempts) == ("cancelled", 0)
            assert await (await manager.submit_job("echo", {"value": 7})) == 7
            assert len(manager._engine.timers._handles) == 1, "the timer of the other one"
        assert (jobs[1].status, jobs[1].error) == ("cancelled", "the manager was shut down")
        assert [kind for kind, data in events.seen if data.get("job_id") == jobs[1].id] == [
            "job:queued",
            "job:cancelled",
        ]

    run(scene())


def test_a_drain_does_not_wait_for_a_job_that_is_not_due():
    async def scene():
        manager = Order()
        late = await manager.submit_job("echo", delay_seconds=600)
        now = await manager.submit_job("echo", {"value": 1})
        await manager.shutdown(drain=True)
        assert (late.status, late.error, now.status) == ("cancelled", "the manager was shut down", "completed")

    run(scene())


def test_a_worker_killed_before_the_time_of_a_job_is_missed_by_nobody():
    async def scene():
        async with Order() as manager:
            await (await manager.submit_job("echo"))
            late = await manager.submit_job("echo", {"value": 1}, delay_seconds=0.3)
            (worker,) = manager.workers()
            os.kill(worker.pid, 9)
            assert await late == 1 and (late.attempts, late.worker_pid != worker.pid) == (1, True)

    run(scene())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"priority": 1.5}, "priority must be a whole number from -1000000000000 to 1000000000000, got 1.5"),
        ({"priority": True}, "priority must be a whole number from -1000000000000 to 1000000000000, got True"),
        ({"delay_seconds": -1}, "delay_seconds must be a number of seconds >= 0, got -1"),
        ({"key": ""}, "key must be a text of 1 to 2,000 bytes as UTF-8, without NUL or None, got ''"),
        ({"key": "k", "on_duplicate": "replace"}, "on_duplicate must be 'join' or 'refuse', got 'replace'"),
    ],
)
def test_a_wrong_option_makes_no_job(options, words):
    async def scene():
        async with Order() as manager:
            with pytest.raises(ConfigError, match=words):
                await manager.submit_job("echo", **options)
            assert manager.get_all_jobs() == []

    run(scene())


# ---------------------------------------------------------------- key


@BACKENDS
def test_a_key_joins_or_refuses_while_its_job_is_pending_or_runs(backend, tmp_path):
    async def scene():
        async with Order(backend=backend) as manager:
            _, end = await busy(manager, tmp_path)
            job = await manager.submit_job("echo", {"value": 1}, key="report 7")
            assert await manager.submit_job("echo", {"value": 2}, key="report 7") is job
            assert await manager.submit_job("echo", {"value": 3}, key="report 8") is not job
            with pytest.raises(DuplicateJob, match=f"job {job.id} has the key 'report 7' and is pending"):
                await manager.submit_job("echo", key="report 7", on_duplicate="refuse")
            assert len(manager.get_all_jobs()) == 3
            end()
            assert await job == 1
            again = await manager.submit_job("echo", {"value": 4}, key="report 7", on_duplicate="refuse")
            assert again is not job and await again == 4

    run(scene())


def test_a_duplicate_is_joined_although_the_queue_is_full(tmp_path):
    async def scene():
        async with Order(max_pending_jobs=1) as manager:
            _, end = await busy(manager, tmp_path)
            job = await manager.submit_job("echo", {"value": 1}, key="k")
            assert await manager.submit_job("echo", {"value": 1}, key="k") is job
            with pytest.raises(QueueFull):
                await manager.submit_job("echo", key="other")
            end()
            assert await job == 1

    run(scene())


@pytest.mark.parametrize("name, params", [("raise_value_error", {}), ("exit_now", {}), ("sleep", {"seconds": 600})])
def test_a_key_is_free_however_its_job_ends(name, params):
    async def scene():
        async with Order() as manager:
            job = await manager.submit_job(name, params, key="k")
            await until(lambda: job.status != "pending")
            if name == "sleep":
                assert await manager.cancel_job(job.id)
            else:
                await manager.wait(job.id, 120)
            assert manager._engine.jobs.by_key == {}
            assert await (await manager.submit_job("echo", {"value": 1}, key="k", on_duplicate="refuse")) == 1

    run(scene())


def test_a_key_is_free_in_the_hook_that_tells_of_the_end():
    class Again(Order):
        again = None

        async def on_job_ended(self, job):
            if self.again is None:
                self.again = await self.submit_job("echo", {"value": 2}, key="k", on_duplicate="refuse")

    async def scene():
        async with Again() as manager:
            await (await manager.submit_job("echo", {"value": 1}, key="k"))
            await until(lambda: manager.again is not None)
            assert await manager.again == 2

    run(scene())


def test_of_many_with_one_key_at_the_same_time_one_job_is_made():
    async def scene():
        async with Order() as manager:
            jobs = await asyncio.gather(*[manager.submit_job("echo", {"value": i}, key="k") for i in range(50)])
            assert len({job.id for job in jobs}) == 1 == len(manager.get_all_jobs())
            assert await asyncio.gather(*jobs) == [await jobs[0]] * 50

    run(scene())


# ---------------------------------------------------------------- many jobs


@BACKENDS
def test_many_jobs_come_as_they_end(backend):
    async def scene():
        async with Order(backend=backend, max_workers=2) as manager:
            found = [job async for job in manager.submit_many("echo", ({"value": i} for i in range(200)))]
            assert sorted(job.result for job in found) == list(range(200))
            assert {job.status for job in found} == {"completed"}
            assert [job async for job in manager.submit_many("echo", [])] == []

    run(scene())


def test_the_one_that_ends_first_comes_first_and_failures_come_too(tmp_path):
    async def scene():
        async with Order(max_workers=2) as manager:
            slow, end = await busy(manager, tmp_path)
            bad = await manager.submit_job("raise_value_error")
            good = await manager.submit_job("echo", {"value": 1})
            await good
            found = []
            async for job in manager.as_completed([slow, bad.id, good]):
                found.append(job)
                if len(found) == 2:
                    end()
            assert found == [bad, good, slow] and [job.status for job in found] == ["failed", "completed", "completed"]
            with pytest.raises(UnknownJob):
                [job async for job in manager.as_completed(["nobody"])]

    run(scene())


def test_a_queue_with_a_limit_is_filled_again_as_jobs_end():
    async def scene():
        async with Order(max_pending_jobs=3) as manager:
            most, found = 0, []
            async for job in manager.submit_many("echo", ({"value": i} for i in range(50))):
                found.append(job.result)
                most = max(most, manager._engine.scheduler.pending.count)
            assert sorted(found) == list(range(50)) and most <= 3
            others = [await manager.submit_job("echo", delay_seconds=600) for _ in range(3)]
            with pytest.raises(QueueFull):
                [job async for job in manager.submit_many("echo", [{"value": 1}])]
            assert {job.status for job in others} == {"pending"}

    run(scene())


def test_after_a_break_the_others_go_on():
    async def scene():
        async with Order() as manager:
            async for _ in manager.submit_many("echo", ({"value": i} for i in range(5))):
                break
            jobs = manager.get_all_jobs()
            assert len(jobs) == 5
            for job in jobs:
                await job
            with pytest.raises(UnknownPlugin):
                [job async for job in manager.submit_many("nobody", [{}])]

    run(scene())


def test_jobs_of_a_plugin_that_is_held_back_come_although_nothing_is_remembered():
    async def scene():
        async with Order(hold_after_crashes=1, max_finished_jobs=0) as manager:
            job = await manager.submit_job("exit_now")
            with pytest.raises(JobFailed):
                await job
            found = [job async for job in manager.submit_many("exit_now", [{}, {}])]
            assert [job.error_type for job in found] == ["PluginHeldBack"] * 2

    run(scene())


# ---------------------------------------------------------------- await job


@BACKENDS
def test_await_returns_the_result_or_raises_what_happened(backend):
    async def scene():
        async with Order(backend=backend) as manager:
            assert await (await manager.start_job("echo", value={"a": 1})) == {"a": 1}
            assert await (await manager.start_job("count", n=3)) == [0, 1, 2]
            job = await manager.start_job("raise_value_error", text="not today")
            for _ in range(2):  # as often as one likes
                with pytest.raises(JobFailed, match=f"job {job.id} of plugin 'raise_value_error': not today") as found:
                    await job
                error = found.value
                assert (error.status, error.error_type, type(error.__cause__)) == ("failed", "ValueError", ValueError)
                assert error.traceback == job.traceback and job.traceback in error.__notes__[0]
            late = await manager.submit_job("echo", delay_seconds=600)
            waiting = asyncio.create_task(manager.result_of(late))
            await asyncio.sleep(0)
            await manager.cancel_job(late.id)
            with pytest.raises(JobFailed, match="was cancelled") as found:
                await waiting
            assert found.value.status == "cancelled"
        with pytest.raises(TypeError, match="cannot be awaited"):
            await BaseJob("echo")

    run(scene())


def test_a_caller_that_is_cancelled_leaves_the_job_alone(tmp_path):
    async def scene():
        async with Order() as manager:
            job, end = await busy(manager, tmp_path)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await job
            assert job.status == "running"
            end()
            assert await job == job.worker_pid

    run(scene())


# ---------------------------------------------------------------- a limit for one plugin


@BACKENDS
def test_a_plugin_has_no_more_jobs_at_a_time_than_its_limit(backend, tmp_path):
    async def scene():
        config = {"max_workers": 3, "max_jobs_per_plugin": {"touch_and_wait": 1}, "cancel_grace_seconds": 0.05}
        async with Order(backend=backend, **config) as manager:
            paths = [
                {"started": str(tmp_path / f"started {n}"), "go_on": str(tmp_path / f"go on {n}")} for n in range(4)
            ]
            jobs = [await manager.start_job("touch_and_wait", **params) for params in paths]
            await until((tmp_path / "started 0").exists)
            other = await manager.wait((await manager.start_job("echo", value="quick")).id, 120)
            assert other.result == "quick", "what waits for its own plugin holds up no other"
            assert [job.status for job in jobs] == ["running", "pending", "pending", "pending"]
            assert [manager.get_queue_position(job.id) for job in jobs] == [None, 1, 2, 3]
            await manager.cancel_job(jobs[1].id)
            await manager.cancel_job(jobs[0].id)  # an end of whatever kind lets the next one go
            await until((tmp_path / "started 2").exists)
            assert not (tmp_path / "started 3").exists()
            for n in (0, 2, 3):  # in a thread, job 0 cannot be killed: it goes on until it is told
                (tmp_path / f"go on {n}").touch()
            assert [(await manager.wait(job.id, 120)).status for job in jobs[2:]] == ["completed"] * 2
            assert (tmp_path / "started 3").exists() and not (tmp_path / "started 1").exists()

    run(scene())
