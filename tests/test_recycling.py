"""Workers that are replaced between two jobs, and plugins that get none for a while."""

from __future__ import annotations

import asyncio
import os

import pytest
from backend_scenes import Events
from harness import is_alive, run, until

from cjm_worker_ext import BaseJobManager, Recycle, RestartPolicy, Retry, WorkerConfig
from cjm_worker_ext.errors import PluginHeldBack

NAMES = (
    "pid_of_worker", "echo", "count", "touch_and_wait", "retire", "retire_in_a_thread", "retire_again_and_again",
    "RetiresInLoad", "leak", "raise_as", "crash_unless", "exit_now", "CrashingLoad", "SlowUnload", "flaky",
)  # fmt: skip


def make(events=None, recycle=None, **config) -> BaseJobManager:
    settings = WorkerConfig(**{"cancel_grace_seconds": 0.05, **config})
    plugins = {name: f"plugins_for_tests:{name}" for name in NAMES}
    return BaseJobManager("health", plugins=plugins, worker_config=settings, event_broadcaster=events, recycle=recycle)


async def ended(manager, plugin_id, /, **params):
    return await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)


async def pid_of(manager, plugin_id="pid_of_worker", /, **params) -> int:
    return await (await manager.start_job(plugin_id, **params))


async def recycled(events: Events, count: int = 1) -> list[tuple[int, str]]:
    "Pid and reason of each worker that was replaced, once there are as many."

    def found():
        return [(data["pid"], data["reason"]) for kind, data in events.seen if kind == "worker:recycled"]

    await until(lambda: len(found()) >= count, what="worker:recycled")
    return found()


def ends(events: Events) -> list[tuple[str, int]]:
    return [(kind, data["pid"]) for kind, data in events.seen if kind in ("worker:stopped", "worker:crashed")]


# ---------------------------------------------------------------- Recycle


@pytest.mark.parametrize("standby", [0, 1])
def test_a_worker_does_so_many_jobs(standby):
    async def scene():
        events = Events()
        async with make(events, Recycle(max_jobs=3), standby_workers=standby) as manager:
            pids = [job.result async for job in manager.submit_many("pid_of_worker", [{}] * 12)]
            assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3] * 4
            done = await recycled(events, 4)
            assert done == [(pid, "it has done 3 jobs") for pid in dict.fromkeys(pids)]
            await until(lambda: not any(is_alive(pid) for pid in pids), what="the end of the workers")
        assert {kind for kind, _ in ends(events)} == {"worker:stopped"}, "it is no crash"
        assert len({pid for _, pid in ends(events)}) == len(ends(events))

    run(scene())


def test_with_a_standby_the_next_job_waits_for_no_start(tmp_path):
    "The old worker is still unloading when the next job is done: a spare was there."

    async def scene():
        events = Events()
        config = {"standby_workers": 1, "unload_timeout_seconds": 600, "shutdown_timeout_seconds": 0.1}
        async with make(events, Recycle(max_jobs=1), **config) as manager:
            old = await pid_of(manager, "SlowUnload")
            assert await pid_of(manager) != old and is_alive(old)

    run(scene())


def test_a_worker_that_does_not_end_is_killed_and_replaced():
    async def scene():
        events = Events()
        async with make(events, Recycle(max_jobs=1), unload_timeout_seconds=0.1) as manager:
            old = await pid_of(manager, "SlowUnload")
            assert await pid_of(manager) != old and not is_alive(old)
        assert ("worker:stopped", old) in ends(events)

    run(scene())


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_no_restart_policy_forbids_a_replacement(policy):
    async def scene():
        recycle = Recycle(max_jobs=1)
        async with make(None, recycle, restart_policy=policy, restart_backoff_seconds=600) as manager:
            assert len({await pid_of(manager) for _ in range(4)}) == 4

    run(scene())


def test_a_worker_that_grows_is_replaced_and_no_job_is_lost():
    async def scene():
        events = Events()
        most = 100 << 20
        async with make(events, Recycle(max_rss_bytes=most)) as manager:
            pids = [job.result async for job in manager.submit_many("leak", [{"megabytes": 30}] * 12)]
            assert len(pids) == 12 and 3 <= len(set(pids)) <= 6
            for pid, reason in await recycled(events, 3):
                assert pid in pids and reason.startswith("it uses ") and f"max_rss_bytes={most:,}" in reason
            small = {await pid_of(manager) for _ in range(5)}
            assert len(small) <= 2, "the others stay"

    run(scene())


