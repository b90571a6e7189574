"""Pictures of a run for the docs: grey text on no background, so that they can be read in light and in dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import summary

PICTURES = [
    ("warm", "W1", True, "p50_us", "One job and its answer, one core, µs (less is better)"),
    ("throughput", "W2", False, "jobs_per_s", "Jobs per second on two workers (more is better)"),
    ("arrays", "W3", False, "numpy_64mib_ms", "A numpy array of 64 MiB as result, ms (less is better)"),
    ("cancel", "W5-stuck", False, "next_result_ms", "Next result after a stuck job is ended, ms (less is better)"),
    (
        "events",
        "W11-500-single",
        False,
        "per_cpu_s",
        "Events to 500 clients, per second of server CPU (more is better)",
    ),
    ("bursts", "W11-500-burst", False, "per_cpu_s", "The same in bursts of 16 events (more is better)"),
    ("crash", "W6", False, "next_result_ms", "Next result after a worker crashed, ms (less is better)"),
]
NAMES = {
    "ours": "cjm-worker-ext",
    "socket": "raw socket pair",
    "pipe": "raw mp.Pipe",
    "executor": "ProcessPoolExecutor",
    "plain": "plain ASGI loop",
    "transport": "transport alone",
    "sse-bytes": "sse-starlette, bytes",
}
MORE_IS_BETTER = ("jobs_per_s", "per_cpu_s")
LIMITS = ("socket", "pipe", "transport", "plain")


def draw(records: list[dict[str, Any]], folder: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    grey = "#7d8896"
    plt.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 10, "text.color": grey})
    table = summary(records)
    for name, work, pinned, figure, title in PICTURES:
        rows = {p: r[figure] for p, r in table.get((work, pinned), {}).items() if isinstance(r, dict) and figure in r}
        if "ours" not in rows:
            continue
        ordered = sorted(rows.items(), key=lambda pair: pair[1], reverse=figure not in MORE_IS_BETTER)
        fig, ax = plt.subplots(figsize=(7.2, 0.42 * len(ordered) + 0.9))
        colours = ["#2f9e6b" if p == "ours" else "#b08a3c" if p in LIMITS else grey for p, _ in ordered]
        bars = ax.barh([NAMES.get(p, p) for p, _ in ordered], [v for _, v in ordered], color=colours)
        ax.bar_label(bars, [f"{v:,.0f}" if v >= 10 else f"{v:.1f}" for _, v in ordered], padding=4, color=grey)
        linear = figure == "per_cpu_s"
        ax.set_xscale("linear" if linear else "log")
        ax.set_title(title + ("" if linear else ", logarithmic"), loc="left", fontsize=11, color=grey)
        ax.margins(x=0.15)
        ax.tick_params(colors=grey)
        ax.xaxis.set_visible(False)
        for side in ax.spines.values():
            side.set_visible(False)
        fig.savefig(folder / f"benchmark_{name}.svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        plt.close(fig)
