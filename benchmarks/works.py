"""What is measured: each work runs against one peer in a process of its own, and returns its figures."""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers_base import Peer

Figures = dict[str, float]
now = time.perf_counter


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def cpu_seconds() -> float:
    return time.process_time()


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def children(pid: int) -> list[int]:
    "All processes below `pid`."
    below: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, task.read_text().split()):
                below += [child, *children(child)]
        except OSError:
            continue
    return below


def tree_cost(pids: list[int]) -> tuple[float, int]:  # CPU ms, voluntary context switches
    "What processes have used so far, all their threads together."
    ticks, switches = 0, 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            for status in Path(f"/proc/{pid}/task").glob("*/status"):
                for line in status.read_text().splitlines():
                    if line.startswith("voluntary"):
                        switches += int(line.split()[1])
        except OSError:
            continue
    return ticks * 1000 / os.sysconf("SC_CLK_TCK"), switches


class Gaps:
    "The longest time during which the event loop did nothing else."

    async def __aenter__(self):
        self.longest = 0.0
        self._task = asyncio.ensure_future(self._tick())
        await asyncio.sleep(0)
        return self

    async def _tick(self):
        while True:
            began = now()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, now() - began - 0.001)

    async def __aexit__(self, *_):
        self._task.cancel()


async def w1(peer: Peer, quick: bool) -> Figures:
    await peer.open()
    call, times = peer.call, []
    began = now()
    while now() - began < 0.3 or len(times) < 5:
        await call("noop")
        times.append(0.0)
    times.clear()
    seconds, began, cpu = 0.7 if quick else 1.5, now(), cpu_seconds()
    while now() - began < seconds or len(times) < 20:
        start = now()
        await call("noop")
        times.append(now() - start)
    cpu = cpu_seconds() - cpu
    return {
        "p50_us": percentile(times, 0.5) * 1e6,
        "p99_us": percentile(times, 0.99) * 1e6,
        "parent_cpu_us": cpu / len(times) * 1e6,
    }


async def w2(peer: Peer, quick: bool) -> Figures:
    await peer.open(workers=2)
    await peer.many("noop", 20)
    count = 1000 if quick else 5000
    began, cpu = now(), cpu_seconds()
    await peer.many("noop", count)
    return {"jobs_per_s": count / (now() - began), "parent_cpu_us": (cpu_seconds() - cpu) / count * 1e6}


async def median_ms(peer: Peer, task: str, argument: object, count: int) -> float:
    times = []
    for _ in range(count + 2):
        start = now()
        result = await peer.call(task, argument)
        times.append(now() - start)
        del result
    return statistics.median(times[2:]) * 1e3


async def w3(peer: Peer, quick: bool) -> Figures:
    await peer.open()
    mib, rounds = bytes(1 << 20), 3 if quick else 7
    small = await median_ms(peer, "echo", mib, rounds * 4)
    async with Gaps() as gaps:
        big_bytes = await median_ms(peer, "make_bytes", 64 << 20, rounds)
        big_array = await median_ms(peer, "make_array", 64 << 20, rounds)
    figures = {"mib_both_ways_ms": small, "bytes_64mib_ms": big_bytes, "numpy_64mib_ms": big_array}
    return figures | ({"loop_gap_ms": gaps.longest * 1e3} if peer.asynchronous else {})


async def w16(peer: Peer, quick: bool) -> Figures:
    "The same bytes as an array and as tables."
    await peer.open()
    kinds, rounds = {"numpy": "make_array", "pandas": "make_frame", "pyarrow": "make_table"}, 3 if quick else 9
    return {f"{name}_64mib_ms": await median_ms(peer, task, 64 << 20, rounds) for name, task in kinds.items()}


async def w4(peer: Peer, quick: bool) -> Figures:
    "From a running app, its modules imported, to the first result; imports are measured by themselves."
    for module in peer.modules:
        importlib.import_module(module)
    began = now()
    await peer.open()
    await peer.call("noop")
    return {"first_result_ms": (now() - began) * 1e3}


