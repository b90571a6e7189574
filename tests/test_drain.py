"""Drain: jobs finish when a signal stops the app, with servers and without, and a shutdown says what it waits for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from harness import is_alive, run, targets, until, until_now

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.drain import DrainSignal
from cjm_worker_ext.errors import ConfigError, ManagerClosed

PLUGINS = targets("echo", "touch_and_wait", "sleep", "hold_lock")
TESTS = Path(__file__).parent
SIGNAL = signal.SIGUSR1


class Events:
    def __init__(self):
        self.seen = []

    async def broadcast(self, event_type, data):
        self.seen.append((event_type, data))

    def of(self, kind: str) -> list[dict]:
        return [data for event_type, data in self.seen if event_type == kind]


def make(event_broadcaster=None, **config) -> BaseJobManager:
    settings = WorkerConfig(**config)
    return BaseJobManager("drain", plugins=PLUGINS, worker_config=settings, event_broadcaster=event_broadcaster)


@pytest.fixture
def heard():
    "What the app's own handler heard; nothing of ours is left afterwards."
    calls: list[int] = []

    def handler(signum, frame):
        calls.append(signum)

    before = signal.signal(SIGNAL, handler)
    try:
        yield calls
        assert signal.getsignal(SIGNAL) is handler and DrainSignal.by_number == {}
    finally:
        signal.signal(SIGNAL, before)


class Gate:
    "A job that has begun, and ends when it is told."

    def __init__(self, folder: Path, name: str = "gate"):
        self.started, self.go_on = folder / f"{name}_started", folder / f"{name}_go_on"
        self.params = {"started": str(self.started), "go_on": str(self.go_on)}


# one process


def test_jobs_finish_and_then_the_signal_does_what_it_did_before(heard, tmp_path):
    async def scene():
        manager, gate = make(), Gate(tmp_path)
        manager.drain_on(SIGNAL, deadline=30)
        running = await manager.start_job("touch_and_wait", **gate.params)
        pending = await manager.start_job("echo", value=7)
        await until(gate.started.exists)
        os.kill(os.getpid(), SIGNAL)
        await until(lambda: manager._closed)
        with pytest.raises(
            ManagerClosed, match="manager 'drain' shuts down and takes no more jobs; start the job with a new manager"
        ):
            await manager.start_job("echo")
        assert (running.status, pending.status, heard) == ("running", "pending", [])
        gate.go_on.touch()
        await until(lambda: heard)
        assert heard == [SIGNAL] and manager.workers() == []
        assert (running.status, pending.status, pending.result) == ("completed", "completed", 7)
        with pytest.raises(ManagerClosed, match="was shut down; make a new one, or use this one on a new event loop"):
            await manager.start_job("echo")
        with pytest.raises(ManagerClosed):
            manager.drain_on(SIGNAL)

    run(scene())


def test_a_second_signal_ends_at_once(heard, tmp_path):
    async def scene():
        manager, gate = make(cancel_grace_seconds=600), Gate(tmp_path)
        manager.drain_on(SIGNAL, deadline=600)
        job = await manager.start_job("hold_lock", started=str(gate.started))
        pending = await manager.start_job("echo")
        await until(gate.started.exists)
        os.kill(os.getpid(), SIGNAL)
        await until(lambda: manager._closed)
        os.kill(os.getpid(), SIGNAL)
        await until(lambda: heard)
        assert (job.status, pending.status, job.error) == ("cancelled", "cancelled", "the manager was shut down")
        assert heard == [SIGNAL] and not is_alive(job.worker_pid)

    run(scene())


def test_a_deadline_ends_what_has_not_finished(heard, tmp_path):
    async def scene():
        manager, gate = make(), Gate(tmp_path)
        manager.drain_on(SIGNAL, deadline=0.5)
        job = await manager.start_job("touch_and_wait", **gate.params)
        pending = await manager.start_job("echo")
        await until(gate.started.exists)
        os.kill(os.getpid(), SIGNAL)
        await until(lambda: heard)
        assert (job.status, job.error) == (pending.status, pending.error) == ("cancelled", "the manager was shut down")

    run(scene())


def test_several_managers_drain_at_the_same_time(heard, tmp_path):
    async def scene():
        managers, gates = [make(), make()], [Gate(tmp_path, "a"), Gate(tmp_path, "b")]
        jobs = []
        for manager, gate in zip(managers, gates, strict=True):
            manager.drain_on(SIGNAL, deadline=600)
            manager.drain_on(SIGNAL, deadline=30)  # the later call counts
            jobs.append(await manager.start_job("touch_and_wait", **gate.params))
        await until(lambda: all(gate.started.exists() for gate in gates))
        os.kill(os.getpid(), SIGNAL)
        await until(lambda: all(manager._closed for manager in managers))
        gates[1].go_on.touch()
        await until(lambda: managers[1]._shutting_down.done())
        assert heard == [] and jobs[0].status == "running"
        gates[0].go_on.touch()
        await until(lambda: heard)
        assert heard == [SIGNAL] and {job.status for job in jobs} == {"completed"}

    run(scene())


def test_a_job_that_waits_for_room_finishes_too(heard):
    async def scene():
        room = asyncio.Event()

        class Careful(BaseJobManager):
            async def validate_resources(self, job):
                await room.wait()

        manager = Careful("drain", plugins=PLUGINS)
        manager.drain_on(SIGNAL, deadline=30)
        job = await manager.start_job("echo", value=7)
        os.kill(os.getpid(), SIGNAL)
        await until(lambda: manager._closed)
        room.set()
        await until(lambda: heard)
        assert (job.status, job.result) == ("completed", 7)

    run(scene())


def test_without_a_signal_the_old_handler_comes_back(heard):
    async def scene():
        async with make() as first:
            first.drain_on(SIGNAL)
            async with make() as second:
                second.drain_on(SIGNAL)
            assert DrainSignal.by_number
        assert DrainSignal.by_number == {}

    run(scene())
    os.kill(os.getpid(), SIGNAL)
    assert heard == [SIGNAL]


def test_a_manager_that_was_never_shut_down_swallows_no_signal(heard):
    async def scene():
        make().drain_on(SIGNAL)

    run(scene())
    os.kill(os.getpid(), SIGNAL)
    assert heard == [SIGNAL]


def test_a_handler_of_the_loop_hears_the_signal_once(heard):
    async def scene():
        calls = []
        asyncio.get_running_loop().add_signal_handler(SIGNAL, calls.append, "the server")
        manager = make()
        manager.drain_on(SIGNAL)
        os.kill(os.getpid(), SIGNAL)
        await until(lambda: manager._shutting_down)
        await manager.shutdown()  # as a server does when its lifespan ends
        await until(lambda: DrainSignal.by_number == {})
        await asyncio.sleep(0)
        assert calls == ["the server"]
        asyncio.get_running_loop().remove_signal_handler(SIGNAL)

    before = signal.getsignal(SIGNAL)
    run(scene())
    signal.signal(SIGNAL, before)


def test_in_another_thread_a_warning_and_nothing_else(heard, caplog):
    async def scene():
        async with make() as manager:
            manager.drain_on(SIGNAL)
            assert DrainSignal.by_number == {}

    thread = threading.Thread(target=run, args=(scene(),))
    thread.start()
    thread.join(120)
    assert "manager 'drain': drain_on does nothing, because no signal arrives in this thread" in caplog.text


def test_what_cannot_be_handled_is_refused(heard):
    async def scene():
        async with make() as manager:
            with pytest.raises(ConfigError, match="deadline must be a number of seconds >= 0 or None, got '9'"):
                manager.drain_on(SIGNAL, deadline="9")
            with pytest.raises(ConfigError, match="signal .*9.* cannot be handled .*; use signal.SIGTERM"):
                manager.drain_on(signal.SIGKILL)

    run(scene())


def test_without_await(heard, tmp_path):
    with make().blocking() as manager:
        gate = Gate(tmp_path)
        manager.drain_on(SIGNAL, deadline=30)
        job = manager.start_job("touch_and_wait", **gate.params)
        until_now(gate.started.exists)
        os.kill(os.getpid(), SIGNAL)
        until_now(lambda: manager.manager._closed)
        with pytest.raises(ManagerClosed):
            manager.start_job("echo")
        gate.go_on.touch()
        until_now(lambda: heard)
        assert heard == [SIGNAL] and job.status == "completed"


# whole programs

PROGRAM = textwrap.dedent("""
    import asyncio, os, signal, sys
    from harness import targets
    from cjm_worker_ext import BaseJobManager

    async def main(started, go_on):
        manager = BaseJobManager("drain", plugins=targets("touch_and_wait"))
        async with manager:
            manager.drain_on(deadline=30)
            job = await manager.start_job("touch_and_wait", started=started, go_on=go_on)
            if "fork" in sys.argv:
                ready, child = os.pipe(), os.fork()
                if not child:
                    signal.alarm(20)
                    os.write(ready[1], b"x")
                    while True:
                        signal.pause()
                os.read(ready[0], 1)  # Python drops signals that come while it forks
                os.kill(child, signal.SIGTERM)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            print(job.id, flush=True)
            await manager.wait(job.id)
            print(job.status, flush=True)
            await asyncio.sleep(600)

    asyncio.run(main(*sys.argv[1:3]))
