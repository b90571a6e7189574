"""One job of a run: it is submitted, read, cancelled or left alone, and its end is compared with what was possible."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import chaos_plugins
from chaos_plan import READ_SECONDS, JobPlan, ReaderPlan, needs_no_timeout

from cjm_worker_ext import BaseJob
from cjm_worker_ext.errors import ManagerClosed, QueueFull, StreamGap, UnknownJob

if TYPE_CHECKING:
    from chaos_round import Round

PATIENCE = 90.0  # Seconds for a job to end, its time in the queue included; beyond it, it has been forgotten
SHARED = ("Together", "Batched", "async_verses")  # Their jobs share a worker
COMPUTED = ("mix", "block", "array", "verses")  # Plugins that the driver runs itself
# How jobs of the other plugins end by themselves: the type of the error, or `completed`
NATURAL_ENDS = {
    "Configured": {"completed"}, "SlowUnload": {"completed"}, "progress_then": {"completed"},
    "kill_self": {"WorkerCrashed"}, "exit_now": {"WorkerCrashed"}, "segfault": {"WorkerCrashed"},
    "print_and_crash": {"WorkerCrashed"}, "count_then_crash": {"WorkerCrashed"}, "CrashingLoad": {"WorkerCrashed"},
    "raise_value_error": {"ValueError"}, "count_then_fail": {"ValueError"}, "raise_not_picklable": {"NotPicklable"},
    "raise_speechless": {"Speechless"}, "system_exit": {"SystemExit"}, "keyboard_interrupt": {"KeyboardInterrupt"},
    "unpicklable_result": {"NotSerializable"}, "LoadFails": {"PluginLoadError"},
    "sleep": {"JobTimeout"}, "spin": {"JobTimeout"}, "hold_lock": {"JobTimeout"}, "ignore_sigterm": {"JobTimeout"},
    "hang_with_child": {"JobTimeout"}, "finish_although_cancelled": {"completed", "cancelled", "JobTimeout"},
    "leave_children": {"completed"}, "print_without_end": {"completed"},
}  # fmt: skip
HOWS = {
    "fail": {"ValueError"}, "crash": {"WorkerCrashed"}, "sleep": {"JobTimeout"}, "hear_nothing": {"JobTimeout"},
}  # fmt: skip
TRIPS = {"prepare": {"Harm"}, "extract": {"Harm"}, "lock": {"NotSerializable"}, "ended": {"completed"}}


class Expected:
    "What a job returns and yields, computed here and not in a worker."

    def __init__(self, plan: JobPlan):
        self.plan = plan

    def chunks(self) -> list[Any]:
        if self.plan.work in ("verses", "async_verses"):
            return list(chaos_plugins.verses(**self.plan.params | {"pause": 0.0}))
        if self.plan.work in ("count_then_fail", "count_then_crash"):
            return list(range(self.plan.params["n"]))
        return []

    def is_result(self, job: BaseJob) -> bool:
        "Whether the result of a completed job is whole and right."
        work, params, result = self.plan.work, self.plan.params, job.result
        if work in ("verses", "async_verses"):
            return result == self.chunks()[job.chunks_dropped :]
        if work == "array":
            return bool((result == chaos_plugins.array(**params)).all())
        if work in COMPUTED:
            return result == getattr(chaos_plugins, work)(**params)
        known = {"SlowUnload": params.get("seed", 0) * 7, "progress_then": params.get("n"), "print_without_end": None}
        known |= {"Together": params.get("seed", 0) * 3, "Batched": params.get("seed", 0) * 5}
        known |= {"leave_children": params.get("count"), "finish_although_cancelled": "finished all the same"}
        return work not in known or result == known[work]


class Reader:
    "Reads the chunks of a job in the manner of its plan, and compares each with what was to come."

    def __init__(self, life: JobLife, plan: ReaderPlan):
        self.life, self.plan = life, plan
        self.count, self.finished = 0, False

    async def run(self) -> None:
        manager, job = self.life.round.manager, self.life.job
        if self.plan.kind == "late":
            await self.life.ended.wait()
        try:
            chunks = manager.stream(job.id)
        except (StreamGap, UnknownJob):  # it came too late
            return
        if self.plan.kind == "never":
            await asyncio.sleep(self.plan.seconds)
            return
        async for chunk in chunks:
            self._compare(chunk)
            if self.count == self.plan.after + 1 and self.plan.kind == "leaves":
                await chunks.aclose()
                return
            if self.count == self.plan.after + 1 and self.plan.kind == "holds":
                await asyncio.sleep(self.plan.seconds)
            if self.plan.kind == "slow" and self.count % 50 == 0:
                await asyncio.sleep(0.02)
        self.finished = True

    def _compare(self, chunk: object) -> None:
        self.life.first_chunk.set()
        expected = self.life.chunks
        if self.count >= len(expected) or expected[self.count] != chunk:
            self.life.problem(f"a reader ({self.plan.kind}) got {chunk!r:.60} as chunk {self.count}")
        self.count += 1

    def check(self) -> None:
        "A reader that stayed to the end of a whole job has read everything."
        whole = self.life.end == "completed" or (
            self.life.plan.work == "count_then_fail" and self.life.end == "ValueError"
        )
        if self.finished and whole and self.count != len(self.life.chunks):
            self.life.problem(f"a reader ({self.plan.kind}) got {self.count} of {len(self.life.chunks)} chunks")


class JobLife:
    "A job from its submission to its end."

    def __init__(self, round: Round, plan: JobPlan):
        self.round, self.plan, self.expected = round, plan, Expected(plan)
        self.chunks = self.expected.chunks()
        self.job: BaseJob | None = None  # None until it was accepted
        self.cancel_asked = False
        self.end = ""  # `completed`, `cancelled`, or the type of the error
        self.ended, self.first_chunk = asyncio.Event(), asyncio.Event()
        self.generations = (0, 0)  # Of the configuration, before and after the submission
        self.registry_was_well = True

    def problem(self, text: str) -> None:
        self.round.problem(f"job {self.job and self.job.id} ({self.plan}): {text}; {self.job!r:.600}")

    async def run(self) -> None:
        try:
            await self._submit()
        except (ManagerClosed, QueueFull) as e:
            if isinstance(e, ManagerClosed) and not self.round.closing:
                self.problem("the manager was closed")
            self.end = f"refused: {type(e).__name__}"
            self.round.report.job(self.end)
            return
        readers = [Reader(self, plan) for plan in self.plan.readers]
        tasks = [asyncio.create_task(reader.run()) for reader in readers]
        if self.plan.cancel_after is not None:
            tasks.append(asyncio.create_task(self._cancel(self.plan.cancel_after)))
        if self.plan.waits is not None:
            tasks.append(asyncio.create_task(self._give_up_waiting(self.plan.waits)))
        try:
            await self.round.manager.wait(self.job.id, PATIENCE)
        except TimeoutError:
            self.problem(f"it has no end after {PATIENCE:g} s; workers: {self.round.manager.workers()}")
            return
        self._note_end()
        self.ended.set(), self.first_chunk.set()
        for done in await asyncio.gather(*(asyncio.wait_for(task, PATIENCE) for task in tasks), return_exceptions=True):
            if isinstance(done, BaseException):
                self.problem(f"a reader or a cancel raised {done!r}")
        self.check()
        if self.end == "JobTimeout" and needs_no_timeout(self.plan) and not self._is_struck():
            self.round.report.late += 1
            if self.plan.timeout == READ_SECONDS:
                self.problem("its readers held it")
        for reader in readers:
            reader.check()

    def _is_struck(self) -> bool:
        "Whether something holds its worker for which it is not to blame."
        return self.job.worker_pid in self.round.struck or self.plan.work in SHARED

    async def _submit(self) -> None:
        plan, registry, moods = self.plan, self.round.registry, self.round.moods
        params = dict(plan.params)
        if plan.trip == "lock":
            params["seed"] = threading.Lock()
        if plan.work in ("leave_children", "hang_with_child"):
            params["mark"] = self.round.mark
        before, bad_times = registry.generation, moods.bad_times.get("registry", 0)
        was_bad = moods.is_bad("registry")
        metadata = {"trip": plan.trip}
        self.job = await self.round.manager.submit_job(
            plan.work, params, timeout=plan.timeout, metadata=metadata, priority=plan.priority, delay_seconds=plan.delay
        )
        self.generations = before, registry.generation
        self.registry_was_well = not was_bad and bad_times == moods.bad_times.get("registry", 0)
        self.round.lives[self.job.id] = self

    async def _cancel(self, seconds: float) -> None:
        if self.plan.readers:
            await self.first_chunk.wait()
        await asyncio.sleep(seconds)
        time.sleep(self.plan.holds_loop)  # noqa: ASYNC251  - the worker goes on meanwhile, and may have ended
        self.cancel_asked = True
        try:
            answer = await self.round.manager.cancel_job(self.job.id)
        except UnknownJob:  # it has ended, and others since
            return
        if answer and self.job.status != "cancelled":
            self.problem("cancel_job said True")

    async def _give_up_waiting(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError, UnknownJob):
            await self.round.manager.wait(self.job.id, seconds)

    def _note_end(self) -> None:
        job = self.job
        self.end = str(job.status) if job.status != "failed" else str(job.error_type)
        self.round.report.job(self.end if job.status != "failed" else f"failed: {self.end}")

    def check(self) -> None:
        "Compare the end with what was possible; called again at the end of the round: nothing may have changed."
        job, end = self.job, self.end
        if end != (str(job.status) if job.status != "failed" else job.error_type):
            self.problem(f"it ended as {end}, and now is {job.status}")
        if end not in self._natural_ends() and not self._is_excused(end):
            self.problem(f"it must not end as {end}")
        if job.status == "failed" and not job.error:
            self.problem("it failed without a word")
        if job.attempts > 1 or (end == "completed" and job.attempts != 1):
            self.problem(f"{job.attempts} attempts")
        if end == "completed" and not self.expected.is_result(job):
            self.problem("its result is not right")
        if end == "completed" and self.plan.work == "Configured":
            self._check_generation(job.result)

    def _natural_ends(self) -> set[str]:
        if self.plan.work in SHARED and (how := self.plan.params.get("how")) in HOWS:
            return HOWS[how]
        return TRIPS.get(self.plan.trip or "") or NATURAL_ENDS.get(self.plan.work, {"completed"})

    def _is_excused(self, end: str) -> bool:
        "Whether something that the driver did explains this end."
        job = self.job
        if end == "cancelled":
            return self.cancel_asked or self.round.closing
        if end == "JobTimeout":
            limits = [self.plan.timeout, self.round.plan.config["load_timeout_seconds"]]
            return job.duration_seconds is not None and job.duration_seconds > min(limits) - 0.01
        # what ends a worker ends the jobs that it shares
        return end == "WorkerCrashed" and (job.worker_pid in self.round.struck or self.plan.work in SHARED)

    def _check_generation(self, found: int | None) -> None:
        first, last = self.generations
        right = first <= (found or 0) <= last if self.registry_was_well else found is None or found <= last
        if not right:
            self.problem(f"it ran with configuration {found}, and at its submission there were {first} to {last}")
