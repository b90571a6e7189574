"""Queues that keep jobs on the disk, for W13: one app submits and waits, one or two processes work.

A name says where the jobs are and, if it ends in `-fsync`, that each commit waits for the disk. Without it a job outlives
every process, and the last moments before a loss of power may be gone; PostgreSQL always waits for the disk. Each system
submits many jobs in the way that it offers for that, and those that poll do so as often as is sensible (5 ms). All write
to the same disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import tasks
from benchmarks.peer_ours import Ours, _result
from benchmarks.peers_base import Peer

POLL = 0.005  # Seconds


class Folder:
    "Where a database lies; on the disk of the temporary folder, which should not be a tmpfs."

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="w13-"))

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Redis:
    "A server with an append-only file."

    def __init__(self, fsync: bool) -> None:
        self.folder = Folder()
        address = self.folder.path / "redis"
        self.url = f"unix://{address}"
        options = ["--port", "0", "--unixsocket", str(address), "--save", "", "--dir", str(self.folder.path)]
        options += ["--appendonly", "yes", "--appendfsync", "always" if fsync else "everysec"]
        self.process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self._answers(address):
            assert time.monotonic() < deadline, "redis-server does not start"
            time.sleep(0.01)

    @staticmethod
    def _answers(address: Path) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(address))
            except OSError:
                return False
            return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.close()


def postgres() -> Any:
    "A server as it is by default: a commit waits for the disk."
    from tests.postgres_server import PostgresServer

    return PostgresServer().start()


def process(call: str) -> subprocess.Popen[bytes]:
    "A process that works on jobs until it is killed."
    quiet = None if os.environ.get("BENCHMARK_LOUD") else subprocess.DEVNULL
    boot = f"import benchmarks.peers_durable as p; p.{call}"
    return subprocess.Popen([sys.executable, "-c", boot], stdout=quiet, stderr=quiet)


class DurablePeer(Peer):
    "What the peers share: a server or a folder, and processes that work."

    server: Any = None
    fsync = False

    def start(self, workers: int, call: str) -> None:
        self.processes = [process(call) for _ in range(workers)]

    async def close(self) -> None:
        for one in self.processes:
            one.kill()
            one.wait()
        self.server.close()


# ------------------------------------------------------------------------------------------------------------- ours
class OursDurable(Ours):
    "This library; without a store it is what the others are compared with."

    kind = ""
    resource: Any = None  # What holds the data: a server or a folder

    def store(self) -> Any:
        "A store object; each has the same data."
        from cjm_worker_ext.extensions.stores import Retention

        everything = Retention(max_jobs=None)
        if self.kind == "postgres":
            from cjm_worker_ext.stores.postgres import PostgresJobStore

            return PostgresJobStore(self.dsn, retention=everything)
        from cjm_worker_ext.stores.sqlite import SQLiteJobStore

        options = {"behind": {"durability": "behind"}, "fsync": {"synchronous": "FULL"}}.get(self.kind, {})
        return SQLiteJobStore(self.resource.path / "jobs.db", retention=everything, **options)

    async def open(self, workers=1, standby=0, **options):
        if self.kind == "postgres":
            self.resource = postgres()
            self.dsn = self.resource.dsn()
        elif self.kind:
            self.resource = Folder()
        if self.kind:
            options["job_store"] = self.store()
        await super().open(workers, standby, **options)

    def add_old_jobs(self, count: int) -> None:
        "What has ended long ago; one of fifty failed."
        from cjm_worker_ext.extensions.stores import JobChange, StoredJob
        from cjm_worker_ext.jobs import utc_now

        store = self.store()
        owner = store.open("old")
        for first in range(0, count, 5000):
            began = time.time() - count + first
            jobs = [
                StoredJob(
                    f"{os.urandom(10).hex()}{int((began + i) * 1000):012x}", "old", "noop", utc_now(began + i),
                    params='{"text": "one two three"}', status="completed" if i % 50 else "failed", result="null",
                    completed_at=utc_now(began + i),
                )
                for i in range(min(5000, count - first))
            ]  # fmt: skip
            assert not store.write(owner, [JobChange(job) for job in jobs])
        store.close(owner)

    async def many(self, task, count):
        if self.kind == "behind":  # a start waits for nothing, as without a store
            return await super().many(task, count)
        manager = self.manager
        jobs = await asyncio.gather(*(manager.start_job(task) for _ in range(count)))
        for job in jobs:
            _result(await manager.wait(job.id))

    async def close(self):
        await super().close()
        if self.resource is not None:
            self.resource.close()


class OursBehind(OursDurable):
    kind = "behind"


class OursSQLite(OursDurable):
    kind = "sqlite"


class OursSQLiteFsync(OursDurable):
    kind = "fsync"


class OursPostgres(OursDurable):
    kind = "postgres"


# ------------------------------------------------------------------------------------------------------------- huey
def huey_app(path: str, fsync: bool):
    from huey import SqliteHuey

    app = SqliteHuey("benchmark", filename=path, fsync=fsync, store_none=True)

    @app.task()
    def run(task, args):
        return getattr(tasks, task)(*args)

    return app, run


def huey_work(path: str, fsync: bool) -> None:
    app, _ = huey_app(path, fsync)
    app.create_consumer(workers=1, periodic=False, initial_delay=POLL / 5, max_delay=POLL, worker_type="thread").run()


class Huey(DurablePeer):
    modules = ("huey",)

    async def open(self, workers=1, standby=0):
        self.server = Folder()
        path = str(self.server.path / "huey.db")
        self.app, self.run = huey_app(path, self.fsync)
        self.start(workers, f"huey_work({path!r}, {self.fsync})")

    async def _result(self, result):
        "Asks as often as is sensible; huey itself begins with 50 ms."
        while not self.app.storage.has_data_for_key(result.id):
            await asyncio.sleep(POLL / 5)
        return result.get()

    async def submit(self, task, *args):
        return await self._result(self.run(task, args))

    async def many(self, task, count):
        for result in [self.run(task, ()) for _ in range(count)]:
            await self._result(result)


class HueyFsync(Huey):
    fsync = True


# -------------------------------------------------------------------------------------------------------------- saq
async def saq_run(context, *, task, args):
    return getattr(tasks, task)(*args)


def saq_queue(url: str):
    from saq.queue.postgres import PostgresQueue
    from saq.queue.redis import RedisQueue

    return (RedisQueue if url.startswith("unix") else PostgresQueue).from_url(url)


def saq_work(url: str) -> None:
    from saq import Worker

    async def work():
        queue = saq_queue(url)
        await queue.connect()
        await Worker(queue, functions=[("run", saq_run)]).start()

    asyncio.run(work())


class Saq(DurablePeer):
    modules = ("saq",)

    def serve(self) -> str:
        self.server = Redis(self.fsync)
        return self.server.url

    async def open(self, workers=1, standby=0):
        url = self.serve()
        self.queue = saq_queue(url)
        await self.queue.connect()
        self.start(workers, f"saq_work({url!r})")
        await self._until_swept()

    async def _until_swept(self) -> None:
        "A worker begins by ending the jobs that it takes for left over, and among them may be one that was just sent."
        from saq.queue import JobError

        while True:
            try:
                return await self.submit("noop")
            except JobError:
                continue

    async def submit(self, task, *args):
        return await self.queue.apply("run", poll_interval=POLL / 5, task=task, args=args)

    async def many(self, task, count):
        await self.queue.map("run", [{"task": task, "args": ()}] * count, poll_interval=POLL)


class SaqFsync(Saq):
    fsync = True


class SaqPostgres(Saq):
    def serve(self) -> str:
        self.server = postgres()
        return address(self.server)


def address(server: Any) -> str:
    "The address of a new database as a URL."
    parts = dict(part.split("=") for part in server.dsn().split())
    return f"postgresql://{parts['user']}@/{parts['dbname']}?host={parts['host']}"


# ----------------------------------------------------------------------------------------------------------- celery
def celery_app(url: str):
    from celery import Celery

    broker = url.replace("unix://", "redis+socket://")
    app = Celery("benchmark", broker=broker, backend=broker)
    # Late: a job whose worker died is there still, as it is in the others.
    app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, task_acks_late=True)

    @app.task(name="run")
    def run(task, args):
        return getattr(tasks, task)(*args)

    return app, run


def celery_work(url: str, workers: int) -> None:
    app, _ = celery_app(url)
    app.worker_main(["worker", "-c", str(workers), "-l", "CRITICAL", "--without-gossip", "--without-mingle"])


class Celery(DurablePeer):
    modules = ("celery", "redis")

    async def open(self, workers=1, standby=0):
        self.server = Redis(self.fsync)
        self.app, self.run = celery_app(self.server.url)
        self.start(1, f"celery_work({self.server.url!r}, {workers})")

    async def submit(self, task, *args):
        result = self.run.delay(task, args)
        return await asyncio.get_running_loop().run_in_executor(None, result.get)

    async def many(self, task, count):
        results = [self.run.delay(task, ()) for _ in range(count)]
        await asyncio.get_running_loop().run_in_executor(None, lambda: [r.get() for r in results])


class CeleryFsync(Celery):
    fsync = True


# ---------------------------------------------------------------------------------------------------- procrastinate
def procrastinate_app(url: str):
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    @app.task(name="run")
    def run(task, args):
        return getattr(tasks, task)(*args)

    return app, run


def procrastinate_work(url: str) -> None:
    async def work():
        app, _ = procrastinate_app(url)
        async with app.open_async():
            await app.run_worker_async(concurrency=1)

    asyncio.run(work())


class Procrastinate(DurablePeer):
    "It keeps no results and has no way to wait for a job: its table is asked instead."

    modules = ("procrastinate",)

    async def open(self, workers=1, standby=0):
        import psycopg

        self.server = postgres()
        url = address(self.server)
        self.app, self.run = procrastinate_app(url)
        await self.app.open_async()
        await self.app.schema_manager.apply_schema_async()
        self.looks = await psycopg.AsyncConnection.connect(url, autocommit=True)
        self.start(workers, f"procrastinate_work({url!r})")

    async def _until_done(self, first: int, last: int, pause: float) -> None:
        query = "SELECT count(*) FROM procrastinate_jobs WHERE id BETWEEN %s AND %s AND status = 'succeeded'"
        while (await (await self.looks.execute(query, (first, last))).fetchone())[0] < last - first + 1:
            await asyncio.sleep(pause)

    async def submit(self, task, *args):
        number = await self.run.defer_async(task=task, args=list(args))
        await self._until_done(number, number, POLL / 5)

    async def many(self, task, count):
        numbers = await self.run.batch_defer_async(*[{"task": task, "args": []}] * count)
        await self._until_done(min(numbers), max(numbers), POLL)


# --------------------------------------------------------------------------------------------------------- pgqueuer
def pgqueuer_work(url: str) -> None:
    import json

    import asyncpg
    from pgqueuer import AsyncpgDriver, PgQueuer

    async def work():
        app = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))

        @app.entrypoint("run")
        async def run(job):
            task, args = json.loads(job.payload)
            getattr(tasks, task)(*args)

        await app.run()

    asyncio.run(work())


class PgQueuer(DurablePeer):
    "It keeps no results: the end of a job is awaited. It writes ends every 0.1 s, or ten at a time."

    modules = ("pgqueuer", "asyncpg")

    async def open(self, workers=1, standby=0):
        from datetime import timedelta

        import asyncpg
        from pgqueuer import AsyncpgDriver, Queries
        from pgqueuer.core.completion import CompletionWatcher

        self.server = postgres()
        url = address(self.server)
        self.queries = Queries(AsyncpgDriver(await asyncpg.connect(url)))
        await self.queries.install()
        looks = AsyncpgDriver(await asyncpg.connect(url))
        watcher = CompletionWatcher(looks, queries=Queries(looks), debounce=timedelta(seconds=POLL / 5))
        self.watcher = await watcher.__aenter__()
        self.start(workers, f"pgqueuer_work({url!r})")

    async def submit(self, task, *args):
        import json

        (number,) = await self.queries.enqueue("run", json.dumps([task, args]).encode())
        await self.watcher.wait_for(number)

    async def many(self, task, count):
        import json

        payload = json.dumps([task, []]).encode()
        numbers = await self.queries.enqueue(["run"] * count, [payload] * count, [0] * count)
        await asyncio.gather(*map(self.watcher.wait_for, numbers))
