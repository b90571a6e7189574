"""Plugins whose results the driver can compute itself, and bad ones that `plugins_for_tests` does not have."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time


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
