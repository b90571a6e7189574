"""Systems that bring processes of their own: dask.distributed, Ray, Celery with Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

from benchmarks import tasks
from benchmarks.peers_base import Peer


class Dask(Peer):
    async def open(self, workers=1, standby=0):
        import dask
        from distributed import Client, LocalCluster

        dask.config.set({"distributed.logging.distributed": "error", "distributed.scheduler.allowed-failures": 0})
        self.cluster = await LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, asynchronous=True, dashboard_address=None
        )
        self.client = await Client(self.cluster, asynchronous=True)

    def submit(self, task, *args):
        return self.client.submit(getattr(tasks, task), *args, pure=False)

    async def many(self, task, count):
        jobs = [self.submit(task) for _ in range(count)]
        await self.client.gather(jobs)

    async def close(self):
        await self.client.close()
        await self.cluster.close()


class Ray(Peer):
    "Actors for throughput, tasks where something is ended or dies: each is Ray's better side there."

    can_cancel = ("spin", "stuck")

    async def open(self, workers=1, standby=0):
        import ray

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self.ray = ray
        ray.init(
            num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error",
            object_store_memory=512 << 20,
        )  # fmt: skip

        @ray.remote(num_cpus=1, max_restarts=-1)
        class Actor:
            def run(self, task, args):
                return getattr(tasks, task)(*args)

            def stream(self, count):
                yield from range(count)

        @ray.remote(num_cpus=1, max_retries=0)
        def run(task, args):
            return getattr(tasks, task)(*args)

        self.actor_class, self.task, self.workers, self.actors, self.next = Actor, run, workers, [], 0
        self.use_tasks = False

    def _actor(self):
        if not self.actors:
            self.actors = [self.actor_class.remote() for _ in range(self.workers)]
        self.next += 1
        return self.actors[self.next % self.workers]

    def submit(self, task, *args):
        if self.use_tasks:
            return self.task.remote(task, args)
        return self._actor().run.remote(task, args)

    async def stream(self, count):
        stream = self._actor().stream.options(num_returns="streaming").remote(count)
        async for ref in stream:
            yield await ref

    async def cancel(self, job):
        self.ray.cancel(job, force=True)

    async def close(self):
        self.ray.shutdown()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def celery_app():
    from celery import Celery

    url = os.environ["BENCHMARK_REDIS"]
    app = Celery("benchmark", broker=url, backend=url)
    app.conf.update(
        task_serializer="pickle", result_serializer="pickle", accept_content=["pickle"], worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False, broker_connection_retry_on_startup=True,
    )  # fmt: skip

    @app.task(name="run")
    def run(task, args):
        return getattr(tasks, task)(*args)

    return app, run


class CeleryRedis(Peer):
    can_cancel = ("spin", "stuck")

    async def open(self, workers=1, standby=0):
        port = free_port()
        os.environ["BENCHMARK_REDIS"] = f"redis://127.0.0.1:{port}/0"
        self.folder = tempfile.TemporaryDirectory()
        self.redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder.name],
            stdout=subprocess.DEVNULL,
        )
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        options = ["worker", "-c", str(workers), "-l", "CRITICAL", "--without-gossip", "--without-mingle"]
        boot = f"from benchmarks.peer_services import celery_app; app, _ = celery_app(); app.worker_main({options})"
        os.environ["C_FORCE_ROOT"] = "1"  # it refuses to read pickles as root
        quiet = subprocess.DEVNULL
        self.worker = subprocess.Popen([sys.executable, "-c", boot], stdout=quiet, stderr=quiet)
        self.app, self.run = celery_app()

    def submit(self, task, *args):
        result = self.run.delay(task, args)
        future = asyncio.get_running_loop().run_in_executor(None, lambda: result.get(disable_sync_subtasks=False))
        future.celery = result
        return future

    async def many(self, task, count):
        results = [self.run.delay(task, ()) for _ in range(count)]
        await asyncio.get_running_loop().run_in_executor(None, lambda: [r.get() for r in results])

    async def cancel(self, job):
        job.celery.revoke(terminate=True, signal=signal.SIGKILL)

    async def close(self):
        self.worker.kill()
        self.redis.kill()