def test_an_old_worker_is_replaced_when_its_job_is_done(tmp_path):
    async def scene():
        events = Events()
        async with make(events, Recycle(max_age_seconds=0.3)) as manager:
            started, go_on = tmp_path / "started", tmp_path / "go on"
            job = await manager.start_job("touch_and_wait", started=str(started), go_on=str(go_on))
            waiting = await manager.start_job("pid_of_worker")
            await until(lambda: any(w.retires for w in manager._engine.scheduler.workers.all.values()))
            assert job.status == "running", "a job is never interrupted for it"
            go_on.touch()
            assert await waiting != await job
            assert (job.result, "it is older than max_age_seconds=0.3") in await recycled(events)
            await recycled(events, 2)  # an idle one goes at once

    run(scene())


@pytest.mark.parametrize("standby", [0, 2])
def test_idle_workers_stop_and_the_next_job_starts_one(standby, tmp_path):
    async def scene():
        events = Events()
        async with make(events, Recycle(idle_seconds=0.15), max_workers=2, standby_workers=standby) as manager:
            first = await pid_of(manager)
            await until(lambda: not manager.workers(), what="the end of all workers")
            assert not is_alive(first)
            assert await pid_of(manager) != first
        assert {kind for kind, _ in ends(events)} == {"worker:stopped"}
        assert "worker:recycled" not in [kind for kind, _ in events.seen], "no other one takes its place"

    run(scene())


def test_spares_do_not_come_and_go_beside_a_long_job(tmp_path):
    async def scene():
        events = Events()
        async with make(events, Recycle(idle_seconds=0.05), standby_workers=2) as manager:
            started, go_on = tmp_path / "started", tmp_path / "go on"
            job = await manager.start_job("touch_and_wait", started=str(started), go_on=str(go_on))
            await until(lambda: sum(w.status == "idle" for w in manager.workers()) == 2)
            loop = asyncio.get_running_loop()
            since = loop.time()
            await until(lambda: loop.time() - since > 0.4)
            assert len([kind for kind, _ in events.seen if kind == "worker:started"]) == 3
            go_on.touch()
            await job
            await until(lambda: not manager.workers(), what="the end of all workers")
        assert len(ends(events)) == 3

    run(scene())


def test_a_worker_with_work_is_not_idle():
    async def scene():
        async with make(None, Recycle(idle_seconds=0.3)) as manager:
            loop = asyncio.get_running_loop()
            since, pids = loop.time(), set()
            while loop.time() - since < 0.8:
                pids.add(await pid_of(manager))
            assert len(pids) == 1

    run(scene())


def test_an_idle_worker_killed_beside_its_timers_is_replaced():
    async def scene():
        events = Events()
        async with make(events, Recycle(idle_seconds=600, max_age_seconds=600, max_jobs=5)) as manager:
            pids = [await pid_of(manager)]
            os.kill(pids[0], 9)
            await until(lambda: not manager.workers())
            pids.append(await pid_of(manager))
            timers = {kind for kind, _ in manager._engine.timers._handles}
            assert timers == {"age", "idle"} and len(manager._engine.timers._handles) == 2
        assert ends(events) == [("worker:crashed", pids[0]), ("worker:stopped", pids[1])]
        assert "worker:recycled" not in [kind for kind, _ in events.seen]

    run(scene())


# ---------------------------------------------------------------- retire_worker


@pytest.mark.parametrize("then", ["return", "raise"])
def test_a_plugin_asks_for_another_worker(then):
    async def scene():
        events = Events()
        async with make(events) as manager:
            job = await manager.start_job("retire", then=then)
            waiting = [await manager.start_job("pid_of_worker") for _ in range(3)]
            await manager.wait(job.id, 120)
            assert job.status == ("completed" if then == "return" else "failed")
            pids = {await one for one in waiting}
            assert len(pids) == 1 and job.worker_pid not in pids
            assert await recycled(events) == [(job.worker_pid, "the card is gone")]
        order = [kind for kind, data in events.seen if data.get("pid") == job.worker_pid]
        assert order.index(f"job:{job.status}") < order.index("worker:recycled") < order.index("worker:stopped")

    run(scene())


