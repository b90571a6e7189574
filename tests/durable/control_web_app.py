"""A web process that `test_control_web.py` runs several times: one store, two channels, a monitor page, events by user.

PLACES says where the store and the channels are; a cookie says who asks.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from durable_lives import config
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel
from cjm_worker_ext.integrations.monitor import job_monitor
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

folder = Path(os.environ["PLACES"])


def user(request):
    return request.cookies.get("user")


def own(principal, job):
    return job.metadata.get("user") == principal


events = SSEBroadcaster(
    channel=SQLiteChannel(folder / "events.db"),
    authorize=user,
    visible=lambda event, principal: event.data.get("metadata", {}).get("user") == principal,
)
manager = BaseJobManager(
    "text",
    worker_config=config(max_workers=1),
    plugins={"tell": "durable_plugins:tell"},
    event_broadcaster=events,
    job_store=SQLiteJobStore(folder / "jobs.db"),
    channel=SQLiteChannel(folder / "control.db"),
)
page = job_monitor(manager, authorize=user, allow_cancel=own, token="the same in each process")


async def start(request):
    params = {"trace": str(folder / "trace"), "name": "told", "count": 1, "path": str(folder / "go")}
    job = await manager.submit_job("tell", params, metadata={"user": user(request)})
    return JSONResponse({"job": job.id, "since": events.position})


async def stream(request):
    "The first chunk of a job of any process, if it is the user's own."
    job = await manager.find_job(request.path_params["job"])
    if not own(user(request), job):
        return JSONResponse({"error": "not yours"}, 404)
    async with contextlib.aclosing(manager.stream(job)) as chunks:
        return JSONResponse({"chunk": json.dumps(await anext(chunks))})


@contextlib.asynccontextmanager
async def life(app):
    await events.ready()
    async with manager:
        yield
    await events.aclose()


app = Starlette(
    routes=[
        Route("/events", events.endpoint),
        Route("/start", start, methods=["POST"]),
        Route("/stream/{job}", stream),
        Mount("/jobs", page),
    ],
    lifespan=life,
)
