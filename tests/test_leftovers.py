"""What a job leaves behind in its worker: it is put back before the next job, and processes end with an interrupted job."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
from harness import is_alive, run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends.job_processes import clock

LOGGER = "cjm_worker_ext.engine.engine"


def make(plugins, **config) -> BaseJobManager:
    return BaseJobManager("leftovers", plugins=plugins, worker_config=WorkerConfig(**config))


async def ended(manager, plugin_id, **params):
    return await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)


def said(caplog) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.name == LOGGER and "left behind" in r.getMessage())


# ---------------------------------------------------------------- the state of the process
# Shipped by value, because they are made in a function.
def changes() -> dict[str, object]:
    def alarm():
        import signal

        signal.setitimer(signal.ITIMER_REAL, 0.2)

    def profiling():
        import signal

        signal.signal(signal.SIGPROF, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)

    def handler():
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def interrupts():
        import signal

        signal.signal(signal.SIGURG, signal.SIG_IGN)

    def folder():
        import os

        os.chdir("/")

    def umask():
        import os

        os.umask(0o777)

    def environment():
        import os

        os.environ["ADDED"] = "a secret"
        os.environ["KEPT"] = "changed"
        del os.environ["PATH"]

    def closed_stdout():
        import sys

        sys.stdout.close()

    def replaced_stdout():
        import io
        import sys

        sys.stdout = io.StringIO()

    def closed_descriptor():
        import os

        os.close(1)

    def replaced_descriptor():
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def failing():
        import os

        os.chdir("/")
        raise ValueError("on its way out")

    return {f.__name__: f for f in locals().values()}


CHANGES = changes()
WORDS = {
    "alarm": "an alarm",
    "profiling": "a handler for SIGPROF",
    "handler": "a handler for SIGTERM",
    "interrupts": "a handler for SIGURG",
    "folder": "the working directory '/'",
    "umask": "the umask 0o777",
    "environment": "environment variables (ADDED, KEPT, PATH)",
    "closed_stdout": "sys.stdout (closed or replaced)",
    "replaced_stdout": "sys.stdout (closed or replaced)",
    "closed_descriptor": "descriptor 1 (closed or changed)",
    "replaced_descriptor": "descriptor 1 (closed or changed)",
    "failing": "the working directory '/'",
}


def look(seconds=0.0, text=""):
    "The state as the next job finds it."
    import os
    import signal
    import time

    time.sleep(seconds)
    if text:
        print(text)
    umask = os.umask(0)
    os.umask(umask)
    handlers = [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGURG, signal.SIGPROF)]
    return {"pid": os.getpid(), "folder": os.getcwd(), "umask": umask, "handlers": handlers, "env": dict(os.environ)}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_job_changes_in_its_process_is_put_back_before_the_next_job(change, caplog):
    caplog.set_level(logging.INFO, LOGGER)

    async def scene():
        async with make({"change": CHANGES[change], "look": look}, environment={"KEPT": "as it was"}) as manager:
            before = await ended(manager, "look")
            changed = await manager.start_job("change")
            after = await manager.start_job("look", seconds=0.4, text="it prints")
            await manager.wait(after.id, 120)
            assert changed.status == ("failed" if change == "failing" else "completed"), changed.error
            assert after.result == before.result, "the same process, in the same state"
            assert "it prints" in manager.get_job_output(after.id)
            await until(lambda: WORDS[change] in said(caplog))
            assert said(caplog).count("left behind") == 1 and changed.id in said(caplog)
            assert "a secret" not in said(caplog)

    run(scene())


def test_a_usual_job_leaves_nothing(caplog):
    caplog.set_level(logging.INFO, LOGGER)

    async def scene():
        async with make({"look": look}) as manager:
            for _ in range(3):
                await ended(manager, "look", text="something")
        assert said(caplog) == ""

    run(scene())


class SetsUp:
    def load(self, config):
        import os
        import signal

        os.chdir("/")
        os.environ["SET_BY_LOAD"] = "1"
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def execute(self):
        import os
        import signal

        os.environ["SET_BY_JOB"] = "1"
        return os.getcwd(), os.environ["SET_BY_LOAD"], int(signal.getsignal(signal.SIGTERM))


def test_what_a_load_sets_up_stays():
    async def scene():
        async with make({"sets_up": SetsUp, "look": look}) as manager:
            for _ in range(3):
                job = await ended(manager, "sets_up")
                assert job.result == ["/", "1", signal.SIG_IGN] or job.result == ("/", "1", signal.SIG_IGN), job.error
            assert "SET_BY_JOB" not in (await ended(manager, "look")).result["env"]

    run(scene())


class LoadFails:
    def load(self, config):
        import os
        import signal

        os.chdir("/")
        signal.alarm(1)
        raise OSError("no weights")

    def execute(self): ...


def test_what_a_failed_load_changes_is_put_back():
    async def scene():
        async with make({"fails": LoadFails, "look": look}) as manager:
            before = await ended(manager, "look")
            assert (await ended(manager, "fails")).error_type == "PluginLoadError"
            assert (await ended(manager, "look", seconds=1.2)).result == before.result

    run(scene())


def test_a_line_without_an_end_is_told_with_its_own_job():
    def say(text):
        print(text, end="")

    async def scene():
        async with make({"say": say, "look": look}) as manager:
            first = await ended(manager, "say", text="no end")
            second = await ended(manager, "look", text="the next")
            assert (manager.get_job_output(first.id), manager.get_job_output(second.id)) == (["no end"], ["the next"])

    run(scene())


def test_a_first_load_that_fails_leaves_a_worker_that_can_be_interrupted(caplog):
    caplog.set_level(logging.INFO, LOGGER)

    def wait(ctx):
        import time

        ctx.progress(None, "started")
        time.sleep(600)

    async def scene():
        async with make({"fails": LoadFails, "wait": wait}, cancel_grace_seconds=30) as manager:
            failed = await ended(manager, "fails")
            job = await manager.start_job("wait")
            await until(lambda: job.progress_message)
            assert await manager.cancel_job(job.id)
            assert job.worker_pid == failed.worker_pid
            assert "an alarm, the working directory '/'" in said(caplog) and "SIGURG" not in said(caplog)

    run(scene())


# ---------------------------------------------------------------- processes
class Starter:
    "Starts one process in `load`, and others in each job; a job waits, unless it is to return."

    def load(self, config):
        import subprocess

        self.loaded = subprocess.Popen(["sleep", "600"])

    def execute(self, ctx, pids, then="wait", swallow=False):
        import subprocess
        import time
        from pathlib import Path

        own = subprocess.Popen(["sleep", "600"])
        apart = subprocess.Popen(["sleep", "600"], start_new_session=True)
        orphan = subprocess.check_output(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], text=True)
        part = Path(pids + ".part")
        part.write_text(f"{self.loaded.pid} {own.pid} {apart.pid} {orphan}")
        try:
            part.rename(pids)  # within: from here on the cancel may come
            if then == "return":
                return "done"
            while True:
                time.sleep(0.01)
        except BaseException as e:
            if swallow:
                raise ValueError("an error of its own") from e
            raise


async def started(manager, path: Path, **params):
    "A job that has started its processes, and their numbers: that of the load, and those of the job."
    job = await manager.start_job("starter", pids=str(path), **params)
    await until(path.exists, what="the processes")
    loaded, *own = map(int, path.read_text().split())
    assert all(map(is_alive, [loaded, *own]))
    return job, loaded, own


def end_all(pids):
    import os
    from contextlib import suppress

    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("swallow", [False, True])
def test_processes_end_with_a_cancelled_job_whose_worker_lives(tmp_path, swallow):
    async def scene():
        async with make({"starter": Starter}, cancel_grace_seconds=30) as manager:
            first, loaded, older = await started(manager, tmp_path / "first", then="return")
            await manager.wait(first.id, 120)
            tick = clock()
            await until(lambda: clock() > tick, what="the next tick of the clock that dates processes")
            job, _, own = await started(manager, tmp_path / "second", swallow=swallow)
            assert await manager.cancel_job(job.id)
            await until(lambda: not any(map(is_alive, own)), what="the end of the job's processes")
            assert is_alive(job.worker_pid) and is_alive(loaded), "what was started at load stays"
            assert all(map(is_alive, older)), "a job that has completed may leave processes"
            end_all(older)

    run(scene())


def test_processes_end_with_a_job_that_timed_out(tmp_path):
    async def scene():
        async with make({"starter": Starter}, cancel_grace_seconds=30) as manager:
            await manager.load_plugin("starter")
            path = tmp_path / "pids"
            job = await manager.submit_job("starter", {"pids": str(path)}, timeout=1.0)
            await manager.wait(job.id, 120)
            assert job.error_type == "JobTimeout"
            loaded, *own = map(int, path.read_text().split())
            await until(lambda: not any(map(is_alive, own)), what="the end of the job's processes")
            assert is_alive(job.worker_pid) and is_alive(loaded)

    run(scene())


def test_processes_in_the_group_end_with_a_worker_that_is_killed(tmp_path):
    def deaf(pids):
        import signal
        import subprocess
        import time
        from pathlib import Path

        child = subprocess.Popen(["sleep", "600"])
        signal.signal(signal.SIGURG, signal.SIG_IGN)  # it hears of no cancel
        Path(pids).write_text(f"{child.pid} ")
        while True:
            time.sleep(1)

    async def scene():
        async with make({"deaf": deaf}, cancel_grace_seconds=0.05) as manager:
            path = tmp_path / "pids"
            job = await manager.start_job("deaf", pids=str(path))
            await until(lambda: path.exists() and path.read_text().endswith(" "))
            await manager.cancel_job(job.id)
            await until(lambda: not is_alive(int(path.read_text())))

    run(scene())


def test_a_worker_whose_state_cannot_be_put_back_is_replaced(tmp_path):
    "The folder that was current at the load is gone; the job after it still runs there, and the next one elsewhere."
    there = tmp_path / "there"

    class Mover:
        def load(self, config):
            import os

            os.makedirs(config.get("folder") or str(there), exist_ok=True)
            os.chdir(str(there))

        def execute(self, remove):
            import os

            if remove:
                os.chdir("/")
                os.rmdir(str(there))
            return os.getpid()

    async def scene():
        async with make({"mover": Mover}) as manager:
            first = await ended(manager, "mover", remove=True)
            second = await ended(manager, "mover", remove=False)
            third = await ended(manager, "mover", remove=False)
            assert [job.status for job in (first, second, third)] == ["completed"] * 3
            assert first.result == second.result != third.result

    run(scene())
