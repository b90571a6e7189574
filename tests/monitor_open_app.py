"""The app that `test_monitor_access.py` runs: one manager on a page without a login, and on one with a login."""

import contextlib

from starlette.applications import Starlette
from starlette.routing import Mount, Route

from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.integrations.monitor import job_monitor
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.manager import BaseJobManager

events = SSEBroadcaster()
manager = BaseJobManager(
    "text", plugins={"slow": "cjm_worker_ext.commands.demo_plugins:slow"}, event_broadcaster=events,
    worker_config=WorkerConfig(max_workers=1, shutdown_timeout_seconds=1.0),
)  # fmt: skip


def user_of(request):
    return request.cookies.get("session") == "secret-of-ann" and "ann"


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        await manager.submit_job("slow", {"steps": 6000})
        yield


login = job_monitor(manager, authorize=user_of, allowed_hosts=["jobs.example", "*.lan.example"])
routes = [Mount("/jobs", job_monitor(manager)), Mount("/login", login), Route("/events", events.endpoint)]
app = Starlette(routes=routes, lifespan=life)
