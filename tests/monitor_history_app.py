"""The app that `test_monitor_history.py` runs: a store with 120 old jobs, and a store and a channel that fail on demand."""

import contextlib
import os
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Mount

from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.errors import StoreFailed
from cjm_worker_ext.extensions.stores import JobChange, StoredJob
from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel
from cjm_worker_ext.integrations.monitor import job_monitor
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.jobs import BaseJob, utc_now
from cjm_worker_ext.manager import BaseJobManager
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

FOLDER = Path(os.environ["MONITOR_FOLDER"])
CHANNEL_AWAY, STORE_AWAY = FOLDER / "channel away", FOLDER / "store away"  # while these files are there


class Channel(SQLiteChannel):
    async def append(self, entries, writer, number):
        self._look()
        await super().append(entries, writer, number)

    async def read(self, epoch, position, wait_seconds):
        self._look()
        page = await super().read(epoch, position, min(wait_seconds, 0.2))
        self._look()
        return page

    def _look(self):
        if CHANNEL_AWAY.exists():
            raise OSError("the channel is away")


class Store(SQLiteJobStore):
    def write(self, owner, changes, told=()):
        if STORE_AWAY.exists():
            raise StoreFailed("job store: no space left; free some space on its disk")
        return super().write(owner, changes, told)


def echo(text):
    return text.upper()


def add_old_jobs(store):
    "An earlier life of the app: every third job failed, each at another minute of another day."
    owner = store.open("text")
    changes = []
    for i in range(120):
        at = utc_now(time.time() - 86_400 * 3 + i)
        job = StoredJob(
            BaseJob("p").id, "text", "echo" if i % 2 else "gone <b>plugin</b>", at, params=f'{{"text": "old {i}"}}'
        )
        job.status, job.duration_seconds, job.attempts, job.started_at, job.completed_at = "completed", 1.5, 1, at, at
        if i % 3 == 0:
            job.status, job.error_type, job.error, job.attempts = "failed", "ValueError", f"<i>bad</i> line {i}", 2
            job.traceback = 'Traceback (most recent call last):\n  File "echo.py", line 7, in <module>'
        changes.append(JobChange(job))
    store.write(owner, changes)
    store.close(owner)


store = Store(FOLDER / "jobs.db")
add_old_jobs(store)
manager = BaseJobManager(
    "text",
    plugins={"echo": echo},
    worker_config=WorkerConfig(max_workers=1, shutdown_timeout_seconds=1.0),
    event_broadcaster=SSEBroadcaster(retry_seconds=0.2, channel=Channel(FOLDER / "events.db")),
    job_store=store,
)


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        yield


app = Starlette(routes=[Mount("/jobs", job_monitor(manager, title="Texts"))], lifespan=life)
