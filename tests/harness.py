"""What the tests of processes share: a loop with a limit, waiting for files and processes, and what the process holds."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

PLUGINS = "plugins_for_tests:"


def run(coroutine, seconds: float = 60.0):
    "Run a test's coroutine; one that hangs is a failure."

    async def limited():
        return await asyncio.wait_for(coroutine, seconds)

    return asyncio.run(limited())


def on_loop(test):
    "Run a test on an event loop; pytest still sees what fixtures it wants."

    @functools.wraps(test)
    def on_new_loop(**fixtures):
        run(test(**fixtures))

    return on_new_loop


def targets(*names: str) -> dict[str, str]:
    return {name: PLUGINS + name for name in names}


async def until(condition: Callable[[], object], seconds: float = 20.0, what: str = "the condition"):
    "Wait until something holds, and return it; the time-out is the failure."
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        await asyncio.sleep(0.005)
    return found


def way_out() -> Callable[[int], NoReturn]:
    """How a child that is forked in a coroutine leaves through its loop: with `SystemExit`.

    From Python 3.14 on a fork makes asyncio forget the running loop and the current task, and a task cannot end in a loop
    that does not run: without a reminder the child would never end.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def leave(code: int) -> NoReturn:
        if sys.version_info >= (3, 14):
            asyncio._set_running_loop(loop)
            asyncio.tasks._enter_task(loop, task)
        raise SystemExit(code)

    return leave


def until_now(condition: Callable[[], object], seconds: float = 20.0, what: str = "the condition"):
    "The same without a loop."
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        time.sleep(0.005)
    return found


def is_alive(pid: int) -> bool:
    "Whether a process runs; one that has ended and was not waited for does not."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def holdings() -> tuple[int, int]:
    "Descriptors and threads of this process."
    gc.collect()
    return descriptors(), threading.active_count()


def waited_for_cores() -> float:
    "Seconds that the threads of this process were ready to run while others had the cores."
    found = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it has ended
            found += int(thread.read_text().split()[1])
    return found / 1e9


class Ticker:
    """Wakes every 10 ms on the loop, and remembers the longest time between two wakes.

    What other work of the machine takes is not in it: time in which a thread of this process waited for a core.
    """

    def __init__(self):
        self.gap = 0.0
        self.busy = 0.0  # The most processor time between two wakes: other work of the machine is not in it

    async def __aenter__(self):
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0.03)
        self.gap = self.busy = 0.0
        return self

    async def _tick(self):
        last, used, waited = time.monotonic(), time.thread_time(), waited_for_cores()
        while True:
            await asyncio.sleep(0.01)
            now, now_used, now_waited = time.monotonic(), time.thread_time(), waited_for_cores()
            self.gap = max(self.gap, now - last - 0.01 - max(0.0, now_waited - waited))
            self.busy = max(self.busy, now_used - used)
            last, used, waited = time.monotonic(), now_used, now_waited

    async def __aexit__(self, *exc_info):
        await asyncio.sleep(0.02)
        self._task.cancel()
