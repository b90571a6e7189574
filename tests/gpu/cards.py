"""What the tests on a real card share: whether there is one, its figures, and managers for it."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from cjm_worker_ext import BaseJobManager, WorkerConfig

PLUGINS = ("touch", "poison", "swallow_everything", "hold", "tensor", "which_card", "OneByOne", "Batched")


def what_is_missing() -> str:  # Empty: the tests can run
    "Say why there is nothing to test on here."
    for module, package in (("torch", "torch"), ("pynvml", "nvidia-ml-py")):
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed"
    import torch

    return "" if torch.cuda.is_available() else "torch finds no NVIDIA card"


class Card:
    "The first card, as NVML sees it: another process's view, with no CUDA context of its own."

    def __init__(self) -> None:
        import pynvml

        self.nvml: Any = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        found = pynvml.nvmlDeviceGetName(self._handle)
        self.name = found if isinstance(found, str) else found.decode()
        found = pynvml.nvmlDeviceGetUUID(self._handle)
        self.uuid = found if isinstance(found, str) else found.decode()
        self.total = int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    def free(self) -> int:  # Bytes
        return int(self.nvml.nvmlDeviceGetMemoryInfo(self._handle).free)

    def close(self) -> None:
        self.nvml.nvmlShutdown()


def make(events=None, resources=None, **config) -> BaseJobManager:
    # jax would take three quarters of the card for itself
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TOKENIZERS_PARALLELISM": "false"}
    settings = WorkerConfig(environment=environment, **{"cancel_grace_seconds": 0.05, **config})
    plugins = {name: f"plugins_on_cards:{name}" for name in PLUGINS}
    return BaseJobManager(
        "card", plugins=plugins, worker_config=settings, event_broadcaster=events, resource_manager=resources
    )


async def ended(manager, plugin_id, /, seconds: float = 60, **params):
    return await manager.wait((await manager.start_job(plugin_id, **params)).id, seconds)


def tell(text: str) -> None:
    "A figure for the one who runs these tests with `-s`."
    print(f"\n  [card] {text}", flush=True)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def processors() -> int:
    return len(os.sched_getaffinity(0))
