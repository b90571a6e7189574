"""Managers and event loops: loops that close without a shutdown, one loop after another, shutdowns that meet."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings

import pytest
from harness import descriptors, is_alive, run, targets, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import ManagerClosed, WrongLoop

PLUGINS = targets("echo", "sleep", "hold_lock")


def make(**config) -> BaseJobManager:
    return BaseJobManager("loops", plugins=PLUGINS, worker_config=WorkerConfig(**config))


async def echo(manager, value=1):
    return await manager.wait((await manager.start_job("echo", value=value)).id, 120)


def test_asyncio_run_again_and_again_without_a_shutdown_leaves_nothing():
    async def forget_to_shut_down():
        manager = make(max_workers=2)
        job = await echo(manager)
        running = await manager.start_job("sleep", seconds=600)
        pids = [worker.pid for worker in manager.workers()]
        return manager, job, running, pids

    gc.collect()
    before = descriptors()
    for _ in range(5):
        with pytest.warns(ResourceWarning, match="manager 'loops' was not shut down; its workers are killed"):
            manager, job, running, pids = asyncio.run(forget_to_shut_down())
        assert not any(is_alive(pid) for pid in pids) and len(pids) >= 1
        assert (job.status, running.status, running.error) == ("completed", "cancelled", "the manager was shut down")
    del manager
    gc.collect()
    assert descriptors() <= before + 1


def test_a_manager_that_is_dropped_takes_its_workers_along():
    async def scene():
        manager = make()
        job = await echo(manager)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del manager
            gc.collect()
            await until(lambda: not is_alive(job.worker_pid))
            await until(lambda: any(issubclass(w.category, ResourceWarning) for w in seen))

    run(scene())


def test_a_manager_is_used_on_one_loop_after_another():
    manager = make()

    async def with_it(value):
        async with manager:
            return await echo(manager, value)

    jobs = [asyncio.run(with_it(value)) for value in (1, 2, 3)]
    assert [job.result for job in jobs] == [1, 2, 3]

    async def history():
        async with manager:
            return [job.id for job in manager.get_all_jobs()]

    assert asyncio.run(history()) == [job.id for job in jobs]


def test_a_test_client_runs_the_lifespan_twice():
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    manager = make()

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with manager:
            yield

    async def page(request):
        return JSONResponse((await echo(manager, 7)).result)

    app = Starlette(routes=[Route("/", page)], lifespan=lifespan)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").json() == 7


def test_a_manager_is_not_used_on_two_living_loops():
    async def scene():
        async with make() as manager:
            await echo(manager)
            seen = []

            def elsewhere():
                with pytest.raises(WrongLoop):
                    asyncio.run(echo(manager))
                seen.append(True)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert seen
        with pytest.raises(ManagerClosed):
            await manager.start_job("echo")

    run(scene())


def test_every_shutdown_waits_until_nothing_is_left():
    async def scene():
        manager = make(max_workers=2, cancel_grace_seconds=0.2)
        jobs = [await manager.start_job("hold_lock"), await manager.start_job("sleep", seconds=600)]
        await until(lambda: all(job.status == "running" for job in jobs))
        pids = [job.worker_pid for job in jobs]

        async def shut_down():
            await manager.shutdown()
            return [is_alive(pid) for pid in pids]

        assert await asyncio.gather(*(shut_down() for _ in range(3))) == [[False, False]] * 3

    run(scene())


def test_a_shutdown_whose_caller_is_cancelled_goes_on(tmp_path):
    started = tmp_path / "started"

    async def scene():
        manager = make(cancel_grace_seconds=600)  # so that nothing but the shutdown's own limit ends the worker
        job = await manager.start_job("hold_lock", started=str(started))
        await until(started.exists)
        impatient = asyncio.create_task(manager.shutdown(timeout=2.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert is_alive(job.worker_pid)
        await until(lambda: not is_alive(job.worker_pid), what="the end of the shutdown that nobody waits for")
        await manager.shutdown()
        assert manager.workers() == []

    run(scene())


def test_managers_leave_no_entry_for_the_end_of_the_app():
    import atexit

    class Resources:
        def register_worker(self, pid, worker_type): ...
        def update_worker_state(self, pid, **state): ...
        def unregister_worker(self, pid): ...

    async def scene():
        async with BaseJobManager("loops", plugins=PLUGINS, resource_manager=Resources()) as manager:
            await echo(manager)

    run(scene())
    before = atexit._ncallbacks()
    for _ in range(5):
        run(scene())
    assert atexit._ncallbacks() == before


def test_a_shutdown_says_whom_it_waits_for(caplog):
    class Lingers:
        def execute(self):
            import threading
            import time

            threading.Thread(target=time.sleep, args=(600,)).start()  # not a daemon: the interpreter waits for it
            return "done"

    async def scene():
        manager = BaseJobManager("loops", plugins={"lingers": Lingers})
        job = await manager.wait((await manager.start_job("lingers")).id, 120)
        await manager.shutdown(timeout=1.5)
        return job

    job = run(scene())
    assert f"shutdown waits for worker {job.worker_pid}: its plugins to unload and its threads to end" in caplog.text
