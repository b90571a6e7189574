"""A decision of the scheduler costs the same with many workers and jobs: counted in steps of the interpreter, not timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # where the benchmarks are
from benchmarks import scheduler  # noqa: E402
from benchmarks.scheduler import Simulation  # noqa: E402


class Counted(Simulation):
    "Counts the steps of the interpreter within the scheduler."

    steps = 0

    def call(self, method, *arguments):
        def decide(*given):
            sys.settrace(count)
            try:
                return method(*given)
            finally:
                sys.settrace(None)

        def count(frame, event, argument):
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self.steps += event == "opcode"
            return count

        super().call(decide, *arguments)


def steps_of_a_decision(workers, nodes, jobs, mode):
    simulation = Counted(workers, nodes, jobs)
    growth = simulation.run(mode)
    assert growth.lost and growth.again and simulation.ended == jobs
    return simulation.steps / growth.calls


@pytest.mark.parametrize("mode", ["steady", "burst"])
def test_many_workers_and_lost_machines_make_no_decision_dearer(mode, monkeypatch):
    monkeypatch.setattr(scheduler, "PLUGINS", ["one"])  # to load several on each of many workers takes many jobs
    monkeypatch.setattr(scheduler, "JOBS_OF_A_LOSS", 50)
    monkeypatch.setattr(scheduler, "BUSY", 0.5)
    few = steps_of_a_decision(10, 5, 3000, mode)
    assert steps_of_a_decision(1000, 100, 6000, mode) <= 1.3 * few
