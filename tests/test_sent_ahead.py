"""Short jobs lie at a busy worker before they begin; whatever happens to that worker, this changes nothing for them.

The worker begins the next one without a round trip. It has claimed it then: the app takes back the others at any moment.
With a store the same holds, and the store says at the end what each job has become.
"""

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest
from harness import run, time_is_up, until

from cjm_worker_ext import BaseJobManager, JobStatus, WorkerConfig
from cjm_worker_ext.policies import Retry
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

DURABILITY = None  # Of the store of the test that runs; None: it has none


@pytest.fixture(params=[None, "behind", "committed"], autouse=True)
def durability(request):
    global DURABILITY
    DURABILITY = request.param
    return request.param


class Steps:
    "Notes that a job begins, and then does what it is told."

    def execute(self, log, name, gate=None, how="", ctx=None, load=b""):
        import os
        import signal
        import time

        if how == "deaf":  # as in native code: it hears of nothing
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
        with open(log, "a") as file:
            file.write(f"{name} {os.getpid()}\n")
        if how == "prints":
            print(f"{name} says so")
        if how == "dies":
            os._exit(3)
        while gate is not None and not os.path.exists(gate):
            time.sleep(0.005)
        if how == "retires":
            ctx.retire_worker("enough")
        if how == "breaks":
            raise RuntimeError("CUDA error: device-side assert triggered")
        if how == "fails":
            raise ValueError("no")
        return name


class Recorder:
    def __init__(self):
        self.seen = []

    async def broadcast(self, event_type, data):
        self.seen.append((event_type, data.get("job_id")))


class Scene:
    "A manager whose plugin is known to be quick, and a log of what has begun."

    def __init__(self, folder: Path, **options):
        self.log, self.gate, self.events = folder / "log", folder / "gate", Recorder()
        config = {"max_workers": 1, "hold_after_crashes": 0} | options
        self.store = None if DURABILITY is None else SQLiteJobStore(folder / "jobs.db", durability=DURABILITY)
        self.manager = BaseJobManager(
            "ahead", plugins={"p": Steps()}, worker_config=WorkerConfig(**config), event_broadcaster=self.events,
            job_store=self.store,
        )  # fmt: skip
        self.jobs = {}

    async def submit(self, *names, **options):
        for name in names:
            params = {"log": str(self.log), "name": name} | options.get("params", {})
            more = {key: value for key, value in options.items() if key != "params"}
            self.jobs[name] = await self.manager.submit_job("p", params, **more)

    async def warm_up(self):
        for _ in range(20):  # on a busy machine some jobs are not
            names = [f"w{i}" for i in range(40)]
            await self.submit(*names)
            await self.ended(*names)
            self.engine = self.manager._engine
            if "p" in self.engine.scheduler.short:
                break
        assert "p" in self.engine.scheduler.short, "its jobs are quick"
        self.log.write_text("")

    async def lie_behind(self, *names, first=None, options=None, behind=2):
        "Let the first one run until the gate opens; two of the others lie behind it, and the rest waits."
        first = {"gate": str(self.gate)} | (first or {})
        # at the same time, so that a store has all of them before the quick one ends
        await asyncio.gather(
            self.submit("quick"), self.submit("first", params=first, **(options or {})), *map(self.submit, names)
        )
        await until(lambda: "first" in self.begun, what="the first one")
        await until(lambda: sum(len(w.waiting) for w in self.engine.scheduler.workers.ahead.values()) == behind)
        await until(lambda: self.engine.durable is None or not self.engine.durable.starting)
        for _ in range(3):  # what lies there is sent at the end of a turn of the loop
            await asyncio.sleep(0)

    def rows(self):
        "What the store says of each job by its name: status and attempts."
        found = {row.id: row for row in self.store.find([job.id for job in self.jobs.values()])}
        return {n: (found[j.id].status, found[j.id].attempts) for n, j in self.jobs.items() if j.id in found}

    async def ended(self, *names):
        for name in names:
            await self.manager.wait(self.jobs[name].id, timeout=120)
        return [str(self.jobs[name].status) for name in names]

    @property
    def begun(self):
        return [line.split()[0] for line in self.log.read_text().splitlines()]

    def pids(self, *names):
        pids = dict(line.split() for line in self.log.read_text().splitlines())
        return [int(pids[name]) for name in names]


@contextlib.asynccontextmanager
async def scene(folder, **options):
    made = Scene(folder, **options)
    async with made.manager:
        await made.warm_up()
        yield made
    if made.store is not None:
        known = {name: (str(job.status), job.attempts) for name, job in made.jobs.items()}
        assert made.rows() == known, "the store and the app agree"


