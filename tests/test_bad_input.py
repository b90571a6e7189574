"""Bad input: each mistake has its named error that says what to do, and changes nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest
from harness import run, targets

from cjm_worker_ext import BaseJob, BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import (
    ConfigError,
    ManagerClosed,
    NotSerializable,
    ProtocolError,
    QueueFull,
    UnknownJob,
    UnknownPlugin,
    WrongLoop,
)
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


class Registry:
    def get_plugins_by_category(self, category):
        return []

    def get_plugin(self, plugin_id):
        return {"name": "known"} if plugin_id == "known" else None

    def load_plugin_config(self, plugin_id):
        return {}


def make(**options) -> BaseJobManager:
    return BaseJobManager("bad-input", "tests", plugins=targets("echo", "sleep"), **options)


def unchanged(manager: BaseJobManager) -> None:
    assert manager.get_all_jobs() == [] and manager.workers() == []


@pytest.mark.parametrize(
    "plugin_id,word", [("nope", "the registry does not have it, nor does plugins="), ("known", "no target to run")]
)
def test_a_plugin_that_cannot_run(plugin_id, word):
    async def scene():
        async with make(plugin_registry=Registry()) as manager:
            for call in (manager.start_job, manager.load_plugin, manager.reload_plugin, manager.unload_plugin):
                with pytest.raises(UnknownPlugin, match=word):
                    await call(plugin_id)
            unchanged(manager)

    run(scene())


def test_jobs_that_do_not_exist():
    async def scene():
        async with make() as manager:
            for call in (manager.wait, manager.cancel_job):
                with pytest.raises(UnknownJob, match="'nope': not known"):
                    await call("nope")
            for plain in (manager.get_job, manager.get_job_result, manager.get_job_output, manager.stream):
                with pytest.raises(UnknownJob):
                    plain("nope")
            unchanged(manager)

    run(scene())


@pytest.mark.parametrize("timeout", [-1, "5", float("nan"), [], True])
def test_a_timeout_that_is_no_number(timeout):
    async def scene():
        async with make() as manager:
            with pytest.raises(ConfigError, match="timeout must be a number of seconds"):
                await manager.submit_job("echo", timeout=timeout)
            unchanged(manager)

    run(scene())


@pytest.mark.parametrize("position", [-1, "5", 1.0, None, True])
def test_a_position_that_is_no_number(position):
    async def scene():
        async with make() as manager:
            job = await manager.wait((await manager.start_job("echo", value=1)).id, 120)
            with pytest.raises(ConfigError, match="start must be a whole number >= 0, got"):
                manager.stream(job.id, start=position)
            with pytest.raises(ConfigError, match="last must be a whole number >= 0, got"):
                manager.get_job_chunks(job.id, last=position)

    run(scene())


def test_a_wrong_call_names_the_class_that_the_app_knows():
    for call in (BaseJobManager, lambda: make(plugin={}), make().wait, make().stream, make().submit_job):
        with pytest.raises(TypeError, match=r"^BaseJobManager\.\w+\(\) (missing|got an unexpected)"):
            call()


def test_settings_of_wrong_types_are_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        WorkerConfig(max_workers="2", cancel_grace_seconds=-1, restart_policy="maybe", allowed_types=[int])
    for name in ("max_workers", "cancel_grace_seconds", "restart_policy", "allowed_types"):
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="worker_config must be"):
        make(worker_config={"max_workers": 2})


def test_another_loop_and_no_loop():
    manager = make()

    async def first():
        unchanged(manager)

    loop = asyncio.new_event_loop()  # not closed: a manager whose loop is gone may be used on another one
    loop.run_until_complete(first())
    with pytest.raises(WrongLoop, match="one manager for each loop"):
        asyncio.run(manager.start_job("echo"))
    with pytest.raises(WrongLoop, match="asyncio.run_coroutine_threadsafe in other threads"):
        manager.get_all_jobs()
    with pytest.raises(WrongLoop, match="another thread or event loop than its own"):
        manager.blocking()
    with pytest.raises(WrongLoop, match="no event loop runs; call it in an async function, or use manager.blocking"):
        make().get_all_jobs()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_a_job_serves_as_well_as_its_id():
    async def scene():
        async with make() as manager:
            job = await manager.start_job("echo", value=1)
            assert await manager.wait(job, 120) is job and await manager.result_of(job.id) == 1
            assert not await manager.cancel_job(job)
            plain = (manager.get_job, manager.get_job_result, manager.get_job_output, manager.get_job_chunks)
            assert [call(job) for call in plain] == [call(job.id) for call in plain]
            assert [chunk async for chunk in manager.stream(job)] == []
            manager.forget(job)
            assert await manager.wait(job) is job  # who has the job need not find it
            with pytest.raises(UnknownJob, match="it was forgotten"):
                manager.stream(job)

    run(scene())


@pytest.mark.parametrize("wrong", [None, 7, ["j1"], b"j1"])
def test_what_is_neither_a_job_nor_an_id(wrong):
    async def scene():
        async with make() as manager:
            for call in (manager.wait, manager.cancel_job, manager.result_of, manager.retry_job):
                with pytest.raises(UnknownJob, match="by itself or its id, a text, got"):
                    await call(wrong)
            for plain in (
                manager.get_job,
                manager.get_job_result,
                manager.get_job_output,
                manager.stream,
                manager.forget,
            ):
                with pytest.raises(UnknownJob, match="by itself or its id"):
                    plain(wrong)

    run(scene())


def test_a_plugin_that_cannot_be_sent():
    lock = threading.Lock()

    def locked():
        with lock:
            return 1

    async def scene():
        async with BaseJobManager("bad-input", "tests", plugins={"locked": locked}) as manager:
            with pytest.raises(
                NotSerializable, match="plugin 'locked' cannot be sent: .*make what it needs in `load`, or name"
            ):
                await manager.start_job("locked")

    run(scene())


def test_something_else_as_the_third_argument():
    with pytest.raises(ConfigError, match="supports_streaming must be True or False, got {'echo'"):
        BaseJobManager("text", "processing", {"echo": "plugins_for_tests:echo"})


def test_after_shutdown():
    async def scene():
        manager = make()
        job = await manager.wait((await manager.start_job("echo", value=1)).id, 120)
        await manager.shutdown()
        await manager.shutdown()
        for call in (manager.start_job, manager.load_plugin, manager.reload_plugin, manager.unload_plugin):
            with pytest.raises(ManagerClosed, match="make a new one"):
                await call("echo")
        assert manager.get_all_jobs() == [job] and manager.workers() == []

    run(scene())


def test_more_jobs_than_may_wait():
    async def scene():
        async with make(worker_config=WorkerConfig(max_pending_jobs=2)) as manager:
            jobs = [await manager.start_job("sleep", seconds=600) for _ in range(2)]
            with pytest.raises(QueueFull, match="2 jobs are pending"):
                await manager.start_job("echo")
            assert manager.get_all_jobs() == jobs

    run(scene())


def test_integrations_that_lack_a_method():
    class Lacking:
        def broadcast(self, event_type, data): ...

    with pytest.raises(ProtocolError) as caught:
        make(event_broadcaster=Lacking(), plugin_registry=object(), resource_manager=object())
    for word in ("event_broadcaster", "broadcast must be async", "plugin_registry", "resource_manager"):
        assert word in str(caught.value)


WRONG_IDS = ["", "a\0b", "\ud800", "x" * 1001, 5]


@pytest.mark.parametrize("wrong", WRONG_IDS, ids=["empty", "NUL", "surrogate", "long", "number"])
def test_ids_that_no_store_and_no_event_can_hold(wrong, tmp_path):
    class Makes(BaseJobManager):
        def create_job(self, plugin_id, params):
            return BaseJob(plugin_id, params, id=wrong)

    async def scene():
        with pytest.raises(ConfigError, match="the id of a plugin must be a text of 1 to 1,000 bytes"):
            BaseJobManager("bad-input", plugins={wrong: len})
        for store in (None, SQLiteJobStore(tmp_path / "jobs.db")):
            async with Makes("bad-input", "tests", plugins=targets("echo"), job_store=store) as manager:
                with pytest.raises(ConfigError, match="create_job: the id of a job must be a text of 1 to 1,000 bytes"):
                    await manager.start_job("echo", value=1)
                with pytest.raises(UnknownPlugin, match="the id of a plugin must be a text of 1 to 1,000 bytes"):
                    await manager.start_job(wrong)
                for call in (manager.wait, manager.cancel_job, manager.find_job):
                    with pytest.raises(UnknownJob):
                        await call(wrong)
                with pytest.raises(UnknownJob):
                    manager.get_job(wrong)
                assert manager.get_all_jobs() == [] and manager.store_trouble is None

    run(scene())


def test_a_place_in_the_history_that_no_page_has_returned(tmp_path):
    async def scene():
        async with make(job_store=SQLiteJobStore(tmp_path / "jobs.db")) as manager:
            for wrong in ("abc", "-1", "9" * 5000):
                with pytest.raises(ConfigError, match="after must be what the page before has returned"):
                    await manager.job_history(after=wrong)
            assert (await manager.job_history(after="5")).jobs == [] and manager.store_trouble is None

    run(scene())
