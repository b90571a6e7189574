"""Two workers, one bad job: an innocent running job, an innocent queued job and a new job afterwards never notice."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from harness import is_alive, run, targets, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import JobTimeout, NotSerializable, PluginLoadError, WorkerCrashed

NAMES = (
    "touch_and_wait", "echo", "kill_self", "exit_now", "segfault", "system_exit", "keyboard_interrupt",
    "raise_two_arguments", "raise_speechless", "raise_not_picklable", "unpicklable_result", "native_print", "LoadFails",
    "CrashingLoad", "spin", "hold_lock", "sleep", "finish_although_cancelled", "Counted", "ignore_sigterm",
)  # fmt: skip


def make(**config) -> BaseJobManager:
    settings = {"max_workers": 2, "cancel_grace_seconds": 0.3, **config}
    return BaseJobManager("bad-days", "tests", plugins=targets(*NAMES), worker_config=WorkerConfig(**settings))


class Day:
    "A manager with an innocent job on one worker, and one that waits behind the bad one."

    def __init__(self, tmp_path, **config):
        self.manager, self.tmp_path = make(**config), tmp_path
        self.go_on = tmp_path / "go-on"

    def file(self, name: str) -> str:
        return str(self.tmp_path / name)

    async def __aenter__(self):
        await self.manager.__aenter__()
        started = self.file("innocent")
        self.running = await self.manager.start_job("touch_and_wait", started=started, go_on=str(self.go_on))
        await until(lambda: os.path.exists(started) and open(started).read())
        self.innocent_pid = int(open(started).read())
        return self

    async def bad(self, plugin_id: str, params=None, **options):
        "Start the bad job, and behind it the innocent one that queues."
        job = await self.manager.submit_job(plugin_id, params or {}, **options)
        self.queued = await self.manager.start_job("echo", value="queued")
        return job

    async def __aexit__(self, kind, *exc_info):
        if kind is None:
            await self.nobody_else_noticed()
        await self.manager.__aexit__(kind, *exc_info)

    async def nobody_else_noticed(self):
        assert (await self.manager.wait(self.queued.id, 120)).status == "completed", self.queued
        assert self.queued.result == "queued"
        assert self.running.status == "running"
        self.go_on.write_text("")
        assert (await self.manager.wait(self.running.id, 120)).status == "completed", self.running
        assert self.running.result == self.innocent_pid == self.running.worker_pid
        new = await self.manager.start_job("echo", value="new")
        assert (await self.manager.wait(new.id, 120)).result == "new", new


CRASHES = {
    "kill_self": (-9, "killed by SIGKILL"),
    "exit_now": (7, "exited with code 7"),
    "segfault": (-11, "killed by SIGSEGV"),
}


@pytest.mark.parametrize("plugin_id", CRASHES)
def test_a_worker_that_ends_costs_its_job_alone(plugin_id, tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.manager.wait((await d.bad(plugin_id)).id, 120)
            exitcode, words = CRASHES[plugin_id]
            assert (job.status, job.error_type) == ("failed", "WorkerCrashed")
            assert isinstance(job.exception, WorkerCrashed) and job.exception.exitcode == exitcode
            assert words in job.error and str(job.worker_pid) in job.error

    run(day())


def test_a_worker_killed_from_outside(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.bad("touch_and_wait", {"started": d.file("bad"), "go_on": d.file("never")})
            await until(
                lambda: os.path.exists(d.file("bad"))
            )  # else it may go to another worker, since nobody has read it
            os.kill(job.worker_pid, 9)
            await d.manager.wait(job.id, 120)
            assert job.error_type == "WorkerCrashed" and "SIGKILL" in job.error

    run(day())


ERRORS = {
    "system_exit": ("SystemExit", "enough"),
    "keyboard_interrupt": ("KeyboardInterrupt", "KeyboardInterrupt"),
    "raise_two_arguments": ("TwoArguments", "a and b"),
    "raise_speechless": ("Speechless", "Speechless (its message cannot be read)"),
    "raise_not_picklable": ("NotPicklable", "holds a lock"),
}


@pytest.mark.parametrize("plugin_id", ERRORS)
def test_what_a_plugin_raises_arrives_as_data_and_the_worker_lives(plugin_id, tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.manager.wait((await d.bad(plugin_id)).id, 120)
            assert (job.status, job.error_type, job.error) == ("failed", *ERRORS[plugin_id])
            assert f"in {plugin_id}" in job.traceback and "plugins_for_tests.py" in job.traceback
            assert is_alive(job.worker_pid)

    run(day())


def test_an_unpicklable_result(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.manager.wait((await d.bad("unpicklable_result")).id, 120)
            assert (job.status, job.error_type) == ("failed", "NotSerializable")
            assert job.id in job.error and "lock" in job.error and is_alive(job.worker_pid)
            assert isinstance(job.exception, NotSerializable)

    run(day())


def test_unpicklable_parameters(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.manager.wait((await d.bad("echo", {"value": threading.Lock()})).id, 30)
            assert (job.status, job.error_type) == ("failed", "NotSerializable")
            assert "parameters" in job.error and "lock" in job.error
            assert job.started_at is None and job.attempts == 0

    run(day())


def test_native_output(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.manager.wait((await d.bad("native_print")).id, 120)
            assert (job.status, job.result) == ("completed", "printed")

    run(day())


def test_a_plugin_whose_load_fails(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            first = await d.manager.wait((await d.bad("LoadFails")).id, 120)
            again = await d.manager.wait((await d.manager.start_job("LoadFails")).id, 120)
            for job in (first, again):
                assert (job.status, job.error_type) == ("failed", "PluginLoadError")
                assert "the model is not there" in job.error and "RuntimeError" in job.traceback
                assert isinstance(job.exception, PluginLoadError) and is_alive(job.worker_pid)
            assert first.worker_pid == again.worker_pid, "a plugin that cannot load is no reason for a new process"

    run(day())


def test_a_plugin_whose_load_crashes_does_not_restart_for_ever(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.manager.wait((await d.bad("CrashingLoad")).id, 120)
            assert (job.status, job.error_type) == ("failed", "WorkerCrashed")
            assert len(d.manager.workers()) <= 2

    run(day())


def test_cancel_of_pure_python_keeps_worker_and_plugin(tmp_path):
    async def day():
        async with Day(tmp_path, cancel_grace_seconds=30) as d:
            before = await d.manager.wait((await d.manager.start_job("Counted")).id, 120)
            job = await d.bad("spin", {"started": d.file("spins")})
            await until(lambda: os.path.exists(d.file("spins")))
            assert await d.manager.cancel_job(job.id) is True
            assert (job.status, job.error) == ("cancelled", None) and job.completed_at
            after = await d.manager.wait((await d.manager.start_job("Counted")).id, 120)
            assert before.result == after.result == (job.worker_pid, 1), "the worker or its plugin did not survive"

    run(day())


def test_cancel_of_native_code_kills_it_with_its_child(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.bad("hold_lock", {"started": d.file("holds"), "child": d.file("child")})
            await until(lambda: os.path.exists(d.file("holds")))
            child = int(open(d.file("child")).read())
            assert is_alive(child) and await d.manager.cancel_job(job.id) is True
            assert job.status == "cancelled"
            await until(lambda: not is_alive(child) and not is_alive(job.worker_pid), 2)

    run(day())


def test_cancel_of_a_job_that_ends_just_then(tmp_path):
    async def day():
        async with Day(tmp_path, cancel_grace_seconds=30) as d:
            job = await d.bad("finish_although_cancelled", {"started": d.file("started")})
            await until(lambda: os.path.exists(d.file("started")))
            assert await d.manager.cancel_job(job.id) is False
            assert (job.status, job.result) == ("completed", "finished all the same")

    run(day())


def test_cancel_of_a_queued_job_leaves_the_running_one_alone(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            busy = await d.bad("sleep", {"seconds": 0.5})
            victim = await d.manager.start_job("echo")
            assert victim.status == "pending" and await d.manager.cancel_job(victim.id) is True
            assert victim.status == "cancelled" and victim.started_at is None and victim.worker_pid is None
            await d.manager.wait(busy.id, 120)
            assert busy.status == "completed" and await d.manager.cancel_job(busy.id) is False

    run(day())


def test_cancel_by_many_at_once(tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.bad("ignore_sigterm", {"started": d.file("started")})
            await until(lambda: os.path.exists(d.file("started")))
            assert await asyncio.gather(*(d.manager.cancel_job(job.id) for _ in range(5))) == [True] * 5

    run(day())


@pytest.mark.parametrize("plugin_id", ["spin", "hold_lock"])
def test_a_timeout_fails_the_job(plugin_id, tmp_path):
    async def day():
        async with Day(tmp_path) as d:
            job = await d.manager.wait((await d.bad(plugin_id, timeout=0.3)).id, 120)
            assert (job.status, job.error_type) == ("failed", "JobTimeout") and "0.3 s" in job.error
            assert isinstance(job.exception, JobTimeout)

    run(day())


def test_cancel_while_large_parameters_are_still_on_their_way(tmp_path):
    async def day():
        async with Day(tmp_path, cancel_grace_seconds=20) as d:
            await d.manager.wait((await d.manager.start_job("echo")).id, 120)
            job = await d.bad("echo", {"value": b"x" * (100 << 20)})
            await until(lambda: job.status == "running")
            await asyncio.wait_for(d.manager.cancel_job(job.id), 120)
            assert is_alive(job.worker_pid), "it was killed though it listens"

    run(day())
