"What the soak runs: a plugin that never gives memory back."

from __future__ import annotations

import time

KEPT = []


def leak(number: int, kib: int, seconds: float) -> int:
    "Keep some memory for ever, and return a number that can be checked."
    KEPT.append(bytes([number % 255 + 1]) * (kib << 10))  # written to, so it is resident
    time.sleep(seconds)
    return number * 3
