"""What an app may expect of every backend: jobs as scenes, which each backend's test file runs on its own one.

A scene gets a function that makes a manager for plugins of `backend_plugins`, a folder, and whether a crash is simulated.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from backend_plugins import Broken, Own, Shelf
from harness import time_is_up, until

from cjm_worker_ext import BaseJobManager, Recycle, Retry, WorkerConfig
from cjm_worker_ext.errors import NotSerializable, PluginLoadError, StreamGap, UnknownPlugin

Make = Callable[..., BaseJobManager]


# ---------------------------------------------------------------- an app
class Registry:
    def __init__(self, config):
        self.config = config

    def get_plugins_by_category(self, category):
        return []

    def get_plugin(self, plugin_id):
        return {"name": "model"} if plugin_id == "model" else None

    def load_plugin_config(self, plugin_id):
        return dict(self.config)


class Events:
    def __init__(self):
        self.seen = []

    async def broadcast(self, event_type, data):
        self.seen.append((event_type, data))

    def kinds_of(self, job):
        "What was told of one job, in order, repetitions left out."
        kinds = [kind for kind, data in self.seen if data.get("job_id") == job.id]
        return [kind for i, kind in enumerate(kinds) if not i or kind != kinds[i - 1]]


class Resources:
    def __init__(self):
        self.calls = []

    def register_worker(self, pid, worker_type):
        self.calls.append(("register", pid))

    def update_worker_state(self, pid, **state):
        self.calls.append(("update", pid))

    def unregister_worker(self, pid):
        self.calls.append(("unregister", pid))


def maker(backend):
    "What makes the managers of a scene: of plugins of `backend_plugins`, or that are named here."

    def make(*names, config=None, as_name=None, plugin_manager_factory=None, **options):
        known = ("plugin_registry", "resource_manager", "event_broadcaster", "supports_streaming", "retry", "recycle")
        rest = {key: options.pop(key) for key in known if key in options}
        plugins = {as_name or name: f"backend_plugins:{name}" for name in names} | options
        return BaseJobManager(
            "suite",
            worker_config=config or WorkerConfig(),
            plugins=plugins,
            plugin_manager_factory=plugin_manager_factory,
            backend=backend,
            **rest,
        )

    return make


async def ended(manager, plugin_id, /, **params):
    "Run a job to its end."
    return await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)


async def running(manager, plugin_id, /, **params):
    "A job that has reported something."
    job = await manager.start_job(plugin_id, **params)
    await until(lambda: job.progress_message, what="a report")
    return job


# ---------------------------------------------------------------- scenes
SCENES: dict[str, Callable[..., Any]] = {}


def scene(function):
    SCENES[function.__name__] = function
    return function


@scene
async def results(make: Make, tmp_path, simulated):
    async with make("add", "array", "sum_of") as manager:
        job = await ended(manager, "add", a=[2.5, None], b=["x"])
        assert (job.status, job.result, job.error) == ("completed", [2.5, None, "x"], None)
        assert job.attempts == 1 and job.started_at <= job.completed_at and job.worker_pid
        made = (await ended(manager, "array", n=300_000)).result
        assert made["array"][-1] == 299_999 and len(made["bytes"]) == 2 << 20
        assert (await ended(manager, "sum_of", array=made["array"])).result == 299_999 * 150_000.0
        assert [w.status for w in manager.workers()] == ["idle"]
        assert {w.pid for w in manager.workers()} == {job.worker_pid}
    assert manager.workers() == []


@scene
async def errors(make: Make, tmp_path, simulated):
    async with make("fails", "add", config=WorkerConfig(allowed_types=(Broken,))) as manager:
        job = await ended(manager, "fails", text="no good")
        assert (job.status, job.error, job.error_type) == ("failed", "no good", "ValueError")
        assert repr(job.exception) == "ValueError('no good')"
        assert job.traceback.startswith("Traceback") and "backend_plugins.py" in job.traceback
        assert job.traceback.count("cjm_worker_ext") <= 1, "the frames of the worker itself are left out"
        job = await ended(manager, "fails", kind="Broken")
        assert (job.error_type, type(job.exception)) == ("Broken", Broken)
        assert (await ended(manager, "fails", kind="SystemExit")).error_type == "SystemExit"
        job = await ended(manager, "add", wrong=1)
        assert (job.error_type, "unexpected keyword argument 'wrong'" in job.error) == ("TypeError", True)
        assert (await ended(manager, "add", a=1)).result == 2
    async with make("fails") as manager:
        job = await ended(manager, "fails", kind="Broken")
        assert (job.error_type, job.exception) == ("Broken", None), "a class that is not allowed stays in the worker"


@scene
async def what_cannot_cross(make: Make, tmp_path, simulated):
    names = ("add", "lock", "own", "array", "chunks_with_lock", "chunks_with_own")
    async with make(*names, config=WorkerConfig(max_result_bytes=1 << 20)) as manager:
        job = await ended(manager, "add", a=threading.Lock())
        assert (job.status, job.error_type, job.attempts) == ("failed", "NotSerializable", 0)
        assert f"the parameters of job {job.id!r} cannot be sent" in job.error
        for name, words in [("lock", "cannot be sent"), ("array", "1,048,576 are allowed")]:
            job = await ended(manager, name, **({"n": 300_000} if name == "array" else {}))
            assert (job.error_type, words in job.error) == ("NotSerializable", True), job.error
        job = await ended(manager, "chunks_with_lock")
        assert (job.error_type, "a chunk cannot be sent" in job.error) == ("NotSerializable", True), job.error
        for name, params in [("own", {"n": 1}), ("chunks_with_own", {})]:
            job = await ended(manager, name, **params)
            assert (job.status, job.error_type) == ("failed", "RefusedType"), job
            assert "name it in WorkerConfig.allowed_types" in job.error
        assert (await ended(manager, "add", a=1)).result == 2
        manager.lock = threading.Lock()
    async with BaseJobManager(
        "suite", plugins={"bad": lambda held=manager.lock: held}, backend=manager._make_backend
    ) as manager:
        with pytest.raises(NotSerializable, match="plugin 'bad' cannot be sent"):
            await manager.start_job("bad")
        assert manager.get_all_jobs() == []
    async with make("own", config=WorkerConfig(allowed_types=(Own,))) as manager:
        assert (await ended(manager, "own", n=3)).result.n == 3


@scene
async def chunks_and_progress(make: Make, tmp_path, simulated):
    async with make("spell", "count", "work") as manager:
        job = await manager.start_job("spell", word="stream")
        assert [letter async for letter in manager.stream(job.id)] == list("stream")
        assert (job.result, job.progress, job.progress_message) == (list("stream"), 1.0, "6 of 6")
        job = await manager.start_job("count", n=5000)
        assert [n async for n in manager.stream(job.id, start=4990)] == list(range(4990, 5000))
        assert job.result == list(range(5000))
        job = await ended(manager, "count", n=10, fail_at=3)
        assert (job.status, job.error, manager.get_job_chunks(job.id)) == ("failed", "failed at 3", (0, [0, 1, 2]))
        assert job.result is None
        assert await manager.check_streaming_support("count") and not await manager.check_streaming_support("work")


@scene
async def a_slow_reader(make: Make, tmp_path, simulated):
    "It holds the plugin up, and misses nothing; when it leaves, the plugin goes on and the first chunks are dropped."
    async with make("endless", config=WorkerConfig(max_buffered_chunks=10, cancel_grace_seconds=20)) as manager:
        job = await manager.start_job("endless")
        reader = manager.stream(job.id)
        for n in range(2000):
            assert await anext(reader) == n
            if n % 500 == 0:
                await asyncio.sleep(0.02)
        await until(lambda: manager._engine.jobs.find(job.id).chunks._paused, what="a pause")
        assert manager.get_job_chunks(job.id, last=1)[0] < 200_000
        await reader.aclose()
        with pytest.raises(StreamGap):
            await until(lambda: manager.stream(job.id) and None, what="a gap")
        assert await manager.cancel_job(job.id)

    async with make("endless", config=WorkerConfig(max_buffered_chunks=10, cancel_grace_seconds=20)) as manager:
        job = await manager.start_job("endless")
        reader = manager.stream(job.id)
        await anext(reader)
        await until(lambda: manager._engine.jobs.find(job.id).chunks._paused, what="a pause")
        assert await manager.cancel_job(job.id), "also while it is held up"
        assert len(manager.workers()) == 1 and job.attempts == 1


@scene
async def cancelling(make: Make, tmp_path, simulated):
    note = tmp_path / "ended"
    async with make("work", "look", "endless", "add", config=WorkerConfig(cancel_grace_seconds=20)) as manager:
        job = await running(manager, "work", ended=str(note))
        assert job.progress_message == f"job {job.id}"
        waiting = await manager.start_job("add", a=1)
        assert await manager.cancel_job(waiting.id) and waiting.attempts == 0
        assert await manager.cancel_job(job.id) and not await manager.cancel_job(job.id)
        assert (job.status, job.error, job.result) == ("cancelled", None, None)
        assert note.read_text() == "cancelled: True, cleaned up"

        for name in ("look", "endless"):
            job = await manager.start_job(name)
            await until(lambda job=job: job.status == "running")
            assert await manager.cancel_job(job.id), name
            assert (job.status, job.result) == ("cancelled", None), name
        kept = await running(manager, "work", then="return")
        assert not await manager.cancel_job(kept.id)
        assert (kept.status, kept.result) == ("completed", "finished all the same")
        failed = await running(manager, "work", then="fail")
        assert await manager.cancel_job(failed.id)
        job = await ended(manager, "add", a=1)
        assert (job.result, job.worker_pid) == (2, kept.worker_pid), "the worker has outlived them all"


@scene
async def cancelling_the_deaf(make: Make, tmp_path, simulated):
    go_on, started = tmp_path / "go on", tmp_path / "started"
    events = Events()
    config = WorkerConfig(cancel_grace_seconds=0.05)
    async with make("deaf", "add", config=config, event_broadcaster=events) as manager:
        job = await manager.start_job("deaf", go_on=str(go_on), started=str(started))
        await until(started.exists)
        after = await manager.start_job("add", a=1)
        assert await manager.cancel_job(job.id)
        await manager.wait(after.id, 120)
        assert (job.status, after.result) == ("cancelled", 2) and job.worker_pid != after.worker_pid
        go_on.touch()
    ends = {data["pid"]: (kind, data["exitcode"]) for kind, data in events.seen if kind in ENDS}
    assert ends == {job.worker_pid: ("worker:stopped", -9), after.worker_pid: ("worker:stopped", 0)}


ENDS = ("worker:stopped", "worker:crashed")


@scene
async def timeouts(make: Make, tmp_path, simulated):
    go_on, started = tmp_path / "go on", tmp_path / "started"
    async with make("work", "deaf", "add", config=WorkerConfig(cancel_grace_seconds=0.05)) as manager:
        job = await manager.wait((await manager.submit_job("work", timeout=0.05)).id, 120)
        assert (job.status, job.error_type) == ("failed", "JobTimeout") and "of 0.05 s" in job.error
        options = {"go_on": str(go_on), "started": str(started)}
        job = await manager.wait((await manager.submit_job("deaf", options, timeout=0.05)).id, 120)
        assert (job.status, job.error_type) == ("failed", "JobTimeout")
        go_on.touch()
        assert (await ended(manager, "add", a=1)).result == 2
    async with make("EndlessLoad", config=WorkerConfig(cancel_grace_seconds=20, load_timeout_seconds=0.1)) as manager:
        for _ in range(2):
            job = await ended(manager, "EndlessLoad")
            assert (job.error_type, "load_timeout_seconds=0.1" in job.error) == ("JobTimeout", True), job.error
        assert [w.pid for w in manager.workers()] == [job.worker_pid]


@scene
async def loading(make: Make, tmp_path, simulated):
    log = tmp_path / "log"
    registry = Registry({"log": str(log), "size": "tiny"})
    async with make("Model", as_name="model", plugin_registry=registry) as manager:
        await manager.load_plugin("model")
        assert [w.plugin_ids for w in manager.workers()] == [("model",)]
        first, second = await ended(manager, "model"), await ended(manager, "model")
        assert first.result["size"] == "tiny" and first.result["seen"] == registry.config
        registry.config["size"] = "large"
        third = await ended(manager, "model")
        assert third.result["size"] == "large"
        await manager.reload_plugin("model")
        await manager.unload_plugin("model")
        assert [w.plugin_ids for w in manager.workers()] == [()]
        assert (await ended(manager, "model")).result["size"] == "large"
        assert {job.worker_pid for job in (first, second, third)} == {manager.workers()[0].pid}
    tiny = ["load tiny", "execute tiny", "execute tiny", "unload tiny"]
    large = ["load large", "execute large", "unload large"]
    assert log.read_text().splitlines() == [*tiny, *large, "load large", "unload large", *large][: len(tiny) + 8]


@scene
async def plugins_that_do_not_load(make: Make, tmp_path, simulated):
    async with make("LoadFails", "UnloadFails", "add", missing="no_such_module:plugin") as manager:
        with pytest.raises(UnknownPlugin):
            await manager.start_job("nobody")
        for name, words in [("LoadFails", "OSError: the weights are not"), ("missing", "No module named 'no_such_mod")]:
            job = await ended(manager, name)
            assert (job.status, job.error_type) == ("failed", "PluginLoadError")
            assert words in job.error and f"plugin '{name}'" in job.error and "Traceback" in job.traceback
            assert type(job.exception) is PluginLoadError
            with pytest.raises(PluginLoadError, match=words):
                await manager.load_plugin(name)
        assert (await ended(manager, "UnloadFails")).result == 1
        with pytest.raises(Exception, match="plugin 'UnloadFails' failed to unload: device busy"):
            await manager.unload_plugin("UnloadFails")
        assert (await ended(manager, "add", a=1)).result == 2
        assert len(manager.workers()) == 1


@scene
async def a_plugin_manager_of_the_app(make: Make, tmp_path, simulated):
    async with make(plugin_manager_factory="backend_plugins:Shelf") as manager:
        assert (await ended(manager, "repeat", text="ha")).result == "haha"
    async with make(plugin_manager_factory=Shelf, supports_streaming=True) as manager:
        assert (await ended(manager, "repeat", text="ha")).result == ["ha", "ha"]
    async with make(plugin_manager_factory="no_such_module:Shelf") as manager:
        job = await ended(manager, "repeat", text="ha")
        assert (job.error_type, "No module named" in job.error) == ("PluginLoadError", True)


@scene
async def several_workers(make: Make, tmp_path, simulated):
    async with make("work", "add", config=WorkerConfig(max_workers=2, cancel_grace_seconds=20)) as manager:
        first, second = await running(manager, "work"), await running(manager, "work")
        assert first.worker_pid != second.worker_pid
        assert (first.progress_message, second.progress_message) == (f"job {first.id}", f"job {second.id}")
        assert {w.job_id for w in manager.workers()} == {first.id, second.id}
        waiting = await manager.start_job("add", a=1)
        assert await manager.cancel_job(first.id)
        await manager.wait(waiting.id, 120)
        assert (waiting.worker_pid, second.status) == (first.worker_pid, "running")
    assert (second.status, second.error) == ("cancelled", "the manager was shut down")


@scene
async def a_crash(make: Make, tmp_path, simulated):
    events, resources = Events(), Resources()
    listeners = {"event_broadcaster": events, "resource_manager": resources}
    async with make("dies", "add", **listeners) as manager:
        job = await manager.start_job("dies", simulated=simulated)
        after = await manager.start_job("add", a=1)
        await manager.wait(after.id, 120)
        assert (job.status, job.error_type, job.exception.exitcode) == ("failed", "WorkerCrashed", 7)
        assert (after.result, after.attempts) == (2, 1) and after.worker_pid != job.worker_pid
        await manager.load_plugin("add")
    assert [e for e in resources.calls if e[0] == "register"] == [("register", j.worker_pid) for j in (job, after)]
    assert sorted(e[1] for e in resources.calls if e[0] == "unregister") == sorted([job.worker_pid, after.worker_pid])
    crashes = [data for kind, data in events.seen if kind == "worker:crashed"]
    assert [(data["pid"], data["exitcode"]) for data in crashes] == [(job.worker_pid, 7)]
    assert events.kinds_of(job) == ["job:queued", "job:started", "plugin:loaded", "job:failed"]


@scene
async def events_in_order(make: Make, tmp_path, simulated):
    events = Events()
    async with make("spell", "fails", "work", event_broadcaster=events) as manager:
        spelt, failed = await ended(manager, "spell", word="ab"), await ended(manager, "fails")
        again = await ended(manager, "spell", word="b")
        cancelled = await running(manager, "work")
        await manager.cancel_job(cancelled.id)
        await manager.unload_plugin("spell")
    assert [data["seq"] for _, data in events.seen] == list(range(1, len(events.seen) + 1))
    start, load = ["job:queued", "job:started"], ["plugin:loaded"]
    kinds = events.kinds_of(spelt)
    assert (kinds[:3], kinds[-1]) == (start + load, "job:completed")
    assert set(kinds[3:-1]) == {"job:chunk", "job:progress"}
    assert "plugin:loaded" not in events.kinds_of(again)
    assert events.kinds_of(failed) == [*start, *load, "job:failed"]
    assert events.kinds_of(cancelled) == [*start, *load, "job:progress", "job:cancelled"]
    chunks = [data["chunks"] for kind, data in events.seen if kind == "job:chunk" and data["job_id"] == spelt.id]
    assert sum(chunks, []) == ["a", "b"]
    own = [kind for kind, data in events.seen if "job_id" not in data]
    assert own == ["worker:started", "worker:ready", "plugin:unloaded", "worker:stopped"]


@scene
async def shutting_down(make: Make, tmp_path, simulated):
    async with make("work", "add", config=WorkerConfig(cancel_grace_seconds=20)) as manager:
        job, waiting = await running(manager, "work"), await manager.start_job("add", a=1)
    assert (job.status, waiting.status, manager.workers()) == ("cancelled", "cancelled", [])

    manager = make("spell", "add")
    jobs = [await manager.start_job("spell", word="abc") for _ in range(5)]
    await manager.shutdown(drain=True)
    assert [job.status for job in jobs] == ["completed"] * 5

    go_on, started = tmp_path / "go on", tmp_path / "started"
    async with make("deaf", config=WorkerConfig(shutdown_timeout_seconds=0.1)) as manager:
        job = await manager.start_job("deaf", go_on=str(go_on), started=str(started))
        await until(started.exists)
    assert (job.status, manager.workers()) == ("cancelled", [])
    go_on.touch()


@scene
async def another_attempt(make: Make, tmp_path, simulated):
    events, log = Events(), str(tmp_path / "log")
    retry = Retry(3, on=("crashed", "transient", "timeout"), delay_seconds=0.01, jitter=0)
    config = WorkerConfig(cancel_grace_seconds=20)
    async with make("fails_at_first", "add", config=config, event_broadcaster=events, retry=retry) as manager:
        for how, reason in [("transient", "transient"), ("crash", "crashed"), ("hang", "timeout")]:
            params = {"log": log + how, "how": how, "simulated": simulated}
            job = await manager.submit_job("fails_at_first", params, timeout=600 if how == "hang" else None)
            if how == "crash":
                await until(lambda job=job: len(manager.get_job_chunks(job.id)[1]) == 2)
                (tmp_path / "logcrash read").touch()
            elif how == "hang":
                await until(lambda job=job: job.progress_message == "still here")
                await time_is_up(manager, job)
            assert [chunk async for chunk in manager.stream(job.id, start=2)] == ["2.0", "2.1"], how
            assert (job.status, job.attempts, job.result) == ("completed", 2, ["2.0", "2.1"])
            again = [data for kind, data in events.seen if kind == "job:retrying" and data["job_id"] == job.id]
            assert [(data["attempt"], data["reason"]) for data in again] == [(1, reason)]
        failed = await ended(manager, "fails_at_first", log=log + "value", how="value", simulated=simulated)
        assert (failed.status, failed.error_type, failed.attempts) == ("failed", "ValueError", 1), failed
    kinds = [kind for kind in events.kinds_of(job) if kind not in ("job:chunk", "job:progress", "plugin:loaded")]
    assert kinds == ["job:queued", "job:started", "job:retrying", "job:started", "job:completed"]


@scene
async def another_worker(make: Make, tmp_path, simulated):
    events = Events()
    async with make("asks_for_another", "add", "fails", event_broadcaster=events) as manager:
        job = await manager.start_job("asks_for_another", reason="its card is gone")
        after = await ended(manager, "add", a=1)
        assert (job.status, after.result) == ("completed", 2) and after.worker_pid != job.worker_pid
        failed = await ended(manager, "fails", text="CUDA error: device-side assert triggered")
        last = await ended(manager, "add", a=1)
        assert failed.worker_pid == after.worker_pid != last.worker_pid
    told = [(data["pid"], data["reason"]) for kind, data in events.seen if kind == "worker:recycled"]
    assert told[0] == (job.worker_pid, "its card is gone") and told[1][0] == failed.worker_pid and len(told) == 2
    ends = [(kind, data["exitcode"]) for kind, data in events.seen if kind in ENDS]
    assert ends == [("worker:stopped", 0)] * 3

    async with make("add", recycle=Recycle(max_jobs=2)) as manager:
        pids = [(await ended(manager, "add", a=1)).worker_pid for _ in range(4)]
        assert (pids[0], pids[2]) == (pids[1], pids[3]) and pids[0] != pids[2]
        assert (await ended(manager, "add", a=1)).worker_pid not in pids
    async with make("add", recycle=Recycle(idle_seconds=0.1)) as manager:
        await ended(manager, "add", a=1)
        await until(lambda: not manager.workers(), what="the end of an idle worker")


@scene
async def a_plugin_held_back(make: Make, tmp_path, simulated):
    config = WorkerConfig(hold_after_crashes=2, hold_seconds=600)
    async with make("dies", "add", config=config) as manager:
        waiting = await manager.submit_job("dies", {"simulated": simulated}, delay_seconds=600)
        kinds = [(await ended(manager, "dies", simulated=simulated)).error_type for _ in range(3)]
        assert kinds == ["WorkerCrashed", "WorkerCrashed", "PluginHeldBack"]
        assert (waiting.status, waiting.error_type, waiting.attempts) == ("failed", "PluginHeldBack", 0)
        assert (await ended(manager, "add", a=1)).result == 2
        manager.release_plugin("dies")
        assert (await ended(manager, "dies", simulated=simulated)).error_type == "WorkerCrashed"
