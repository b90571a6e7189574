"""A worker for each plugin: a process that has run one plugin never gets another one."""

from __future__ import annotations

import asyncio

import pytest
from harness import PLUGINS, run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig


def make(max_workers: int, **config) -> BaseJobManager:
    plugins = dict.fromkeys("abc", PLUGINS + "pid_of_worker") | {"broken": PLUGINS + "LoadFails"}
    settings = WorkerConfig(max_workers=max_workers, one_plugin_per_worker=True, **config)
    return BaseJobManager("alone", "tests", plugins=plugins, worker_config=settings)


async def pids(manager: BaseJobManager, plugin_ids: str) -> list[int]:
    jobs = [await manager.start_job(plugin_id) for plugin_id in plugin_ids]
    ended = [await manager.wait(job.id, 120) for job in jobs]
    assert [job.status for job in ended] == ["completed"] * len(ended), [job.error for job in ended]
    return [job.result for job in ended]


@pytest.mark.parametrize("max_workers", [1, 2, 3])
def test_no_process_runs_two_plugins(max_workers):
    async def scene():
        async with make(max_workers) as manager:
            order = "abcabcaabbcc"
            found = await pids(manager, order)
            one_by_one = [(await pids(manager, plugin_id))[0] for plugin_id in order]
            for plugin_id in "abc":
                own = {pid for p, pid in zip(order * 2, found + one_by_one, strict=True) if p == plugin_id}
                others = {pid for p, pid in zip(order * 2, found + one_by_one, strict=True) if p != plugin_id}
                assert own and not own & others
            assert len(manager.workers()) <= max_workers

    run(scene())


def test_a_worker_stays_while_there_is_room():
    async def scene():
        async with make(3) as manager:
            first = await pids(manager, "abc")
            for _ in range(3):
                assert [(await pids(manager, plugin_id))[0] for plugin_id in "abc"] == first

    run(scene())


def test_a_plugin_that_failed_to_load_has_had_its_worker_too():
    async def scene():
        async with make(1) as manager:
            job = await manager.wait((await manager.start_job("broken")).id, 120)
            assert job.status == "failed"
            (broken,) = [worker.pid for worker in manager.workers()]
            (pid,) = await pids(manager, "a")
            assert pid != broken
            assert await pids(manager, "a") == [pid]

    run(scene())


def test_loading_and_unloading_keep_to_it():
    async def scene():
        async with make(2, standby_workers=1) as manager:
            await asyncio.gather(manager.load_plugin("a"), manager.load_plugin("b"))
            loaded = {worker.plugin_ids for worker in manager.workers()} - {()}
            assert loaded == {("a",), ("b",)}
            (a,) = await pids(manager, "a")
            await manager.unload_plugin("a")
            (c,) = await pids(manager, "c")
            assert c != a
            await until(lambda: len(manager.workers()) <= 3)

    run(scene())
