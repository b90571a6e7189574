"""The bad days: what becomes of the jobs and processes of each library when one job goes wrong.

`python -m benchmarks failures` writes `failures.md`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.failure_scene import SECONDS

HERE = Path(__file__).resolve().parent.parent
MARK = "BENCHMARK_FAILURES"  # An environment variable: it names the processes that belong to one day


class Scene(NamedTuple):
    title: str  # What goes wrong
    task: str  # Of `benchmarks.tasks`
    end: str  # How: see `failure_scene.Day.live`


SCENES = {
    "killed": Scene("The worker is killed from outside (SIGKILL)", "patient", "kill"),
    "memory": Scene("The kernel kills the worker for want of memory (simulated: SIGKILL)", "kill_itself", "go"),
    "segfault": Scene("Native code crashes (a real segmentation fault)", "segfault", "go"),
    "exit": Scene("The job calls `os._exit(3)`", "exit_at_once", "go"),
    "sysexit": Scene("The job calls `sys.exit(3)`", "system_exit", "go"),
    "cancel": Scene("Native code keeps the interpreter lock, and the app cancels the job", "hold_lock", "cancel"),
    "timeout": Scene("Native code keeps the interpreter lock, and the job has a limit of 3 s", "hold_lock", "timeout"),
    "result": Scene("The result cannot be pickled (a lock)", "return_lock", "go"),
    "exception": Scene("The exception can be pickled and not unpickled", "raise_unreadable", "go"),
    "child": Scene("The job starts a process and returns without it", "leave_child", "go"),
    "child-killed": Scene("The job starts a process, then its worker is killed", "die_with_child", "go"),
    "app": Scene(
        "The app is killed (SIGKILL) while two jobs run, one of them with the interpreter lock", "hold_lock", "app"
    ),
}
NAMES = {
    "ours": ("cjm-worker-ext", "cjm-worker-ext"),
    "executor": ("ProcessPoolExecutor", None),
    "pool": ("multiprocessing.Pool", None),
    "pebble": ("pebble", "pebble"),
    "loky": ("loky", "loky"),
    "mpire": ("mpire", "mpire"),
    "billiard": ("billiard", "billiard"),
    "celery": ("Celery with Redis", "celery"),
}
# What is observed, and how long that may take; the scene itself keeps the limit where it can
PARTS = {"begun": 90, **dict.fromkeys(("bad", "running", "queued", "new", "close"), SECONDS + 5)}
JOBS = ("bad", "running", "queued", "new")
HEADS = ("bad job", "innocent running job", "innocent queued job", "new job", "what is left")


def missing(peer: str) -> str | None:
    "Why a peer cannot be tried here; None if it can."
    package = NAMES[peer][1]
    if package is not None and peer != "ours":
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"not tried: {package} is not installed here"
    if peer == "celery" and shutil.which("redis-server") is None:
        return "not tried: redis-server is not installed here"
    return None


# one day


def of_the_day(mark: str, app: int) -> dict[int, str]:
    "The processes that a day has started and that have not ended, with their command lines."
    wanted, found = f"{MARK}={mark}".encode(), dict[int, str]()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (entry / "stat").read_text().rpartition(") ")[2].split()[:4]
            # Redis writes its title over its environment, but stays in the app's session
            if state not in "ZX" and (int(session) == app or wanted in (entry / "environ").read_bytes().split(b"\0")):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def observe(scene: str, peer: str) -> dict[str, str]:
    "Live through one day, and say what was seen; every process of it is ended."
    if reason := missing(peer):
        return {"missing": reason}
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "benchmarks.failure_scene", scene, peer, folder]
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        with open(f"{folder}/log", "wb") as log:
            app = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, MARK: mark},
            )  # fmt: skip
        try:
            found = _watch(app, scene, folder, mark)
        finally:
            for pid in of_the_day(mark, app.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            app.wait()
        if "begun" not in found or "error" in found:
            found["log"] = Path(f"{folder}/log").read_text(errors="replace")[-2000:]
    return found


def _watch(app: subprocess.Popen[bytes], scene: str, folder: str, mark: str) -> dict[str, str]:
    observed = Path(folder) / "observed"

    def so_far() -> dict[str, str]:
        return dict(map(json.loads, observed.read_text().splitlines())) if observed.exists() else {}

    if SCENES[scene].end == "app":
        _until(lambda: "begun" in so_far() or app.poll() is not None, 60)
        app.kill()
        app.wait()
        return {**so_far(), "left": _left(mark, app.pid)}

    def is_there(part: str) -> bool:
        return part in so_far() or app.poll() is not None

    # one after the other: a day that hangs does not wait for the time of all
    all(_until(lambda part=part: is_there(part), seconds) for part, seconds in PARTS.items())
    _until(lambda: app.poll() is not None, SECONDS)
    found = so_far()
    if "begun" in found:
        for part in PARTS:
            found.setdefault(part, "hangs" if app.poll() is None else "the app has ended")
    words = [f"closing {found['close']}"] if found.get("close", "ok") != "ok" else []
    words += ["the app does not exit"] if app.poll() is None and not words else []
    return {**found, "left": "; ".join([_left(mark, app.pid), *words])}


def _until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found)


def _left(mark: str, app: int) -> str:
    "What is left of the day, without the app, once it had time to go."
    _until(lambda: not of_the_day(mark, app).keys() - {app}, SECONDS)
    lines = [line for pid, line in of_the_day(mark, app).items() if pid != app]
    kinds = [
        ("child of the job", "children of the job", lambda line: line.startswith("sleep 120")),
        ("broker", "brokers", lambda line: "redis-server" in line),
        ("helper", "helpers", lambda line: "resource_tracker" in line),
    ]
    words, rest = list[str](), lines
    for one, several, is_one in kinds:
        count, rest = len([line for line in rest if is_one(line)]), [line for line in rest if not is_one(line)]
        words += [f"{count} {one if count == 1 else several}"] if count else []
    words[:0] = [f"{len(rest)} worker{'s' if len(rest) > 1 else ''}"] if rest else []
    return ", ".join(words) or "nothing"


# the table


def observations(
    scenes: Sequence[str], peers: Sequence[str], at_once: int
) -> Iterator[tuple[str, str, dict[str, str]]]:
    days = [(scene, peer) for scene in scenes for peer in peers]
    with ThreadPoolExecutor(at_once) as threads:
        for (scene, peer), found in zip(days, threads.map(lambda day: observe(*day), days), strict=True):
            yield scene, peer, found


def versions(peers: Sequence[str]) -> str:
    texts = [f"Python {platform.python_version()} on {platform.system()} {platform.release()}"]
    for peer in peers:
        package = NAMES[peer][1]
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            texts += [f"{package} {importlib.metadata.version(package)}"] if package and peer != "ours" else []
    if "celery" in peers and (server := shutil.which("redis-server")):
        shown = subprocess.run([server, "--version"], capture_output=True, text=True).stdout
        texts.append(f"Redis {shown.partition('v=')[2].partition(' ')[0]}")
    return ", ".join(texts)


def cells(scene: str, found: dict[str, str]) -> list[str]:
    if "missing" in found:
        return [found["missing"], "", "", "", ""]
    if "begun" not in found:
        return ["the day could not begin", "", "", "", ""]
    if SCENES[scene].end == "app":
        return ["–", "–", "–", "–", found["left"]]
    return [*(found[part] for part in JOBS), found["left"]]


def as_markdown(records: dict[tuple[str, str], dict[str, str]]) -> str:
    peers = list(dict.fromkeys(peer for _, peer in records))
    parts = []
    for scene in dict.fromkeys(scene for scene, _ in records):
        parts.append(f"## {SCENES[scene].title}\n")
        parts.append("| | " + " | ".join(HEADS) + " |")
        parts.append("| --- " * (len(HEADS) + 1) + "|")
        for peer in peers:
            parts.append(f"| {NAMES[peer][0]} | " + " | ".join(cells(scene, records[scene, peer])) + " |")
        parts.append("")
    return "\n".join(parts)


INTRODUCTION = """# Bad days

Made by `python -m benchmarks failures` on {date}: {versions}.

Each row is one run, in processes of its own. The app has two workers. A job that will go wrong and an innocent job run at
the same time, and a second innocent job waits for a worker. Then the first job goes wrong. Afterwards the app starts a new
job, closes the workers in the way that waits least for running jobs, and exits.

- Each observation has a limit of {seconds:g} seconds. *hangs* means that nothing had come by then.
- The last column counts the processes that are there {seconds:g} seconds later. A helper is a resource tracker, which Python
  or loky starts beside the workers. A child is a process that the bad job has started.
- Settings are the defaults of each library. Limits of a job's time are enabled for billiard. Libraries that let the app
  choose use the start method `spawn`; billiard and Celery fork.
- Celery's worker and broker are services. They outlive an app on purpose.
- A kill by the kernel for want of memory is simulated: the job sends the same signal to its own process.
"""


def report(records: dict[tuple[str, str], dict[str, str]]) -> str:
    peers = list(dict.fromkeys(peer for _, peer in records))
    date = time.strftime("%Y-%m-%d", time.gmtime())
    head = INTRODUCTION.format(date=date, versions=versions(peers), seconds=SECONDS)
    return f"{head}\n{as_markdown(records)}".rstrip() + "\n"