async def _when_running(path: Path) -> None:
    end = now() + 30
    while not path.exists():
        if now() > end:
            raise TimeoutError("the job did not begin")
        await asyncio.sleep(0.005)


async def w5(peer: Peer, quick: bool, kind: str) -> Figures:
    if kind not in peer.can_cancel:
        raise NotImplementedError(f"cannot end a running job ({kind})")
    peer.use_tasks = True  # type: ignore[attr-defined]
    await peer.open(standby=1)
    await peer.call("noop")
    times = []
    for _ in range(2 if quick else 5):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "running"
            job = asyncio.ensure_future(_swallow(submitted := peer.submit(kind, str(path))))
            await _when_running(path)
            await asyncio.sleep(0.5)  # a spare that was started is ready
            queued = [asyncio.ensure_future(_swallow(peer.submit("noop"))) for _ in range(3)]
            await asyncio.sleep(0.02)
            began = now()
            cancelling = asyncio.ensure_future(peer.cancel(submitted))
            await asyncio.wait(queued, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            times.append(now() - began - (peer.grace if kind == "stuck" else 0))
            if not any(task.done() and task.result() is None for task in queued):
                raise RuntimeError("no later job had a result")
            await asyncio.wait([*queued, job, cancelling], timeout=5)
    return {"next_result_ms": statistics.median(times) * 1e3}


async def _swallow(awaitable):
    try:
        return await awaitable
    except (Exception, asyncio.CancelledError) as e:  # noqa: BLE001
        return e


async def w6(peer: Peer, quick: bool) -> Figures:
    peer.use_tasks = True  # type: ignore[attr-defined]
    await peer.open(standby=1)
    await peer.call("noop")
    await asyncio.sleep(0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "died"
        crash = asyncio.ensure_future(_timed(peer.submit("crash", str(path))))
        await asyncio.sleep(0.02)
        queued = [asyncio.ensure_future(_timed(peer.submit("noop"))) for _ in range(3)]
        await asyncio.wait([crash, *queued], timeout=12)
        died = int(path.read_text()) / 1e9
    figures: Figures = {
        "survivors": sum(1 for t in queued if t.done() and not isinstance(t.result()[0], BaseException))
    }
    if crash.done() and isinstance(crash.result()[0], BaseException):
        figures["error_seen_ms"] = (crash.result()[1] - died) * 1e3
    ends = [t.result()[1] for t in queued if t.done() and not isinstance(t.result()[0], BaseException)]
    if ends:
        figures["next_result_ms"] = (min(ends) - died) * 1e3
    return figures


async def _timed(awaitable):
    result = await _swallow(awaitable)
    return result, time.monotonic()


async def w7(peer: Peer, quick: bool) -> Figures:
    await peer.open(workers=2)
    await peer.many("noop", 50)
    await asyncio.sleep(1)
    pids = [os.getpid(), *children(os.getpid())]
    cpu, switches = tree_cost(pids)
    seconds = 3 if quick else 10
    await asyncio.sleep(seconds)
    cpu2, switches2 = tree_cost(pids)
    # one switch is our own sleep
    return {
        "cpu_ms_in_10_s": (cpu2 - cpu) * 10 / seconds,
        "wakeups_in_10_s": max(0, switches2 - switches - 1) * 10 / seconds,
    }


async def w8(peer: Peer, quick: bool) -> Figures:
    await peer.open()
    await peer.call("noop")
    count, rates = 10_000, []
    for _ in range(2 if quick else 5):
        began, got = now(), 0
        async for _ in peer.stream(count):
            got += 1
        assert got == count, got
        rates.append(count / (now() - began))
    return {"chunks_per_s": statistics.median(rates)}


async def w9(peer: Peer, quick: bool) -> Figures:
    before = rss_kib(os.getpid())
    await peer.open()
    worker = await peer.call("getpid")
    await peer.call("noop")
    await asyncio.sleep(0.3)
    rest = [pid for pid in children(os.getpid()) if pid != worker]
    bare = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
    bare.stdout.readline()  # type: ignore[union-attr]
    figures = {
        "worker_mib": rss_kib(worker) / 1024,
        "helpers_mib": sum(map(rss_kib, rest)) / 1024,
        "parent_grows_mib": (rss_kib(os.getpid()) - before) / 1024,
        "bare_mib": rss_kib(bare.pid) / 1024,
    }
    bare.communicate(b"\n")
    return figures


async def w10(peer: Peer, quick: bool) -> Figures:
    "Growth; only ours and what it is compared with."
    await peer.open()
    figures: Figures = {}
    for _ in range(2000):
        await peer.call("noop")
    done = 0
    for count in (1_000, 10_000) if quick else (1_000, 10_000, 100_000):
        times = []
        while done < count:
            block = min(500, count - done)
            began = now()
            for _ in range(block):
                await peer.call("noop")
            times.append((now() - began) / block)
            done += block
        figures[f"us_per_job_at_{count}"] = statistics.median(times[-20:]) * 1e6
        figures[f"rss_mib_at_{count}"] = rss_kib(os.getpid()) / 1024
    return figures


async def w10_pending(peer: Peer, quick: bool) -> Figures:
    "All jobs handed over at once: cost per job with that many pending."
    await peer.open(workers=2)
    await peer.many("noop", 100)
    figures: Figures = {}
    for count in (1_000, 10_000) if quick else (1_000, 10_000, 100_000):
        began = now()
        await peer.many("noop", count)
        figures[f"us_per_job_{count}_pending"] = (now() - began) / count * 1e6
    return figures


async def w10_workers(peer: Peer, quick: bool) -> Figures:
    figures: Figures = {}
    for workers in (1, 16) if quick else (1, 2, 4, 8, 16):
        await peer.open(workers=workers)
        await peer.many("noop", 20 * workers)
        began, count = now(), 1000
        await peer.many("noop", count)
        figures[f"us_per_job_{workers}_workers"] = (now() - began) / count * 1e6
        await peer.close()
    return figures


class _Registry:
    def __init__(self, count: int) -> None:
        from types import SimpleNamespace

        names = ["noop", *(f"plugin-{n}" for n in range(count - 1))]
        self.plugins = {n: SimpleNamespace(name=n, is_configured=True, get_unique_id=lambda n=n: n) for n in names}
        self.configs = {n: {"model": "large", "threads": 4} for n in names}

    def get_plugins_by_category(self, category):
        return list(self.plugins.values())

    def get_plugin(self, plugin_id):
        return self.plugins.get(plugin_id)

    def load_plugin_config(self, plugin_id):
        return dict(self.configs[plugin_id])


class _Resources:
    def __init__(self):
        self.workers = {}

    def register_worker(self, pid, worker_type):
        self.workers[pid] = {"worker_type": worker_type}

    def unregister_worker(self, pid):
        del self.workers[pid]

    def update_worker_state(self, pid, **kwargs):
        self.workers[pid].update(kwargs)


class _Broadcaster:
    def __init__(self):
        self.count = 0

    async def broadcast(self, event_type, data):
        self.count += 1


async def _p50(peer: Peer, seconds: float) -> float:
    times, began = [], now()
    while now() - began < seconds:
        start = now()
        await peer.call("noop")
        times.append(now() - start)
    return percentile(times, 0.5) * 1e6


async def w10_plugins(peer: Peer, quick: bool) -> Figures:
    figures: Figures = {}
    for plugins in (1, 1000):
        await peer.open(plugin_registry=_Registry(plugins))  # type: ignore[call-arg]
        await _p50(peer, 0.2)
        figures[f"p50_us_{plugins}_plugins"] = await _p50(peer, 0.5)
        await peer.close()
    return figures


async def w12(peer: Peer, quick: bool) -> Figures:
    "The same manager without integrations and with all three, in turns."
    from copy import copy

    three = {"plugin_registry": _Registry(20), "resource_manager": _Resources(), "event_broadcaster": _Broadcaster()}
    peers = {"none": peer, "all": copy(peer)}
    await peers["none"].open()
    await peers["all"].open(**three)  # type: ignore[call-arg]
    p50s: dict[str, list[float]] = {"none": [], "all": []}
    for round in range(4 if quick else 10):
        for name, one in peers.items():
            await _p50(one, 0.05)
            p50s[name].append(await _p50(one, 0.15))
        del round
    none, all_three = (statistics.median(p50s[name]) for name in ("none", "all"))
    await peers["all"].close()
    return {"none_p50_us": none, "all_p50_us": all_three, "ratio": all_three / none}


async def _durable(peer: Peer, quick: bool) -> Figures:
    times, seconds, began = [], 0.7 if quick else 2, now()
    while now() - began < seconds or len(times) < 20:
        start = now()
        await peer.call("noop")
        times.append(now() - start)
    count = 300 if quick else 2000
    began = now()
    await peer.many("noop", count)
    figures = {"jobs_per_s": count / (now() - began)}
    return figures | {"p50_ms": percentile(times, 0.5) * 1e3, "p99_ms": percentile(times, 0.99) * 1e3}


async def w13(peer: Peer, quick: bool, workers: int) -> Figures:
    "Jobs that are on the disk: one at a time from submit to result, and many at once."
    await peer.open(workers=workers)
    try:
        await peer.many("noop", 50)
        return await _durable(peer, quick)
    finally:
        await peer.close()


async def w13_old(peer: Peer, quick: bool) -> Figures:
    "The same with few old jobs in the store and with a million, in turns on two stores."
    from copy import copy

    few, many = peer, copy(peer)
    await few.open()
    await many.open()
    figures: dict[str, list[Figures]] = {"few": [], "many": []}
    try:
        await asyncio.to_thread(many.add_old_jobs, 20_000 if quick else 1_000_000)  # type: ignore[attr-defined]
        for one in (few, many):
            await one.many("noop", 50)
        for _ in range(1 if quick else 5):
            for name, one in (("few", few), ("many", many)):
                figures[name].append(await _durable(one, quick=True))
    finally:
        await few.close()
        await many.close()
    found = {
        f"{name}_{f}": statistics.median(x[f] for x in rounds) for name, rounds in figures.items() for f in rounds[0]
    }
    return found | {
        "p50_ratio": found["many_p50_ms"] / found["few_p50_ms"],
        "time_ratio": found["few_jobs_per_s"] / found["many_jobs_per_s"],
    }


def imports(quick: bool) -> Figures:
    "CPU time of an interpreter that imports something, less that of one that does not; in turns."
    statements = {
        "bare": "pass",
        "typing": "import typing",
        "protocols": "import cjm_worker_ext.extensions.protocols",
        "asyncio": "import asyncio",
        "manager": "import cjm_worker_ext.manager",
        "worker": "import cjm_worker_ext.backends.worker_main",
    }
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(10 if quick else 30):
        for name, statement in statements.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-P", "-c", statement], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            times[name].append(spent * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {f"{name}_ms": value - medians["bare"] for name, value in medians.items() if name != "bare"}


RUN = {
    "W1": w1,
    "W2": w2,
    "W3": w3,
    "W4": w4,
    "W4-heavy": w4,
    "W5-python": lambda peer, quick: w5(peer, quick, "spin"),
    "W5-stuck": lambda peer, quick: w5(peer, quick, "stuck"),
    "W6": w6,
    "W7": w7,
    "W8": w8,
    "W9": w9,
    "W10": w10,
    "W10-pending": w10_pending,
    "W10-workers": w10_workers,
    "W10-plugins": w10_plugins,
    "W12": w12,
    "W13-1": lambda peer, quick: w13(peer, quick, 1),
    "W13-2": lambda peer, quick: w13(peer, quick, 2),
    "W13-old": w13_old,
    "W16": w16,
}
