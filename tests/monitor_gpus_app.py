"""The app that `test_monitor_gpus.py` runs: a monitor page of two look-alike cards, the second of which fails on demand."""

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from starlette.applications import Starlette
from starlette.routing import Mount

from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.integrations.monitor import job_monitor
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.manager import BaseJobManager

FAILS = Path(os.environ["CARD_FAILS"])  # When this file is there, the second card fails


class Nvml(ModuleType):
    nvmlInit = nvmlShutdown = lambda self: None

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, index):
        return f"GPU-{index}"

    def nvmlDeviceGetName(self, index):
        return "Look <b>alike</b>"

    def nvmlDeviceGetComputeRunningProcesses(self, index):
        return []

    def nvmlDeviceGetMemoryInfo(self, index):
        if index and FAILS.exists():
            raise OSError("the card has fallen off the bus")
        return SimpleNamespace(total=80 << 30, free=(60 if FAILS.exists() else 20) << 30)


sys.modules["pynvml"] = Nvml("pynvml")
manager = BaseJobManager(
    "cards",
    plugins={"slow": "cjm_worker_ext.commands.demo_plugins:slow"},
    worker_config=WorkerConfig(max_workers=2, gpus="all", shutdown_timeout_seconds=1.0),
    event_broadcaster=SSEBroadcaster(retry_seconds=0.2),
    resource_manager=ProcessResourceManager(interval_seconds=0.2),
)


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        for _ in range(2):
            await manager.submit_job("slow", {"steps": 600})
        yield


app = Starlette(routes=[Mount("/jobs", job_monitor(manager, title="Two cards"))], lifespan=life)
