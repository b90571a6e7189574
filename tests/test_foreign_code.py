"""Hooks, integrations and plugins that raise what is no `Exception`: jobs end, waiters wake, threads live on."""

import asyncio
import logging
import os
import sys
import threading

import pytest

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.errors import JobFailed
from cjm_worker_ext.events.delivery import CallThread
from cjm_worker_ext.integrations.resources import Sampler
from cjm_worker_ext.jobs import JobStatus
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


class Panic(BaseException):
    "As the extensions of other languages raise it."


class Undescribable(Exception):
    def __str__(self):
        raise Panic("in __str__")


class BadCategory(Exception):
    @property
    def category(self):
        raise Panic("in a property")


class Nameless(type):
    def __getattribute__(cls, name):
        if name in ("__qualname__", "__module__", "__name__"):
            raise Panic("no name")
        return super().__getattribute__(name)


class WithoutName(Exception, metaclass=Nameless):
    pass


ODD = {"text": Undescribable, "category": BadCategory, "name": WithoutName}


def work(x):
    return x


def crash():
    os._exit(1)


def raise_odd(kind):
    raise ODD[kind]()


def stream_odd(kind):
    yield 1
    raise ODD[kind]()


async def raise_odd_async(kind):
    raise ODD[kind]()


def app(hook, kind, is_async=False):
    "A manager's class with one hook that raises for jobs with `x=1`."

    class App(BaseJobManager):
        pass

    def raises(self, job, raw=None):
        if job.params.get("x") == 1:
            raise kind("by the app")
        return {"extract_job_result": raw, "prepare_execute_request": job.params}.get(hook)

    async def raises_later(self, job):
        raises(self, job)

    setattr(App, hook, raises_later if is_async else raises)
    return App("app", plugins={"work": work}, worker_config=WorkerConfig(max_workers=1))


ENDS = [
    ("validate_resources", False),
    ("validate_resources", True),
    ("prepare_execute_request", False),
    ("extract_job_result", False),
]
TOLD = [("on_job_ended", False), ("on_job_ended", True)]


@pytest.mark.parametrize("kind", [asyncio.CancelledError, Panic, GeneratorExit])
@pytest.mark.parametrize(("hook", "is_async"), ENDS + TOLD)
def test_a_hook_costs_its_own_job_at_most_whatever_it_raises(hook, is_async, kind):
    async def main():
        async with asyncio.timeout(120), app(hook, kind, is_async) as manager:
            await manager.run("work", x=0)
            pid = manager.workers()[0].pid
            jobs = [await manager.start_job("work", x=x) for x in (0, 1, 2)]
            for job in jobs:
                await manager.wait(job)
            own = JobStatus.COMPLETED if (hook, is_async) in TOLD else JobStatus.FAILED
            assert [job.status for job in jobs] == [JobStatus.COMPLETED, own, JobStatus.COMPLETED]
            if own is JobStatus.FAILED:
                assert jobs[1].error_type == kind.__name__
                with pytest.raises(JobFailed):
                    await jobs[1]
            assert await manager.run("work", x=3) == 3
            assert [worker.pid for worker in manager.workers()] == [pid]

    asyncio.run(main())


@pytest.mark.parametrize(("hook", "is_async"), ENDS + TOLD)
def test_an_exit_in_a_hook_ends_the_loop_and_the_job_has_its_end(hook, is_async):
    jobs = []

    async def main():
        manager = app(hook, SystemExit, is_async)
        jobs.append(await manager.start_job("work", x=1))
        async with asyncio.timeout(120):
            await asyncio.Event().wait()

    with pytest.raises(SystemExit, match="by the app"):
        asyncio.run(main())
    assert jobs[0].status is (JobStatus.COMPLETED if (hook, is_async) in TOLD else JobStatus.FAILED)


def test_a_check_that_is_cancelled_ends_its_job_as_cancelled():
    class App(BaseJobManager):
        async def validate_resources(self, job):
            await asyncio.Event().wait()

    async def main():
        async with asyncio.timeout(120), App("app", plugins={"work": work}) as manager:
            job = await manager.start_job("work", x=1)
            await asyncio.sleep(0)
            assert await manager.cancel_job(job)
            assert job.status is JobStatus.CANCELLED

    asyncio.run(main())


