"""The peers of the failure matrix: how each is opened, asked to end a job, and closed."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal

from benchmarks import peer_ours, peer_pools, peer_services, tasks
from benchmarks.peers_base import Peer

BAD = ("quick", "innocent", "patient", "kill_itself", "segfault", "exit_at_once", "system_exit", "hold_lock")
BAD += ("return_lock", "raise_unreadable", "leave_child", "die_with_child")


class Ours(peer_ours.Ours):
    "A failed job raises nothing in `wait`; here its error is raised, so that all peers look the same."

    async def open(self, workers=1, standby=0, **options):
        from cjm_worker_ext import BaseJobManager, WorkerConfig

        config = WorkerConfig(max_workers=workers, cancel_grace_seconds=self.grace)
        plugins = {name: f"benchmarks.tasks:{name}" for name in BAD}
        self.manager = BaseJobManager("failures", worker_config=config, plugins=plugins)
        await self.manager.__aenter__()

    def submit(self, task, *args):
        return self.submit_limited(task, None, *args)

    def submit_limited(self, task, seconds, *args):
        started = asyncio.ensure_future(self.manager.submit_job(task, {"path": args[0]}, timeout=seconds))
        waiting = asyncio.ensure_future(self._wait(started))
        waiting.started = started
        return waiting

    async def _wait(self, started):
        job = await self.manager.wait((await started).id)
        if job.status == "cancelled":
            raise asyncio.CancelledError
        if job.status == "failed":
            raise type(job.error_type or "Exception", (Exception,), {})(job.error)
        return job.result

    async def cancel(self, job):
        await self.manager.cancel_job((await job.started).id)


class Executor(peer_pools.Executor):
    def submit(self, task, *args):
        future = self.pool.submit(getattr(tasks, task), *args)
        wrapped = asyncio.wrap_future(future)
        wrapped.inner = future
        return wrapped

    async def cancel(self, job):
        if not job.inner.cancel():
            raise NotImplementedError("`cancel()` is False")

    async def close(self):
        self.pool.shutdown(wait=True, cancel_futures=True)


class Loky(peer_pools.Loky):
    submit = Executor.submit
    cancel = Executor.cancel

    async def close(self):
        self.pool.shutdown(wait=True, kill_workers=True)


class Pebble(peer_pools.Pebble):
    def submit_limited(self, task, seconds, *args):
        return asyncio.wrap_future(self.pool.schedule(getattr(tasks, task), args=list(args), timeout=seconds))

    async def close(self):
        self.pool.stop()
        self.pool.join()


def polled(result) -> asyncio.Future:
    "Wait for a result with `ready` and `get`: no callback, in which something may get lost, and no thread."

    async def poll():
        while not result.ready():
            await asyncio.sleep(0.02)
        return result.get()

    future = asyncio.ensure_future(poll())
    future.inner = result
    return future


class Pool(Peer):
    "multiprocessing.Pool with the spawn method."

    async def open(self, workers=1, standby=0):
        self.pool = multiprocessing.get_context("spawn").Pool(workers)

    def submit(self, task, *args, **options):
        return polled(self.pool.apply_async(getattr(tasks, task), args, **options))

    async def cancel(self, job):
        raise NotImplementedError

    async def close(self):
        self.pool.terminate()
        self.pool.join()


class Mpire(peer_pools.Mpire):
    submit = Pool.submit

    def submit_limited(self, task, seconds, *args):
        return self.submit(task, *args, task_timeout=seconds)

    async def close(self):
        self.pool.terminate()


class Billiard(Pool):
    "Celery's fork of multiprocessing, with its own pool; limits for jobs have to be enabled."

    async def open(self, workers=1, standby=0):
        from billiard.pool import Pool as BilliardPool

        self.pool = BilliardPool(workers, enable_timeouts=True)

    def submit_limited(self, task, seconds, *args):
        return self.submit(task, *args, timeout=seconds)

    async def cancel(self, job):
        (pid,) = job.inner.worker_pids()
        self.pool.terminate_job(pid, signal.SIGKILL)


class Celery(peer_services.CeleryRedis):
    "One worker with two processes; the app is its client."

    def submit(self, task, *args):
        return polled(self.run.apply_async((task, args)))

    def submit_limited(self, task, seconds, *args):
        return polled(self.run.apply_async((task, args), time_limit=seconds))

    async def cancel(self, job):
        job.inner.revoke(terminate=True, signal=signal.SIGKILL)

    async def close(self):
        self.worker.send_signal(signal.SIGQUIT)  # its cold shutdown
        self.worker.wait()
        self.redis.terminate()
        self.redis.wait()
        self.folder.cleanup()


PEERS = {
    "ours": Ours,
    "executor": Executor,
    "pool": Pool,
    "pebble": Pebble,
    "loky": Loky,
    "mpire": Mpire,
    "billiard": Billiard,
    "celery": Celery,
}
