"""Plugins that behave well: whatever is done to their jobs, their worker is as good as before."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from cjm_worker_ext.plugins import current_context

log = logging.getLogger("healthy")


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def count(times: int) -> int:
    "Busy in Python."
    return sum(n % 7 for n in range(times))


def talk(times: int) -> int:
    "Prints, logs and reports all the time."
    for n in range(times):
        print("line", n)
        log.info("record %s", "x" * (n % 5000))
        current_context().progress(n / times, f"step {n}")
    return times


def data(size: int) -> bytes:
    return os.urandom(16) * (size // 16)


def numbers(size: int) -> Any:
    import numpy as np

    return np.arange(size)


def chunks(times: int, size: int):
    for n in range(times):
        yield bytes(size) + bytes([n % 256])


def length(value: Any) -> int:
    return len(value)


async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


nap.max_concurrency = 8


async def steps(times: int):
    for n in range(times):
        yield n
        await asyncio.sleep(0)


class Batched:
    max_batch_size = 4
    batch_wait_seconds = 0.001

    def execute_batch(self, batch):
        time.sleep(max(params["seconds"] for params in batch))
        return [params["seconds"] for params in batch]
