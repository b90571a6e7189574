"""The manager without await: from many threads, interrupted, forgotten."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import are_gone, end_of, holdings, is_alive, targets, until_now

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.blocking import BlockingManager
from cjm_worker_ext.engine.registry_client import RegistryClient
from cjm_worker_ext.errors import ManagerClosed, StreamGap, UnknownJob, UnknownPlugin, WrongLoop

pytestmark = pytest.mark.filterwarnings("error")
TESTS = str(Path(__file__).parent)
NAMES = ("echo", "sleep", "count", "count_slowly", "hold_lock", "raise_value_error", "exit_now", "Counted")


def make(**config) -> BlockingManager:
    settings = {"max_workers": 2, "cancel_grace_seconds": 0.2, **config}
    manager = BaseJobManager("blocking", "tests", plugins=targets(*NAMES), worker_config=WorkerConfig(**settings))
    return manager.blocking()


@pytest.fixture(autouse=True)
def nothing_is_left():
    descriptors, threads = holdings()
    yield
    after = holdings()
    assert after[1] <= threads, [t.name for t in threading.enumerate()]
    assert after[0] <= descriptors


def test_many_threads_at_once():
    def one_client(number: int) -> list:
        found = []
        for i in range(10):
            job = manager.start_job("echo", value=(number, i))
            found.append(manager.wait(job.id, 120).result)
            assert manager.get_job(job.id) is job and manager.get_job_result(job.id) == (number, i)
        stream = manager.stream(manager.start_job("count", n=200).id)
        assert list(stream) == list(range(200))
        victim = manager.start_job("sleep", seconds=600)
        assert manager.cancel_job(victim.id) and victim.status == "cancelled"
        return found

    with make() as manager, ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(one_client, range(8))):
            assert found == [(number, i) for i in range(10)]
        assert len(manager.get_all_jobs()) == 8 * 12
        assert manager.clear_finished_jobs() == 8 * 12 and manager.get_all_jobs() == []


def test_several_threads_read_one_stream():
    with make() as manager, ThreadPoolExecutor(4) as pool:
        job = manager.start_job("count", n=500)
        for chunks in pool.map(lambda _: list(manager.stream(job.id)), range(4)):
            assert chunks == list(range(500))
        assert manager.get_job_chunks(job.id, 2) == (498, [498, 499])
        assert list(manager.stream(job.id, 498)) == [498, 499] and list(manager.stream(job.id, start=600)) == []


def test_a_stream_comes_while_the_job_runs_and_may_be_left(tmp_path):
    with make() as manager:
        job = manager.start_job("count_slowly")
        stream = manager.stream(job.id)
        assert [next(stream) for _ in range(3)] == [0, 1, 2] and job.status == "running"
        stream.close()
        assert manager.cancel_job(job.id)
        assert list(manager.stream(job.id))[:3] == [0, 1, 2], "the chunks of a cancelled job are still there"


def test_a_stream_ends_when_another_thread_cancels():
    with make() as manager:
        job = manager.start_job("count_slowly")
        stream = manager.stream(job.id)
        assert next(stream) == 0
        canceller = threading.Thread(target=manager.cancel_job, args=[job.id])
        canceller.start()
        rest = list(stream)
        canceller.join(120)
        assert job.status == "cancelled" and rest == list(range(1, len(rest) + 1))


def time_used_by(pid: int) -> int:
    "Of a processor, in ticks; rising means that native code has begun, and no longer the line before it."
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_cancel_of_what_does_not_listen_and_of_what_waits(tmp_path):
    started = tmp_path / "started"
    with make(max_workers=1) as manager:
        stuck = manager.start_job("hold_lock", started=str(started))
        waiting = manager.start_job("echo")
        until_now(started.exists)
        before = time_used_by(stuck.worker_pid)
        until_now(lambda: time_used_by(stuck.worker_pid) > before + 1)
        assert manager.cancel_job(waiting.id) and waiting.attempts == 0
        assert manager.cancel_job(stuck.id) and not is_alive(stuck.worker_pid)
        assert not manager.cancel_job(stuck.id), "it had ended before"
        assert manager.wait(manager.start_job("echo", value=1).id, 120).result == 1


def test_timeouts():
    with make() as manager:
        job = manager.submit_job("sleep", {"seconds": 600}, timeout=0.3, metadata={"of": "mine"})
        with pytest.raises(TimeoutError, match=f"job {job.id} is still .* after 0.01 s; it goes on"):
            manager.wait(job.id, 0.01)
        assert manager.wait(job.id, 120).error_type == "JobTimeout" and job.metadata == {"of": "mine"}


def test_what_goes_wrong_is_raised_here():
    with make() as manager:
        with pytest.raises(UnknownPlugin):
            manager.start_job("no-such-plugin")
        with pytest.raises(UnknownJob):
            manager.wait("no-such-job")
        with pytest.raises(UnknownJob):
            manager.stream("no-such-job")
        assert manager.wait(manager.start_job("raise_value_error").id, 120).error_type == "ValueError"
        assert manager.wait(manager.start_job("exit_now").id, 120).error_type == "WorkerCrashed"


def test_plugins_and_workers():
    with make(max_workers=1) as manager:
        assert "echo" in manager.available_plugins() and manager.workers() == []
        assert manager.check_streaming_support("count") and not manager.check_streaming_support("echo")
        manager.load_plugin("Counted")
        manager.reload_plugin("Counted")
        pid, loads = manager.wait(manager.start_job("Counted").id, 120).result
        (worker,) = manager.workers()
        assert (worker.pid, loads) == (pid, 2) and "Counted" in worker.plugin_ids
        manager.unload_plugin("Counted")
        assert "Counted" not in manager.workers()[0].plugin_ids


def test_a_shutdown_ends_what_other_threads_wait_for():
    manager = make()
    job = manager.start_job("sleep", seconds=600)
    slow = manager.start_job("count_slowly")
    with ThreadPoolExecutor(2) as pool:
        waited, streamed = pool.submit(manager.wait, job.id), pool.submit(list, manager.stream(slow.id))
        until_now(lambda: job.status == slow.status == "running")
        manager.shutdown()
        assert waited.result(120).status == "cancelled" and isinstance(streamed.result(120), list)


def test_drain():
    manager = make()
    jobs = [manager.start_job("echo", value=i) for i in range(20)]
    manager.shutdown(drain=True)
    assert [job.result for job in jobs] == list(range(20))


# ---------------------------------------------------------------- scripts

SCRIPT = """
import gc, json, os, sys, threading, time
sys.path.insert(0, {tests!r})
from cjm_worker_ext import BaseJobManager, WorkerConfig

