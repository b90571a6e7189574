"""The app that `test_channels_web.py` runs as several web processes: jobs with real workers, events through a channel.

CHANNEL says which: `redis URL`, `sqlite PATH` or `postgres DSN`.
"""

import contextlib
import os

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.manager import BaseJobManager


def make_channel():
    kind, _, address = os.environ["CHANNEL"].partition(" ")
    if kind == "redis":
        from cjm_worker_ext.integrations.channel_redis import RedisChannel

        return RedisChannel(address, "web")
    if kind == "sqlite":
        from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel

        return SQLiteChannel(address)
    from cjm_worker_ext.integrations.channel_postgres import PostgresChannel

    return PostgresChannel(address, "web")


events = SSEBroadcaster(channel=make_channel(), retry_seconds=0.1)
manager = BaseJobManager(
    "text", "text", worker_config=WorkerConfig(max_workers=1, max_pending_jobs=10_000), event_broadcaster=events,
    plugins={"echo": "plugins_for_tests:echo", "spin": "plugins_for_tests:spin"},
)  # fmt: skip


async def start_jobs(request):
    "Start jobs in this process, as many as the body says; their ids in order."
    asked = await request.json()
    since = events.position
    jobs = [await manager.submit_job(asked.get("plugin", "echo"), {}) for _ in range(asked["jobs"])]
    return JSONResponse({"jobs": [job.id for job in jobs], "since": since, "pid": os.getpid()})


async def publish(request):
    "Broadcast events of no job, numbered from the first on."
    asked = await request.json()
    for n in range(asked["first"], asked["first"] + asked["count"]):
        await events.broadcast("job:completed", {"job_id": f"n{n}", "n": n})
    return JSONResponse({"pid": os.getpid()})


async def stats(request):
    return JSONResponse({"pid": os.getpid(), "clients": events.clients, "position": events.position})


@contextlib.asynccontextmanager
async def life(app):
    await events.ready()
    async with manager:
        yield
    await events.aclose()


app = Starlette(
    routes=[
        Route("/events", events.endpoint),
        Route("/jobs", start_jobs, methods=["POST"]),
        Route("/publish", publish, methods=["POST"]),
        Route("/stats", stats),
    ],
    lifespan=life,
)
