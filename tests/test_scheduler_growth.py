"""A decision of the scheduler costs the same with many workers and jobs: counted in steps of the interpreter, not timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # where the benchmarks are
from benchmarks import scheduler  # noqa: E402
from benchmarks.scheduler import Simulation  # noqa: E402
from cjm_worker_ext.config import WorkerConfig  # noqa: E402
from cjm_worker_ext.engine.scheduler import Scheduler, Task  # noqa: E402
from cjm_worker_ext.policies import Lane, Retry  # noqa: E402


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


class InLanes(Counted):
    "Every second job belongs to another lane."

    def __init__(self, workers, nodes, jobs):
        super().__init__(workers, nodes, jobs)
        self.scheduler = Scheduler(WorkerConfig(max_workers=workers, lanes={"x": Lane()}), roll=self.random.random)

    def submit(self):
        number = next(self.numbers)
        lane, retry = "x" if number % 2 else "", Retry(attempts=10, on=("lost",))
        self.call(self.scheduler.submit, Task(number, "one", arrived_at=self.now, retry=retry, lane=lane))


def steps_of_a_decision(workers, nodes, jobs, mode, simulated=Counted):
    simulation = simulated(workers, nodes, jobs)
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


@pytest.mark.parametrize("mode", ["steady", "burst"])
def test_many_workers_make_no_decision_about_lanes_dearer(mode, monkeypatch):
    monkeypatch.setattr(scheduler, "JOBS_OF_A_LOSS", 50)
    monkeypatch.setattr(scheduler, "BUSY", 0.5)
    few = steps_of_a_decision(10, 5, 2000, mode, InLanes)
    assert steps_of_a_decision(300, 30, 3000, mode, InLanes) <= 1.3 * few
