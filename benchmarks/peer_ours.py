"""This library."""

from __future__ import annotations

from typing import Any

from benchmarks.peers_base import Peer

NAMES = (
    "noop",
    "echo",
    "getpid",
    "make_bytes",
    "make_array",
    "make_frame",
    "make_table",
    "chunks",
    "spin",
    "stuck",
    "crash",
    "modules",
)


class Ours(Peer):
    modules = ("cjm_worker_ext.manager",)
    can_cancel = ("spin", "stuck")
    grace = 0.25

    async def open(self, workers=1, standby=0, **options: Any):
        from cjm_worker_ext import BaseJobManager, WorkerConfig

        config = WorkerConfig(max_workers=workers, standby_workers=standby, cancel_grace_seconds=self.grace)
        plugins = {name: f"benchmarks.tasks:{name}" for name in NAMES}
        self.manager = BaseJobManager("benchmark", "benchmark", worker_config=config, plugins=plugins, **options)
        await self.manager.__aenter__()

    def submit(self, task, *args):
        return _Job(self.manager, task, args)

    async def call(self, task, *args):
        manager = self.manager
        job = await manager.start_job(task, **_named(task, args))
        result = _result(await manager.wait(job.id))
        if task.startswith("make_"):
            manager.clear_finished_jobs()  # the history keeps results; without this each would stay in memory
        return result

    async def many(self, task, count):
        manager = self.manager
        jobs = [await manager.start_job(task) for _ in range(count)]
        for job in jobs:
            _result(await manager.wait(job.id))

    async def stream(self, count):
        job = await self.manager.start_job("chunks", count=count)
        async for chunk in self.manager.stream(job.id):
            yield chunk

    async def cancel(self, job):
        await self.manager.cancel_job((await job.started()).id)

    async def close(self):
        await self.manager.shutdown()


class _Job:
    "Started at once, in a task, because `start_job` is a coroutine."

    def __init__(self, manager, task, args):
        import asyncio

        self.manager = manager
        self._task = asyncio.ensure_future(manager.start_job(task, **_named(task, args)))

    async def started(self):
        return await self._task

    def __await__(self):
        return self._wait().__await__()

    async def _wait(self):
        job = await self._task
        return _result(await self.manager.wait(job.id))


def _named(task: str, args: tuple[Any, ...]) -> dict[str, Any]:
    names = dict.fromkeys(("make_bytes", "make_array", "make_frame", "make_table"), "size") | {
        "echo": "data",
        "chunks": "count",
    }
    return {names.get(task, "path"): args[0]} if args else {}


def _result(job):
    if job.status != "completed":
        raise RuntimeError(f"{job.status}: {job.error}")
    return job.result