from cjm_worker_ext.errors import ManagerClosed

names = ("echo", "sleep", "count_slowly", "hold_lock")
plugins = {{name: "plugins_for_tests:" + name for name in names}}
config = WorkerConfig(max_workers=2, cancel_grace_seconds=0.2)
manager = BaseJobManager("script", "tests", plugins=plugins, worker_config=config).blocking()

def say(**facts):
    print(json.dumps(facts), flush=True)

def pids():
    return [w.pid for w in manager.workers()]

{body}
"""

RUNS = """
with manager:
    job = manager.start_job({job})
    while job.status != "running":
        time.sleep(0.005)
    say(pids=pids())
    {wait}
"""

INTERRUPTED = {
    "wait": RUNS.format(job="'sleep', seconds=600", wait="manager.wait(job.id)"),
    "wait for what does not listen": RUNS.format(job="'hold_lock'", wait="manager.wait(job.id)"),
    "stream": RUNS.format(job="'sleep', seconds=600", wait="next(manager.stream(job.id))"),
    "its own work": RUNS.format(job="'sleep', seconds=600", wait="time.sleep(600)"),
}


def start_script(tmp_path: Path, body: str) -> subprocess.Popen:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=TESTS, body=body))
    return subprocess.Popen([sys.executable, str(script)], stdout=-1, stderr=-1, text=True, start_new_session=True)


@pytest.mark.parametrize("where", INTERRUPTED)
def test_ctrl_c_leaves_nothing(where, tmp_path):
    app = start_script(tmp_path, INTERRUPTED[where])
    pids = json.loads(app.stdout.readline() or app.stderr.read())["pids"]
    os.killpg(app.pid, signal.SIGINT)  # as a terminal does it
    _, err = end_of(app, 2.5)
    assert err.count("Traceback") == 1 and err.endswith("KeyboardInterrupt\n"), err
    assert app.returncode == -signal.SIGINT
    are_gone(pids, 2.0)


STREAM = "stream = manager.stream(manager.start_job('count_slowly').id)\nnext(stream)\n"

FORGOTTEN = {
    "unused": "say(pids=[])",
    "idle": "manager.wait(manager.start_job('echo').id)\nsay(pids=pids())",
    "busy": "manager.start_job('sleep', seconds=600)\nmanager.start_job('sleep', seconds=600)\nsay(pids=pids())",
    "while a thread waits": (
        "job = manager.start_job('sleep', seconds=600)\n"
        "threading.Thread(target=manager.wait, args=[job.id], daemon=True).start()\nsay(pids=pids())"
    ),
}


@pytest.mark.parametrize("how", FORGOTTEN)
def test_a_script_that_forgets_the_shutdown_ends_quietly(how, tmp_path):
    app = start_script(tmp_path, FORGOTTEN[how])
    pids = json.loads(app.stdout.readline() or app.stderr.read())["pids"]
    assert end_of(app, 2.5)[1] == "" and app.returncode == 0
    are_gone(pids, 2.0)


HARD = {
    "forgotten in the middle of a stream": STREAM + "say(pids=pids())",
    "two shutdowns at once": """
