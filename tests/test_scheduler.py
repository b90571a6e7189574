"""The scheduler under a hypothesis state machine: whatever happens in whatever order, its promises hold.

A small model does what the scheduler orders, as an engine with obedient processes would, and checks each order.
"""

from __future__ import annotations

import os
from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cjm_worker_ext.backends.base import ExitReason
from cjm_worker_ext.config import RestartPolicy, WorkerConfig
from cjm_worker_ext.engine.scheduler import (
    Again,
    Begin,
    Cause,
    ClearTimer,
    End,
    GateState,
    Interrupt,
    Kill,
    Scheduler,
    Send,
    SendAhead,
    SetTimer,
    Start,
    Stop,
    TakeBack,
    Task,
    TaskKind,
    WorkerPhase,
)
from cjm_worker_ext.policies import Lane, Recycle, Retry

PLUGINS = st.sampled_from(["p", "q", "r"])
# The lane of each plugin by version: a plugin may move to another lane with a new configuration
LANES = [{}, {}, {"p": ("x", "x")}, {"q": ("x", "x"), "r": ("y", "y")}, {"p": ("", "x"), "q": ("y", "x")}]


def if_any_process(condition):
    "A rule that has nothing to do is not chosen: else most steps would do nothing, and few jobs would ever end."
    return precondition(lambda self: any(condition(process) for process in self.processes.values()))


def can_start(p: Process) -> bool:
    return not p.started and not p.dying


def can_become_ready(p: Process) -> bool:
    return p.started and not p.said_ready and not p.dying and not p.killed


def can_finish_loading(p: Process) -> bool:
    return any(run.must_load and not run.has_loaded for run in p.runs.values()) and not p.dying


class Run:
    "A task on a worker."

    def __init__(self, task: Task, must_load: bool):
        self.task, self.must_load = task, must_load
        self.has_loaded = self.interrupted = False
        self.begun = True  # As far as is known; False: it was sent ahead
        self.succeeded = False  # The worker has answered, and nobody has read that
        self.abandoned = False  # Its end was told, and the worker has not answered

    def can_answer(self, how: str) -> bool:
        if self.succeeded or not self.begun:
            return self.succeeded and self.begun and how == "ok"
        return (how != "cancelled" or self.interrupted) and (how != "ok" or self.has_loaded or not self.must_load)


