"""Odd ends of workers: killed while they load or unload, reaped by somebody else, with children that go on writing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from harness import Ticker, is_alive, run, targets, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends import local
from cjm_worker_ext.errors import PluginError, PluginLoadError


def make(plugins=None, **config) -> BaseJobManager:
    plugins = targets("echo") if plugins is None else plugins
    return BaseJobManager("ends", plugins=plugins, worker_config=WorkerConfig(**config))


async def echo(manager, value=1):
    return await manager.wait((await manager.start_job("echo", value=value)).id, 120)


class Slow:
    "Loads or unloads for as long as its configuration says."

    def load(self, config):
        time.sleep(float(os.environ.get("SLOW_LOAD", "0")))

    def execute(self):
        return os.getpid()

    def unload(self):
        time.sleep(float(os.environ.get("SLOW_UNLOAD", "0")))


def test_a_worker_killed_while_it_loads_a_plugin_is_named():
    async def scene():
        async with make({"slow": Slow}, environment={"SLOW_LOAD": "600"}) as manager:
            loading = asyncio.create_task(manager.load_plugin("slow"))
            worker = await until(lambda: next((w for w in manager.workers() if w.status == "running"), None))
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(
                PluginLoadError, match=r"plugin 'slow' was not loaded: its worker was killed by SIGKILL"
            ):
                await asyncio.wait_for(loading, 120)

    run(scene())


def test_a_worker_killed_while_it_unloads_a_plugin_has_unloaded_it():
    async def scene():
        async with make({"slow": Slow}, environment={"SLOW_UNLOAD": "600"}) as manager:
            job = await manager.wait((await manager.start_job("slow")).id, 120)
            unloading = asyncio.create_task(manager.unload_plugin("slow"))
            await until(lambda: manager.workers()[0].status == "running")
            os.kill(job.result, signal.SIGKILL)
            await asyncio.wait_for(unloading, 120)

    run(scene())


def test_an_unload_that_hangs_is_ended_and_later_jobs_run():
    async def scene():
        config = {"unload_timeout_seconds": 0.1, "cancel_grace_seconds": 0.1, "environment": {"SLOW_UNLOAD": "600"}}
        async with make({"slow": Slow} | targets("echo"), **config) as manager:
            job = await manager.wait((await manager.start_job("slow")).id, 120)
            with pytest.raises(PluginError, match="plugin 'slow' was not unloaded: it took longer than unload_timeout"):
                await asyncio.wait_for(manager.unload_plugin("slow"), 120)
            assert not is_alive(job.result)
            assert (await echo(manager, 7)).result == 7

    run(scene())


def test_idle_workers_killed_one_by_one_fail_no_job():
    async def scene():
        async with make(max_workers=1, standby_workers=3, max_restart_attempts=2) as manager:
            for _ in range(4):
                job = await echo(manager, 7)
                assert job.result == 7, job.error
                await until(lambda: len([w for w in manager.workers() if w.status == "idle"]) == 4)
                killed = {worker.pid for worker in manager.workers()}
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
                await until(lambda killed=killed: not killed & {worker.pid for worker in manager.workers()})

    run(scene())


@pytest.mark.parametrize("pause", [0.0, 0.05])
@pytest.mark.parametrize("plugin", ["plugins_for_tests:echo", "company_plugins:Counted", "company_plugins:Odd"])
def test_a_job_that_a_dead_worker_gets_goes_to_another(plugin, pause):
    "The app sends it before it can know: at once after the kill, or while its loop stands still."

    async def scene():
        params = {"echo": {"value": 7}, "Counted": {"seconds": 0.0}, "Odd": {"x": 7}}[plugin.rpartition(":")[2]]
        async with BaseJobManager("ends", plugins={"plugin": plugin}) as manager:
            for _ in range(6):
                assert (await manager.wait((await manager.start_job("plugin", **params)).id, 120)).status == "completed"
                os.kill(manager.workers()[0].pid, signal.SIGKILL)
                time.sleep(pause)  # noqa: ASYNC251  - the very point
                job = await manager.wait((await manager.start_job("plugin", **params)).id, 120)
                assert (job.status, job.attempts) == ("completed", 1), job.error

    run(scene())


def test_an_exit_code_that_nobody_knows_is_said_to_be_unknown():
    code = """
        import asyncio, os, signal, sys
        sys.path.insert(0, TESTS)
        from cjm_worker_ext import BaseJobManager
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

        async def main():
            async with BaseJobManager("ends", plugins={"exit": "plugins_for_tests:exit_now"}) as manager:
                job = await manager.wait((await manager.start_job("exit", code=3)).id, 120)
                print(job.error_type, job.exception.exitcode, job.error, sep="|")

        asyncio.run(main())
    """
    code = textwrap.dedent(code).replace("TESTS", repr(os.path.dirname(__file__)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    kind, exitcode, error = done.stdout.strip().split("|")
    assert (kind, exitcode) == ("WorkerCrashed", "None") and "ended in an unknown way" in error, done.stderr


def flood_from_a_daemon():
    "Leave a process in a session of its own that writes to the worker's output for ever, and die."
    import os
    import subprocess
    import sys

    code = "import os\nwhile True: os.write(1, b'x' * 65536)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    print(child.pid, flush=True)
    os._exit(5)


def test_a_child_that_floods_the_output_of_a_dead_worker_holds_nobody_up():
    async def scene():
        async with make({"flood": flood_from_a_daemon} | targets("echo")) as manager:
            job = await manager.start_job("flood")
            try:
                async with Ticker() as ticker:
                    await manager.wait(job.id, 120)
                    assert (await echo(manager, 7)).result == 7
                assert job.error_type == "WorkerCrashed" and job.exception.exitcode == 5
                assert ticker.gap < 1.0, f"the loop was held for {ticker.gap:.2f} s"  # it was 24 s
            finally:
                for line in job.exception.output if job.exception else ():
                    if line.isdigit():
                        with contextlib.suppress(ProcessLookupError):  # it could write nowhere any more, and has ended
                            os.kill(int(line), signal.SIGKILL)

    run(scene())


def numbers(count):
    return [0.5] * count


def test_results_of_every_size_cost_no_worker_while_other_jobs_wait():
    "Some arrive in parts; the next job is sent while the last part of one is handed on."

    async def scene():
        async with make({"numbers": numbers}, max_workers=1) as manager:
            jobs = [await manager.start_job("numbers", count=int(1.5**n)) for n in range(10, 32)]
            for job in jobs:
                await manager.wait(job, 120)
            assert [len(job.result or ()) for job in jobs] == [job.params["count"] for job in jobs]
            assert len({job.worker_pid for job in jobs}) == 1

    run(scene())


def test_the_clock_of_the_wall_does_not_change_a_duration(monkeypatch):
    async def scene():
        async with make(targets("sleep")) as manager:
            job = await manager.start_job("sleep", seconds=0.05)
            await until(lambda: job.status == "running")
            now = time.time_ns()
            monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
            monkeypatch.setattr(time, "time", lambda: now / 1e9 - 3600)
            await manager.wait(job.id, 120)
            assert 0.0 < job.duration_seconds < 30 and job.completed_at < job.started_at

    run(scene())


@pytest.mark.parametrize(
    "flags", [["-O"], ["-I"], ["-X", "dev"], ["-X", "utf8"], ["-W", "error::FutureWarning"], ["-E", "-s"]]
)
def test_workers_run_with_the_flags_of_the_app(flags, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.from_sitecustomize = True\n")
    code = """
        import asyncio, sys
        sys.path.insert(0, PACKAGE)
        from cjm_worker_ext import BaseJobManager

        def describe():
            import sys
            return [sys.flags.optimize, sys.flags.isolated, sys.flags.dev_mode, sys.flags.utf8_mode, sys.flags.ignore_environment,
                    sys.flags.no_user_site, "error::FutureWarning" in sys.warnoptions, hasattr(sys, "from_sitecustomize")]

        async def main():
            async with BaseJobManager("ends", plugins={"describe": describe}) as manager:
                job = await manager.wait((await manager.start_job("describe")).id, 120)
                print(job.result == describe(), job.error, job.result)

        asyncio.run(main())
    """
    import cjm_worker_ext

    package = os.path.dirname(os.path.dirname(cjm_worker_ext.__file__))
    code = textwrap.dedent(code).replace("PACKAGE", repr(package))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout.startswith("True None"), done.stdout + done.stderr


@pytest.mark.parametrize("by_us", [True, False])
def test_a_kill_on_purpose_is_no_want_of_memory(by_us, monkeypatch):
    "Another process of the control group may run out of memory just when a job is cancelled."
    kills = iter(range(100))
    monkeypatch.setattr(local, "count_oom_kills", lambda: next(kills))
    process = local.ChildProcess(WorkerConfig())
    if by_us:
        process.kill()
    else:
        os.kill(process.pid, signal.SIGKILL)
    assert select.select([process.watch.fd], [], [], 20)[0]
    end = process.end()
    process.close()
    assert (end.exitcode, end.out_of_memory) == (-signal.SIGKILL, not by_us)


def test_a_worker_collects_garbage_once_it_has_booted():
    async def scene():
        async with make({"collects": "gc:isenabled"}) as manager:
            assert (await manager.wait((await manager.start_job("collects")).id, 120)).result is True

    run(scene())


def test_a_thread_that_an_earlier_job_left_behind_reports_nothing_for_a_later_one(tmp_path):
    go, done = str(tmp_path / "go"), str(tmp_path / "done")

    def leave_a_thread(go, done, ctx):
        import os
        import threading
        import time

        def report_late():
            while not os.path.exists(go):
                time.sleep(0.005)
            ctx.progress(0.5, "words of the first job")
            open(done, "w").close()

        threading.Thread(target=report_late, daemon=True).start()

    def wait_for_it(go, done):
        import os
        import time

        open(go, "w").close()
        while not os.path.exists(done):
            time.sleep(0.005)

    async def scene():
        async with make({"leave": leave_a_thread, "wait": wait_for_it}) as manager:
            first = await manager.wait((await manager.start_job("leave", go=go, done=done)).id, 120)
            second = await manager.wait((await manager.start_job("wait", go=go, done=done)).id, 120)
            assert (first.status, second.status) == ("completed", "completed") and first.worker_pid == second.worker_pid
            assert (second.progress, second.progress_message) == (None, "")

    run(scene())
