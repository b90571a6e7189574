"""The app that `test_monitor_mounted.py` runs: two managers on one monitor page, mounted below a path."""

import contextlib

from starlette.applications import Starlette
from starlette.routing import Mount

from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.integrations.monitor import job_monitor
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.manager import BaseJobManager

PLUGINS = {name: f"cjm_worker_ext.commands.demo_plugins:{name}" for name in ("slow", "crash")}
events = SSEBroadcaster(retry_seconds=0.2)
managers = [
    BaseJobManager(
        name, name, plugins=PLUGINS, worker_config=WorkerConfig(max_workers=1, shutdown_timeout_seconds=1.0),
        event_broadcaster=events,
    )
    for name in ("speech", "text")
]  # fmt: skip


@contextlib.asynccontextmanager
async def life(app):
    async with managers[0], managers[1]:
        for manager in managers:
            await manager.submit_job("slow", {"steps": 600})
        await managers[0].submit_job("slow", {"steps": 600})  # waits, while the other manager's worker is soon free
        yield


app = Starlette(routes=[Mount("/jobs", job_monitor(*managers, title="Two kinds of jobs"))], lifespan=life)