@pytest.mark.parametrize("kind", [asyncio.CancelledError, Panic, RuntimeError])
def test_a_broadcaster_that_raises_once_gets_the_other_events(kind):
    class Broadcaster:
        got, calls = [], 0

        async def broadcast(self, event_type, data):
            Broadcaster.calls += 1
            if Broadcaster.calls == 2:
                raise kind("once")
            Broadcaster.got.append(data["seq"])

    async def main():
        async with BaseJobManager("app", plugins={"work": work}, event_broadcaster=Broadcaster()) as manager:
            await manager.run("work", x=1)

    asyncio.run(main())
    assert Broadcaster.got == [1, *range(3, Broadcaster.calls + 1)]


@pytest.mark.parametrize("kind", [SystemExit, Panic, asyncio.CancelledError])
def test_a_resource_manager_that_raises_once_hears_of_the_rest(kind):
    class Resources:
        def __init__(self):
            self.calls, self.updates = [], 0

        def register_worker(self, pid, worker_type):
            self.calls.append("register")

        def update_worker_state(self, pid, **state):
            self.updates += 1
            if self.updates == 1:
                raise kind("once")

        def unregister_worker(self, pid):
            self.calls.append("unregister")

    resources = Resources()

    async def main():
        async with BaseJobManager("app", plugins={"work": work}, resource_manager=resources) as manager:
            await manager.run("work", x=1)

    asyncio.run(main())
    assert resources.calls == ["register", "unregister"]
    assert resources.updates > 1


def test_a_thread_for_calls_outlives_what_they_raise(caplog):
    async def main():
        calls, made = CallThread("calls"), []
        calls.post(sys.exit)
        calls.post(lambda: made.append(1))
        assert await calls.settle(30)
        calls.close(30)
        assert made == [1]

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "calls failed" in caplog.text


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("plugin", [raise_odd, raise_odd_async, stream_odd])
def test_an_exception_that_cannot_be_described_fails_its_job_and_costs_no_worker(plugin, kind):
    async def main():
        plugins = {"work": work, "odd": plugin}
        async with asyncio.timeout(120), BaseJobManager("app", plugins=plugins) as manager:
            await manager.run("work", x=0)
            pid = manager.workers()[0].pid
            job = await manager.wait(await manager.start_job("odd", kind=kind))
            assert (job.status, job.error_type) == (JobStatus.FAILED, _name(ODD[kind]))
            assert [worker.pid for worker in manager.workers()] == [pid]

    asyncio.run(main())


def _name(kind):
    return type.__dict__["__qualname__"].__get__(kind)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 has eager tasks")
def test_eager_tasks_leave_no_admission_behind():
    class App(BaseJobManager):
        def validate_resources(self, job):
            return None

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with App("app", plugins={"work": work}, worker_config=WorkerConfig(max_pending_jobs=2)) as manager:
            for x in range(5):
                assert await manager.run("work", x=x) == x
            assert manager.health()["queue_length"] == 0

    asyncio.run(main())


@pytest.mark.parametrize("stored", [False, True])
def test_a_cancel_on_a_second_loop_is_no_shutdown(tmp_path, stored):
    class App(BaseJobManager):
        async def validate_resources(self, job):
            await asyncio.Event().wait()

    store = SQLiteJobStore(str(tmp_path / "jobs.db")) if stored else None
    manager = App("app", plugins={"work": work}, job_store=store)

    async def main():
        async with asyncio.timeout(120), manager:
            job = await manager.start_job("work", x=1)
            await asyncio.sleep(0)
            assert await manager.cancel_job(job)
            assert (job.status, job.error) == (JobStatus.CANCELLED, None)

    asyncio.run(main())
    asyncio.run(main())


@pytest.mark.parametrize("first", ["broadcaster", "app"])
def test_a_broadcaster_may_shut_the_manager_down(first, caplog):
    called = []

    class Broadcaster:
        async def broadcast(self, event_type, data):
            if event_type == ("job:failed" if first == "broadcaster" else "worker:stopped"):
                called.append(event_type)
                await self.manager.shutdown()
                called.append("returned")

    async def main():
        broadcaster = Broadcaster()
        manager = BaseJobManager("app", plugins={"crash": crash}, event_broadcaster=broadcaster)
        broadcaster.manager = manager
        if first == "broadcaster":
            await manager.wait(await manager.start_job("crash"))
        else:
            await manager.load_plugin("crash")
        await manager.shutdown()
        await asyncio.wait_for(asyncio.shield(manager.shutdown()), 120)

    asyncio.run(main())
    assert called
    assert "too slow" not in caplog.text


def test_a_sampler_outlives_what_its_call_raises():
    calls = []
    again = threading.Event()

    def take():
        calls.append(1)
        if len(calls) == 1:
            raise Panic("once")
        again.set()

    sampler = Sampler(take, 0.001)
    with sampler.asked():
        assert again.wait(120)
    sampler.join()
