"""The in-process backend shows an app what the local one shows it: the same scenes on both."""

from __future__ import annotations

import asyncio
import configparser
import importlib
import queue
import threading
from functools import partial
from pathlib import Path

import pytest
from backend_scenes import SCENES, Events, ended, maker, running
from harness import run, until, until_now

from cjm_worker_ext.backends.local import LocalBackend
from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.testing import InProcessBackend, use_in_process_backend

BACKENDS = {"local": LocalBackend, "in process": InProcessBackend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scene", SCENES)
def test_scene(scene, backend, tmp_path):
    run(SCENES[scene](maker(BACKENDS[backend]), tmp_path, simulated=backend == "in process"))


# ---------------------------------------------------------------- what only this backend has
@pytest.fixture
def own_threads():
    "Tells the threads of workers that this test has started and that still run."

    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("in-process")}

    before = threads()
    return lambda: threads() - before


def test_a_plugin_named_by_text_can_be_replaced(monkeypatch):
    monkeypatch.setattr("backend_plugins.add", lambda a: f"a fake of {a}")

    async def scene():
        async with maker(InProcessBackend)("add") as manager:
            return await ended(manager, "add", a="sum")

    assert run(scene()).result == "a fake of sum"


def test_threads_of_a_plugin_report_and_leave_the_cancellation_to_the_job():
    async def scene():
        async with maker(InProcessBackend)("report_from_threads") as manager:
            job = await running(manager, "report_from_threads")
            assert job.progress_message == "from a thread"
            await manager.cancel_job(job.id)
            assert job.result == "in the job's own thread"

    run(scene())


def test_a_plugin_that_floods_leaves_the_loop_free():
    "The loop takes what has come, and not what comes meanwhile: else it would look up only when all is over."

    async def scene():
        backend = partial(InProcessBackend, crossing="reference")
        async with maker(backend)("dear_chunks", event_broadcaster=Events()) as manager:
            job = await manager.start_job("dear_chunks", n=3000)
            await until(lambda: manager.get_job_chunks(job.id, last=1)[0] > 100, what="chunks")
            assert (job.status, manager.get_job_chunks(job.id, last=1)[0] < 1500) == ("running", True)

    run(scene())


def test_a_crash_hits_the_job_whether_it_is_pending_or_runs(own_threads):
    async def app(manager, jobs):
        async with manager:
            for _ in range(100):
                job = await manager.start_job("work")
                jobs.put(job)
                await manager.wait(job.id, 120)
                assert (job.status, job.error_type) == ("failed", "WorkerCrashed")
            jobs.put(None)

    jobs: queue.SimpleQueue = queue.SimpleQueue()
    with use_in_process_backend() as in_process:
        thread = threading.Thread(
            target=lambda: run(app(maker(None)("work", config=WorkerConfig(hold_after_crashes=0)), jobs))
        )
        thread.start()
        for n, job in enumerate(iter(lambda: jobs.get(timeout=120), None)):
            if n % 2:
                until_now(lambda job=job: job.status == "running")
            in_process.crash(job.id)
        thread.join(120)
        assert not thread.is_alive()
    until_now(lambda: not own_threads(), what="the end of the threads")


@pytest.mark.parametrize("close", [True, False])
def test_what_an_app_leaves_behind_ends_with_the_block(close, own_threads):
    "A manager that was not shut down, on a loop that still runs and on one that is closed."

    async def app():
        manager = maker(None)("work")
        await running(manager, "work")
        return manager

    with use_in_process_backend():
        runner = asyncio.Runner()
        manager = runner.run(app())
        if close:
            runner.close()
        assert close or len(own_threads()) == 1  # one that finds its loop closed ends by itself
    if not close:
        (job,) = runner.run(all_jobs(manager))
        assert (job.status, job.error_type) == ("failed", "WorkerCrashed")
        runner.run(manager.shutdown())
        runner.close()
    until_now(lambda: not own_threads(), what="the end of the threads")


async def all_jobs(manager):
    jobs = manager.get_all_jobs()
    for job in jobs:
        await manager.wait(job.id, 120)
    return jobs


def test_pytest_finds_the_fixture():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(Path(__file__).parents[1] / "settings.ini")
    (entry,) = settings["DEFAULT"]["pytest11"].split()
    name, _, module = entry.partition("=")
    assert name == module, "of the same name, so that `-p` does not load it twice"
    assert callable(importlib.import_module(module).in_process_backend)