class Process:
    "What a worker process would be doing."

    def __init__(self, lane: str = ""):
        self.lane = lane
        self.started = self.said_ready = self.dying = self.killed = self.stopping = False
        self.runs: dict[int, Run] = {}
        self.batch: list[int] | None = None  # Those that have begun; None: all
        self.unclaimed: deque[int] = deque()  # Tasks that were sent ahead and may still be taken back
        self.holds = False  # It has failed, and begins nothing that was sent ahead
        self.loaded: dict[str, int] = {}
        self.plugins: set[str] = set()  # Whose tasks it has had

    @property
    def ahead(self) -> list[int]:
        return [number for number, run in self.runs.items() if not run.begun]

    def can_claim(self) -> bool:
        "Whether it may begin a task that was sent ahead: all before have succeeded."
        if not self.unclaimed or self.holds or self.dying:
            return False
        before = list(self.runs)[: list(self.runs).index(self.unclaimed[0])]
        return all(self.runs[number].succeeded for number in before)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        workers=st.integers(1, 3),
        standby=st.integers(0, 2),
        policy=st.sampled_from(list(RestartPolicy)),
        attempts=st.integers(0, 3),
        load_timeout=st.sampled_from([None, 1.0]),
        alone=st.booleans(),
        hold_after=st.integers(0, 2),
        recycle=st.sampled_from([Recycle(), Recycle(max_jobs=2), Recycle(max_age_seconds=9.0, idle_seconds=5.0)]),
        slots=st.sampled_from([{}, {"p": 3}, {"p": 2, "q": 4}]),
        limits=st.sampled_from([{}, {}, {"p": 1}, {"p": 2, "r": 1}]),
        short=st.sampled_from([{"q", "r"}, set(), {"p", "q", "r"}]),
        lane_of=st.sampled_from(LANES),
        lane_limits=st.sampled_from([{}, {}, {"x": 1}, {"x": 1, "y": 2}]),
    )
    def make(
        self, workers, standby, policy, attempts, load_timeout, alone, hold_after, recycle, slots, limits, short,
        lane_of, lane_limits,
    ):  # fmt: skip
        self.lane_of = lane_of
        names = {lane for lanes in lane_of.values() for lane in lanes if lane}
        self.config = WorkerConfig(
            max_workers=workers, standby_workers=standby, restart_policy=policy, max_restart_attempts=attempts,
            load_timeout_seconds=load_timeout, one_plugin_per_worker=alone, restart_backoff_seconds=1.0, restart_backoff_max_seconds=4.0,
            hold_after_crashes=hold_after, hold_seconds=60.0, priority_aging_seconds=10.0,
            max_jobs_per_plugin=limits,
            lanes={name: Lane(max_workers=lane_limits.get(name)) for name in names},
        )  # fmt: skip
        self.recycle = recycle
        self.slots = slots
        self.scheduler = Scheduler(self.config, recycle, roll=lambda: 0.0)
        self.scheduler.MOST_PASSED, self.scheduler.MOST_SILENT, self.scheduler.short = 2, 1, short
        self.scheduler.MOST_PASSED_IN_LANES = 2
        self.actions: deque = deque()
        self.acts = False
        self.decisions = self.decided = 0  # So far; the one that is being done
        self.back_since: dict[int, int] = {}  # task that was taken back: the decision that knew it first
        self.killing_all = False
        self.processes: dict[int, Process] = {}
        self.ever: set[int] = set()
        self.timers: dict[tuple[str, int], float] = {}
        self.tasks: dict[int, Task] = {}
        self.ended: dict[int, Cause] = {}
        self.sent: dict[int, int] = {}
        self.undelivered: dict[int, int] = {}
        self.waiting: list[int] = []  # free tasks that are not on a worker, in the order of their arrival in the queue
        self.delayed: set[int] = set()  # tasks that wait for their time
        self.now = 0.0
        self.own: dict[int, int] = {}  # task that belongs to a worker: the worker
        self.closed = False
        self.number = 0

    # what the scheduler orders

    def do(self, actions):
        "Do what is ordered, and then what follows from it, as the inbox of an engine does."
        self.decisions += 1
        self.actions.extend((self.decisions, action) for action in actions)
        if self.acts:
            return
        self.acts = True
        while self.actions:
            self.decided, action = self.actions.popleft()
            getattr(self, "do_" + type(action).__name__.lower())(action)
        self.acts = False

    def do_start(self, action: Start):
        assert action.worker not in self.ever, "a number is given to one process only"
        self.ever.add(action.worker)
        self.processes[action.worker] = Process(action.lane)
        assert action.lane == "" or action.urgent, "a spare is of the default lane"
        if (limit := self.lane_limit(action.lane)) is not None:
            mine = [p for p in self.processes.values() if p.lane == action.lane]
            assert len(mine) <= limit, "a lane has more workers than it may"
        assert len(self.processes) <= self.config.max_workers + self.config.standby_workers

    def lane_limit(self, lane: str) -> int | None:
        return self.config.lanes[lane].max_workers if lane else None

    def process_of(self, action) -> Process:
        assert action.worker in self.processes, f"{action} is about a worker that does not exist"
        return self.processes[action.worker]

    def do_send(self, action: Send):
        process, task = self.process_of(action), action.task
        assert process.said_ready and not process.dying and not process.stopping and not process.killed, action
        assert task.number in self.tasks and task.number not in self.ended, "an ended task is sent"
        joins = bool(process.runs)
        assert process.lane == task.lane or task.number in self.own, "a job is in the wrong lane"
        if joins:
            self.check_company(process, task)
        else:
            process.batch, process.holds = None, False
        if task.number in self.own:
            assert self.own[task.number] == action.worker and not joins
        else:
            self.check_order(action, joins)
            self.waiting.remove(task.number)
            assert task.attempts == self.sent.get(task.number, 0) - self.undelivered.get(task.number, 0) + 1
            free = [p for p in self.processes.values() if p.runs and not self.own.keys() & p.runs.keys()]
            assert joins or len(free) < self.config.max_workers, "more workers have free tasks than max_workers"
        if task.kind is TaskKind.EXECUTE:
            assert action.load == (process.loaded.get(task.plugin) != task.version), (
                "loads what it has, or not what it needs"
            )
        process.plugins.add(task.plugin)
        assert len(process.plugins) == 1 or not self.config.one_plugin_per_worker, "two plugins share a worker"
        self.sent[task.number] = self.sent.get(task.number, 0) + 1
        process.runs[task.number] = Run(task, action.load or task.kind is TaskKind.LOAD)

    def do_sendahead(self, action: SendAhead):
        process, task = self.process_of(action), action.task
        assert process.said_ready and not process.dying and not process.stopping and not process.killed, action
        assert not process.holds, "a task is sent behind one that has failed"
        assert task.number in self.tasks and task.number not in self.ended and task.number not in self.own
        assert self.slots.get(task.plugin, 1) == 1 and process.loaded.get(task.plugin) == task.version
        assert process.lane == task.lane, "a job is in the wrong lane"
        assert process.runs and len(process.ahead) < 2 and not task.alone and task.kind is TaskKind.EXECUTE
        for run in process.runs.values():
            assert (run.task.plugin, run.task.version) == (task.plugin, task.version), "jobs of two kinds mix"
            assert not run.task.alone and run.task.kind is TaskKind.EXECUTE
        worker = self.scheduler.workers.all[action.worker]
        assert not worker.retires and not worker.own, "a task is sent ahead to a worker that is to do something else"
        assert self.recycle.max_jobs is None or worker.jobs + len(process.runs) < self.recycle.max_jobs
        self.check_order(action, joins=False)
        assert self.scheduler.workers.busy >= self.config.max_workers, "a task is sent ahead, and another could have it"
        self.waiting.remove(task.number)
        self.sent[task.number] = self.sent.get(task.number, 0) + 1
        run = process.runs[task.number] = Run(task, must_load=False)
        run.begun = False
        process.unclaimed.append(task.number)

    def do_begin(self, action: Begin):
        process = self.process_of(action)
        run = process.runs[action.task.number]
        assert not run.begun, "it begins twice"
        earlier = list(process.runs)[: list(process.runs).index(action.task.number)]
        assert all(process.runs[n].succeeded for n in earlier), "it begins before the one before it has ended"
        assert action.task.number not in process.unclaimed or process.can_claim(), "it begins after a failure"
        run.begun = True

    def do_takeback(self, action: TakeBack):
        process = self.processes.get(action.worker)
        ahead = process.ahead if process is not None else []
        taken = [number for number in ahead if number in process.unclaimed]
        for number in taken:
            process.unclaimed.remove(number)
            run = process.runs.pop(number)
            assert not run.interrupted
            if number not in self.ended:
                self.waiting.append(number)
                self.back_since[number] = self.decisions + 1
                self.undelivered[number] = self.undelivered.get(number, 0) + 1
        self.do(self.scheduler.taken_back(action.worker, taken))

    def check_company(self, process: Process, task: Task):
        assert len(process.runs) < self.slots.get(task.plugin, 1), "a worker has more tasks than it takes"
        for run in process.runs.values():
            assert (run.task.plugin, run.task.version) == (task.plugin, task.version), "jobs of two kinds mix"
            assert run.has_loaded or not run.must_load, "a job joins another before the plugin is loaded"
            assert not run.task.alone and run.task.kind is TaskKind.EXECUTE
        assert not task.alone and task.kind is TaskKind.EXECUTE

    def check_order(self, action: Send, joins: bool):
        alone, task = (
            self.config.one_plugin_per_worker,
            action.task,
        )  # then the queue of each plugin has an order of its own
        queue = [n for n in self.in_order() if not alone or self.tasks[n].plugin == task.plugin]
        queue = [n for n in queue if self.tasks[n].lane == task.lane]
        # what has been taken back since this was decided was not there yet
        queue = [n for n in queue if self.back_since.get(n, 0) <= self.decided]
        if joins:  # later ones may go before one that has no place
            queue = [n for n in queue if self.may_join(self.tasks[n], task)]
        is_next = queue and (
            queue[0] == task.number
            or (self.config.max_jobs_per_plugin and self.rank(queue[0]) == self.rank(task.number))
        )
        assert is_next, f"not the next in the queue: {queue}, {action}"
        if (limit := self.config.max_jobs_per_plugin.get(task.plugin)) is not None and task.kind is TaskKind.EXECUTE:
            assert len(self.running(task.plugin)) < limit, "more jobs of a plugin run than its limit allows"
        first = self.tasks[next(n for n in self.in_order() if self.tasks[n].lane == task.lane)]
        assert not joins or first is task or first.passed <= 2, "too many go first"

    def running(self, plugin) -> list[int]:
        "The jobs of a plugin that are on workers, and whose end was not told."
        runs = [run for p in self.processes.values() for run in p.runs.values() if not run.abandoned]
        return [run.task.number for run in runs if run.task.plugin == plugin and run.task.kind is TaskKind.EXECUTE]

    @staticmethod
    def may_join(task: Task, like: Task) -> bool:
        same = (task.plugin, task.version, task.kind) == (like.plugin, like.version, like.kind)
        return same and not task.alone

    def do_interrupt(self, action: Interrupt):
        run = self.process_of(action).runs.get(action.task.number)
        assert run is not None, "the wrong one is interrupted"
        assert not run.interrupted, "interrupted twice"
        assert run.begun, "one is interrupted that has not begun"
        run.interrupted = True

    def do_kill(self, action: Kill):
        process = self.process_of(action)
        innocent = [
            n
            for n, run in process.runs.items()
            if not run.interrupted and n in (process.batch or process.runs) and n not in process.unclaimed
        ]
        assert self.killing_all or not innocent, "a kill costs a job that nobody has cancelled"
        process.killed = True

    def do_stop(self, action: Stop):
        process = self.process_of(action)
        assert not process.runs and process.said_ready, "a busy worker is stopped"
        assert not process.stopping, "stopped twice"
        process.stopping = True

    def do_again(self, action: Again):
        task = action.task
        assert task.number in self.tasks and task.number not in self.ended and task.retry is not None
        assert task.attempts < task.retry.attempts, "tried more often than it may be"
        assert not self.closed and not self.scheduler.crashes.is_held(task.plugin)
        assert not any(task.number in p.runs for p in self.processes.values()), "tried again while it may still run"
        self.delayed.add(task.number)

    def do_settimer(self, action: SetTimer):
        assert action.seconds >= 0
        if action.kind in ("timeout", "grace"):
            assert action.key in self.tasks and action.key not in self.ended, f"a timer for nothing: {action}"
        self.timers[action.kind, action.key] = action.seconds

    def do_cleartimer(self, action: ClearTimer):
        self.timers.pop((action.kind, action.key), None)

    def do_end(self, action: End):
        number = action.task.number
        assert number in self.tasks, "an unknown task ends"
        assert number not in self.ended, "a task ends twice"
        self.ended[number] = action.cause
        if number in self.waiting:
            self.waiting.remove(number)
        self.delayed.discard(number)
        for process in self.processes.values():
            if (run := process.runs.get(number)) is not None:  # nothing is heard of it, and others run beside it
                assert self.killing_all or any(not r.interrupted for r in process.runs.values())
                assert run.interrupted and action.cause is not Cause.ANSWERED
                run.abandoned = True

    # what may happen

    def rank(self, number) -> float:
        task = self.tasks[number]
        return task.arrived_at - task.priority * 10.0

    def in_order(self) -> list[int]:  # The numbers of the tasks that wait for a worker only, as they are due
        ahead = [n for p in self.processes.values() for n in p.ahead]
        assert not set(ahead) & set(self.waiting)
        numbers = [n for n in self.waiting if self.tasks[n].gate is not GateState.WAITING]
        return sorted(numbers, key=lambda n: (self.rank(n), self.waiting.index(n)))

    def new_task(self, plugin, version=0, timeout=None, kind=TaskKind.EXECUTE, **options) -> Task:
        self.number += 1
        self.now += 1.0
        lane = self.lane_of.get(plugin, ("", ""))[version]
        task = Task(self.number, plugin, version, timeout, kind=kind, arrived_at=self.now, lane=lane, **options)
        self.tasks[self.number] = task
        return task

    @rule(
        plugin=PLUGINS,
        version=st.integers(0, 1),
        timeout=st.sampled_from([None, 0.0, 5.0]),
        count=st.integers(1, 4),
        priority=st.sampled_from([0, 0, 0, 1, 2, -1]),
        retry=st.sampled_from([None, None, Retry(2), Retry(3, on=("failed", "timeout"))]),
        delay=st.sampled_from([0, 0, 0, 7.0]),
    )
    def submit(self, plugin, version, timeout, count, priority, retry, delay):
        for _ in range(count):
            task = self.new_task(plugin, version, timeout, priority=priority, retry=retry, delay=delay)
            if delay:
                self.delayed.add(task.number)
            else:
                self.waiting.append(task.number)
            self.do(self.scheduler.submit(task))
            if self.closed:
                assert self.ended[task.number] is Cause.CLOSED

    @rule(data=st.data(), priority=st.integers(-1, 2))
    def set_priority(self, data, priority):
        if self.tasks:
            number = data.draw(st.sampled_from(sorted(self.tasks)))
            if number in self.waiting:
                self.waiting.remove(number)
                self.waiting.append(number)
            self.do(self.scheduler.set_priority(number, priority))

    @rule(data=st.data())
    def retire(self, data):
        number = self.some_process(data, lambda p: True)
        if number is not None:
            self.do(self.scheduler.retire(number, "leaks"))

    @rule(plugin=PLUGINS)
    def release(self, plugin):
        self.do(self.scheduler.release(plugin))
        assert not self.scheduler.crashes.is_held(plugin)

    @rule(plugin=PLUGINS)
    def load(self, plugin):
        task = self.new_task(plugin, kind=TaskKind.LOAD)
        self.waiting.append(task.number)
        self.do(self.scheduler.submit(task))

    @rule(plugin=PLUGINS, kind=st.sampled_from([TaskKind.LOAD, TaskKind.UNLOAD]), version=st.integers(0, 1))
    def submit_to_all(self, plugin, kind, version):
        lane = self.lane_of.get(plugin, ("", ""))[version]
        there = self.scheduler.workers_for(kind, plugin, lane)
        assert kind is TaskKind.UNLOAD or all(worker.lane == lane for worker in there)
        tasks = [self.new_task(plugin, version, kind=kind) for _ in there]
        self.own.update((task.number, worker.number) for task, worker in zip(tasks, there, strict=True))
        self.do(self.scheduler.submit_to_all(tasks))

    def some_process(self, data, condition):
        numbers = [number for number, process in self.processes.items() if condition(process)]
        return data.draw(st.sampled_from(numbers)) if numbers else None

    @if_any_process(can_start)
    @rule(data=st.data())
    def start(self, data):
        number = self.some_process(data, can_start)
        if number is not None:
            self.processes[number].started = True
            self.do(self.scheduler.started(number))
            assert self.processes[number].killed or ("start", number) in self.timers

    @if_any_process(can_become_ready)
    @rule(data=st.data())
    def become_ready(self, data):
        number = self.some_process(data, can_become_ready)
        if number is not None:
            self.processes[number].said_ready = True
            self.do(self.scheduler.ready(number))

    @if_any_process(can_finish_loading)
    @rule(data=st.data())
    def finish_loading(self, data):
        number = self.some_process(data, can_finish_loading)
        if number is not None:
            process = self.processes[number]
            run = next(run for run in process.runs.values() if run.must_load and not run.has_loaded)
            run.has_loaded = True
            process.loaded[run.task.plugin] = run.task.version
            slots = self.slots.get(run.task.plugin, 1)
            self.do(self.scheduler.loaded(number, run.task.number, slots))

    def shares(self, p: Process) -> bool:
        "Whether a worker has several jobs, and takes several at a time."
        return len(p.runs) > 1 and not p.dying and self.slots.get(next(iter(p.runs.values())).task.plugin, 1) > 1

    @precondition(lambda self: any(self.shares(p) for p in self.processes.values()))
    @rule(data=st.data())
    def begin(self, data):
        "A worker that batches its jobs begins some of them."
        number = self.some_process(data, self.shares)
        process = self.processes[number]
        process.batch = data.draw(st.lists(st.sampled_from(sorted(process.runs)), min_size=1, unique=True))
        self.do(self.scheduler.begun(number, process.batch))

    @if_any_process(lambda p: p.can_claim() or (p.ahead and not p.dying))
    @rule(data=st.data(), told=st.booleans())
    def claim(self, data, told):
        "A worker has succeeded, and begins the next task; nobody has read its answer."
        number = self.some_process(data, lambda p: bool(p.ahead) and not p.dying and not p.holds)
        if number is None:
            return
        process = self.processes[number]
        if not process.can_claim():
            first = process.runs[next(n for n, run in process.runs.items() if not run.succeeded)]
            if first.task.number in process.unclaimed or not first.can_answer("ok"):
                return
            first.succeeded = True
        if process.can_claim():
            claimed = process.unclaimed.popleft()
            if told and not process.runs[claimed].begun:
                self.do(self.scheduler.begun(number, [claimed]))

    @if_any_process(lambda p: p.runs)
    @rule(data=st.data(), how=st.sampled_from(["ok", "failed", "cancelled"]))
    def answer(self, data, how):
        number = self.some_process(data, lambda p: any(run.can_answer(how) for run in p.runs.values()))
        if number is None:
            return
        process = self.processes[number]
        able = [n for n, r in process.runs.items() if r.can_answer(how)]
        if (
            self.slots.get(process.runs[able[0]].task.plugin, 1) == 1
        ):  # it runs one at a time, and answers in this order
            if able[0] != next(iter(process.runs)):
                return
            able = able[:1]
        run, task = process.runs[able[0]], process.runs[able[0]].task
        if run.task.number in process.unclaimed:  # it has begun as far as is known, and now it has
            if not process.can_claim():
                return
            process.unclaimed.remove(run.task.number)
        run = process.runs.pop(data.draw(st.sampled_from(able)))
        task = run.task
        process.holds = how != "ok" and bool(process.ahead)
        assert task.number not in self.delayed
        if task.kind is TaskKind.UNLOAD or (how != "ok" and run.must_load and not run.has_loaded):
            process.loaded.pop(task.plugin, None)
        elif task.kind is TaskKind.LOAD and how != "ok":
            process.loaded.pop(task.plugin, None)
        self.do(self.scheduler.answered(number, task.number, cancelled=how == "cancelled", failed=how == "failed"))
        if run.abandoned:
            return
        if how == "ok":
            assert self.ended[task.number] is Cause.ANSWERED
        elif how == "cancelled" and task.number in self.ended:
            assert self.ended[task.number] in (Cause.CANCELLED, Cause.TIMEOUT, Cause.CLOSED)
        assert task.number in self.ended or task.number in self.delayed
        assert number not in self.processes or not process.holds or not process.ahead, "nobody takes them back"
        process.holds = False

    @if_any_process(lambda p: not p.dying)
    @rule(data=st.data(), jobs=st.integers(0, 3))
    def go_well(self, data, jobs):
        "Lives without trouble: drawn step by step they would be rare, since a process may end after each step."
        for _ in range(2):
            self.start(data)
            self.become_ready(data)
        for _ in range(jobs):
            self.finish_loading(data)
            self.answer(data, "ok")

    @precondition(lambda self: self.slots and not self.closed)
    @rule(
        data=st.data(),
        count=st.integers(2, 6),
        timeout=st.sampled_from([None, 5.0]),
        retry=st.sampled_from([None, Retry(2)]),
    )
    def share(self, data, count, timeout, retry):
        "Several jobs of a plugin that takes several at a time, on workers that load it."
        for number, process in list(self.processes.items()):
            if can_start(process):
                process.started = True
                self.do(self.scheduler.started(number))
            if can_become_ready(process):
                process.said_ready = True
                self.do(self.scheduler.ready(number))
        for _ in range(count):
            task = self.new_task("p", 0, timeout, retry=retry)
            self.waiting.append(task.number)
            self.do(self.scheduler.submit(task))
        self.finish_loading(data)

    @precondition(lambda self: self.scheduler.short and not self.closed)
    @rule(
        data=st.data(),
        count=st.integers(3, 6),
        timeout=st.sampled_from([None, 5.0]),
        retry=st.sampled_from([None, Retry(2)]),
        answers=st.integers(1, 4),
        claims=st.integers(0, 3),
    )
    def hurry(self, data, count, timeout, retry, answers, claims):
        "Many short jobs of one plugin, so that some of them are sent ahead."
        for number, process in list(self.processes.items()):
            if can_start(process):
                process.started = True
                self.do(self.scheduler.started(number))
            if can_become_ready(process):
                process.said_ready = True
                self.do(self.scheduler.ready(number))
        for _ in range(count + 2 * self.config.max_workers):
            task = self.new_task("q", 0, timeout, retry=retry)
            self.waiting.append(task.number)
            self.do(self.scheduler.submit(task))
        for _ in range(answers):
            self.finish_loading(data)
            self.answer(data, "ok")
        for told in range(claims):
            self.claim(data, told == 2)

    @if_any_process(lambda p: not p.dying)
    @rule(data=st.data(), undelivered=st.booleans())
    def notice_the_end(self, data, undelivered):
        number = self.some_process(data, lambda p: not p.dying)
        if number is None:
            return
        process = self.processes[number]
        process.dying = True
        # an order that never arrived was not acted on
        lost = [
            run.task
            for number, run in process.runs.items()
            if number in process.unclaimed
            or (undelivered and not run.has_loaded and not run.abandoned and run.begun and not run.succeeded)
        ]
        process.unclaimed.clear()
        for task in lost:
            if task.kind is TaskKind.EXECUTE and not process.runs[task.number].interrupted:
                del process.runs[task.number]
                self.waiting.append(task.number)
                self.undelivered[task.number] = self.undelivered.get(task.number, 0) + 1
        self.do(self.scheduler.dying(number, [task.number for task in lost]))

    @if_any_process(lambda p: True)
    @rule(data=st.data(), noticed=st.booleans(), lost=st.booleans())
    def die(self, data, noticed, lost):
        number = self.some_process(data, lambda p: p.dying or not noticed)
        if number is None:
            return
        process = self.processes.pop(number)
        reason = ExitReason.LOST if lost else ExitReason.CRASHED if process.started else ExitReason.REFUSED
        self.do(self.scheduler.died(number, reason))
        for n in process.runs:
            assert n in self.ended or n in self.delayed, "the task of a dead worker hangs"
        for kind in ("start", "stop", "age", "idle"):
            assert (kind, number) not in self.timers, "a timer of a dead worker goes on"

    @precondition(lambda self: len(self.ended) < len(self.tasks))
    @rule(data=st.data())
    def cancel(self, data):
        open_ones = [number for number in self.tasks if number not in self.ended]
        if open_ones:
            number = data.draw(st.sampled_from(open_ones))
            waits = number in self.waiting
            waits = waits or any(number in p.ahead and number in p.unclaimed for p in self.processes.values())
            self.do(self.scheduler.cancel(number))
            assert not waits or self.ended[number] is Cause.CANCELLED

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def let_a_timer_fire(self, data):
        if self.timers:
            kind, key = data.draw(st.sampled_from(sorted(self.timers, key=str)))
            del self.timers[kind, key]
            if kind == "due":
                self.delayed.remove(key)
                self.waiting.append(key)
            self.do(self.scheduler.timer(kind, key))

    @rule(kind=st.sampled_from(["timeout", "start", "grace"]), number=st.integers(0, 50))
    def late_words(self, kind, number):
        "What is about something that is gone changes nothing."
        gone_worker = 1000 + number
        assert self.scheduler.timer(kind, gone_worker) == []
        for words in (
            self.scheduler.ready(gone_worker), self.scheduler.loaded(gone_worker, number),
            self.scheduler.answered(gone_worker, number), self.scheduler.died(gone_worker),
            self.scheduler.dying(gone_worker, [number]), self.scheduler.cancel(gone_worker),
            self.scheduler.started(gone_worker),
        ):  # fmt: skip
            assert words == []
        for worker, process in self.processes.items():
            if number not in process.runs:
                assert self.scheduler.answered(worker, number) == []

    @precondition(lambda self: not self.closed and len(self.tasks) > 5)
    @rule(drain=st.booleans(), chance=st.integers(0, 5))
    def close(self, drain, chance):
        if chance:
            return
        self.closed = True
        if drain:  # what is to be tried again gets its chance now
            for number in [n for n in self.scheduler.tasks if n in self.delayed and self.tasks[n].attempts]:
                self.delayed.remove(number)
                self.waiting.append(number)
        self.do(self.scheduler.close(drain))

    @precondition(lambda self: self.closed)
    @rule(chance=st.integers(0, 3))
    def kill_all(self, chance):
        if not chance:
            self.killing_all = True
            self.do(self.scheduler.kill_all())
            self.killing_all = False

    # what always holds

    @invariant()
    def the_books_agree(self):
        scheduler = self.scheduler
        assert set(scheduler.workers.all) == set(self.processes)
        for number, worker in scheduler.workers.all.items():
            assert worker.tasks.keys() == self.processes[number].runs.keys()
        assert scheduler.workers.busy == sum(bool(p.runs) for p in self.processes.values())
        found = [task.number for task in scheduler.pending.all()]
        if self.config.max_jobs_per_plugin or self.config.lanes:  # one that is admitted comes after its equals
            assert [self.rank(n) for n in found] == [self.rank(n) for n in self.in_order()]
            assert set(found) == set(self.in_order())
        else:
            assert found == self.in_order()
        ahead = {n for p in self.processes.values() if not p.dying and not p.killed for n in p.ahead}
        assert {task.number for task in scheduler.queue()} == set(self.waiting) | ahead
        assert (
            [t.number for t in scheduler.queue() if t.ticket] == found + [t.number for t in scheduler.gates.all()]
            if scheduler.gates
            else True
        )
        for plugin, limit in self.config.max_jobs_per_plugin.items():
            mine = [n for n in found if self.tasks[n].plugin == plugin and self.tasks[n].kind is TaskKind.EXECUTE]
            admitted = len(mine) + len(self.running(plugin))
            assert scheduler.gates.admitted[plugin] == admitted <= limit
            assert admitted == limit or not scheduler.gates.waiting[plugin].count, "one waits apart without a reason"
        assert scheduler.delayed == len(self.delayed)
        assert {key for kind, key in self.timers if kind == "due"} == self.delayed
        assert scheduler.queued == len(self.waiting) + len(ahead)
        assert set(scheduler.tasks) == set(self.tasks) - set(self.ended)
        for number in scheduler.workers.idle.all:
            worker = scheduler.workers.all[number]
            assert not worker.tasks and worker.phase is WorkerPhase.READY
        for kind, key in self.timers:
            assert kind not in ("due", "timeout", "grace") or key not in self.ended, "a timer of an ended task goes on"
        assert all(plugin not in scheduler.crashes.held for plugin in "pqr" if ("release", plugin) not in self.timers)

    @invariant()
    def no_room_stays_empty(self):
        "A job that waits goes where there is room for it, unless that worker empties for one that waits for a worker."
        scheduler = self.scheduler
        for (plugin, version), group in scheduler.workers.open.by_plugin.items():
            for number, worker in group.items():
                assert 0 < len(worker.tasks) < self.slots[plugin] and not self.processes[number].killed
            fits = [n for n in self.in_order() if self.may_join(self.tasks[n], Task(0, plugin, version))]
            if fits:
                first = self.tasks[next(n for n in self.in_order() if self.tasks[n].lane == worker.lane)]
                waits = first.passed >= 2 and scheduler.workers.busy >= self.config.max_workers
                before = [self.tasks[n] for n in self.in_order() if self.rank(n) <= self.rank(fits[0])]
                waits = waits or any(t.lane != worker.lane and t.passed >= 2 for t in before)
                assert waits, (
                    f"room stays empty: {plugin} {version}, {fits}, first {first.number} was passed {first.passed} times"
                )

    @invariant()
    def nobody_waits_behind_another_without_need(self):
        "What was sent ahead lies where it begins soon: no worker is idle, and its own is not to do something else."
        scheduler = self.scheduler
        for number, worker in scheduler.workers.all.items():
            process = self.processes[number]
            waits = bool(process.ahead) and worker.phase is WorkerPhase.READY
            assert (number in scheduler.workers.ahead) == waits, "the books do not agree"
            assert {t.number for t in worker.waiting} == set(process.ahead) or worker.slots > 1
            assert not waits or not worker.asked_back
            assert not waits or not (worker.retires or worker.own), "it lies at a worker that is to be replaced"
            assert not waits or not scheduler.crashes.is_held(worker.plugin), "its plugin is held back"
            waits = waits and not any(self.tasks[n].lane == worker.lane for n in self.in_order())
            idle = [n for n in scheduler.workers.idle.all if scheduler.workers.all[n].lane == worker.lane]
            idle = idle and scheduler.workers.busy < self.config.max_workers
            assert not (waits and idle), "a job waits behind another while a worker is idle"
        for lane in scheduler.lanes or ("",):
            self.nobody_waits_behind_a_later_one(lane)

    def nobody_waits_behind_a_later_one(self, lane):
        scheduler = self.scheduler
        there = [t for w in scheduler.workers.ahead.values() for t in w.waiting if t.lane == lane]
        first = next((n for n in self.in_order() if self.tasks[n].lane == lane), None)
        if there and first is not None and self.tasks[first].priority > max(t.priority for t in there):
            latest = max(self.rank(t.number) for t in there)
            gated = self.config.max_jobs_per_plugin.get(self.tasks[first].plugin) is not None
            again = self.tasks[first].attempts or self.undelivered.get(first)
            assert gated or again or self.rank(first) >= latest, "a job waits behind one with a lower priority"

    @invariant()
    def lanes_get_their_places(self):
        "No lane waits while there is room for a worker of it, or an idle worker of another lane has the place."
        scheduler, processes = self.scheduler, list(self.processes.values())
        most = min(self.config.max_workers, scheduler._capacity)
        free = most - scheduler.workers.busy - sum(not p.said_ready for p in processes)
        if any(p.stopping or p.dying or p.killed for p in processes):  # their places are free in a moment
            return
        if free <= 0 or not self.config.lanes or self.config.one_plugin_per_worker:
            return
        for lane, state in scheduler.lanes.items():
            mine = [p for p in processes if p.lane == lane]
            waits = [n for n in self.in_order() if self.tasks[n].lane == lane]
            waits = waits[sum(not p.said_ready for p in mine) :]
            limit = self.lane_limit(lane)
            if not waits or not state.can_start or (limit is not None and len(mine) >= limit):
                continue
            idle = [p for p in mine if p.said_ready and not p.runs]
            assert idle, f"lane {lane!r} waits for nothing: {waits}, {[vars(p) for p in processes]}"

    @invariant()
    def nobody_is_kept_busy_by_what_has_ended(self):
        for worker in self.scheduler.workers.all.values():
            begun = worker.begun
            stuck = begun and worker.phase is WorkerPhase.READY and all(task.ended for task in begun)
            assert not stuck, f"worker {worker.number} is lost to a task that did not end in time"

    @invariant()
    def the_first_one_is_not_passed_for_ever(self):
        for number in self.waiting:
            assert self.tasks[number].passed <= 2

    @invariant()
    def nobody_waits_for_nothing(self):
        "Something that can still happen will serve what waits."
        if not self.waiting:
            return
        helpers = [
            n for n, p in self.processes.items()
            if any(run.begun for run in p.runs.values()) or p.dying or p.killed or not p.said_ready or p.stopping
        ]  # fmt: skip
        backoff = any(kind == "backoff" for kind, _ in self.timers)
        assert helpers or backoff, "a task waits, and nothing will come"

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        if not self.closed:
            self.do(self.scheduler.close(drain=False))
        self.killing_all = True
        self.do(self.scheduler.kill_all())
        for _ in range(50):
            for number in list(self.processes):
                assert (
                    self.processes[number].killed or self.processes[number].stopping or not self.processes[number].runs
                )
                del self.processes[number]
                self.do(self.scheduler.died(number))
        assert not self.processes and not self.scheduler.workers.all, "after the end new workers come"
        assert not self.waiting and set(self.ended) == set(self.tasks), "tasks without an end"
        assert {kind for kind, _ in self.timers} <= {"release"}, "a timer is left"


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=int(os.environ.get("SCHEDULER_EXAMPLES", "300")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Hurry:
    "Two workers with many short jobs, so that some of them are sent ahead; nothing is drawn."

    def __init__(self, jobs: int):
        self.scheduler = Scheduler(WorkerConfig(max_workers=2))
        self.scheduler.short, self.scheduler.MOST_SILENT = {"q"}, 1
        self.begun: list[int] = []  # Jobs that their worker has begun, and whose answer nobody has read
        self.killed: list[int] = []
        for number in range(1, jobs + 1):
            self.do(self.scheduler.submit(Task(number, "q", arrived_at=number)))
        for worker in (1, 2):
            self.do(self.scheduler.ready(worker))
            self.do(self.scheduler.loaded(worker, worker))

    def do(self, actions):
        "Do what is ordered, and then what follows from it."
        actions = deque(actions)
        while actions:
            action = actions.popleft()
            if isinstance(action, Kill):
                self.killed.append(action.worker)
            elif isinstance(action, TakeBack):
                waiting = [task.number for task in self.scheduler.workers.all[action.worker].waiting]
                taken = [number for number in waiting if number not in self.begun]
                actions.extend(self.scheduler.taken_back(action.worker, taken))

    def on(self, worker: int) -> list[int]:
        return list(self.scheduler.workers.all[worker].tasks)


def test_what_waits_at_a_silent_worker_goes_before_what_a_failure_gives_back():
    hurry = Hurry(jobs=12)
    for worker, number in [(1, 1), (2, 2), (2, 6)]:
        hurry.do(hurry.scheduler.answered(worker, number))
    assert (hurry.on(1), hurry.on(2)) == ([3, 4, 5], [7, 8, 9])
    hurry.do(hurry.scheduler.answered(2, 7, failed=True))  # and worker 1 has been silent for too long
    assert (hurry.on(1), hurry.on(2)) == ([3], [4])
    assert [task.number for task in hurry.scheduler.queue()] == [5, 8, 9, 10, 11, 12]


def test_a_worker_is_killed_whose_second_job_did_not_end_in_time_though_the_first_is_read_later():
    hurry = Hurry(jobs=12)
    hurry.do(hurry.scheduler.answered(1, 1))
    assert hurry.on(1) == [3, 4, 5]
    hurry.begun.append(4)  # the answer of 3 has not been read
    hurry.do(hurry.scheduler.cancel(4))
    hurry.do(hurry.scheduler.timer("grace", 4))
    assert not hurry.killed  # as far as is known 3 runs there
    hurry.do(hurry.scheduler.answered(1, 3))
    assert hurry.killed == [1]


def test_a_worker_is_killed_whose_batch_is_known_only_after_it_did_not_end_in_time():
    scheduler = Scheduler(WorkerConfig(max_workers=1))
    for number in (1, 2):
        scheduler.submit(Task(number, "p", arrived_at=number))
    scheduler.ready(1)
    scheduler.loaded(1, 1, slots=2)
    scheduler.cancel(1)
    assert not any(isinstance(action, Kill) for action in scheduler.timer("grace", 1))  # as far as is known 2 runs too
    assert scheduler.begun(1, [1]) == [Kill(1)]  # 2 does not: it goes to another worker


@pytest.mark.parametrize("lanes", [{}, {"x": Lane()}])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_plugin_gets_its_own_worker_though_the_jobs_of_another_never_end(workers, lanes):
    scheduler = Scheduler(WorkerConfig(max_workers=workers, one_plugin_per_worker=True, lanes=lanes))
    running: dict[int, Task] = {}
    begun: list[str] = []

    def do(actions):
        actions = deque(actions)
        while actions:
            action = actions.popleft()
            if isinstance(action, Start):
                actions.extend(scheduler.ready(action.worker))
            elif isinstance(action, Stop):
                actions.extend(scheduler.died(action.worker))
            elif isinstance(action, Send):
                running[action.worker] = action.task
                begun.append(action.task.plugin)
                if action.load:
                    actions.extend(scheduler.loaded(action.worker, action.task.number))

    for number, plugin in enumerate(["often"] * (workers + 2) + ["seldom"] + ["often"] * 50, start=1):
        do(scheduler.submit(Task(number, plugin, arrived_at=number)))
    while running and "seldom" not in begun:
        worker, task = next(iter(running.items()))
        del running[worker]
        do(scheduler.answered(worker, task.number))
    assert begun.count("often") == workers + 2 + scheduler.MOST_PASSED_IN_LANES
