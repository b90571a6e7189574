"""What the tests of processes share: a loop with a limit, waiting for files and processes, and what the process holds."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

PLUGINS = "plugins_for_tests:"


def run(coroutine, seconds: float = 300.0):
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


async def until(condition: Callable[[], object], seconds: float = 120.0, what: str = "the condition"):
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


def until_now(condition: Callable[[], object], seconds: float = 120.0, what: str = "the condition"):
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


class Rest:
    """How long a process and all that it has started slept at once: what is left of a time that a busy machine makes longer.

    Time in which one of their threads runs, or is ready to run while others have the cores, does not count. Where the
    system does not tell it (macOS), all time counts.
    """

    def __init__(self, *pids: int):
        self.seconds = 0.0
        self._pids, self._before = pids, dict[Path, int]()
        self._began, self._worked = time.monotonic(), 0
        self.look()
        self.seconds = 0.0

    def look(self) -> float:
        "Count what has passed since the last look; looks come often, since of a process that has ended nothing is known."
        at_work = False
        for pid in family(self._pids):
            for thread in Path(f"/proc/{pid}/task").glob("*"):
                with contextlib.suppress(OSError):  # it has ended
                    at_work |= (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
                    now = sum(map(int, (thread / "schedstat").read_text().split()[:2]))
                    self._worked += now - self._before.get(thread, 0)
                    self._before[thread] = now
        if not at_work:  # else the time for which it waits for a core now is not known yet
            passed, worked = time.monotonic() - self._began, self._worked / 1e9
            self._began, self._worked = time.monotonic(), 0
            self.seconds += max(0.0, passed - worked)
        return self.seconds


def family(pids: Iterable[int]) -> set[int]:
    "Processes, and those that they have started."
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, left = set(pids), True
    while left:
        left = {pid for pid, parent in parents.items() if parent in found} - found
        found |= left
    return found


def end_of(app: subprocess.Popen, rest_seconds: float) -> tuple[str, str]:
    "Wait for the end of a program, which may not rest longer than that; what it has written."
    rest = Rest(app.pid)
    with contextlib.suppress(ProcessLookupError):
        while True:
            try:
                return app.communicate(timeout=0.02)
            except subprocess.TimeoutExpired:
                if rest.look() > rest_seconds:
                    break
        os.killpg(app.pid, signal.SIGKILL) if os.getpgid(app.pid) == app.pid else app.kill()
    app.communicate()
    raise AssertionError(f"the program has not ended, and has rested for {rest_seconds:g} s")


def are_gone(pids: Iterable[int], rest_seconds: float) -> None:
    "Wait for the end of processes, which may not rest longer than that."
    pids = list(pids)
    rest = Rest(*pids)
    while left := [pid for pid in pids if is_alive(pid)]:
        if rest.look() > rest_seconds:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(
                f"{len(left)} of {len(pids)} processes are left, and have rested for {rest_seconds:g} s"
            )
        time.sleep(0.005)


async def time_is_up(manager, job) -> None:
    """Let the timeout of a running job be over: a test waits for what is to come before, and not for a moment.

    The plugin may have begun before the app knows of it: then the timeout is waited for.
    """
    timers, number = manager._engine.timers, manager._engine.jobs.find(job).task.number
    await until(lambda: timers.clear("timeout", number), what="the timeout of the job")
    timers.set("timeout", number, 0.0)


def let_pass(seconds: float) -> None:
    "Put the clock of the running event loop forward: what is due until then is due now, and the limit of `run` comes nearer."
    loop = asyncio.get_running_loop()
    usual = loop.time
    loop.time = lambda: usual() + seconds


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