def test_a_worker_begins_the_next_job_without_a_round_trip(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c", "d")
            jobs = s.jobs
            assert [jobs[n].status for n in "ab"] == [JobStatus.PENDING] * 2 and jobs["a"].attempts == 0
            assert [job.id for job in s.engine.queue()] == [jobs[n].id for n in "abcd"]
            (worker,) = s.manager.workers()
            assert worker.job_ids == (jobs["first"].id,), "what lies behind does not run"
            s.gate.touch()
            assert await s.ended("first", "a", "b", "c", "d") == ["completed"] * 5
            assert s.begun == ["quick", "first", "a", "b", "c", "d"]
            first, second = ("job:completed", jobs["first"].id), ("job:started", jobs["a"].id)
            await until(lambda: second in s.events.seen)
            if DURABILITY != "committed":  # there the end is told once it is committed
                assert first in s.events.seen[: s.events.seen.index(second)], (
                    "it starts when the one before it has ended"
                )

    run(play())


def test_the_app_need_not_turn_its_loop(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c", "d")
            s.gate.touch()
            deadline = asyncio.get_running_loop().time() + 20
            while s.begun != ["quick", "first", "a", "b"]:  # the loop of the app stands still meanwhile
                assert asyncio.get_running_loop().time() < deadline, s.begun
            assert await s.ended("a", "b", "c", "d") == ["completed"] * 4

    run(play())


def test_a_dead_worker_costs_the_job_that_ran_and_no_other(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c")
            os.kill(s.jobs["first"].worker_pid, signal.SIGKILL)
            assert await s.ended("first", "a", "b", "c") == ["failed", "completed", "completed", "completed"]
            assert [s.jobs[n].attempts for n in ("first", "a", "b")] == [1, 1, 1]
            assert sorted(s.begun) == ["a", "b", "c", "first", "quick"], "each began once"

    run(play())


def test_a_worker_that_dies_between_two_jobs(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            await asyncio.gather(
                s.submit("quick"), s.submit("first", params={"gate": str(s.gate)}),
                s.submit("a", params={"how": "dies"}), *map(s.submit, "bcd"),
            )  # fmt: skip
            await until(lambda: s.engine.scheduler.workers.ahead)
            s.gate.touch()
            assert await s.ended("first", "a", "b", "c") == ["completed", "failed", "completed", "completed"]
            assert s.jobs["a"].error_type == "WorkerCrashed" and s.jobs["b"].attempts == 1
            assert s.begun.count("b") == 1 and s.pids("b") != s.pids("first")

    run(play())


@pytest.mark.parametrize("how", ["", "deaf"])
def test_cancelling_a_job_that_lies_ahead_takes_it_back(tmp_path, how):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c", "d", first={"how": how})
            await s.manager.cancel_job(s.jobs["a"].id)
            assert await s.ended("a") == ["cancelled"], "at once, while the first one still runs"
            assert s.jobs["first"].status is JobStatus.RUNNING and s.jobs["a"].attempts == 0
            s.gate.touch()
            assert await s.ended("first", "b", "c", "d") == ["completed"] * 4
            assert s.begun == ["quick", "first", "b", "c", "d"]

    run(play())


def test_a_timeout_costs_the_first_one_and_the_time_of_the_next_one_counts_from_its_begin(tmp_path):
    async def play():
        async with scene(tmp_path, cancel_grace_seconds=5.0) as s:
            await asyncio.gather(
                s.submit("quick"), s.submit("first", params={"gate": str(s.gate)}, timeout=600),
                *(s.submit(name, timeout=600) for name in "abc"),
            )  # fmt: skip
            await until(lambda: s.engine.scheduler.workers.ahead)
            ahead = [t.number for w in s.engine.scheduler.workers.ahead.values() for t in w.waiting]
            assert len(ahead) == 2 and not [key for key in s.engine.timers._handles if key[1] in ahead]
            await until(lambda: "first" in s.begun)
            await time_is_up(s.manager, s.jobs["first"])
            assert await s.ended("first", "a", "b", "c") == ["failed", "completed", "completed", "completed"]
            assert s.jobs["first"].error_type == "JobTimeout" and s.begun.count("a") == 1

    run(play())


@pytest.mark.parametrize("how", ["", "deaf"])
def test_no_job_waits_behind_a_long_one_while_a_worker_is_idle(tmp_path, how):
    async def play():
        async with scene(tmp_path, max_workers=2) as s:
            await s.submit("quick", "quick2")
            await s.submit("first", params={"gate": str(s.gate), "how": how})
            names = [f"j{i}" for i in range(12)]
            await s.submit(*names)
            assert set(await s.ended(*names)) == {"completed"} and s.jobs["first"].status is JobStatus.RUNNING
            s.gate.touch()
            assert await s.ended("first") == ["completed"] and len(s.begun) == 15

    run(play())


@pytest.mark.parametrize("how", ["retires", "breaks"])
def test_a_worker_that_is_to_be_replaced_begins_nothing_that_lies_there(tmp_path, how):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c", first={"how": how})
            s.gate.touch()
            assert await s.ended("first") == ["completed" if how == "retires" else "failed"]
            assert await s.ended("a", "b", "c") == ["completed"] * 3
            first, a, b = s.pids("first", "a", "b")
            assert first not in (a, b) and s.begun.count("a") == 1

    run(play())


def test_a_failure_is_followed_by_the_same_jobs_on_the_same_worker(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind(
                "a", "b", "c", first={"how": "fails"}, options={"retry": Retry(2, on=("failed",), delay_seconds=0.0)}
            )
            s.gate.touch()
            assert await s.ended("first", "a", "b", "c") == ["failed", "completed", "completed", "completed"]
            assert s.jobs["first"].attempts == 2 and s.begun.count("a") == 1
            assert len(set(s.pids("first", "a", "b", "c"))) == 1

    run(play())


def test_a_job_with_a_higher_priority_goes_before_what_lies_ahead(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c", "d")
            await s.submit("urgent", priority=1)
            s.manager.set_priority(s.jobs["d"].id, 1)
            s.gate.touch()
            await s.ended("a", "b", "c", "d", "urgent")
            assert s.begun == ["quick", "first", "d", "urgent", "a", "b", "c"]

    run(play())


def test_lines_belong_to_the_job_that_printed_them(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c", first={"how": "prints"}, behind=0)
            assert "p" not in s.engine.scheduler.short, "the jobs of a plugin that prints have to be told apart"
            s.gate.touch()
            await s.ended("first", "a", "b", "c")

    run(play())


@pytest.mark.parametrize("drain", [False, True])
def test_shutdown(tmp_path, drain):
    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c")
            closing = asyncio.create_task(s.manager.shutdown(drain=drain))
            if drain:
                await until(lambda: s.engine.scheduler.closing)
                s.gate.touch()
            await closing
            end, others = ("completed",) * 2 if drain else ("cancelled", "pending" if s.store else "cancelled")
            assert [str(s.jobs[n].status) for n in ("first", "a", "b", "c")] == [end, others, others, others]
            assert s.begun == ["quick", "first", *("abc" if drain else "")]

    run(play())


def test_large_parameters_do_not_lie_at_a_busy_worker(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            await s.submit("quick")
            await s.submit("first", params={"gate": str(s.gate)})
            await s.submit("a", "b", params={"load": b"x" * 100_000})
            await s.submit("c", "d")
            await until(lambda: "first" in s.begun)
            assert not s.engine.scheduler.workers.ahead
            s.gate.touch()
            assert await s.ended("a", "b", "c", "d") == ["completed"] * 4
            assert s.begun == ["quick", "first", "a", "b", "c", "d"]

    run(play())


def test_one_after_another_sends_nothing_ahead(tmp_path):
    async def play():
        async with scene(tmp_path) as s:
            backend, seen = s.engine.backend, []
            backend.execute_ahead = lambda *_: seen.append(1)
            s.engine.sender = backend
            for i in range(20):
                await s.submit(f"one{i}")
                await s.ended(f"one{i}")
            assert not seen

    run(play())


def test_the_store_knows_where_a_job_is(tmp_path, durability):
    "A job that lies at a worker runs, as far as the store knows: it may begin at any moment. One that comes back waits."

    async def play():
        async with scene(tmp_path) as s:
            await s.lie_behind("a", "b", "c")
            await until(lambda: s.rows().get("b") == ("running", 1))
            rows = s.rows()
            assert [rows[n] for n in ("first", "a", "b", "c")] == [("running", 1)] * 3 + [("pending", 0)]
            assert s.jobs["a"].status is JobStatus.PENDING and s.jobs["a"].attempts == 0
            s.manager.set_priority(s.jobs["c"].id, 1)  # takes the others back, and goes before them
            await until(lambda: s.rows()["b"] == ("pending", 0))
            s.gate.touch()
            assert await s.ended("first", "a", "b", "c") == ["completed"] * 4

    if durability is not None:
        run(play())


def test_a_worker_that_has_done_all_waits_for_the_next_start(tmp_path, durability):
    "The commit takes longer than the job before it: then the next one begins once it is committed, and not sooner."

    async def play():
        async with scene(tmp_path) as s:
            write, held = s.store.write, threading.Event()

            def hold(owner, changes, told=()):
                if any('"name":"c"' in change.job.params and change.job.status == "running" for change in changes):
                    held.wait(120)
                return write(owner, changes, told)

            await s.lie_behind("a", "b", "c", "d", "e")
            s.store.write = hold
            s.gate.touch()
            ids = {s.jobs[name].id for name in "ab"}
            await until(lambda: s.begun == ["quick", "first", "a", "b"] and not ids & set(on_workers(s)))
            assert s.jobs["c"].id in on_workers(s) and s.jobs["c"].status is JobStatus.PENDING
            held.set()
            assert await s.ended("first", "a", "b", "c", "d", "e") == ["completed"] * 6
            assert s.begun == ["quick", "first", "a", "b", "c", "d", "e"]

    def on_workers(s):
        workers = s.engine.scheduler.workers.all.values()
        return [s.engine.tasks[number].job.id for worker in workers for number in worker.tasks]

    if durability == "committed":
        run(play())
