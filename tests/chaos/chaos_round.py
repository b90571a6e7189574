"""A round: one manager, its jobs and strikes in the order of the plan, its end, and the checks after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

from chaos_checks import (
    Holdings,
    check_job_events,
    check_pids,
    check_sequence,
    check_states,
    processes_with,
    worker_calls,
)
from chaos_integrations import Broadcaster, Harm, Moods, Registry, Resources
from chaos_jobs import JobLife
from chaos_plan import JobPlan, RoundPlan, StrikePlan
from harness import Ticker, is_alive, targets, until

from cjm_worker_ext import BaseJob, BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import ManagerClosed, PluginError, PluginLoadError
from cjm_worker_ext.policies import Recycle

OURS = (
    "mix", "block", "array", "verses", "Configured", "SlowUnload", "leave_children", "hang_with_child", "Together", "Batched",
    "async_verses",
)  # fmt: skip
THEIRS = (
    "progress_then", "kill_self", "exit_now", "segfault", "print_and_crash", "raise_value_error", "raise_not_picklable",
    "raise_speechless", "system_exit", "keyboard_interrupt", "unpicklable_result", "sleep", "spin", "hold_lock",
    "ignore_sigterm", "finish_although_cancelled", "print_without_end", "LoadFails", "CrashingLoad", "count_then_fail",
    "count_then_crash",
)  # fmt: skip
PLUGINS = {name: f"chaos_plugins:{name}" for name in OURS} | targets(*THEIRS)
SHUTDOWN_ROOM = 8.0  # Seconds beyond the limit, for the kills and for a machine that has other work
MOST_LIVE = 40  # Jobs; with more of them the next step waits


class Report:
    "What happened in a run, for people."

    def __init__(self):
        self.faults: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()  # Faults that found nothing to strike
        self.ends: Counter[str] = Counter()
        self.late = 0  # Jobs that ran into a timeout without a reason that the driver knows
        self.problems: list[str] = []
        self.gap = self.busy = 0.0  # Longest time that the loop stood still: by the clock, and of the processor

    def job(self, end: str) -> None:
        self.ends[end] += 1


class ChaosManager(BaseJobManager):
    "A manager whose hooks raise for some jobs, and which counts the ends of each."

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hook_calls: Counter[str] = Counter()

    def prepare_execute_request(self, job):
        self._trip(job, "prepare")
        return super().prepare_execute_request(job)

    def extract_job_result(self, job, raw):
        self._trip(job, "extract")
        return raw

    def on_job_ended(self, job: BaseJob):
        self.hook_calls[job.id] += 1
        if not job.status.is_final:
            raise AssertionError(f"on_job_ended of a job that is {job.status}")
        self._trip(job, "ended")

    def _trip(self, job: BaseJob, hook: str) -> None:
        if job.metadata.get("trip") == hook:
            raise Harm(hook)


class Striker:
    "Carries out the faults that come from outside."

    def __init__(self, round: Round):
        self.round = round

    async def strike(self, plan: StrikePlan) -> bool:  # False if there was nothing to strike
        who, _, how = plan.fault.rpartition(" ")
        if plan.fault.startswith("SIG"):
            return await self._signal(plan)
        if who in ("broadcaster", "resource manager", "registry"):
            self.round.moods.begin(who, how, plan.seconds)
        elif plan.fault.startswith("page"):
            await self._open_bad_page(plan)
        elif plan.fault == "configuration changes":
            self.round.registry.generation += 1
        elif plan.fault == "app forks":
            await self._fork(plan)
        else:
            await self._change_plugin(plan)
        return True

    async def _signal(self, plan: StrikePlan) -> bool:
        workers = self.round.manager.workers()
        if not workers:
            return False
        pid = workers[plan.pick % len(workers)].pid
        try:
            handle = os.pidfd_open(pid)  # the pid itself may belong to another process later
        except ProcessLookupError:
            return False
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL if plan.fault == "SIGKILL" else signal.SIGSTOP)
            if plan.fault == "SIGSTOP and SIGCONT":  # a short stop costs no job
                await asyncio.sleep(plan.seconds)
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            else:
                self.round.struck.add(pid)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)
        return True

    async def _change_plugin(self, plan: StrikePlan) -> None:
        manager = self.round.manager
        plugin_id = ("Configured", "SlowUnload", "mix", "verses", "CrashingLoad", "LoadFails", "Together", "Batched")[
            plan.pick % 8
        ]
        change = {"reload": manager.reload_plugin, "load": manager.load_plugin, "unload": manager.unload_plugin}
        try:
            await asyncio.wait_for(change[plan.fault](plugin_id), 60)
        except (PluginLoadError, PluginError, ManagerClosed):
            pass
        except Exception as e:  # noqa: BLE001  - whatever else it is, it is a finding
            if not self.round.closing:
                self.round.problem(f"{plan.fault} of {plugin_id} raised {e!r}")

    async def _open_bad_page(self, plan: StrikePlan) -> None:
        page = self.round.broadcaster.open_page()
        if plan.fault == "page stops reading":
            await page.until(b"\n\n")
            page.reads.clear()
        await asyncio.sleep(plan.seconds)
        page.reads.set()
        await page.leave()

    async def _fork(self, plan: StrikePlan) -> None:
        child = os.fork()
        if not child:
            time.sleep(plan.seconds)  # noqa: ASYNC251  - this is the child, and its loop must not turn
            os._exit(0)
        await until(lambda: os.waitpid(child, os.WNOHANG) != (0, 0), what="the end of the forked child")


class Round:
    "Carries out one round of a plan."

    def __init__(self, plan: RoundPlan, report: Report):
        self.plan, self.report = plan, report
        self.moods = Moods()
        self.broadcaster = Broadcaster(self.moods, report.problems)
        self.resources, self.registry = Resources(self.moods), Registry(self.moods)
        self.lives: dict[str, JobLife] = {}  # By job id
        self.struck: set[int] = set()  # Pids of workers that the driver has killed, or stopped for good
        self.tasks: set[asyncio.Task[None]] = set()
        self.live = 0  # Jobs that are under way
        self.closing = False
        self.mark = f"{3_000_000 + os.getpid()}.{plan.number}"  # seconds: an argument of `sleep` that nobody else uses
        self.striker = Striker(self)
        self.manager = ChaosManager(
            "chaos", "tests", plugins=PLUGINS,
            # what strikes at workers can meet one plugin three times in a row, and its next job is innocent
            worker_config=WorkerConfig(hold_after_crashes=0, **plan.config),
            recycle=Recycle(**plan.recycle),
            plugin_registry=self.registry, resource_manager=self.resources, event_broadcaster=self.broadcaster,
        )  # fmt: skip

    def problem(self, text: str) -> None:
        self.report.problems.append(f"round {self.plan.number}: {text}")

    async def run(self) -> None:
        async with Ticker() as ticker:
            await self.broadcaster.open_pages()
            await self._take_steps()
            await self._end()
            self.report.gap = max(self.report.gap, ticker.gap)
            self.report.busy = max(self.report.busy, ticker.busy)
        self._check()

    # the steps

    async def _take_steps(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for step in self.plan.steps:
            due += step.pause
            await asyncio.sleep(due - loop.time())
            await until(lambda: self.live < MOST_LIVE, 120, "room for another job")
            self._begin(self._live_job(step.what) if isinstance(step.what, JobPlan) else self._strike(step.what))

    def _begin(self, coroutine) -> None:
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.problem(f"the driver itself failed: {error!r}")

    async def _live_job(self, plan: JobPlan) -> None:
        if plan.fault is not None:
            self.report.faults[plan.fault] += 1
        self.live += 1
        try:
            await JobLife(self, plan).run()
        finally:
            self.live -= 1

    async def _strike(self, plan: StrikePlan) -> None:
        self.report.faults[plan.fault] += 1
        if not await self.striker.strike(plan):
            self.report.missed[plan.fault] += 1

    # the end

    async def _end(self) -> None:
        "Shut down in the way of the plan; whatever the way, everything has ended then."
        end, manager = self.plan.end, self.manager
        if end == "when all is done":
            await until(lambda: not self.tasks, 200, "the end of all jobs")
        if end == "integrations hang":
            for who in ("broadcaster", "resource manager"):
                self.moods.begin(who, "hangs", 20.0)
            self.moods.begin("registry", "hangs", 1.0)  # one that was fast is asked on the event loop, and holds it
        else:
            self.moods.lift()
        self.closing = True
        began = time.monotonic()
        ways: dict[str, Callable] = {
            "drain": lambda: manager.shutdown(drain=True),
            "at once": lambda: manager.shutdown(timeout=0.0),
            "twice": lambda: asyncio.gather(manager.shutdown(), manager.shutdown()),
            "shutdown is cancelled": self._cancelled_shutdown,
        }
        try:
            await asyncio.wait_for(ways.get(end, manager.shutdown)(), 60)
        except TimeoutError:
            self.problem(f"shutdown ({end}) has not ended after 60 s; workers: {manager.workers()}")
        self.shutdown_seconds = time.monotonic() - began
        if self.shutdown_seconds > self.plan.config["shutdown_timeout_seconds"] + SHUTDOWN_ROOM:
            self.problem(f"shutdown ({end}) took {self.shutdown_seconds:.1f} s")
        self._check_workers_are_gone()
        self.moods.lift()
        with contextlib.suppress(AssertionError):
            await until(lambda: not self.tasks, 30, "the end of all tasks")
        for task in self.tasks:
            self.problem(f"a task of the driver has not ended: {task!r}")
        await asyncio.wait_for(self.broadcaster.close_pages(), 60)

    async def _cancelled_shutdown(self) -> None:
        first = asyncio.create_task(self.manager.shutdown())
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        await self.manager.shutdown()

    # the checks

    def _check_workers_are_gone(self) -> None:
        pids = {pid for _, pid in worker_calls(self.broadcaster.events)} | {pid for _, pid, _ in self.resources.calls}
        pids |= {life.job.worker_pid for life in self.lives.values() if life.job.worker_pid}
        if left := [pid for pid in pids if is_alive(pid)]:
            self.problem(f"workers {left} are alive after the shutdown")

    def _check(self) -> None:
        events, is_whole = self.broadcaster.events, self.plan.end != "integrations hang"
        found = check_sequence(events)
        found += check_job_events(events, self.lives, is_whole)
        found += check_pids([call[:2] for call in self.resources.calls], "resource manager", is_whole)
        found += check_pids(worker_calls(events), "events", is_whole)
        found += check_states(self.resources.calls)
        for job_id, life in self.lives.items():
            if not life.job.status.is_final:
                found.append(f"job {job_id} is {life.job.status} after the shutdown")
            if (calls := self.manager.hook_calls[job_id]) != 1:
                found.append(f"on_job_ended was called {calls} times for job {job_id} ({life.plan})")
            life.check()  # what it said at its end still holds, its result is still right
        for problem in found:
            self.problem(problem)


async def left_behind(before: Holdings, mark: str) -> list[str]:
    "What a round left: the holdings of this process beyond `before`, and processes that plugins have started."
    with contextlib.suppress(AssertionError):
        await until(lambda: not Holdings().beyond(before) and not processes_with(mark), 5)
    found = Holdings().beyond(before)
    if children := processes_with(mark):
        found.append(f"left behind: processes {children} that plugins have started")
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return found
