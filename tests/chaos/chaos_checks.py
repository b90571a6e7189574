"""What must hold at the end of a round, whatever happened: of events, of pids, of what is left, and of the log."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from chaos_integrations import ENDS, STATE_KEYWORDS, Harm
from chaos_jobs import JobLife
from harness import is_alive


def check_sequence(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    "Every event has its number, and none is missing between two others."
    found = [data["seq"] for _, data in events]
    if found == list(range(1, len(found) + 1)):
        return []
    wrong = next(n for n, seq in enumerate(found) if seq != n + 1)
    return [f"the sequence of events breaks at {wrong}: {found[max(0, wrong - 2) : wrong + 3]}"]


class JobEventsCheck:
    "The events of one job: the order of its life, one end, and chunks that are whole and right."

    def __init__(self, job_id: str):
        self.job_id = job_id
        self.kinds: list[str] = []
        self.position = 0  # Of the next chunk
        self.progress = 0.0
        self.problems: list[str] = []
        self.end: tuple[str, dict[str, Any]] | None = None

    def add(self, kind: str, data: dict[str, Any], chunks: list[Any]) -> None:
        if self.end is not None:
            self.problems.append(f"{kind} came after {self.end[0]}")
        if not self.kinds and kind != "job:queued":
            self.problems.append(f"{kind} came first")
        if kind in ("job:chunk", "job:progress") and "job:started" not in self.kinds:
            self.problems.append(f"{kind} came before job:started")
        if kind == "job:queued" and kind in self.kinds:
            self.problems.append("it was queued twice")
        if kind == "job:chunk":
            self._add_chunks(data, chunks)
        if kind == "job:progress":
            if data["progress"] < self.progress:
                self.problems.append(f"its progress went from {self.progress} to {data['progress']}")
            self.progress = data["progress"]
        if kind in ENDS:
            self.end = kind, data
        self.kinds.append(kind)

    def _add_chunks(self, data: dict[str, Any], expected: list[Any]) -> None:
        first, found = data["index"], data["chunks"]
        if first != self.position + data.get("dropped", 0):
            self.problems.append(f"chunk {first} came after {self.position}, and {data.get('dropped', 0)} were dropped")
        if any(one not in (other, "…") for one, other in zip(found, expected[first:], strict=False)):
            self.problems.append(f"its event of chunk {first} has other content")
        self.position = first + len(found)
        if self.position > len(expected):
            self.problems.append(f"it has {self.position} chunks, and yields {len(expected)}")

    def finish(self, life: JobLife) -> list[str]:
        "Compare with the job itself."
        job = life.job
        if self.end is None:
            self.problems.append("no event of its end")
        elif self.end[0] != f"job:{job.status}" or self.end[1]["error_type"] != job.error_type:
            self.problems.append(f"its end was told as {self.end}")
        told = "job:started" in self.kinds
        # its worker was gone before it began, and then it ended while it waited for another one
        waited_again = told and job.started_at is None and job.attempts == 0 and job.status != "completed"
        if told != (job.started_at is not None) and not waited_again:
            self.problems.append(f"started_at is {job.started_at}, and the events are {self.kinds}")
        if life.end == "completed" and self.position != len(life.chunks):
            self.problems.append(f"its events have {self.position} of {len(life.chunks)} chunks")
        return [f"job {self.job_id} ({life.plan}): {problem}" for problem in self.problems]


def check_job_events(
    events: list[tuple[str, dict[str, Any]]],
    lives: dict[str, JobLife],
    is_whole: bool,  # False if the manager gave up a broadcaster that hangs: then events at the end are missing
) -> list[str]:
    checks: dict[str, JobEventsCheck] = {}
    for kind, data in events:
        if kind.startswith("job:"):
            job_id = data["job_id"]
            chunks = lives[job_id].chunks if job_id in lives else []
            checks.setdefault(job_id, JobEventsCheck(job_id)).add(kind, data, chunks)
    problems = [f"there are events of job {job_id}, which nobody has" for job_id in checks.keys() - lives.keys()]
    for job_id, life in lives.items():
        check = checks.get(job_id, JobEventsCheck(job_id))
        problems += check.finish(life) if is_whole else check.problems
    return problems


def check_pids(
    calls: list[tuple[str, int]],  # `register`, `unregister` or something between, and the pid
    what: str,
    is_whole: bool,
) -> list[str]:
    "Every pid begins and ends exactly once; the system may use it again after its end."
    living: set[int] = set()
    problems = []
    for call, pid in calls:
        if (call == "register") == (pid in living):
            problems.append(f"{what}: {call} of worker {pid}, which is {'known' if pid in living else 'not known'}")
        if call == "register":
            living.add(pid)
        if call == "unregister":
            living.discard(pid)
    if living and is_whole:
        problems.append(f"{what}: the end of {sorted(living)} was never told")
    return problems


def check_states(calls: list[tuple[str, int, dict[str, Any]]]) -> list[str]:
    odd = {key for _, _, state in calls for key in state} - STATE_KEYWORDS
    return [f"the resource manager got {sorted(odd)}"] if odd else []


WORKER_EVENTS = {"worker:started": "register", "worker:crashed": "unregister", "worker:stopped": "unregister"}


def worker_calls(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, int]]:
    return [(WORKER_EVENTS.get(kind, "update"), data["pid"]) for kind, data in events if kind.startswith("worker:")]


class Holdings:
    "What this process holds: descriptors, threads, tasks, children, shared memory."

    def __init__(self):
        gc.collect()
        self.descriptors = Counter(map(self._kind, os.listdir("/proc/self/fd")))
        self.threads = Counter(thread.name for thread in threading.enumerate())
        self.tasks = Counter(str(task.get_coro()) for task in asyncio.all_tasks())
        self.children = Counter(p.read_text() for p in Path("/proc/self/task").glob("*/children"))
        self.memory = Counter(line.split()[-1] for line in open("/proc/self/maps") if "cjm-worker" in line)

    @staticmethod
    def _kind(number: str) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{number}").partition(":[")[0]
        except OSError:  # the one of the listing itself
            return "listing"

    def beyond(self, before: Holdings) -> list[str]:
        "One sentence for each kind of thing that there is more of than before."
        names = ("descriptors", "threads", "tasks", "children", "memory")
        more = {name: dict(getattr(self, name) - getattr(before, name)) for name in names}
        return [f"left behind: {name} {found}" for name, found in more.items() if found]


def processes_with(mark: str) -> list[int]:
    "Processes whose last argument is `mark`."
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if mark.encode() in arguments and is_alive(int(path.parent.name)):
            found.append(int(path.parent.name))
    return found


class Memory:
    "What the process takes when nothing is under way."

    GROWTH = 40 << 20  # Bytes; some that is free does not go back to the system
    MORE_BLOCKS = (
        3000  # Blocks of Python's own memory: a job that is kept has 20 at least, and a round has a hundred jobs
    )
    MMAP_THRESHOLD = -3  # Of the C library's `mallopt`

    def __init__(self):
        self.resident: list[int] = []  # Bytes after each round
        self.blocks: list[int] = []
        self._libc = ctypes.CDLL(None)
        with contextlib.suppress(AttributeError):  # a C library without it
            # else each thread's arena keeps up to 64 MiB of what is free
            self._libc.mallopt(self.MMAP_THRESHOLD, 1 << 18)

    def measure(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError):
            self._libc.malloc_trim(0)
        self.resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        self.blocks.append(sys.getallocatedblocks())

    def problems(self) -> list[str]:
        "The first rounds may still fill caches."
        found = []
        if len(self.blocks) > 2 and min(self.blocks[-2:]) > self.blocks[0] + self.MORE_BLOCKS:
            found.append(f"memory has grown, in blocks of Python after each round: {self.blocks}")
        if len(self.resident) > 3 and min(self.resident[-2:]) > max(self.resident[1:3]) + self.GROWTH:
            found.append(f"memory has grown, in MiB after each round: {[size >> 20 for size in self.resident]}")
        return found


class LogCheck(logging.Handler):
    "Looks for exceptions that nobody raised on purpose: in the log, in threads, on the loop, and where nobody can catch them."

    def __init__(self, problems: list[str]):
        super().__init__()
        self.problems, self.logger = problems, logging.getLogger("cjm_worker_ext")

    def __enter__(self):
        gc.collect()  # what earlier tests have left is not ours
        self.before = sys.unraisablehook, threading.excepthook, self.logger.propagate
        self.logger.addHandler(self)
        sys.unraisablehook, threading.excepthook, self.logger.propagate = self.unraisable, self.in_thread, False
        asyncio.get_running_loop().set_exception_handler(self.on_loop)

    def __exit__(self, *exc_info):
        self.logger.removeHandler(self)
        sys.unraisablehook, threading.excepthook, self.logger.propagate = self.before

    def emit(self, record: logging.LogRecord) -> None:
        error, text = record.exc_info[1] if record.exc_info else None, record.getMessage()
        is_patience = isinstance(error, TimeoutError) and "plugin_registry" in text  # with a registry that hangs
        if error is not None and not isinstance(error, Harm) and not is_patience:
            self.problems.append(f"in the log: {text}: {error!r}")

    def unraisable(self, found: Any) -> None:
        self.problems.append(f"an exception that nobody could catch: {found.exc_value!r} in {found.object!r}")

    def in_thread(self, found: threading.ExceptHookArgs) -> None:
        self.problems.append(f"an exception ended a thread: {found.exc_value!r} in {found.thread}")

    def on_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(f"on the event loop: {context.get('message')}: {context.get('exception')!r}")
