"""Every fault at once, with a fresh seed; and the driver's own checks, each of which must notice what it is there for."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the driver looks into /proc")
if sys.platform == "linux":
    from chaos_checks import JobEventsCheck, check_pids, check_sequence, check_states
    from chaos_plan import JOB_FAULTS, STRIKES, JobPlan, Planner
    from chaos_run import Run

SECONDS = float(os.environ.get("CHAOS_SECONDS", "30"))
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 30))


def test_no_promise_breaks_under_every_fault():
    run = Run(SEED, SECONDS, int(SECONDS * 8))
    asyncio.run(run.run())
    assert not run.report.problems, run.summary()


def test_a_seed_repeats_its_plan_and_another_seed_does_not():
    def plan(seed: int, hashes: str) -> str:
        command = [sys.executable, "-m", "tests.chaos", "--plan", "--seed", str(seed), "--faults", "200"]
        environment = os.environ | {"PYTHONHASHSEED": hashes}
        root = Path(__file__).parents[2]
        return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout

    assert plan(5, "1") == plan(5, "2") != plan(6, "1")


def test_every_kind_of_fault_comes_up():
    steps = [step.what for round in Planner(SEED, 30, 240).plan() for step in round.steps]
    assert {what.fault for what in steps} - {None} == {*JOB_FAULTS, *STRIKES}, SEED
    plain = [what for what in steps if isinstance(what, JobPlan) and what.fault is None]
    assert len(steps) == 3 * 240 and len(plain) == 2 * 240


# ---------------------------------------------------------------- what the checks notice

QUEUED, STARTED = ("job:queued", {}), ("job:started", {})
DONE = ("job:completed", {})


def chunk(index: int, *chunks: int, **more: int):
    return ("job:chunk", {"index": index, "chunks": list(chunks), **more})


@pytest.mark.parametrize(
    "life",
    [
        [STARTED, QUEUED],
        [QUEUED, STARTED, QUEUED, DONE],
        [QUEUED, chunk(0, 0), STARTED, DONE],
        [QUEUED, STARTED, DONE, DONE],
        [QUEUED, STARTED, DONE, chunk(0, 0)],
        [QUEUED, STARTED, chunk(0, 0), chunk(2, 2)],
        [QUEUED, STARTED, chunk(0, 0), chunk(0, 0)],
        [QUEUED, STARTED, chunk(0, 0), chunk(1, 2)],
        [QUEUED, STARTED, chunk(2, 2, dropped=1)],
        [QUEUED, STARTED, chunk(0, 0, 1, 2, 3)],
        [QUEUED, STARTED, ("job:progress", {"progress": 0.5}), ("job:progress", {"progress": 0.4})],
    ],
)
def test_a_life_out_of_order_is_noticed(life):
    right, wrong = JobEventsCheck("j"), JobEventsCheck("j")
    for kind, data in [QUEUED, STARTED, STARTED, chunk(0, 0), chunk(2, 2, dropped=1), DONE]:
        right.add(kind, data, [0, 1, 2])
    assert not right.problems
    for kind, data in life:
        wrong.add(kind, data, [0, 1, 2])
    assert wrong.problems


@pytest.mark.parametrize(
    "kinds, status, started_at, attempts, right",
    [
        ([QUEUED, STARTED], "cancelled", "now", 1, True),
        ([QUEUED], "cancelled", None, 0, True),
        ([QUEUED, STARTED], "cancelled", None, 0, True),  # the worker was gone before the job began
        ([QUEUED, STARTED], "cancelled", None, 1, False),
        ([QUEUED, STARTED], "completed", None, 0, False),
        ([QUEUED], "cancelled", "now", 0, False),
        ([QUEUED], "completed", "now", 1, False),
    ],
)
def test_a_start_that_was_told_is_one_that_the_job_knows(kinds, status, started_at, attempts, right):
    job = SimpleNamespace(status=status, started_at=started_at, attempts=attempts, error_type=None)
    check = JobEventsCheck("j")
    for kind, data in [*kinds, (f"job:{status}", {"error_type": None})]:
        check.add(kind, data, [])
    problems = check.finish(SimpleNamespace(job=job, end="", chunks=[], plan=None))
    assert bool(problems) is not right, problems


def test_other_faults_are_noticed():
    events = [("job:queued", {"seq": n}) for n in (1, 2, 3)]
    assert not check_sequence(events) and check_sequence(events[:1] + events[2:]) and check_sequence(events[1:])
    calls = [("register", 7), ("update", 7), ("unregister", 7), ("register", 7), ("unregister", 7)]
    assert not check_pids(calls, "pids", True)
    for wrong in (calls[:2], calls[1:], [*calls, calls[-1]], [calls[0], *calls]):
        assert check_pids(wrong, "pids", True)
    assert not check_pids(calls[:2], "pids", False)
    assert check_states([("update", 7, {"colour": 1})]) and not check_states([("update", 7, {"status": "idle"})])
