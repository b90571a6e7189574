"""The goals, and what a run has reached of them: `python -m benchmarks report run.json` writes `results.md`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import DURABLE, DURABLE_POSTGRES, MODELS, POOLS, SERVICES, as_markdown, shown, summary

Rows = dict[str, Any]
Outcome = tuple[str, bool]


class Figures:
    "Medians of a run, by work, peer and figure."

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.table = summary(records)

    def get(self, work: str, peer: str, figure: str, pinned: bool = False) -> float:
        row = self.table[work, pinned][peer]
        if not isinstance(row, dict):
            raise KeyError(peer)
        return row[figure]

    def best(self, work: str, figure: str, pinned: bool = False, least: bool = True) -> tuple[str, float]:
        "The fastest pool or service."
        found = {}
        for peer in (*POOLS, *SERVICES):
            try:
                found[peer] = self.get(work, peer, figure, pinned)
            except KeyError:
                continue
        name = (min if least else max)(found, key=found.__getitem__)
        return name, found[name]


def at_most(value: float, limit: float, of: str) -> Outcome:
    return f"{value:.2f} times {of}", value <= limit


def limit_of(work: str, figure: str, peer: str, times: float, pinned: bool = False) -> Callable[[Figures], Outcome]:
    def judge(f: Figures) -> Outcome:
        other = f.get(work, peer, figure, pinned)
        return at_most(f.get(work, "ours", figure, pinned) / other, times, f"{peer} ({shown(other)})")

    return judge


def best_pool(
    work: str, figure: str, times: float, least: bool = True, pinned: bool = False
) -> Callable[[Figures], Outcome]:
    def judge(f: Figures) -> Outcome:
        name, other = f.best(work, figure, pinned, least)
        ratio = f.get(work, "ours", figure, pinned) / other
        return f"{ratio:.2f} times {name} ({shown(other)})", ratio <= times if least else ratio >= times

    return judge


def below(work: str, figure: str, limit: float, unit: str = "ms") -> Callable[[Figures], Outcome]:
    def judge(f: Figures) -> Outcome:
        value = f.get(work, "ours", figure)
        return f"{shown(value)} {unit}", value <= limit

    return judge


def above(work: str, figure: str, limit: float, unit: str) -> Callable[[Figures], Outcome]:
    def judge(f: Figures) -> Outcome:
        value = f.get(work, "ours", figure)
        return f"{shown(value)} {unit}", value >= limit

    return judge


def ratio(work: str, over: str, under: str, limit: float, pinned: bool = False) -> Callable[[Figures], Outcome]:
    def judge(f: Figures) -> Outcome:
        return at_most(f.get(work, "ours", over, pinned) / f.get(work, "ours", under, pinned), limit, under)

    return judge


def of_raw_pair(f: Figures) -> Outcome:
    found = f.get("W2", "ours", "jobs_per_s") / f.get("W2", "socket", "jobs_per_s")
    return f"{found:.2f} times socket", found >= 0.6


def p99(f: Figures) -> Outcome:
    return at_most(f.get("W1", "ours", "p99_us", True) / f.get("W1", "pipe", "p99_us", True), 3, "pipe's p99")


def executor_array(f: Figures) -> Outcome:
    value = f.get("W3", "executor", "numpy_64mib_ms") / f.get("W3", "ours", "numpy_64mib_ms")
    return f"{value:.1f} times faster", value >= 10


def memory(f: Figures) -> Outcome:
    row = f.table["W10", False]["ours"]
    least, most = (pick(int(k.rpartition("_")[2]) for k in row if k.startswith("rss")) for pick in (min, max))
    grown = row[f"rss_mib_at_{most}"] - row[f"rss_mib_at_{least}"]
    return f"{grown:+.1f} MiB from {least:,} to {most:,} jobs", grown < 2


def cost(f: Figures) -> Outcome:
    row = f.table["W10", False]["ours"]
    least, most = (pick(int(k.rpartition("_")[2]) for k in row if k.startswith("us")) for pick in (min, max))
    return at_most(row[f"us_per_job_at_{most}"] / row[f"us_per_job_at_{least}"], 1.2, f"that at {least:,}")


RATE = "deliveries per second of server CPU"
MANY = (100, 500, 2000)  # clients


def ratios(f: Figures, figure: str, peer: str, mode: str, clients: tuple[int, ...]) -> tuple[str, list[float]]:
    "Ours by theirs for each number of clients, as text too."
    works = [f"W11-{number}-{mode}" for number in clients]
    found = [f.get(work, "ours", figure) / f.get(work, peer, figure) for work in works]
    return ", ".join(f"{value:.2f} ({number:,})" for number, value in zip(clients, found, strict=True)), found


def rate(
    peer: str, limit: float, mode: str = "single", clients: tuple[int, ...] = MANY
) -> Callable[[Figures], Outcome]:
    "Judged by the server's processor time; the clock's ratios stand beside."

    def judge(f: Figures) -> Outcome:
        text, found = ratios(f, "per_cpu_s", peer, mode, clients)
        return f"{text} times; by the clock {ratios(f, 'per_s', peer, mode, clients)[0]}", min(found) >= limit

    return judge


def lower_p99(mode: str) -> Callable[[Figures], Outcome]:
    def judge(f: Figures) -> Outcome:
        text, found = ratios(f, "p99_ms", "sse-starlette", mode, (1, *MANY))
        return f"{text} times", max(found) < 1

    return judge


def when_stuck(figure: str, least: float, most: float) -> Callable[[Figures], Outcome]:
    "Ours with a stuck client by ours without."

    def judge(f: Figures) -> Outcome:
        works = {clients: f"W11-{clients}-single" for clients in (1, *MANY)}
        found = {n: f.get(f"{w}-stuck", "ours", figure) / f.get(w, "ours", figure) for n, w in works.items()}
        text = ", ".join(f"{value:.2f} ({clients:,})" for clients, value in found.items())
        return f"{text} times", all(least <= value <= most for value in found.values())

    return judge


def durable(ours: str, peers: tuple[str, ...]) -> Callable[[Figures], Outcome]:
    "Faster than each of them, by jobs per second and from submit to result, with one worker and with two."

    def judge(f: Figures) -> Outcome:
        said, good = [], True
        for work in ("W13-1", "W13-2"):
            for figure, most in (("jobs_per_s", True), ("p50_ms", False)):
                found = {peer: f.get(work, peer, figure) for peer in peers if peer in f.table[work, False]}
                name = (max if most else min)(found, key=found.__getitem__)
                own = f.get(work, ours, figure)
                said.append(f"{shown(own)} {figure}, {name} {shown(found[name])}")
                good = good and (own >= found[name] if most else own <= found[name])
        return "; ".join(said), good

    return judge


def batches(f: Figures) -> Outcome:
    times = f.get("W15-users-batch", "ours", "jobs_per_s") / f.get("W15-users-single", "ours", "jobs_per_s")
    return f"{times:.1f} times", times >= 8


def ahead(ours: str, peers: tuple[str, ...]) -> Callable[[Figures], Outcome]:
    "More jobs per second than each peer, and no later p99."

    def judge(f: Figures) -> Outcome:
        parts, good = [], True
        for peer in peers:
            jobs, p99 = (
                f.get("W15-users-batch", ours, figure) / f.get("W15-users-batch", peer, figure)
                for figure in ("jobs_per_s", "p99_ms")
            )
            parts.append(f"{jobs:.1f} times {peer} at {p99:.2f} times its p99")
            good = good and jobs > 1 and p99 <= 1
        return ", ".join(parts), good

    return judge


def behind(f: Figures) -> Outcome:
    ratios = [f.get(w, "ours", "jobs_per_s") / f.get(w, "ours-behind", "jobs_per_s") for w in ("W13-1", "W13-2")]
    ratios += [f.get(w, "ours-behind", "p50_ms") / f.get(w, "ours", "p50_ms") for w in ("W13-1", "W13-2")]
    return ", ".join(f"{r:.2f}" for r in ratios) + " times (two times per job, two p50)", max(ratios) <= 1.3


def old_jobs(f: Figures) -> Outcome:
    rows = {name: row for name, row in f.table["W13-old", False].items() if isinstance(row, dict)}
    text = ", ".join(f"{name} {row['p50_ratio']:.2f} and {row['time_ratio']:.2f}" for name, row in rows.items())
    return f"{text} times", bool(rows) and max(max(r["p50_ratio"], r["time_ratio"]) for r in rows.values()) <= 1.2


ON_DISK = tuple(peer for peer in DURABLE if peer.endswith("-fsync"))
IN_CACHE = tuple(peer for peer in DURABLE if not peer.endswith("-fsync"))

GOALS: list[tuple[str, str, Callable[[Figures], Outcome]]] = [
    ("W1", "pinned p50 at most 2 times the raw socket pair", limit_of("W1", "p50_us", "socket", 2, True)),
    ("W1", "pinned p50 at most 0.8 times the fastest pool", best_pool("W1", "p50_us", 0.8, pinned=True)),
    ("W1", "p99 at most 3 times the raw pipe's", p99),
    ("W2", "at least 2 times the fastest pool's jobs per second", best_pool("W2", "jobs_per_s", 2, least=False)),
    ("W2", "at least 0.6 times those of the raw socket pair", of_raw_pair),
    ("W3", "1 MiB both ways: at least as fast as the fastest pool", best_pool("W3", "mib_both_ways_ms", 1)),
    ("W3", "64 MiB array: at most 1.2 times Ray", limit_of("W3", "numpy_64mib_ms", "ray", 1.2)),
    ("W3", "64 MiB array: at least 10 times faster than ProcessPoolExecutor", executor_array),
    ("W3", "longest gap of the event loop 20 ms", below("W3", "loop_gap_ms", 20)),
    ("W4", "at most 0.6 times ProcessPoolExecutor", limit_of("W4", "first_result_ms", "executor", 0.6)),
    ("W4", "the same with a heavy main module", limit_of("W4-heavy", "first_result_ms", "executor", 0.6)),
    ("W5", "interruptible job: next result within 5 ms", below("W5-python", "next_result_ms", 5)),
    ("W5", "stuck job: within the grace plus 10 ms", below("W5-stuck", "next_result_ms", 10)),
    ("W5", "stuck job: at most 0.1 times the fastest peer that can", best_pool("W5-stuck", "next_result_ms", 0.1)),
    ("W6", "error seen within 5 ms", below("W6", "error_seen_ms", 5)),
    ("W6", "all queued jobs survive", above("W6", "survivors", 3, "of 3")),
    ("W6", "next result with a standby within 10 ms", below("W6", "next_result_ms", 10)),
    ("W7", "no wake-up while idle, parent and workers", below("W7", "wakeups_in_10_s", 0, "in 10 s")),
    ("W8", "at least 100,000 chunks per second", above("W8", "chunks_per_s", 100_000, "chunks/s")),
    ("W8", "at least 4 times the fastest peer", best_pool("W8", "chunks_per_s", 4, least=False)),
    ("W9", "idle worker at most 1.5 times a bare interpreter", ratio("W9", "worker_mib", "bare_mib", 1.5)),
    ("W10", "cost per job does not grow beyond 1.2 times", cost),
    ("W10", "memory flat", memory),
    ("W11", f"{RATE}: at least 3 times sse-starlette", rate("sse-starlette", 3)),
    ("W11", "with one client: at least 2 times", rate("sse-starlette", 2, clients=(1,))),
    ("W11", f"{RATE}: at least 3 times sse-starlette given ready bytes", rate("sse-bytes", 3)),
    ("W11", f"{RATE}: within 1.2 times of a plain ASGI loop", rate("plain", 1 / 1.2)),
    ("W11", "the same with one client", rate("plain", 1 / 1.2, clients=(1,))),
    ("W11", "in bursts of 16: at least 5 times sse-starlette", rate("sse-starlette", 5, "burst")),
    ("W11", "the same with one client", rate("sse-starlette", 5, "burst", (1,))),
    ("W11", "p99 lower than sse-starlette's", lower_p99("single")),
    ("W11", "p99 in bursts lower than sse-starlette's", lower_p99("burst")),
    ("W11", f"{RATE} as before with a stuck client (at least 0.85 times)", when_stuck("per_cpu_s", 0.85, 99)),
    ("W11", "p99 as before with a stuck client (at most 1.3 times)", when_stuck("p99_ms", 0, 1.3)),
    ("W12", "all three integrations add at most 30 %", ratio("W12", "all_p50_us", "none_p50_us", 1.3, True)),
    ("W13", "behind: at most 1.3 times no store", behind),
    ("W13", "committed: faster than each peer that outlives processes", durable("ours-sqlite", IN_CACHE)),
    ("W13", "committed, waiting for the disk: faster than each peer that does", durable("ours-sqlite-fsync", ON_DISK)),
    ("W13", "PostgreSQL: faster than each peer on the same server", durable("ours-postgres", DURABLE_POSTGRES)),
    ("W13", "a million old jobs slow nothing by more than 1.2 times", old_jobs),
    ("W14", "a job through an agent at most 2 times a local one", ratio("W14", "agent_p50_us", "local_p50_us", 2)),
    ("W14", "64 MiB through an agent at most 2 times bare TCP", ratio("W14", "agent_64mib_ms", "tcp_64mib_ms", 2)),
    ("W14", "a job through a Ray lane at most 1.1 times an agent", ratio("W14", "ray_p50_us", "agent_p50_us", 1.1)),
    ("W14", "64 MiB through a Ray lane, the same", ratio("W14", "ray_64mib_ms", "agent_64mib_ms", 1.1)),
    ("W15", "32 users, batches of 16: at least 8 times one at a time", batches),
    ("W15", "the same: more jobs per second than each model server, at no later p99", ahead("ours", MODELS)),
    ("W15", "the same when ours is behind HTTP as they are", ahead("ours-http", ("litserve", "ray-http", "mlserver"))),
    ("W15", "200 async jobs of 50 ms on one worker: 100 ms over the sleep", below("W15-async", "over_sleep_ms", 100)),
    (
        "W16",
        "a DataFrame at most 1.3 times the same bytes as an array",
        ratio("W16", "pandas_64mib_ms", "numpy_64mib_ms", 1.3),
    ),
    ("W16", "an Arrow table, the same", ratio("W16", "pyarrow_64mib_ms", "numpy_64mib_ms", 1.3)),
    (
        "W17",
        "events through Redis: at least 10,000 a second",
        above("W17-redis-flood", "per_s", 10_000, "events/s"),
    ),
    ("W17", "events through Redis at 10,000 a second: p50 under 3 ms", below("W17-redis-paced", "p50_ms", 3)),
    ("import", "protocols costs what typing costs", ratio("import", "protocols_ms", "typing_ms", 1.1)),
    ("import", "manager at most 1.3 times asyncio", ratio("import", "manager_ms", "asyncio_ms", 1.3)),
]


def goals_table(records: list[dict[str, Any]]) -> str:
    figures, lines = Figures(records), ["| work | goal | reached | |", "|---|---|---|---|"]
    for work, goal, judge in GOALS:
        try:
            text, good = judge(figures)
        except (KeyError, ValueError):
            text, good = "not measured", False
        lines.append(f"| {work} | {goal} | {text} | {'yes' if good else '**no**'} |")
    return "\n".join(lines)


HEAD = """# Results

Made by `python -m benchmarks run` and `python -m benchmarks report`. Medians of interleaved rounds; the figures belong
to the machine, the ratios are what matters. Differences below 1.5 times are ties on a machine that others use too.
W11 compares deliveries per second of the server's processor time, ours by theirs, for each number of clients (in
brackets); what the clock says stands beside it, and is the same where the server's core is busy all the time.
"""


def report(data: dict[str, Any], notes: str = "") -> str:
    machine = data["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    about = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}; {versions}."
    parts = [HEAD, about, "\n## Goals\n", goals_table(data["records"]), "", notes]
    return "\n".join([*parts, "\n## Figures\n\nIn brackets: the ratio to ours.\n", as_markdown(data["records"])])