manager.start_job("sleep", seconds=600)
threads = [threading.Thread(target=manager.shutdown) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
manager.shutdown()
say(pids=[])
""",
    "calls after the shutdown": """
job = manager.wait(manager.start_job("echo").id)
manager.shutdown()
for call in (lambda: manager.start_job("echo"), lambda: manager.wait(job.id), manager.workers):
    try:
        call()
    except ManagerClosed:
        pass
say(pids=[])
""",
    "threads that call all the time": """
sys.setswitchinterval(1e-5)

def call_until_it_is_over(manager):
    try:
        while True:
            manager.workers()
    except ManagerClosed:
        pass

def hang():
    manager = BaseJobManager("script", "tests", plugins=plugins).blocking()
    threads = [threading.Thread(target=call_until_it_is_over, args=[manager], daemon=True) for _ in range(6)]
    [thread.start() for thread in threads]
    manager.workers()
    manager.shutdown()
    [thread.join(1) for thread in threads]
    return any(thread.is_alive() for thread in threads)

if any(hang() for _ in range(10)):
    sys.exit(1)
manager.shutdown()
say(pids=[])
""",
    "a stream that is dropped after the shutdown": STREAM + "manager.shutdown()\ndel stream\nsay(pids=[])",
    "a stream that the garbage collector finds in the manager's own thread": """
gc.disable()
cycle = [manager.stream(manager.start_job("count_slowly").id)]
next(cycle[0])
cycle.append(cycle)
del cycle
manager._loop.call_soon_threadsafe(gc.collect)
manager.shutdown()
say(pids=[])
""",
}


@pytest.mark.parametrize("how", HARD)
def test_ends_that_are_easy_to_get_wrong(how, tmp_path):
    app = start_script(tmp_path, HARD[how])
    assert end_of(app, 2.5)[1] == "" and app.returncode == 0


def test_a_caller_that_is_interrupted_leaves_nothing_on_the_loop():
    class Interrupted(Exception):
        pass

    def interrupt(signum, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with make() as manager:
            job = manager.start_job("sleep", seconds=600)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted):
                manager.wait(job.id)
            until_now(lambda: not asyncio.all_tasks(manager._loop), what="the end of the interrupted call")
            assert not job.status.is_final
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_caller_that_waits_for_a_registry_is_told_of_the_shutdown(monkeypatch):
    monkeypatch.setattr(RegistryClient, "FIRST_PATIENCE", 600)
    asked, answers = threading.Event(), threading.Event()

    class Hanging:
        def get_plugins_by_category(self, category):
            return []

        def get_plugin(self, plugin_id):
            asked.set()
            answers.wait(120)

        def load_plugin_config(self, plugin_id):
            return {}

    manager = BaseJobManager("blocking", "tests", plugins=targets("echo"), plugin_registry=Hanging()).blocking()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(manager.start_job, "echo")
        assert asked.wait(120)
        try:
            pool.submit(manager.shutdown).result(120)
            with pytest.raises(ManagerClosed, match="was shut down meanwhile"):
                waiting.result(120)
        finally:
            answers.set()
    until_now(lambda: not any(thread.name == "plugin-registry" for thread in threading.enumerate()))


# streams whose reader stops


def make_small(**config) -> BlockingManager:
    settings = WorkerConfig(max_buffered_chunks=100, **config)
    return BaseJobManager("blocking", plugins=targets("count_and_log"), worker_config=settings).blocking()


@pytest.mark.parametrize("read", [0, 1])
def test_a_wait_does_not_wait_for_a_stream_of_its_own_thread(read):
    with make_small(reader_timeout_seconds=None) as manager:
        job = manager.start_job("count_and_log", n=20_000, path=os.devnull)
        stream = manager.stream(job.id)
        for _ in range(read):
            next(stream)
        assert manager.wait(job.id, 120).status == "completed"
        with pytest.raises(StreamGap):
            list(stream)


def test_a_reader_in_another_thread_keeps_its_chunks_or_is_gone():
    with make_small(reader_timeout_seconds=3.0) as manager, ThreadPoolExecutor(1) as pool:
        job = manager.start_job("count_and_log", n=20_000, path=os.devnull)
        stopped = pool.submit(manager.stream, job.id).result()
        pool.submit(next, stopped).result()
        assert [n for n, _ in manager.stream(job.id)] == list(range(20_000))
        assert manager.wait(job.id, 120).status == "completed"
        with pytest.raises(StreamGap):
            list(stopped)


def test_a_stream_that_is_dropped_unread_holds_nothing_up():
    with make_small(reader_timeout_seconds=None) as manager, ThreadPoolExecutor(1) as pool:
        job = manager.start_job("count_and_log", n=20_000, path=os.devnull)
        pool.submit(lambda: bool(manager.stream(job.id))).result()
        assert manager.wait(job.id, 120).status == "completed"


# ---------------------------------------------------------------- items and callers of all kinds


def in_time(call, seconds: float = 120):
    "What a call returns or raises; one that hangs is left behind, and fails the test."
    found: Future = Future()

    def run():
        try:
            found.set_result(call())
        except BaseException as e:  # noqa: BLE001 - whoever waits raises it
            found.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return found.result(seconds)


def double(x):
    return 2 * x


def of_doubles(config: WorkerConfig | None = None, **more) -> BlockingManager:
    return BaseJobManager("items", plugins={"double": double}, worker_config=config, **more).blocking()


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_items_may_use_the_manager_that_they_are_for(limit):
    def scene():
        with of_doubles() as manager:
            inner = manager.map("double", range(40), "x", limit=limit)
            assert list(manager.map("double", inner, "x", limit=limit)) == [4 * i for i in range(40)]
            each = (manager.run("double", x=i) for i in range(5))
            assert list(manager.map("double", each, "x", limit=limit)) == [0, 4, 8, 12, 16]
            jobs = manager.submit_many("double", [{"x": 1}, {"x": 2}], limit=limit)
            again = manager.submit_many("double", ({"x": job.result} for job in jobs), limit=limit)
            assert sorted(job.result for job in again) == [4, 8]

    in_time(scene)


def test_slow_items_hold_up_no_other_thread():
    def items():
        yield 1
        assert other_is_done.wait(120), "the manager's loop was busy with the items"
        yield 2

    other_is_done = threading.Event()

    def scene():
        results = manager.map("double", items(), "x")
        other = threading.Thread(target=lambda: (manager.run("double", x=5), other_is_done.set()))
        other.start()
        assert list(results) == [2, 4]
        other.join()

    with of_doubles() as manager:
        in_time(scene)


def test_items_are_read_by_the_thread_that_reads_the_results_and_no_further_than_needed():
    seen = []

    def items():
        for i in range(1000):
            seen.append(threading.get_ident())
            yield i

    with of_doubles() as manager:
        results = manager.map("double", items(), "x", limit=3)
        assert not seen
        assert [next(results) for _ in range(10)] == [2 * i for i in range(10)]
        results.close()
    assert set(seen) == {threading.get_ident()} and len(seen) <= 13


@pytest.mark.parametrize("error", [ValueError("unlucky"), CancelledError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_items_raise_reaches_the_reader_and_the_manager_goes_on(error):
    def items():
        yield from range(20)
        raise error

    with of_doubles() as manager:
        with pytest.raises(type(error)) as raised:
            list(manager.map("double", items(), "x"))
        assert raised.value is error
        with pytest.raises(TypeError, match="not iterable"):
            list(manager.map("double", 5, "x"))
        assert manager.run("double", x=2) == 4


def test_a_shutdown_ends_a_map_whose_items_take_long():
    def items():
        yield 1
        manager.shutdown()
        yield 2

    def scene():
        with pytest.raises(ManagerClosed):
            list(manager.map("double", items(), "x"))

    manager = of_doubles()
    in_time(scene)


def test_a_mapping_of_the_app_is_read_in_its_own_thread():
    class Params(Mapping):
        def __getitem__(self, name):
            return manager.run("double", x=1)

        def __iter__(self):
            return iter(["x"])

        def __len__(self):
            return 1

    with of_doubles() as manager:
        assert in_time(lambda: manager.wait(manager.submit_job("double", Params())).result) == 4


def test_a_call_on_its_own_loop_is_refused_with_the_remedy():
    class Hooked(BaseJobManager):
        def on_job_ended(self, job):
            for call in (wrapper.get_all_jobs, wrapper.shutdown, lambda: wrapper.run("double", x=1)):
                with pytest.raises(
                    WrongLoop, match="on its own event loop, by a hook or a broadcaster; call the manager"
                ):
                    call()
            told.append(self.get_all_jobs())

    told = []
    wrapper = Hooked("items", plugins={"double": double}).blocking()
    assert in_time(lambda: wrapper.run("double", x=1)) == 2
    in_time(wrapper.shutdown)
    assert len(told) == 1