def test_a_worker_that_asked_and_died_is_a_crash():
    async def scene():
        events = Events()
        async with make(events) as manager:
            job = await ended(manager, "retire", then="crash")
            assert (job.status, job.error_type) == ("failed", "WorkerCrashed")
            assert await pid_of(manager) != job.worker_pid
        assert ("worker:crashed", job.worker_pid) in ends(events)

    run(scene())


@pytest.mark.parametrize("by", ["job", "load_plugin"])
def test_it_asks_while_it_loads(by):
    async def scene():
        events = Events()
        async with make(events, Recycle()) as manager:
            if by == "job":
                old = await pid_of(manager, "RetiresInLoad")
            else:
                await manager.load_plugin("RetiresInLoad")
                old = (await recycled(events))[0][0]
            assert await recycled(events) == [(old, "its driver is too old")]
            assert ("plugin:loaded", old) in [(kind, data.get("pid")) for kind, data in events.seen]
            assert await pid_of(manager) != old

    run(scene())


def test_it_asks_in_a_thread_and_another_job_waits_meanwhile(tmp_path):
    async def scene():
        events, started, go_on = Events(), tmp_path / "started", tmp_path / "go on"
        async with make(events) as manager:
            job = await manager.start_job("retire_in_a_thread", started=str(started), go_on=str(go_on))
            await until(started.exists)
            waiting = await manager.start_job("pid_of_worker")
            loading = asyncio.create_task(manager.load_plugin("echo"))
            go_on.touch()
            assert await waiting != await job
            await loading
            assert await recycled(events) == [(job.result, "the card is gone")]

    run(scene())


def test_a_cancel_while_it_asks_breaks_nothing(tmp_path):
    "The request is a frame on the socket, and half a frame would be the end of the worker."

    async def scene():
        for n in range(10):
            events = Events()
            async with make(events, cancel_grace_seconds=30) as manager:
                started = tmp_path / str(n)
                job = await manager.start_job("retire_again_and_again", started=str(started))
                await until(started.exists)
                assert await manager.cancel_job(job.id)
                assert await recycled(events) == [(job.worker_pid, "x" * 200)]
                assert await pid_of(manager) != job.worker_pid
            assert {kind for kind, _ in ends(events)} == {"worker:stopped"}

    run(scene())


def test_another_attempt_goes_to_another_worker(tmp_path):
    "The card is unusable, and the job is tried again: that must not be on the same worker."

    async def scene():
        async with make() as manager:
            params = {"module": "torch", "name": "AcceleratorError", "text": STICKY["torch"][0][1]}
            job = await manager.submit_job("raise_as", params, retry=Retry(2, on=("failed",), delay_seconds=0))
            first = await until(lambda: job.worker_pid)
            await manager.wait(job.id, 120)
            assert (job.attempts, job.status) == (2, "failed") and job.worker_pid != first

    run(scene())


# ---------------------------------------------------------------- errors of a card that never go away

