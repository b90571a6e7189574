"""The app that `test_sse_jobs.py` runs under uvicorn: a manager with real workers whose events go to many clients."""

import contextlib
import os
import time

import psutil
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.manager import BaseJobManager

events = SSEBroadcaster(stuck_seconds=600, max_bytes=1 << 20)  # the stuck client is to stay for the whole test
ends: list[str] = []
seqs: list[int] = []
seen = {"bytes": 0, "dropped": 0}


class Recorder:
    "Notes what the manager hands over, and passes it on."

    async def broadcast(self, event_type, data):
        await events.broadcast(event_type, data)
        seqs.append(data["seq"])
        seen["dropped"] += data.get("dropped", 0)
        seen["bytes"] += sum(map(len, data.get("chunks", ())))
        if event_type in ("job:completed", "job:failed", "job:cancelled"):
            ends.append(data["job_id"])


manager = BaseJobManager(
    "text", "text", worker_config=WorkerConfig(max_workers=1, max_pending_jobs=1000), event_broadcaster=Recorder(),
    plugins={"pages": "plugins_for_tests:write_pages"},
)  # fmt: skip


async def run_jobs(request):
    "Run as many jobs as the body says, forget them, and say how they ended."
    asked = await request.json()
    began = time.monotonic()
    jobs = [await manager.submit_job("pages", {"pages": asked["pages"]}) for _ in range(asked["jobs"])]
    done = [await manager.wait(job.id) for job in jobs]
    answer = {"statuses": [str(job.status) for job in done], "seconds": time.monotonic() - began}
    manager.clear_finished_jobs()
    return JSONResponse(answer)


async def stats(request):
    streams = events._hub.streams.open
    return JSONResponse(
        {
            "clients": events.clients,
            "rss": psutil.Process(os.getpid()).memory_info().rss,
            "unread": max((s.transport.get_write_buffer_size() for s in streams), default=0),
            "ends": ends,
            "in_order": seqs == list(range(1, len(seqs) + 1)),
            **seen,
        }
    )


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        yield


routes = [Route("/events", events.endpoint), Route("/jobs", run_jobs, methods=["POST"]), Route("/stats", stats)]
app = Starlette(routes=routes, lifespan=life)