""")


@pytest.mark.parametrize("more", [[], ["fork"]])
def test_a_program_without_a_handler_ends_by_the_signal_after_its_jobs(tmp_path, more):
    gate = Gate(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(gate.started), str(gate.go_on), *more]
    env = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            if more:
                assert process.stdout.readline().strip() == str(-signal.SIGTERM), "a forked child ends at once"
            process.stdout.readline()
            until_now(gate.started.exists)
            process.terminate()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            gate.go_on.touch()
            assert process.wait(120) == -signal.SIGTERM
            assert process.stdout.read().strip() == "completed"
            assert not is_alive(int(gate.started.read_text()))
        finally:
            process.kill()


class Served:
    "The app in `drain_app.py` under uvicorn."

    def __init__(self, folder: Path, loop: str, deadline: float):
        self.report = folder / "report"
        paths = f"{TESTS}:{TESTS.parent}"
        env = os.environ | {"PYTHONPATH": paths, "REPORT": str(self.report), "DEADLINE": str(deadline)}
        command = [sys.executable, "-m", "uvicorn", "drain_app:app", "--port", "0", "--loop", loop]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env)
        self.lines: list[str] = []
        while not (found := re.search(r"running on (http://\S+)", self.lines[-1] if self.lines else "")):
            self.lines.append(self.process.stderr.readline())
            assert self.lines[-1], self.lines
        self.address = found[1]
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def ask(self, path: str, data: dict | None = None) -> tuple[int, object]:
        body = None if data is None else json.dumps(data).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address + path, body), timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as e:
            with e:
                return e.code, json.load(e)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_under_uvicorn_jobs_finish_while_the_server_still_answers(tmp_path, loop):
    pytest.importorskip(loop)
    gate, next_gate = Gate(tmp_path), Gate(tmp_path, "next")
    next_gate.go_on.touch()
    with Served(tmp_path, loop, deadline=60) as served:
        _, running = served.ask("/jobs", gate.params)
        _, pending = served.ask("/jobs", next_gate.params)
        until_now(gate.started.exists)
        served.process.terminate()
        until_now(lambda: served.ask("/jobs", next_gate.params)[0] == 503)
        assert served.ask("/jobs", {}) == (
            503,
            "manager 'drain' shuts down and takes no more jobs; start the job with a new manager, or in another process of the app",
        )
        assert [served.ask(f"/jobs/{job}")[1] for job in (running, pending)] == ["running", "pending"]
        gate.go_on.touch()
        assert served.process.wait(120) == -signal.SIGTERM, "as uvicorn ends without a drain: it repeats the signal"
        finished = served.report.read_text().splitlines()
        assert len(finished) >= 2 and set(finished) == {"completed None None"}
        assert not is_alive(int(gate.started.read_text()))


def test_under_uvicorn_a_second_signal_and_a_deadline_end_the_jobs(tmp_path):
    for deadline, signals in ((600, 2), (0.5, 1)):
        folder = tmp_path / str(signals)
        folder.mkdir()
        gate = Gate(folder)
        with Served(folder, "auto", deadline) as served:
            served.ask("/jobs", gate.params)
            until_now(gate.started.exists)
            served.process.terminate()
            if signals == 2:
                until_now(lambda: served.ask("/jobs", gate.params)[0] == 503)  # noqa: B023  - used at once
                served.process.terminate()
            assert served.process.wait(120) == -signal.SIGTERM
            assert served.report.read_text().splitlines()[0] == "cancelled None the manager was shut down"


# what a shutdown says


def lingers():
    import threading
    import time

    threading.Thread(target=time.sleep, args=(600,)).start()  # not a daemon: the interpreter waits for it
    return "done"


def test_a_drain_says_what_it_waits_for_again_and_again(caplog, tmp_path):
    async def scene():
        events, gate = Events(), Gate(tmp_path)
        plugins = PLUGINS | {"lingers": lingers}
        manager = BaseJobManager("drain", plugins=plugins, event_broadcaster=events)
        await manager.wait((await manager.start_job("lingers")).id, 120)
        job = await manager.start_job("touch_and_wait", **gate.params)
        pending = await manager.start_job("echo")
        await until(gate.started.exists)
        closing = asyncio.create_task(manager.shutdown(7, drain=True))
        await until(lambda: events.of("manager:draining"))
        first = events.of("manager:draining")[0]
        assert {k: first[k] for k in ("running", "pending", "pids", "seconds_left")} == {
            "running": 1, "pending": 1, "pids": [job.worker_pid], "seconds_left": 7.0,
        }  # fmt: skip
        await until(lambda: len(events.of("manager:draining")) == 3)  # the next one, without a change, after 4 s more
        gate.go_on.touch()
        await closing
        assert (job.status, pending.status) == ("completed", "completed")
        return job, events.of("manager:draining")

    job, told = run(scene())
    words = f"shutdown waits for worker {job.worker_pid}: "
    assert re.search(rf"{words}job {job.id}; 1 pending jobs \([56] s at most\)", caplog.text)
    assert caplog.text.count(f"{words}job {job.id}; 1 pending jobs") == 2, "said again, although nothing has changed"
    assert f"{words}its plugins to unload and its threads to end (" in caplog.text, "said as soon as it has changed"
    assert {k: told[-1][k] for k in ("running", "pending", "pids")} == {
        "running": 0, "pending": 0, "pids": [job.worker_pid],
    }  # fmt: skip
    left = [data["seconds_left"] for data in told]
    assert left == sorted(left, reverse=True) and all(a - b > 0.8 for a, b in zip(left, left[1:], strict=False))


def test_a_drain_that_waits_for_nothing_says_nothing(caplog):
    async def scene():
        events = Events()
        manager = make(events)
        await manager.shutdown(drain=True)
        return events.seen

    assert run(scene()) == [] and "shutdown" not in caplog.text
