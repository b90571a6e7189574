"""The app that `test_agent_monitor.py` runs: a monitor page of workers on other machines. AGENTS names them, with spaces."""

import contextlib
import os

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from cjm_worker_ext.backends.hosts import HostsBackend
from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.integrations.monitor import job_monitor
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.manager import BaseJobManager

agents = HostsBackend(os.environ["AGENTS"].split(), ping_seconds=0.1, lease_seconds=1.0, lost_seconds=1.5)
manager = BaseJobManager(
    "cards",
    plugins={"slow": "cjm_worker_ext.commands.demo_plugins:slow"},
    worker_config=WorkerConfig(max_workers=3, shutdown_timeout_seconds=1.0),
    event_broadcaster=SSEBroadcaster(retry_seconds=0.2),
    resource_manager=ProcessResourceManager(interval_seconds=0.2, nodes=agents.nodes),
    backend=agents,
)


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        for _ in range(4):
            await manager.submit_job("slow", {"steps": 600})
        yield


async def drain(request):
    agents.drain(request.path_params["host"])
    return PlainTextResponse("drains")


monitor = job_monitor(manager, title="Two machines", poll_seconds=0.5)
app = Starlette(routes=[Route("/drain/{host}", drain), Mount("/jobs", monitor)], lifespan=life)
