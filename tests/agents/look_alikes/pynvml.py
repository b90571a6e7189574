"""As much of `pynvml` as an agent uses, for tests: two cards. CARD_FOLDER holds what they are to show.

A file `held 0` keeps the memory of card 0 in use by the process whose id is in it.
"""

import itertools
import os
from pathlib import Path
from types import SimpleNamespace

_rises = itertools.count(1)


def _held(index):
    found = Path(os.environ["CARD_FOLDER"], f"held {index}")
    return int(found.read_text()) if found.exists() else None


def nvmlInit(): ...


def nvmlShutdown(): ...


def nvmlDeviceGetCount():
    return 2


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetUUID(index):
    return f"GPU-{index}"


def nvmlDeviceGetName(index):
    return "Look <b>alike</b>"


def nvmlDeviceGetComputeRunningProcesses(index):
    return [SimpleNamespace(pid=pid, usedGpuMemory=1)] if (pid := _held(index)) else []


def nvmlDeviceGetMemoryInfo(index):
    "Where process ids mean nothing, one waits as long as the free memory rises."
    return SimpleNamespace(total=80 << 30, free=(20 << 30) + (next(_rises) if _held(index) else 0))
