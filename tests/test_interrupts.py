"""What an interrupt must not break: an import, a load, the wholeness of a result; and what forked children of plugins do."""

from __future__ import annotations

import asyncio
import sys
import textwrap

import pytest
from harness import is_alive, run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig


def make(plugins, **config) -> BaseJobManager:
    return BaseJobManager("interrupts", plugins=plugins, worker_config=WorkerConfig(**config))


def test_a_cancelled_import_does_not_spoil_the_worker(tmp_path, monkeypatch):
    started = tmp_path / "started"
    # as numpy does in its native part: a second import in the same process fails
    source = f"""
        import pathlib, sys, time
        if hasattr(sys, "half_imported"):
            raise ImportError("cannot load module more than once per process")
        sys.half_imported = True
        pathlib.Path({str(started)!r}).touch()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            time.sleep(0.001)
        answer = 42
    """
    (tmp_path / "once_only.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))

    def use(seconds=0):
        import time

        import once_only

        time.sleep(seconds)
        return once_only.answer

    async def scene():
        async with make({"use": use}, cancel_grace_seconds=30) as manager:
            job = await manager.start_job("use", seconds=600)
            await until(started.exists)
            assert await manager.cancel_job(job.id)
            again = await manager.wait((await manager.start_job("use")).id, 120)
            assert (again.result, again.error) == (42, None)
            assert again.worker_pid == job.worker_pid, "the import ends first, and the worker is as good as before"

    run(scene())


def test_an_interrupt_that_is_lost_is_sent_again(tmp_path):
    # as a signal that comes after Python's last look at signals and before the system call of `time.sleep`
    started = tmp_path / "started"

    def loses_the_first():
        import signal
        import time

        lost = []
        took = signal.signal(signal.SIGURG, lambda *_: lost.append(1))
        started.touch()
        while not lost:
            time.sleep(0.001)
        signal.signal(signal.SIGURG, took)
        time.sleep(600)

    async def scene():
        async with make({"lose": loses_the_first, "pid": "os:getpid"}, cancel_grace_seconds=30) as manager:
            job = await manager.start_job("lose")
            await until(started.exists)
            assert await manager.cancel_job(job.id)
            after = await manager.wait((await manager.start_job("pid")).id, 120)
            assert after.result == job.worker_pid, "the worker lives"

    run(scene())


def test_an_interrupt_is_held_back_while_a_plugin_loads(tmp_path):
    started = tmp_path / "started"

    class Slow:
        def load(self, config):
            import pathlib
            import time

            try:
                pathlib.Path(config_path).touch()
                time.sleep(0.5)
            except BaseException as e:
                raise SystemExit("the load was interrupted") from e

        def execute(self):
            return "loaded"

    config_path = str(started)

    async def scene():
        async with make({"slow": Slow}, cancel_grace_seconds=30) as manager:
            job = await manager.start_job("slow")
            await until(started.exists)
            assert await manager.cancel_job(job.id)
            again = await manager.wait((await manager.start_job("slow")).id, 120)
            assert (again.result, again.worker_pid) == ("loaded", job.worker_pid)

    run(scene())


def test_a_load_that_does_not_end_is_killed_after_the_grace():
    class Endless:
        def load(self, config):
            import time

            time.sleep(600)

        def execute(self): ...

    async def scene():
        async with make({"endless": Endless}, cancel_grace_seconds=0.1) as manager:
            job = await manager.start_job("endless")
            await until(lambda: job.status == "running")
            assert await manager.cancel_job(job.id)
            await until(lambda: not is_alive(job.worker_pid))

    run(scene())


def count_quietly(n):  # finishes although it is interrupted, as code does that catches everything
    for i in range(n):
        try:
            yield i
        except BaseException:  # noqa: BLE001
            pass


def test_a_completed_job_is_whole_whenever_its_cancel_came():
    async def scene():
        async with make({"count": count_quietly}, max_workers=2) as manager:
            for i in range(120):
                job = await manager.start_job("count", n=2000)
                await asyncio.sleep((i % 9) / 1000)
                await manager.cancel_job(job.id)
                if job.status == "completed":
                    assert job.result == list(range(2000)), f"cancelled after {i % 9} ms: {len(job.result)} of 2,000"

    run(scene(), seconds=120)


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "return", "raise ValueError('in the child')"])
def test_a_forked_child_of_a_plugin_answers_nothing(ending):
    namespace: dict = {}
    source = f"""
        def fork(ctx):
            import os
            child = os.fork()
            if not child:
                ctx.progress(0.9, "from the child")
                {ending}
            os.waitpid(child, 0)
            ctx.progress(0.5, "from the worker")
            return os.getpid()
    """
    exec(textwrap.dedent(source), namespace)  # noqa: S102  - three ways to leave the same function

    async def scene():
        async with make({"fork": namespace["fork"]}) as manager:
            for _ in range(3):
                job = await manager.wait((await manager.start_job("fork")).id, 120)
                assert (job.status, job.result) == ("completed", job.worker_pid), job.error
                assert job.progress_message == "from the worker"

    run(scene())


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits address space on Linux")
def test_one_result_without_memory_leaves_the_worker_able_to_send_the_next():
    def result_of(mebibytes, limit_mebibytes):
        import resource

        if limit_mebibytes:
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            data = bytes(mebibytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (used + (limit_mebibytes << 20), -1))
            return data
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        return bytes(mebibytes << 20)

    async def scene():
        async with make({"data": result_of}) as manager:
            pids = set()
            for mebibytes, limit in [(1, 0), (70, 75), (2, 0), (3, 0), (20, 0)]:
                job = await manager.wait(
                    (await manager.start_job("data", mebibytes=mebibytes, limit_mebibytes=limit)).id, 30
                )
                pids.add(job.worker_pid)
                if not limit:
                    assert (job.status, len(job.result or b"")) == ("completed", mebibytes << 20), job.error
            assert len(pids) == 1

    run(scene())
