"""An app for `test_monitor_mounted.py`: two jobs that fail as soon as a file is there, and are tried again."""

import contextlib
import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Mount

from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.integrations.monitor import job_monitor
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.manager import BaseJobManager
from cjm_worker_ext.policies import Retry

FOLDER = Path(os.environ["MONITOR_FOLDER"])
PLUGINS = {"soon": "plugins_for_tests:fail_on_file", "late": "plugins_for_tests:fail_on_file"}
manager = BaseJobManager(
    "text",
    plugins=PLUGINS,
    worker_config=WorkerConfig(max_workers=2, shutdown_timeout_seconds=1.0),
    event_broadcaster=SSEBroadcaster(retry_seconds=0.2),
)


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        for name, delay in (("soon", 0.0), ("late", 60.0)):
            params = {"file": str(FOLDER / name), "log": str(FOLDER / f"{name}.log")}
            await manager.submit_job(name, params, retry=Retry(2, delay_seconds=delay, jitter=0))
        await manager.submit_job("soon", params, delay_seconds=600)
        yield


app = Starlette(routes=[Mount("/jobs", job_monitor(manager))], lifespan=life)
