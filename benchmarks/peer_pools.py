"""Process pools from PyPI and the standard library, behind asyncio."""

from __future__ import annotations

import asyncio
import multiprocessing

from benchmarks import tasks
from benchmarks.peers_base import Peer


class Executor(Peer):
    "concurrent.futures.ProcessPoolExecutor with the spawn method."

    modules = ("concurrent.futures.process",)

    async def open(self, workers=1, standby=0):
        from concurrent.futures import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def submit(self, task, *args):
        return asyncio.wrap_future(self.pool.submit(getattr(tasks, task), *args))

    async def stream(self, count):
        manager = multiprocessing.get_context("spawn").Manager()
        queue = manager.Queue()
        loop = asyncio.get_running_loop()
        done = self.submit("put_chunks", queue, count)
        while (chunk := await loop.run_in_executor(None, queue.get)) is not None:
            yield chunk
        await done
        manager.shutdown()


class Pebble(Peer):
    modules = ("pebble",)
    can_cancel = ("spin", "stuck")

    async def open(self, workers=1, standby=0):
        from pebble import ProcessPool

        self.pool = ProcessPool(workers, context=multiprocessing.get_context("spawn"))

    def submit(self, task, *args):
        future = self.pool.schedule(getattr(tasks, task), args=list(args))
        wrapped = asyncio.wrap_future(future)
        wrapped.pebble = future
        return wrapped

    async def cancel(self, job):
        job.pebble.cancel()


class Loky(Peer):
    modules = ("loky",)

    async def open(self, workers=1, standby=0):
        from loky import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(workers)

    submit = Executor.submit


class Mpire(Peer):
    modules = ("mpire",)

    async def open(self, workers=1, standby=0):
        from mpire import WorkerPool

        self.pool = WorkerPool(workers, start_method="spawn", keep_alive=True)

    def submit(self, task, *args):
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def tell(set_it, value):
            loop.call_soon_threadsafe(lambda: future.done() or set_it(value))

        self.pool.apply_async(
            getattr(tasks, task),
            args,
            callback=lambda result: tell(future.set_result, result),
            error_callback=lambda error: tell(future.set_exception, error),
        )
        return future


class Anyio(Peer):
    "anyio.to_process.run_sync, as many at a time as there are workers."

    modules = ("anyio.to_process", "anyio._backends._asyncio")
    can_cancel = ("spin", "stuck")

    async def open(self, workers=1, standby=0):
        from anyio import CapacityLimiter, to_process

        self.limiter, self.run = CapacityLimiter(workers), to_process.run_sync

    def submit(self, task, *args):
        run = self.run(getattr(tasks, task), *args, cancellable=True, limiter=self.limiter)
        return asyncio.ensure_future(run)

    async def call(self, task, *args):
        return await self.run(getattr(tasks, task), *args, cancellable=True, limiter=self.limiter)

    async def cancel(self, job):
        job.cancel()
