"""The app that `test_sse_requests.py` runs: a stream that asks who listens, and hides the job `secret` from most."""

import asyncio
import os

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from cjm_worker_ext.integrations.sse import SSEBroadcaster

jobs: dict[str, dict] = {}


def authorize(request):
    who = request.headers.get("authorization", "").removeprefix("Bearer ")
    if who == "expired":
        raise HTTPException(401, "sign in again")
    return who if who in ("ann", "root") else None


def visible(event, principal):
    return event.job_id != "secret" or principal == "root"


events = SSEBroadcaster(
    lambda principal: list(jobs.values()),
    authorize=authorize,
    visible=visible,
    max_events=int(os.environ["MAX_EVENTS"]),
)


async def publish(request):
    "Publish [job, type, data], and end all streams when they have sent all of it."
    for job_id, event_type, data in await request.json():
        jobs[job_id] = {"job_id": job_id, "worker_type": data["worker_type"]}
        await events.broadcast(event_type, {"job_id": job_id, **data})
    fan_out = events._hub.fan_out
    end = fan_out.log.end
    while not all(fan_out.waits(s) and s.position >= end for s in fan_out.subscribers):  # noqa: ASYNC110  - there is no event for that
        await asyncio.sleep(0.001)
    events._hub.streams.close_all()
    return JSONResponse({})


async def stats(request):
    return JSONResponse({"clients": events.clients})


routes = [Route("/events", events.endpoint), Route("/publish", publish, methods=["POST"]), Route("/stats", stats)]
app = Starlette(routes=routes)
