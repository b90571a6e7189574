"""How the cost of a decision grows: the scheduler alone, with simulated workers and a simulated clock.

Every worker, job and machine is a number here: nothing is started, and the time between two decisions is not waited for.
The same jobs run on 10 workers and on 10,000. Machines are lost all the time, each with all its workers, and their jobs
are tried again on others. Counted is the processor time within the scheduler, for each call of it.

  steady  jobs arrive as fast as nine tenths of the workers end them, so that some workers are idle
  burst   all jobs are there at the beginning
"""

from __future__ import annotations

import gc
import heapq
import itertools
import random
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

from cjm_worker_ext.backends.base import ExitReason
from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.engine.scheduler import Action, End, Scheduler, Send, SendAhead, SetTimer, Start, Task
from cjm_worker_ext.policies import Retry

PLUGINS = [f"plugin {n}" for n in range(20)]  # The first ones are asked for more often than the last ones
BUSY = 0.9  # Share of the workers that have a job in `steady`
JOBS_OF_A_LOSS = 500  # For each worker that is lost with its machine


class Growth(NamedTuple):
    "What a run has shown."

    calls: int  # Of the scheduler
    microseconds: float  # For each of them
    of_a_job: float  # Microseconds
    lost: int  # Workers
    again: int  # Attempts beyond the first one of a job


@cache
def of_the_clock() -> float:  # Nanoseconds
    "What it costs to read the clock, which is counted with each call."
    found = []
    for _ in range(100_000):
        began = time.process_time_ns()
        found.append(time.process_time_ns() - began)
    return statistics.median(found)


class Simulation:
    "Workers on machines, and what happens to them, at times of a clock that costs nothing."

    def __init__(self, workers: int, nodes: int, jobs: int, seed: int = 1) -> None:
        self.random = random.Random(seed)
        config = WorkerConfig(max_workers=workers)
        self.scheduler = Scheduler(config, roll=self.random.random)
        self.jobs, self.nodes, self.workers = jobs, nodes, workers
        self.now, self.nanoseconds, self.calls, self.lost, self.attempts, self.ended = 0.0, 0, 0, 0, 0, 0
        self.happens: list[tuple[float, int, Callable[[], object]]] = []
        self.order = itertools.count()
        self.node_of: dict[int, int] = {}  # Worker: its machine
        self.on_node: list[dict[int, None]] = [{} for _ in range(nodes)]
        self.until_loss = self._jobs_until_loss()

    def _jobs_until_loss(self) -> int:
        return JOBS_OF_A_LOSS * max(1, self.workers // self.nodes)

    def at(self, seconds: float, what: Callable[[], object]) -> None:
        heapq.heappush(self.happens, (self.now + seconds, next(self.order), what))

    def call(self, method: Callable[..., list[Action]], *arguments: Any) -> None:
        "Let the scheduler decide, and do what it says."
        began = time.process_time_ns()
        actions = method(*arguments)
        self.nanoseconds += time.process_time_ns() - began
        self.calls += 1
        for action in actions:
            kind = type(action)
            if kind is Send:
                self.send(action)
            elif kind is End:
                self.end(action)
            elif kind is Start:
                self.start(action.worker)
            elif kind is SetTimer and action.kind == "due":
                self.at(action.seconds, partial(self.call, self.scheduler.timer, "due", action.key))
            assert kind is not SendAhead  # no plugin is said to be short

    def start(self, worker: int) -> None:
        node = self.random.randrange(self.nodes)
        self.node_of[worker] = node
        self.on_node[node][worker] = None
        self.at(1.0, lambda: self.call(self.scheduler.ready, worker) if worker in self.node_of else None)

    def send(self, action: Send) -> None:
        worker, task, attempt = action.worker, action.task, action.task.attempts
        self.attempts += 1

        def answer() -> None:
            if worker in self.node_of and task.worker == worker and task.attempts == attempt:
                if action.load:
                    self.call(self.scheduler.loaded, worker, task.number)
                self.call(self.scheduler.answered, worker, task.number)

        self.at(self.random.uniform(0.5, 1.5), answer)

    def end(self, action: End) -> None:
        self.ended += 1
        self.until_loss -= 1
        if self.until_loss == 0:
            self.until_loss = self._jobs_until_loss()
            self.at(0.0, self.lose_node)

    def lose_node(self) -> None:
        "A machine is gone with all its workers; another one takes its place."
        lost = list(self.on_node[self.random.randrange(self.nodes)])
        for worker in lost:
            del self.on_node[self.node_of.pop(worker)][worker]
        for worker in lost:
            self.lost += 1
            self.call(self.scheduler.died, worker, ExitReason.LOST)

    def submit(self) -> None:
        number = next(self.numbers)
        plugin = PLUGINS[int(len(PLUGINS) * self.random.random() ** 3)]
        retry = Retry(attempts=10, on=("lost",))
        self.call(self.scheduler.submit, Task(number, plugin, arrived_at=self.now, retry=retry))

    def arrive(self) -> None:
        self.submit()
        if self.jobs > self.submitted():
            self.at(self.random.expovariate(BUSY * self.workers), self.arrive)

    def submitted(self) -> int:
        return self.jobs - self.numbers.__length_hint__()

    def run(self, mode: str) -> Growth:
        self.numbers = iter(range(1, self.jobs + 1))
        if mode == "burst":
            for _ in range(self.jobs):
                self.submit()
        else:
            self.arrive()
        while self.ended < self.jobs:
            self.now, _, what = heapq.heappop(self.happens)
            what()
        again = self.attempts - self.jobs
        micro = (self.nanoseconds - self.calls * of_the_clock()) / 1000
        return Growth(self.calls, micro / self.calls, micro / self.jobs, self.lost, again)


def measure(jobs: int, rounds: int) -> float:  # How many times more a decision costs with most workers, at worst
    "Run all, and print what it took."
    worst, sizes = 0.0, {10: 5, 10_000: 500}
    print(f"{'':7} {'workers':>7} {'jobs':>9} {'lost':>7} {'again':>7} {'calls':>9}  µs a call  µs a job")
    for mode in ("steady", "burst"):
        found = {}
        for workers, nodes in sizes.items():
            runs = []
            for _ in range(rounds):
                gc.collect()
                runs.append(Simulation(workers, nodes, jobs).run(mode))
            each, job = (statistics.median(figures) for figures in zip(*(run[1:3] for run in runs), strict=True))
            found[workers] = each
            counts = f"{runs[0].lost:7,} {runs[0].again:7,} {runs[0].calls:9,}"
            print(f"{mode:7} {workers:7,} {jobs:9,} {counts} {each:10.2f} {job:9.2f}", flush=True)
        few, many = found.values()
        worst = max(worst, many / few)
        print(f"{mode:7} a decision with 10,000 workers costs {many / few:.2f} times one with 10", flush=True)
    return worst
