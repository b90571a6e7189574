"""`python -m benchmarks run|table|report|plot|failures|scheduler`; see `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import failures, harness, scheduler


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, print a table, and write the figures as JSON")
    run.add_argument("--peer", action="append", help=f"one of {', '.join(harness.PEERS)}; or name@folder; default: all")
    run.add_argument(
        "--work",
        action="append",
        help=f"one of {', '.join(harness.WORKS)}, or what several begin with, as W11; default: all",
    )
    run.add_argument("--rounds", type=int, help="how often each is measured")
    run.add_argument("--quick", action="store_true", help="one short round, for a first look")
    run.add_argument("--json", type=Path, default=Path("benchmarks.json"), help="where the figures go")
    table = commands.add_parser("table", help="print the tables of a run")
    table.add_argument("json", type=Path)
    plot = commands.add_parser("plot", help="draw the pictures of a run")
    plot.add_argument("json", type=Path)
    plot.add_argument("folder", type=Path)
    report = commands.add_parser("report", help="write results.md from a run: the goals, and what was reached")
    report.add_argument("json", type=Path, nargs="+", help="several runs are put together; the first says the machine")
    report.add_argument("--notes", type=Path, help="Markdown to put below the goals")
    bad_days = commands.add_parser("failures", help="live through bad days, and write failures.md if none is left out")
    bad_days.add_argument("--peer", action="append", choices=failures.NAMES, help="default: all")
    bad_days.add_argument("--scene", action="append", choices=failures.SCENES, help="default: all")
    bad_days.add_argument("--at-once", type=int, default=2, help="days that run side by side; most of a day is waiting")
    growth = commands.add_parser("scheduler", help="how the cost of a decision grows with workers, by simulation")
    growth.add_argument("--jobs", type=int, default=1_000_000, help="default: %(default)s")
    growth.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    options = parser.parse_args()
    if options.command == "scheduler":
        scheduler.measure(options.jobs, options.rounds)
        return 0
    if options.command == "run":
        return _run(options)
    if options.command == "failures":
        return _failures(options)
    if options.command == "report":
        from benchmarks.goals import report as text_of

        runs = [json.loads(path.read_text()) for path in options.json]
        records = [record for run in runs for record in run["records"]]
        notes = options.notes.read_text() if options.notes else ""
        target = Path(__file__).parent / "results.md"
        target.write_text(text_of({"machine": runs[0]["machine"], "records": records}, notes).rstrip() + "\n")
        return 0
    data = json.loads(options.json.read_text())
    if options.command == "table":
        print(harness.as_markdown(data["records"]))
        return 0
    from benchmarks.plots import draw

    draw(data["records"], options.folder)
    return 0


def _run(options: argparse.Namespace) -> int:
    works, peers = harness.works_named(options.work), options.peer or list(harness.PEERS)
    unknown = [w for w in works if w not in harness.WORKS]
    unknown += [p for p in peers if p.partition("@")[0] not in harness.PEERS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}", file=sys.stderr)
        return 2
    data: dict[str, object] = {"machine": harness.machine(), "records": (records := [])}
    for record in harness.measurements(works, peers, options.rounds, options.quick):
        records.append(record)
        where = "pinned" if record["pinned"] else ""
        figures = record.get("figures") or {"-": record.get("cannot") or record.get("error")}
        text = "  ".join(f"{k} {harness.shown(v) if isinstance(v, float | int) else v}" for k, v in figures.items())
        print(f"{record['work']:11} {record['peer']:9} {where:6} {text}", file=sys.stderr, flush=True)
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    print(json.dumps(data["machine"]))
    print(harness.as_markdown(records))
    return 0


def _failures(options: argparse.Namespace) -> int:
    scenes, peers = options.scene or list(failures.SCENES), options.peer or list(failures.NAMES)
    records = {}
    for scene, peer, found in failures.observations(scenes, peers, options.at_once):
        records[scene, peer] = found
        print(f"{scene:13} {peer:9} {json.dumps(found)}", file=sys.stderr, flush=True)
    text = failures.report(records)
    print(text)
    if options.scene is None and options.peer is None:
        (Path(__file__).parent / "failures.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
