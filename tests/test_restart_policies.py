"""What follows the end of a worker under each policy, and a worker that can never start."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest
from harness import is_alive, run, targets, time_is_up, until

import cjm_worker_ext
from cjm_worker_ext import BaseJobManager, RestartPolicy, WorkerConfig
from cjm_worker_ext.engine import engine
from cjm_worker_ext.errors import WorkersExhausted

NAMES = ("echo", "pid_of_worker", "exit_now", "kill_self", "hold_lock", "sleep", "touch_and_wait")


class Starts:
    "A broadcaster that notes which workers were started."

    def __init__(self):
        self.pids: list[int] = []

    async def broadcast(self, event_type, data):
        if event_type == "worker:started":
            self.pids.append(data["pid"])


def make(policy: RestartPolicy, bus: Starts | None = None, **config) -> BaseJobManager:
    settings = {"cancel_grace_seconds": 0.05, "restart_backoff_seconds": 0.01, **config}
    return BaseJobManager(
        "restarts",
        "tests",
        plugins=targets(*NAMES),
        worker_config=WorkerConfig(restart_policy=policy, **settings),
        event_broadcaster=bus,
    )


async def ended(manager: BaseJobManager, plugin_id: str, **params):
    return await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)


async def crash(manager: BaseJobManager) -> int:
    "Lose a worker to a crash; its pid."
    job = await ended(manager, "exit_now")
    assert (job.status, job.error_type) == ("failed", "WorkerCrashed"), job
    return job.worker_pid


async def kill_by_cancel(manager: BaseJobManager, tmp_path: Path) -> int:
    "Lose a worker to a cancel that it does not listen to; its pid."
    started = tmp_path / f"started-{time.monotonic_ns()}"
    job = await manager.start_job("hold_lock", started=str(started))
    await until(started.exists)
    assert await manager.cancel_job(job.id) and not is_alive(job.worker_pid)
    return job.worker_pid


async def works_in(manager: BaseJobManager) -> int:
    job = await ended(manager, "pid_of_worker")
    assert job.status == "completed", job.error
    return job.result


async def nothing_works(manager: BaseJobManager, *words: str) -> None:
    job = await ended(manager, "echo")
    assert (job.status, job.error_type, job.attempts, job.started_at) == ("failed", "WorkersExhausted", 0, None), job
    assert isinstance(job.exception, WorkersExhausted)
    refused = "could not be started" in job.error  # then no policy has a say in it
    assert refused or f"restart_policy={manager.worker_config.restart_policy}" in job.error
    assert all(word in job.error for word in words), job.error
    assert manager.workers() == []


def test_never_with_the_only_worker_gone():
    async def scene():
        bus = Starts()
        async with make(RestartPolicy.NEVER, bus) as manager:
            await works_in(manager)
            running = await manager.start_job("exit_now")
            waiting = [await manager.start_job("echo") for _ in range(3)]
            for job in (running, *waiting):
                await manager.wait(job.id, 120)
            assert running.error_type == "WorkerCrashed"
            assert [job.error_type for job in waiting] == ["WorkersExhausted"] * 3
            await nothing_works(manager, "exited with code 7")
            with pytest.raises(WorkersExhausted, match="'echo' was not loaded"):
                await manager.load_plugin("echo")
        assert len(bus.pids) == 1

    run(scene())


def test_never_with_two_workers_the_other_goes_on(tmp_path):
    async def scene():
        bus = Starts()
        async with make(RestartPolicy.NEVER, bus, max_workers=2) as manager:
            go_on, started = tmp_path / "go-on", tmp_path / "started"
            busy = await manager.start_job("touch_and_wait", started=str(started), go_on=str(go_on))
            await until(started.exists)
            lost = await crash(manager)
            waiting = await manager.start_job("pid_of_worker")
            go_on.write_text("")
            await manager.wait(waiting.id, 120)
            assert waiting.result == (await manager.wait(busy.id, 120)).result != lost
            assert await works_in(manager) == waiting.result
            assert await crash(manager) == waiting.result
            await nothing_works(manager)
        assert len(bus.pids) == 2

    run(scene())


def test_never_a_worker_that_a_cancel_kills_is_gone_and_one_that_listens_stays(tmp_path):
    async def scene():
        async with make(RestartPolicy.NEVER, cancel_grace_seconds=3.0) as manager:
            pid = await works_in(manager)
            job = await manager.start_job("sleep", seconds=600)
            await until(lambda: job.status == "running")
            assert await manager.cancel_job(job.id)
            assert await works_in(manager) == pid == await kill_by_cancel(manager, tmp_path)
            await nothing_works(manager, "was killed by SIGKILL")

    run(scene())


def test_never_a_worker_that_dies_idle_is_missed():
    async def scene():
        async with make(RestartPolicy.NEVER) as manager:
            os.kill(await works_in(manager), 9)
            await until(lambda: not manager.workers())
            await nothing_works(manager, "SIGKILL")

    run(scene())


def test_on_cancellation_replaces_after_a_kill_by_cancel_and_not_after_a_crash(tmp_path):
    async def scene():
        bus = Starts()
        async with make(RestartPolicy.ON_CANCELLATION, bus) as manager:
            pids = {await works_in(manager)}
            for _ in range(3):
                assert await kill_by_cancel(manager, tmp_path) in pids
                assert (pid := await works_in(manager)) not in pids
                pids.add(pid)
            assert await crash(manager) in pids
            await nothing_works(manager, "exited with code 7")
        assert set(bus.pids) == pids and len(bus.pids) == 4

    run(scene())


def test_on_cancellation_a_job_that_ran_out_of_time_counts_as_well(tmp_path):
    async def scene():
        async with make(RestartPolicy.ON_CANCELLATION) as manager:
            started = tmp_path / "started"
            job = await manager.submit_job("hold_lock", {"started": str(started)}, timeout=600)
            await until(started.exists)
            await time_is_up(manager, job)
            await manager.wait(job.id, 120)
            assert job.error_type == "JobTimeout" and not is_alive(job.worker_pid)
            assert await works_in(manager) != job.worker_pid

    run(scene())


@pytest.mark.parametrize("policy", [RestartPolicy.ALWAYS, RestartPolicy.BACKOFF])
def test_a_worker_that_ran_something_is_replaced_at_once_however_often(policy, tmp_path, waits):
    async def scene():
        async with make(policy, max_restart_attempts=1, restart_backoff_seconds=600, hold_after_crashes=0) as manager:
            lost = [await crash(manager) for _ in range(4)]
            lost += [await kill_by_cancel(manager, tmp_path) for _ in range(2)]
            assert await works_in(manager) not in lost and len(set(lost)) == 6
        assert waits == []

    run(scene())


# ---------------------------------------------------------------- a worker that can never start


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    "The waits between restarts, as they are ordered."
    found: list[float] = []
    set_timer = engine.Timers.set

    def note(self, kind, key, seconds):
        if kind == "backoff":
            found.append(seconds)
        set_timer(self, kind, key, seconds)

    monkeypatch.setattr(engine.Timers, "set", note)
    return found


@pytest.fixture
def broken(tmp_path) -> str:
    "An interpreter that says why it will not start; it starts once `mended` is there."
    script = tmp_path / "python"
    mended = tmp_path / "mended"
    script.write_text(f'#!/bin/sh\n[ -e {mended} ] && exec {sys.executable} "$@"\necho "no licence" >&2\nexit 1\n')
    script.chmod(0o755)
    return str(script)


def environment() -> dict[str, str]:
    "For an interpreter of another name: it gets no path from the app."
    return {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def test_backoff_tries_waits_longer_each_time_and_gives_up(broken, waits):
    async def scene():
        bus = Starts()
        config = {"max_restart_attempts": 4, "restart_backoff_max_seconds": 0.03}
        async with make(RestartPolicy.BACKOFF, bus, python=broken, **config) as manager:
            jobs = [await manager.start_job("echo") for _ in range(3)]
            for job in jobs:
                await manager.wait(job.id, 120)
                assert (job.error_type, job.attempts) == ("WorkersExhausted", 0)
                assert "max_restart_attempts=4" in job.error
                assert "exited with code 1; no licence" in job.error
            assert len(bus.pids) == 5, "the first one, and four more"
            assert waits[:3] == [0.01, 0.02, 0.03], "at once, then waits that double, up to the ceiling"
            await nothing_works(manager, "no licence")
            assert len(bus.pids) == 6, "a later job tries once more"
            assert max(waits) == 0.03

    run(scene())


def test_backoff_goes_on_by_itself_once_a_worker_can_start(broken, waits, tmp_path):
    async def scene():
        bus = Starts()
        config = {"python": broken, "environment": environment(), "max_restart_attempts": 500}
        async with make(RestartPolicy.BACKOFF, bus, restart_backoff_max_seconds=0.02, **config) as manager:
            job = await manager.start_job("echo", value=1)
            await until(lambda: len(bus.pids) == 4)
            assert job.status == "pending"
            (tmp_path / "mended").write_text("")
            assert (await manager.wait(job.id, 120)).result == 1, job.error

    run(scene())


def test_a_later_job_may_try_again_and_success_forgets_what_was(broken, waits, tmp_path):
    async def scene():
        config = {"python": broken, "environment": environment(), "max_restart_attempts": 2}
        async with make(RestartPolicy.BACKOFF, **config) as manager:
            await nothing_works(manager, "no licence")
            (tmp_path / "mended").write_text("")
            pid = await works_in(manager)
            (tmp_path / "mended").unlink()
            waits.clear()
            os.kill(pid, 9)
            await until(lambda: pid not in [w.pid for w in manager.workers()])
            await nothing_works(manager, "no licence")
            assert waits[0] == 0.01, "the wait is the first one again"

    run(scene())


@pytest.mark.parametrize("policy", [RestartPolicy.ALWAYS, RestartPolicy.NEVER, RestartPolicy.ON_CANCELLATION])
def test_without_backoff_there_are_no_waits_and_still_an_end(policy, broken, waits):
    async def scene():
        bus = Starts()
        async with make(policy, bus, python=broken, max_restart_attempts=3) as manager:
            await nothing_works(manager, "exited with code 1; no licence")
        assert waits == [] and len(bus.pids) == (4 if policy is RestartPolicy.ALWAYS else 1)

    run(scene())


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_an_interpreter_that_does_not_exist_fails_at_once(policy, tmp_path, waits):
    async def scene():
        bus, missing = Starts(), str(tmp_path / "no-such-python")
        async with make(policy, bus, python=missing, restart_backoff_seconds=600) as manager:
            await nothing_works(
                manager, f"could not be started: WorkerConfig.python '{missing}': there is no such file; "
            )
        assert bus.pids == [] and waits == []

    run(scene())


def python_with(folder, package: str) -> str:
    "Make an interpreter that has another version of this package, or none."
    (folder / "cjm_worker_ext").mkdir()
    (folder / "cjm_worker_ext" / "__init__.py").write_text(package)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(folder))} exec {shlex.quote(sys.executable)} "$@"\n')
    script.chmod(0o755)
    return str(script)


UNFIT = [
    (
        "__version__ = '0.0.9'",
        "",
        f"it has cjm-worker-ext 0.0.9, and the app runs {cjm_worker_ext.__version__}; install it",
    ),
    ("raise ModuleNotFoundError(\"No module named 'cjm_worker_ext'\")", "", "it has no package cjm-worker-ext"),
    ("", "/nonexistent", "it does not find its standard library; unset PYTHONHOME"),
]


@pytest.mark.parametrize("package, home, found", UNFIT)
def test_an_unfit_interpreter_is_refused_once(tmp_path, package, home, found, waits, caplog):
    async def scene():
        python, variables = python_with(tmp_path, package), {"PYTHONHOME": home} if home else {}
        bus = Starts()
        async with make(RestartPolicy.BACKOFF, bus, python=python, environment=variables) as manager:
            with pytest.raises(WorkersExhausted) as raised:
                await manager.load_plugin("echo")
        assert len(bus.pids) == 1 and waits == []
        why = str(raised.value)
        assert why.startswith(
            f"plugin 'echo' was not loaded: a worker could not be started: WorkerConfig.python '{python}': "
        )
        assert found in why, why
        (told,) = [r.getMessage() for r in caplog.records if "could not be started" in r.getMessage()]
        assert told == f"worker {bus.pids[0]}{why.partition('a worker')[2]}"

    run(scene())


def test_the_log_names_an_interpreter_that_is_not_there(tmp_path, caplog):
    async def scene():
        async with make(RestartPolicy.BACKOFF, Starts(), python=str(tmp_path / "python")) as manager:
            with pytest.raises(WorkersExhausted):
                await manager.load_plugin("echo")
        assert [r.getMessage().partition(" Worker")[0] for r in caplog.records] == ["a worker could not be started:"]

    run(scene())


def test_another_interpreter_does_not_look_into_the_working_folder(tmp_path, monkeypatch, broken):
    async def scene():
        (tmp_path / "mended").write_text("")
        (tmp_path / "msgpack.py").write_text("raise ImportError('from the working folder')")
        package = os.path.dirname(os.path.dirname(cjm_worker_ext.__file__))
        variables = {"PYTHONPATH": os.pathsep.join([package, *(p for p in sys.path if p)])}
        monkeypatch.chdir(tmp_path)
        async with make(RestartPolicy.NEVER, python=broken, environment=variables) as manager:
            await works_in(manager)

    run(scene())


def test_an_interpreter_that_says_nothing_is_killed_after_its_time(tmp_path):
    async def scene():
        script = tmp_path / "python"
        script.write_text("#!/bin/sh\nexec sleep 600\n")
        script.chmod(0o755)
        bus = Starts()
        config = {"python": str(script), "start_timeout_seconds": 0.1, "max_restart_attempts": 1}
        async with make(RestartPolicy.BACKOFF, bus, **config) as manager:
            await nothing_works(manager, "SIGKILL")
        assert len(bus.pids) == 2 and not any(is_alive(pid) for pid in bus.pids)

    run(scene())
