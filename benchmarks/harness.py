"""Runs works against peers in interleaved rounds, each in a fresh process with a time limit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
POOLS = ("executor", "pebble", "loky", "mpire", "anyio")
SERVICES = ("dask", "ray", "celery")
RAW = ("socket", "pipe")
ALL = ("ours", *RAW, *POOLS, *SERVICES)
STREAMS = ("ours-redis", "transport", "plain", "sse-starlette", "sse-bytes")  # of events over HTTP; see w11_sse
OURS_DURABLE = ("ours-behind", "ours-sqlite", "ours-sqlite-fsync", "ours-postgres")
DURABLE = ("huey", "saq-redis", "celery-redis", "huey-fsync", "saq-redis-fsync", "celery-redis-fsync")
DURABLE_POSTGRES = ("saq-postgres", "procrastinate", "pgqueuer")
KEEPING = ("ours", *OURS_DURABLE, *DURABLE, *DURABLE_POSTGRES)  # ours without a store is what is compared with
MODELS = ("litserve", "ray-serve", "ray-http", "mlserver")  # servers of a model; see w15_users
HELPED = ("ours-http", "asyncio")  # beside them: ours behind HTTP too, and the model in a thread of the app
PEERS = tuple(dict.fromkeys((*ALL, *STREAMS, *KEEPING, *HELPED, *MODELS)))
# work: its peers, whether it runs pinned to one core too, rounds, seconds that one measurement may take
WORKS: dict[str, tuple[tuple[str, ...], bool, int, int]] = {
    "W1": (ALL, True, 5, 60),
    "W2": (ALL, False, 5, 90),
    "W3": (ALL, False, 3, 90),
    "W4": (ALL, False, 5, 40),
    "W4-heavy": (("ours", "executor", "pebble", "loky", "mpire", "anyio"), False, 3, 40),
    "W5-python": (("ours", "socket", "pebble", "anyio", "ray", "celery"), False, 3, 90),
    "W5-stuck": (("ours", "socket", "pebble", "anyio", "ray", "celery"), False, 3, 90),
    "W6": (("ours", "socket", *POOLS, *SERVICES), False, 3, 60),
    "W7": (ALL, False, 2, 60),
    "W8": (("ours", *RAW, "executor", "ray"), False, 5, 40),
    "W9": (ALL, False, 2, 40),
    "W10": (("ours", "executor"), False, 1, 400),
    "W10-pending": (("ours", "executor"), False, 1, 400),
    "W10-workers": (("ours",), False, 2, 120),
    "W10-plugins": (("ours",), False, 2, 60),
    "W11-1": (("ours", *STREAMS), False, 4, 40),
    "W11-100": (("ours", *STREAMS), False, 4, 40),
    "W11-500": (("ours", *STREAMS), False, 4, 60),
    "W11-2000": (("ours", *STREAMS), False, 3, 90),
    "W12": (("ours",), True, 3, 60),
    "W13-1": (KEEPING, False, 3, 90),
    "W13-2": (KEEPING, False, 3, 90),
    "W13-old": (OURS_DURABLE[1:], False, 1, 900),
    "W14": (("ours",), False, 3, 120),
    "W15-users": (("ours", *HELPED, *MODELS), False, 3, 120),
    "W15-async": (("ours", *HELPED, *MODELS), False, 3, 90),
    "W16": (("ours", "executor", "ray"), False, 3, 90),
    "W17-redis": (("ours",), False, 3, 90),
    "W17-sqlite": (("ours",), False, 3, 90),
    "W17-postgres": (("ours",), False, 3, 90),
    "import": (("ours",), False, 1, 180),
}
PACKAGES = (
    *("cjm-worker-ext", "pebble", "loky", "mpire", "anyio", "distributed", "ray", "celery", "redis", "numpy"),
    *("sse-starlette", "starlette", "uvicorn", "uvloop", "httptools", "litserve"),
    *("huey", "saq", "procrastinate", "pgqueuer", "asyncpg", "psycopg"),
)


def machine() -> dict[str, Any]:
    "What was measured on what."
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next((li.partition(":")[2].strip() for li in info.read_text().splitlines() if "model name" in li), cpu)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
    }


def idlest_core() -> str:
    "The core that has least to do just now; other work on the machine disturbs a pinned pair least there."
    if not hasattr(os, "sched_getaffinity"):
        return "any"

    def idle() -> dict[int, int]:
        lines = Path("/proc/stat").read_text().splitlines()
        rows = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
        return {int(row[0][3:]): int(row[4]) for row in rows}

    before = idle()
    time.sleep(0.2)
    after = idle()
    return str(max(os.sched_getaffinity(0), key=lambda core: after.get(core, 0) - before.get(core, 0)))


def measure(work: str, peer: str, pinned: bool, quick: bool, limit: int) -> dict[str, Any]:
    """Run one measurement; what hangs is killed with all that it started, and reported as such.

    A peer may be written `name@folder`: then the package is taken from that folder, to compare two states of it.
    """
    name, _, folder = peer.partition("@")
    module = "benchmarks.heavy" if work == "W4-heavy" else "benchmarks.one"
    path = os.pathsep.join(filter(None, [folder, str(HERE), os.environ.get("PYTHONPATH", "")]))
    command = [
        sys.executable,
        "-P",
        "-m",
        module,
        work,
        name,
        idlest_core() if pinned else "any",
        "quick" if quick else "full",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=limit)
        outcome: dict[str, Any] = json.loads(out.strip().rpartition("\n")[2])
    except subprocess.TimeoutExpired:
        outcome = {"error": f"hung: no figures within {limit} s"}
    except ValueError:
        outcome = {"error": "ended without figures"}
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            pass
        process.wait()
    return {"work": work, "peer": peer, "pinned": pinned, **outcome}


def works_named(names: list[str] | None) -> list[str]:
    "The works meant: a name, or what several begin with (W11 is all W11-…); None is all, and what is unknown stays."
    if names is None:
        return list(WORKS)
    family = {name: [work for work in WORKS if work.startswith(f"{name}-")] for name in names if name not in WORKS}
    return [work for name in names for work in family.get(name) or [name]]


def measurements(works: list[str], peers: list[str], rounds: int | None, quick: bool) -> Iterator[dict[str, Any]]:
    "All measurements of a run: in each round every peer once, beginning with another one each time."
    for work in works:
        able, also_pinned, usual, limit = WORKS[work]
        chosen = [peer for peer in peers if peer.partition("@")[0] in able]
        count = rounds or (1 if quick else usual)
        broken: set[tuple[str, bool]] = set()
        for number in range(count):
            for peer in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                for pinned in (True, False) if also_pinned else (False,):
                    if (peer, pinned) in broken:
                        continue
                    outcome = measure(work, peer, pinned, quick, limit)
                    if "figures" not in outcome:
                        broken.add((peer, pinned))  # once is enough to know
                    yield {"round": number, **outcome}


def summary(records: list[dict[str, Any]]) -> dict[tuple[str, bool], dict[str, dict[str, float] | str]]:
    """Medians over the rounds: {(work, pinned): {peer: {figure: value} or why there is none}}.

    A figure that a work names `mode/figure` stands under `work-mode`.
    """
    table: dict[tuple[str, bool], dict[str, Any]] = defaultdict(dict)
    values: dict[tuple[str, bool, str, str], list[float]] = defaultdict(list)
    for r in records:
        key = (r["work"], r["pinned"])
        if "figures" not in r:
            table[key].setdefault(r["peer"], r.get("cannot") or r.get("error"))
            continue
        for name, value in r["figures"].items():
            mode, _, figure = name.rpartition("/")
            values["-".join(filter(None, (r["work"], mode))), r["pinned"], r["peer"], figure].append(value)
    for (work, pinned, peer, figure), found in values.items():
        row = table[work, pinned].get(peer)
        if not isinstance(row, dict):
            row = table[work, pinned][peer] = {}
        row[figure] = statistics.median(found)
    return dict(table)


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_markdown(records: list[dict[str, Any]]) -> str:
    "One table for each work; in brackets the ratio to ours."
    parts = []
    for (work, pinned), rows in summary(records).items():
        figures = list(dict.fromkeys(f for row in rows.values() if isinstance(row, dict) for f in row))
        if not figures:
            continue
        parts.append(f"### {work}{', pinned to one core' if pinned else ''}\n")
        parts.append("| peer | " + " | ".join(figures) + " |")
        parts.append("|---" * (len(figures) + 1) + "|")
        ours = next((row for peer, row in rows.items() if peer.startswith("ours") and isinstance(row, dict)), {})
        for peer, row in rows.items():
            if isinstance(row, str):
                parts.append(f"| {peer} | {row} |" + " |" * (len(figures) - 1))
                continue
            cells = []
            for figure in figures:
                value, own = row.get(figure), ours.get(figure) if isinstance(ours, dict) else None
                ratio = f" ({value / own:.2g})" if value is not None and own and row is not ours else ""
                cells.append("–" if value is None else shown(value) + ratio)
            parts.append(f"| {peer} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)
