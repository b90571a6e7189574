"""Jobs that give no sign of life: they are told once for each silence, with the stacks of their worker."""

from __future__ import annotations

import logging

import pytest
from backend_scenes import Events
from company_plugins import Configs
from harness import run, until
from relay import RelayBackend

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import ConfigError
from cjm_worker_ext.testing import InProcessBackend


def wait_for_file(path, ctx):
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.002)
    ctx.progress(0.5, "it went on")
    while not os.path.exists(path + "2"):
        time.sleep(0.002)
    return "done"


def holds_the_lock():
    import re

    return re.match(r"(a+)+$", "a" * 64 + "b")  # tries for ever, and no other thread runs meanwhile


def reports(path, how, ctx):
    import os
    import time

    n = 0
    while not os.path.exists(path):
        time.sleep(0.002)
        n += 1
        if how == "progress":
            ctx.progress(None, f"step {n}")
        elif how == "output":
            print("step", n)
        else:
            yield n


def chunks(n):
    yield from range(n)


class Watched(BaseJobManager):
    "Notes each stall, and ends the job if it is to."

    def __init__(self, *args, end=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.end, self.stalls = end, []

    async def on_job_stalled(self, job):
        self.stalls.append(job.stalled_stack)
        if self.end:
            await self.cancel_job(job.id)


def make(events=None, backend=None, end=False, stall_seconds=0.3, **config) -> Watched:
    plugins = {f.__name__: f for f in (wait_for_file, holds_the_lock, reports, chunks)}
    settings = WorkerConfig(stall_seconds=stall_seconds, **config)
    options = {} if backend is None else {"backend": backend}
    return Watched("stalls", plugins=plugins, worker_config=settings, event_broadcaster=events, end=end, **options)


BACKENDS = {"default": None, "relay": RelayBackend, "in process": InProcessBackend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_silent_job_is_told_once_for_each_silence_and_goes_on(backend, tmp_path):
    events, path = Events(), tmp_path / "go on"

    async def scene():
        async with make(events, BACKENDS[backend], stall_seconds=1.0) as manager:
            await manager.load_plugin("wait_for_file")  # a slow load would be a stall too
            job = await manager.start_job("wait_for_file", path=str(path))
            await until(lambda: manager.stalls, what="a stall")
            assert "wait_for_file" in job.stalled_stack and job.status == "running"
            path.touch()
            await until(lambda: len(manager.stalls) == 2, what="the stall after the next step")
            (tmp_path / "go on2").touch()
            await manager.wait(job.id, 120)
            assert (job.status, job.result) == ("completed", "done")
        kinds = [kind for kind in events.kinds_of(job) if kind != "plugin:loaded"]
        stalled = ["job:stalled"]
        assert kinds == ["job:queued", "job:started", *stalled, "job:progress", *stalled, "job:completed"]
        data = next(data for kind, data in events.seen if kind == "job:stalled")
        assert (data["seconds"], data["pid"]) == (1.0, job.worker_pid) and "wait_for_file" in data["stacks"]

    run(scene())


def test_the_stack_is_read_while_the_interpreter_lock_is_held_and_the_app_may_end_the_job(caplog):
    caplog.set_level(logging.WARNING, "cjm_worker_ext.engine.engine")

    async def scene():
        async with make(end=True, stall_seconds=1.0, cancel_grace_seconds=0.05) as manager:
            await manager.load_plugin("holds_the_lock")
            job = await manager.start_job("holds_the_lock")
            await manager.wait(job.id, 120)
            assert (job.status, len(manager.stalls)) == ("cancelled", 1)
            assert "most recent call first" in job.stalled_stack and "in holds_the_lock" in job.stalled_stack
            (said,) = [r.getMessage() for r in caplog.records if "no sign of life" in r.getMessage()]
            assert job.id in said and "in holds_the_lock" in said

    run(scene())


@pytest.mark.parametrize("how", ["progress", "output", "chunks"])
def test_each_sign_of_life_counts(how, tmp_path):
    path = tmp_path / "stop"

    async def scene():
        async with make(stall_seconds=1.0) as manager:
            await manager.load_plugin("reports")  # a slow load would be a stall too
            looked = []
            is_stalled = manager._open().stalls.is_stalled

            def look(number):
                looked.append(is_stalled(number))
                return looked[-1]

            await manager.load_plugin("reports")  # a slow load would be a stall too
            manager._engine.stalls.is_stalled = look
            job = await manager.start_job("reports", path=str(path), how=how)
            await until(lambda: len(looked) >= 3, what="three looks")
            path.touch()
            await manager.wait(job.id, 120)
            assert (looked[:3], manager.stalls, job.stalled_stack) == ([False] * 3, [], None)

    run(scene())


def test_a_worker_that_waits_for_a_slow_reader_is_not_stalled():
    async def scene():
        async with make(max_buffered_chunks=10) as manager:
            await manager.load_plugin("chunks")  # a slow load would be a stall too
            looked = []
            is_stalled = manager._open().stalls.is_stalled
            manager._engine.stalls.is_stalled = lambda number: looked.append(is_stalled(number)) or looked[-1]
            job = await manager.start_job("chunks", n=200_000)
            reader = manager.stream(job.id)
            await anext(reader)
            await until(lambda: len(looked) >= 3, what="three looks")
            assert not any(looked) and job.status == "running"
            await reader.aclose()
            await manager.wait(job.id, 120)
            assert manager.stalls == []

    run(scene())


def test_a_process_that_is_stopped_stalls_without_a_stack():
    import os
    import signal

    async def scene():
        async with make(cancel_grace_seconds=0.05) as manager:
            job = await manager.start_job("wait_for_file", path="/nowhere")
            await until(lambda: job.status == "running")
            os.kill(job.worker_pid, signal.SIGSTOP)
            await until(lambda: manager.stalls, what="a stall")
            assert manager.stalls == [""]
            await manager.cancel_job(job.id)
            assert job.status == "cancelled"

    run(scene())


def test_a_job_may_take_the_signal_and_the_next_one_still_shows_its_stack(tmp_path):
    def takes():
        import signal

        signal.signal(signal.SIGWINCH, signal.SIG_IGN)

    async def scene():
        plugins = {"takes": takes, "wait_for_file": wait_for_file}
        async with Watched("stalls", plugins=plugins, worker_config=WorkerConfig(stall_seconds=1.0)) as manager:
            for name in ("there", "there2"):
                (tmp_path / name).touch()
            for plugin, params in (("wait_for_file", {"path": str(tmp_path / "there")}), ("takes", {})):  # it is loaded
                await manager.wait((await manager.start_job(plugin, **params)).id, 120)
            job = await manager.start_job("wait_for_file", path=str(tmp_path / "never"))
            await until(lambda: job.stalled_stack, what="a stall")
            assert "in wait_for_file" in job.stalled_stack

    run(scene())


def test_without_the_setting_nothing_is_watched():
    async def scene():
        async with make(stall_seconds=None) as manager:
            assert manager._open().stalls is None
            assert (await manager.wait((await manager.start_job("chunks", n=3)).id, 120)).result == [0, 1, 2]

    run(scene())
    with pytest.raises(ConfigError, match="stall_seconds"):
        WorkerConfig(stall_seconds=-1)


def test_a_job_that_waits_for_its_batch_is_not_stalled(tmp_path):
    async def scene():
        log, go_on = tmp_path / "log", tmp_path / "go on"
        plugins, config = {"model": "company_plugins:Model"}, WorkerConfig(stall_seconds=0.2)
        registry = Configs("model", {"log": str(log)})
        async with BaseJobManager("stalls", plugins=plugins, worker_config=config, plugin_registry=registry) as manager:
            await manager.run("model", x=0)
            runs = [await manager.submit_job("model", {"x": x, "until": str(go_on)}) for x in range(4)]
            await until(lambda: len(log.read_text().splitlines()) == 2)
            waits = [await manager.submit_job("model", {"x": x}) for x in range(4, 8)]
            await until(lambda: all(job.stalled_stack for job in runs), what="the stall of those whose batch runs")
            with pytest.raises(TimeoutError):
                await manager.wait(waits[0].id, 0.7)
            assert not any(job.stalled_stack for job in waits)
            go_on.touch()
            await manager.wait(waits[-1].id, 120)

    run(scene())