STICKY = {
    "torch": [
        (
            "AcceleratorError",
            "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
        ),
        ("RuntimeError", "CUDA error: an illegal memory access was encountered"),
        ("RuntimeError", "CUDA error: unspecified launch failure"),
        ("RuntimeError", "CUDA error: uncorrectable ECC error encountered"),
        ("RuntimeError", "CUDA error: misaligned address"),
    ],
    "cupy_backends.cuda.api.runtime": [
        ("CUDARuntimeError", "cudaErrorIllegalAddress: an illegal memory access was encountered"),
        ("CUDARuntimeError", "cudaErrorAssert: device-side assert triggered"),
    ],
    "cupy_backends.cuda.api.driver": [
        ("CUDADriverError", "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"),
    ],
    "jaxlib.xla_extension": [
        ("XlaRuntimeError", "INTERNAL: Failed to synchronize: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"),
        ("XlaRuntimeError", "INTERNAL: CUDA_ERROR_ASSERT: could not synchronize on CUDA context"),
    ],
    "numba.cuda.cudadrv.driver": [
        ("CudaAPIError", "[700] Call to cuMemcpyDtoH results in CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("CudaAPIError", "[719] Call to cuCtxSynchronize results in CUDA_ERROR_LAUNCH_FAILED"),
    ],
}
HARMLESS = [
    (
        "torch",
        "OutOfMemoryError",
        "CUDA out of memory. Tried to allocate 60.00 GiB. GPU 0 has a total capacity of 79 GiB",
    ),
    ("cupy_backends.cuda.api.runtime", "CUDARuntimeError", "cudaErrorMemoryAllocation: out of memory"),
    ("cupy.cuda.memory", "OutOfMemoryError", "Out of memory allocating 8,589,934,592 bytes"),
    ("jaxlib.xla_extension", "XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte"),
    ("numba.cuda.cudadrv.driver", "CudaAPIError", "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY"),
    ("torch", "RuntimeError", "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    ("builtins", "ValueError", "wrong"),
]


def test_after_a_sticky_error_the_next_job_has_another_worker():
    async def scene():
        events = Events()
        async with make(events) as manager:
            pids = []
            for module, errors in STICKY.items():
                for name, text in errors:
                    job = await ended(manager, "raise_as", module=module, name=name, text=text)
                    assert (job.status, job.error_type) == ("failed", name), job
                    pids.append(job.worker_pid)
            assert len(set(pids)) == len(pids)
            for _, reason in await recycled(events, len(pids)):
                assert reason.startswith("after an error with '") and reason.endswith("' it cannot go on")

    run(scene())


def test_after_other_errors_the_worker_stays():
    async def scene():
        async with make() as manager:
            pids = set()
            for module, name, text in HARMLESS:
                job = await ended(manager, "raise_as", module=module, name=name, text=text)
                assert job.status == "failed"
                pids.add(job.worker_pid)
            assert pids == {await pid_of(manager)}

    run(scene())


def test_a_sticky_error_is_found_behind_another_error():
    async def scene():
        async with make() as manager:
            params = {"module": "torch", "name": "AcceleratorError", "text": "CUDA error: device-side assert triggered"}
            job = await ended(manager, "raise_as", behind="inference failed", **params)
            assert job.error == "inference failed" and await pid_of(manager) != job.worker_pid

    run(scene())


def test_an_app_says_which_errors_count():
    async def scene():
        async with make(None, Recycle(on_errors=("licence expired",))) as manager:
            params = {"module": "torch", "name": "AcceleratorError", "text": "CUDA error: device-side assert triggered"}
            job = await ended(manager, "raise_as", **params)
            assert await pid_of(manager) == job.worker_pid
            job = await ended(manager, "raise_as", module="acme", name="AcmeError", text="Licence Expired on Monday")
            assert await pid_of(manager) != job.worker_pid

    run(scene())


# ---------------------------------------------------------------- plugins that are held back


async def crash_until_held(manager, path, times=3):
    for _ in range(times):
        job = await ended(manager, "crash_unless", path=str(path))
        assert job.error_type == "WorkerCrashed", job


async def held(manager, path):
    job = await ended(manager, "crash_unless", path=str(path))
    assert (job.status, job.error_type, job.attempts) == ("failed", "PluginHeldBack", 0), job
    assert isinstance(job.exception, PluginHeldBack)
    words = ("plugin 'crash_unless' is held back", "crashed 3 workers in a row", "exited with code 7", "release_plugin")
    assert all(word in job.error for word in words), job.error


def test_a_plugin_that_crashes_worker_after_worker_is_held_back_and_released_by_hand(tmp_path):
    async def scene():
        events, path = Events(), tmp_path / "mended"
        async with make(events, hold_seconds=600) as manager:
            await crash_until_held(manager, path)
            await held(manager, path)
            with pytest.raises(PluginHeldBack, match="was not loaded: plugin 'crash_unless' is held back"):
                await manager.load_plugin("crash_unless")
            assert await (await manager.start_job("echo", value=1)) == 1, "other plugins go on"
            manager.release_plugin("crash_unless")
            await crash_until_held(manager, path, times=1)
            await held(manager, path)  # after one more crash
            path.touch()
            manager.release_plugin("crash_unless")
            manager.release_plugin("crash_unless")  # it is free already
            assert await (await manager.start_job("crash_unless", path=str(path))) == "it works"
            path.unlink()
            await crash_until_held(manager, path)  # it has worked meanwhile, so it takes three again
            await held(manager, path)
        starts = [kind for kind, _ in events.seen].count("worker:started")
        assert starts == 3 + 1 + 3, "no worker is started for a plugin that is held back"

    run(scene())


def test_it_is_released_after_a_time_that_doubles(tmp_path):
    async def scene():
        path = tmp_path / "mended"
        async with make(hold_seconds=0.2) as manager:
            waits = []
            set_timer = manager._engine.timers.set
            manager._engine.timers.set = lambda kind, key, s: (
                kind == "release" and waits.append(s),
                set_timer(kind, key, s),
            )
            counter = manager._engine.scheduler.crashes
            await crash_until_held(manager, path)
            for _ in range(2):
                await until(lambda: not counter.held, what="the release")
                await crash_until_held(manager, path, times=1)
            assert waits == [0.2, 0.4, 0.8]
            path.touch()
            await until(lambda: not counter.held, what="the release")
            assert await (await manager.start_job("crash_unless", path=str(path))) == "it works"
            path.unlink()
            await crash_until_held(manager, path)
            assert waits == [0.2, 0.4, 0.8, 0.2], "after a success it starts anew"

    run(scene())


def test_what_waits_for_a_plugin_ends_when_it_is_held_back(tmp_path):
    "Pending and delayed jobs, and one that waits for its next attempt; those of other plugins stay."

    async def scene():
        path = {"path": str(tmp_path / "mended")}
        async with make(hold_seconds=600) as manager:
            retried = await manager.submit_job("crash_unless", path, retry=Retry(5, delay_seconds=600))
            delayed = await manager.submit_job("crash_unless", path, delay_seconds=600, key="k")
            jobs = [await manager.submit_job("crash_unless", path) for _ in range(4)]
            other = await manager.submit_job("echo", {"value": 1}, delay_seconds=0.2)
            for job in (*jobs, delayed, retried):
                await manager.wait(job.id, 120)
            assert [j.error_type for j in jobs] == ["WorkerCrashed"] * 2 + ["PluginHeldBack"] * 2
            assert (delayed.error_type, delayed.attempts) == ("PluginHeldBack", 0)
            assert (retried.error_type, retried.attempts) == ("PluginHeldBack", 1)
            assert manager._engine.jobs.by_key == {} and await other == 1
            assert manager._engine.scheduler.delayed == 0

    run(scene())


def test_a_job_that_is_tried_again_does_not_wear_out_workers_for_ever(tmp_path):
    async def scene():
        events = Events()
        async with make(events, hold_seconds=600) as manager:
            retry = Retry(1000, delay_seconds=0)
            job = await manager.submit_job("crash_unless", {"path": str(tmp_path / "x")}, retry=retry)
            await manager.wait(job.id, 120)
            assert (job.error_type, job.attempts) == ("WorkerCrashed", 3)
        assert [kind for kind, _ in events.seen].count("worker:started") == 3

    run(scene())


def test_a_plugin_that_crashes_while_it_loads_is_held_back_with_the_reason():
    async def scene():
        async with make(hold_seconds=600) as manager:
            for _ in range(3):
                with pytest.raises(Exception, match="exited with code 3"):
                    await manager.load_plugin("CrashingLoad")
            with pytest.raises(PluginHeldBack, match="the last worker exited with code 3"):
                await manager.load_plugin("CrashingLoad")
            job = await ended(manager, "CrashingLoad")
            assert job.error_type == "PluginHeldBack" and "exited with code 3" in job.error

    run(scene())


def test_a_worker_that_is_killed_on_purpose_is_no_crash(tmp_path):
    async def scene():
        async with make(hold_after_crashes=1) as manager:
            for how in ("cancel", "timeout", "idle"):
                params = {"log": str(tmp_path / how), "how": "deaf"}
                options = {"timeout": 0.3} if how == "timeout" else {}
                job = await manager.submit_job("flaky", params, **options)
                await until((tmp_path / how).exists)
                if how == "cancel":
                    await manager.cancel_job(job.id)
                elif how == "timeout":
                    await manager.wait(job.id, 120)
                else:
                    os.kill(await pid_of_idle(manager), 9)
                assert manager._engine.scheduler.crashes.held == set()

    async def pid_of_idle(manager):
        for job in manager.get_all_jobs():
            await manager.cancel_job(job.id)
        return await pid_of(manager)

    run(scene())
