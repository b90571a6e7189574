"""The app that `test_sse.py` runs under real servers: an event stream and a few levers."""

import asyncio
import os

import psutil
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from cjm_worker_ext.integrations.sse import SSEBroadcaster

jobs: dict[str, dict] = {}
events = SSEBroadcaster(
    snapshot=lambda principal: list(jobs.values()),
    heartbeat_seconds=float(os.environ.get("HEARTBEAT", 15)),
    stuck_seconds=float(os.environ.get("STUCK", 30)),
    retry_seconds=0.2,
    max_events=int(os.environ.get("MAX_EVENTS", 2048)),
    max_bytes=int(os.environ.get("MAX_BYTES", 8 << 20)),
)


async def publish(request):
    """Publish what the body says: [type, data, how often, bytes of padding]; the loop gets a turn between many, unless the data
    says `burst`.

    The type "cut" breaks every stream's connection, as a bad network does: what follows finds nobody connected. The
    answer says how many there were.
    """
    cut, loop = 0, asyncio.get_running_loop()
    for event_type, data, count, padding in await request.json():
        if event_type == "cut":
            streams = list(events._hub.streams.open)
            for stream in streams:
                stream.abort()
            while not events._hub.streams.open.isdisjoint(streams):  # noqa: ASYNC110
                await asyncio.sleep(0)
            cut += len(streams)
        for n in range(count):
            event = {"n": n, **data, "at": loop.time()} | ({"text": "x" * padding} if padding else {})
            if "job_id" in data:
                jobs[data["job_id"]] = {"job_id": data["job_id"], "status": event_type}
            await events.broadcast(event_type, event)
            if count > 1 and "burst" not in data:
                await asyncio.sleep(0)
    return JSONResponse({"cut": cut})


async def stats(request):
    process = psutil.Process()
    unread = [s.transport.get_write_buffer_size() for s in events._hub.streams.open]
    return JSONResponse({"clients": events.clients, "rss": process.memory_info().rss, "unread": max(unread, default=0)})


app = Starlette(
    routes=[
        Route("/events", events.endpoint),
        Mount("/mounted", events.endpoint),
        Route("/publish", publish, methods=["POST"]),
        Route("/stats", stats),
    ]
)

if os.environ.get("FORCED_EXIT"):  # what FastHTML's `signal_shutdown` does to uvicorn
    from uvicorn.main import Server

    handle_exit = Server.handle_exit

    def forced(self, *args, **kwargs):
        self.force_exit = True
        handle_exit(self, *args, **kwargs)

    Server.handle_exit = forced
