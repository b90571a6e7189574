"The soak for a few seconds: that it runs, recycles, and finds what it looks for."

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

from harness import run  # noqa: E402
from soak_run import MIB, Soak  # noqa: E402


def test_no_job_is_lost_while_leaking_workers_are_replaced():
    soak = Soak(4.0, say=lambda line: None)
    soak.limit = 60 * MIB
    run(soak.run(), 60)
    assert not soak.problems and soak.jobs > 50 and len(soak.pids) > 3, soak.summary()


def test_a_worker_over_the_ceiling_is_found(monkeypatch):
    monkeypatch.setattr("soak_run.ROOM", -20 * MIB)
    soak = Soak(1.0, say=lambda line: None)
    soak.limit = 60 * MIB
    run(soak.run(), 60)
    assert any("MiB" in problem for problem in soak.problems), soak.summary()
