"""Plugins whose results the driver can compute itself, and bad ones that `plugins_for_tests` does not have."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import time

from cjm_worker_ext.plugins import current_context


def mix(seed: int):
    "A small nested result."
    dice = random.Random(seed)
    words = [f"{dice.randrange(1 << 40):x}" for _ in range(dice.randrange(1, 20))]
    return {"seed": seed, "words": words, "pairs": [(n, dice.random()) for n in range(5)], "raw": dice.randbytes(100)}


def block(seed: int, size: int) -> bytes:
    "Bytes; from 1 MiB on they cross in shared memory."
    start = hashlib.sha256(str(seed).encode()).digest()
    return (start * (size // len(start) + 1))[:size]


def array(seed: int, size: int):
    "An array, which the app maps instead of copying it."
    import numpy as np

    return np.arange(seed, seed + size, dtype=np.int64)


def verses(seed: int, count: int, pad: int = 0, pause: float = 0.0):
    "A stream whose result is the list of its chunks."
    for n in range(count):
        yield f"{seed}:{n}:" + "x" * pad
        if pause:
            time.sleep(pause)


class Configured:
    "Says with which configuration it was loaded."

    def load(self, config):
        self.generation = config.get("generation")

    def execute(self):
        return self.generation


class SlowUnload:
    "Takes its time to load and to unload."

    def load(self, config):
        time.sleep(0.05)

    def execute(self, seed: int) -> int:
        return seed * 7

    def unload(self):
        time.sleep(0.05)


def leave_children(count: int, mark: str) -> int:
    "Start processes that nobody waits for; `mark` is how the driver finds them."
    for _ in range(count):
        subprocess.Popen(["sleep", mark])
    return count


def hang_with_child(mark: str) -> None:
    subprocess.Popen(["sleep", mark])
    time.sleep(3600)


# ---------------------------------------------------------------- several jobs on one worker


class Together:
    "An async plugin; what a job does comes with it."

    max_concurrency = 6

    async def load(self, config):
        self.heart = asyncio.create_task(self.beat())

    async def unload(self):
        self.heart.cancel()
        await asyncio.sleep(0.01)

    async def beat(self):
        while True:  # noqa: ASYNC110  - it is there to turn the loop
            await asyncio.sleep(0.01)

    async def execute(self, seed: int, how: str = "", ctx=None):
        dice = random.Random(seed)
        for n in range(dice.randrange(4)):
            await asyncio.sleep(dice.random() * 0.01)
            ctx.progress(n / 4)
        if current_context().job_id != ctx.job_id:
            raise AssertionError("it is in the context of another job")
        if how:
            await getattr(self, how)()
        return seed * 3

    async def fail(self):
        raise ValueError("as asked")

    async def crash(self):
        os.kill(os.getpid(), signal.SIGKILL)

    async def sleep(self):
        await asyncio.sleep(3600)

    async def hear_nothing(self):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    async def stop_the_loop(self):
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)

    async def take_signals(self):
        signal.signal(signal.SIGURG, signal.SIG_DFL)
        os.chdir("/")

    async def leave_a_task(self):
        asyncio.create_task(asyncio.sleep(0.05))  # noqa: RUF006  - the very point


async def async_verses(seed: int, count: int, pad: int = 0, pause: float = 0.0):
    "The same chunks as `verses`."
    for n in range(count):
        yield f"{seed}:{n}:" + "x" * pad
        if pause:
            await asyncio.sleep(pause)


class Batched:
    "Batches; what goes wrong for a job comes with it."

    max_batch_size = 4
    batch_wait_seconds = 0.003

    def execute_batch(self, batch, contexts):
        for context in contexts:
            context.progress(0.5)
        time.sleep(0.001 * len(batch))
        for params in batch:
            if params.get("how") == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if params.get("how") == "sleep":
                time.sleep(3600)
            while params.get("how") == "hear_nothing":
                try:
                    time.sleep(3600)
                except BaseException:  # noqa: BLE001, S110  - the very point
                    pass
        return [ValueError("as asked") if p.get("how") == "fail" else p["seed"] * 5 for p in batch]
