"""Nothing in a manager blocks its event loop: a task that wakes every 10 ms is never late by more than 100 ms."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest
from harness import Ticker, run, targets, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends import local
from cjm_worker_ext.backends.codec import QUICK_PLAIN

LONGEST = 0.1  # Seconds


def make(*names: str, **config) -> BaseJobManager:
    settings = {"cancel_grace_seconds": 0.3, "shutdown_timeout_seconds": 3.0, **config}
    return BaseJobManager("loop", "tests", plugins=targets(*names, "echo"), worker_config=WorkerConfig(**settings))


def loops():
    yield pytest.param(asyncio.new_event_loop, id="asyncio")
    import uvloop

    yield pytest.param(uvloop.new_event_loop, id="uvloop")


@pytest.fixture(params=loops())
def run_on(request):
    "Runs a coroutine on one kind of loop, three times at most: a busy machine makes a loop late, a fault always does."

    def run_three_times(make_coroutine, seconds: float = 60.0):
        gaps = []
        for _ in range(3):
            with asyncio.Runner(loop_factory=request.param) as runner:
                gaps.append(runner.run(asyncio.wait_for(make_coroutine(), seconds)))
            if gaps[-1] < LONGEST:
                return
        raise AssertionError(f"the loop stood still for {', '.join(f'{gap * 1e3:.0f}' for gap in gaps)} ms")

    return run_three_times


def test_during_start_and_slow_load(run_on):
    async def scene():
        async with make("SlowLoad") as manager, Ticker() as ticker:
            await asyncio.gather(manager.load_plugin("SlowLoad"), manager.reload_plugin("SlowLoad"))
            return ticker.gap

    run_on(scene)


@pytest.mark.parametrize("plugin_id", ["big_bytes", "big_array", "deep_bytes"])
def test_during_a_result_of_200_mb(plugin_id, run_on):
    async def scene():
        async with make(plugin_id) as manager:
            await manager.load_plugin(plugin_id)
            async with Ticker() as ticker:
                job = await manager.wait((await manager.start_job(plugin_id, megabytes=200)).id, 120)
                assert job.status == "completed", job.error
            value = job.result
            while isinstance(value, list):
                (value,) = value
            assert (len(value) if plugin_id != "big_array" else value.nbytes) == 200 << 20
            return ticker.gap

    run_on(scene)


def test_during_parameters_of_200_mb(run_on):
    async def scene():
        async with make("size_of") as manager:
            await manager.load_plugin("size_of")
            data = b"x" * (200 << 20)
            async with Ticker() as ticker:
                job = await manager.wait((await manager.start_job("size_of", data=data)).id, 120)
            assert job.result == 200 << 20
            return ticker.gap

    run_on(scene)


@pytest.fixture
def done_on(monkeypatch):
    "Notes what is read and pickled: how many bytes, and whether that was on the loop."
    notes = {"value": [], "error": [], "dumps": []}

    def note(what: str, size: int):
        notes[what].append((size, threading.current_thread() is threading.main_thread()))

    value, error, dumps = local.ResultReader.value, local.ResultReader.error, local.dumps

    def read(self, payload, *args, **options):
        note("value", len(payload))
        return value(self, payload, *args, **options)

    def read_error(self, frame, **options):
        note("error", len(frame.payload))
        return error(self, frame, **options)

    def pickle(*args, **options):
        made = dumps(*args, **options)
        note("dumps", len(made[0]))
        return made

    monkeypatch.setattr(local.ResultReader, "value", read)
    monkeypatch.setattr(local.ResultReader, "error", read_error)
    monkeypatch.setattr(local, "dumps", pickle)
    return notes


MANY = 100_000  # Texts, of which a call of C code would hold the loop up


def check(notes: list[tuple[int, bool]], limit: int) -> None:
    "What is large was done in a thread, and what is small was not."
    assert max(notes)[0] > limit > min(notes)[0]
    assert {on_loop for size, on_loop in notes if size > limit} == {False}
    assert {on_loop for size, on_loop in notes if size <= limit} == {True}


def test_many_small_values_are_read_and_pickled_in_a_thread(done_on):
    async def scene():
        async with make("many_texts", "size_of") as manager:
            texts = await manager.wait((await manager.start_job("many_texts", n=MANY)).id, 120)
            assert len(texts.result) == MANY and texts.result[-1] == f"text {MANY - 1}"
            size = await manager.wait((await manager.start_job("size_of", data=texts.result)).id, 120)
            assert size.result == MANY

    run(scene())
    check(done_on["value"], QUICK_PLAIN)
    check(done_on["dumps"], local.LocalBackend.AT_ONCE)


def test_an_error_of_many_values_is_read_in_a_thread(done_on):
    async def scene():
        async with make("raise_long_text") as manager:
            for n in (1, 3_000):
                job = await manager.wait((await manager.start_job("raise_long_text", n=n)).id, 120)
                assert job.error_type == "ValueError" and "text 0" in job.error

    run(scene())
    (small, on_loop), (large, also_on_loop) = done_on["error"]
    assert small < large and on_loop and not also_on_loop


@pytest.mark.parametrize("crash", [False, True])
def test_chunks_that_a_thread_reads_keep_their_order(crash, done_on):
    class Events:
        def __init__(self):
            self.seen = []

        async def broadcast(self, event_type, data):
            self.seen.append((event_type, data))

    async def scene():
        events = Events()
        plugins = targets("chunks_of_all_sizes")
        async with BaseJobManager("loop", "tests", plugins=plugins, event_broadcaster=events) as manager:
            job = await manager.start_job("chunks_of_all_sizes", n=MANY, crash=crash)
            chunks = [chunk async for chunk in manager.stream(job.id)]
            assert [len(chunk) for chunk in chunks] == [7, MANY] * 3
            assert chunks[::2] == ["small 0", "small 1", "small 2"]
            job = await manager.wait(job.id, 120)
            assert job.error_type == ("WorkerCrashed" if crash else None)
        kinds = [kind for kind, _ in events.seen if kind in ("job:chunk", "job:completed", "job:failed")]
        assert kinds[-1] == ("job:failed" if crash else "job:completed") and kinds.count("job:chunk") >= 3

    run(scene())
    # a later small chunk may wait for others, and is read with the large one of its message; the first goes alone
    assert done_on["value"][0][1] and done_on["value"][0][0] <= QUICK_PLAIN
    assert {on_loop for size, on_loop in done_on["value"] if size > QUICK_PLAIN} == {False}


def test_a_job_can_be_cancelled_while_a_thread_pickles_its_parameters(monkeypatch):
    pickling, go_on, dumps = threading.Event(), threading.Event(), local.dumps

    def slow(*args, **options):
        if threading.current_thread() is not threading.main_thread():
            pickling.set()
            assert go_on.wait(120)
        return dumps(*args, **options)

    monkeypatch.setattr(local, "dumps", slow)

    async def scene():
        async with make("size_of") as manager:
            job = await manager.start_job("size_of", data=list(range(MANY)))
            await until(pickling.is_set)
            assert await manager.cancel_job(job.id)
            other = await manager.wait((await manager.start_job("echo", value=1)).id, 120)
            go_on.set()
            assert (job.status, other.result, other.worker_pid) == ("cancelled", 1, job.worker_pid)
            last = await manager.wait((await manager.start_job("size_of", data=list(range(MANY)))).id, 20)
            assert (last.result, last.worker_pid) == (MANY, job.worker_pid)

    run(scene())


def test_a_job_goes_to_another_worker_if_its_own_dies_before_its_parameters_are_sent(monkeypatch):
    pickling, go_on, dumps = threading.Event(), threading.Event(), local.dumps

    def slow(*args, **options):
        if threading.current_thread() is not threading.main_thread():
            pickling.set()
            assert go_on.wait(120)
        return dumps(*args, **options)

    monkeypatch.setattr(local, "dumps", slow)

    async def scene():
        async with make("size_of") as manager:
            job = await manager.start_job("size_of", data=list(range(MANY)))
            await until(pickling.is_set)
            pid = manager.workers()[0].pid
            os.kill(pid, 9)
            await until(lambda: pid not in {worker.pid for worker in manager.workers()})
            go_on.set()
            job = await manager.wait(job.id, 120)
            assert (job.status, job.result, job.attempts) == ("completed", MANY, 1) and job.worker_pid != pid

    run(scene())


@pytest.mark.parametrize("plugin_id", ["ignore_sigterm", "hold_lock"])
def test_during_the_cancel_of_what_does_not_listen(plugin_id, run_on, tmp_path):
    number = iter(range(10))

    async def scene():
        started = str(tmp_path / f"started-{next(number)}")
        async with make(plugin_id) as manager:
            job = await manager.start_job(plugin_id, started=started)
            await until(lambda: os.path.exists(started))
            async with Ticker() as ticker:
                assert await manager.cancel_job(job.id)
            return ticker.gap

    run_on(scene)


def test_during_shutdown(run_on, tmp_path):
    number = iter(range(10))

    async def scene():
        started = str(tmp_path / f"started-{next(number)}")
        manager = make("ignore_sigterm", "sleep", max_workers=2)
        job = await manager.start_job("ignore_sigterm", started=started)
        others = [await manager.start_job("sleep", seconds=600) for _ in range(20)]
        await until(lambda: os.path.exists(started))
        async with Ticker() as ticker:
            await manager.shutdown()
        assert {j.status for j in (job, *others)} == {"cancelled"}
        return ticker.gap

    run_on(scene)


class Stuck:
    "A resource manager, a registry and a broadcaster that hang in each call."

    def __init__(self):
        self.slow = False

    def stick(self):
        if self.slow:
            time.sleep(0.6)

    def register_worker(self, pid, worker_type):
        self.stick()

    def unregister_worker(self, pid):
        self.stick()

    def update_worker_state(self, pid, **kwargs):
        self.stick()

    def get_plugins_by_category(self, category):
        return []

    def get_plugin(self, plugin_id):
        self.stick()
        return {"name": plugin_id}

    def load_plugin_config(self, plugin_id):
        return {}

    async def broadcast(self, event_type, data):
        if self.slow:
            await asyncio.sleep(0.6)


def test_during_shutdown_with_integrations_that_hang(run_on):
    async def scene():
        stuck = Stuck()
        manager = BaseJobManager(
            "loop",
            "tests",
            plugins=targets("echo"),
            plugin_registry=stuck,
            resource_manager=stuck,
            event_broadcaster=stuck,
        )
        await manager.wait((await manager.start_job("echo")).id, 120)
        await asyncio.sleep(0.05)
        stuck.slow = True
        waiting = asyncio.create_task(manager.load_plugin("other"))
        async with Ticker() as ticker:
            await manager.shutdown(timeout=0.3)
        stuck.slow = False
        await asyncio.gather(waiting, return_exceptions=True)
        return ticker.gap

    run_on(scene)


def test_while_a_plugin_floods_its_output(run_on):
    async def scene():
        async with make("print_without_end") as manager:
            await manager.load_plugin("print_without_end")
            async with Ticker() as ticker:
                job = await manager.wait((await manager.start_job("print_without_end", megabytes=1)).id, 120)
            assert job.status == "completed"
            return ticker.gap

    run_on(scene)


def test_while_crashes_follow_each_other(run_on):
    async def scene():
        async with make("kill_self", max_workers=2) as manager, Ticker() as ticker:
            jobs = [await manager.start_job("kill_self") for _ in range(10)]
            for job in jobs:
                await manager.wait(job.id, 120)
            return ticker.gap

    run_on(scene)


def test_jobs_do_the_same_on_every_loop(run_on):
    async def scene():
        async with make("count", "kill_self", "raise_value_error", "spin", max_workers=2) as manager:
            stream = await manager.start_job("count", n=500)
            assert [chunk async for chunk in manager.stream(stream.id)] == list(range(500))
            crash, error = await manager.start_job("kill_self"), await manager.start_job("raise_value_error")
            assert (await manager.wait(crash.id, 120)).error_type == "WorkerCrashed"
            assert (await manager.wait(error.id, 120)).error_type == "ValueError"
            spin = await manager.start_job("spin")
            await until(lambda: spin.status == "running")
            assert await manager.cancel_job(spin.id)
        return 0.0

    run_on(scene)
