"""However the manager's process ends, its workers and their children end with it; and it ends quietly and soon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from harness import are_gone, end_of, is_alive

TESTS = str(Path(__file__).parent)
SOON = 1.0  # Seconds; what the library promises, not counting what a busy machine takes

APP = """
import asyncio, json, os, sys, time
sys.path.insert(0, {tests!r})
from cjm_worker_ext import BaseJobManager, WorkerConfig

def child_of_mine(path=None):  # shipped by value
    import os, subprocess, time
    process = subprocess.Popen(["sleep", "3600"])
    open(path, "w").write(f"{{process.pid}}")
    time.sleep(3600)

NAMES = ("hold_lock", "sleep", "echo", "ignore_sigterm", "SlowLoad", "spin", "big_array", "count_slowly")
plugins = {{name: "plugins_for_tests:" + name for name in NAMES}} | {{"child": child_of_mine}}
here = {here!r}
config = WorkerConfig(max_workers=2, standby_workers=1)

async def until(condition):
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise SystemExit("did not come about")

def say(**facts):
    print(json.dumps(facts), flush=True)

async def main():
    manager = BaseJobManager("orphans", "tests", plugins=plugins, worker_config=config)
    {body}

{end}
"""


def start_app(tmp_path: Path, body: str, end: str = "asyncio.run(main())", **options) -> subprocess.Popen:
    body = textwrap.indent(textwrap.dedent(body), "    ").strip()
    text = APP.format(tests=TESTS, here=str(tmp_path), body=body, end=textwrap.dedent(end))
    script = tmp_path / "app.py"
    script.write_text(text)
    return subprocess.Popen([sys.executable, str(script)], stdout=-1, stderr=-1, text=True, **options)


SCENES = {
    "idle": """
        job = await manager.wait((await manager.start_job("echo")).id)
        await until(lambda: len(manager.workers()) >= 2)
        say(pids=[w.pid for w in manager.workers()])
        await asyncio.sleep(3600)
    """,
    "busy": """
        await manager.start_job("child", path=here + "/child")
        await manager.start_job("sleep", seconds=3600)
        await until(lambda: os.path.exists(here + "/child") and open(here + "/child").read())
        say(pids=[w.pid for w in manager.workers()] + [int(open(here + "/child").read())])
        await asyncio.sleep(3600)
    """,
    "busy under the interpreter lock": """
        await manager.start_job("hold_lock", started=here + "/started", child=here + "/child")
        await until(lambda: os.path.exists(here + "/started"))
        await asyncio.sleep(0.1)
        say(pids=[w.pid for w in manager.workers()] + [int(open(here + "/child").read())])
        await asyncio.sleep(3600)
    """,
    "ignoring signals": """
        await manager.start_job("ignore_sigterm", started=here + "/started")
        await until(lambda: os.path.exists(here + "/started"))
        say(pids=[w.pid for w in manager.workers()])
        await asyncio.sleep(3600)
    """,
    "loading": """
        await manager.start_job("SlowLoad")
        await until(lambda: any(w.status == "running" for w in manager.workers()))
        say(pids=[w.pid for w in manager.workers()])
        await asyncio.sleep(3600)
    """,
    "starting": """
        await manager.start_job("echo")
        await manager.start_job("echo")
        assert {w.status for w in manager.workers()} == {"starting"}
        say(pids=[w.pid for w in manager.workers()])
        time.sleep(3600)
    """,
    "streaming to a manager that does not read": """
        await manager.start_job("count_slowly", started=here + "/started")
        await until(lambda: os.path.exists(here + "/started"))
        say(pids=[w.pid for w in manager.workers()])
        time.sleep(3600)
    """,
}


@pytest.mark.parametrize("scene", SCENES)
def test_killed_by_sigkill(scene, tmp_path):
    app = start_app(tmp_path, SCENES[scene])
    try:
        pids = json.loads(app.stdout.readline() or app.stderr.read())["pids"]
        assert pids and (scene == "starting" or all(map(is_alive, pids)))
    finally:
        app.kill()
    are_gone(pids, SOON)
    app.communicate()


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.03, 0.05, 0.08])
def test_killed_in_the_middle_of_a_start(delay, tmp_path):
    app = start_app(tmp_path, SCENES["starting"])
    pids = json.loads(app.stdout.readline())["pids"]
    time.sleep(delay)
    app.kill()
    are_gone(pids, SOON)
    app.communicate()


def test_killed_while_a_forked_child_of_the_app_lives_on(tmp_path):
    "A child that the app forked has copies of the manager's descriptors; they must not keep the workers alive."
    body = """
        await manager.start_job("hold_lock", started=here + "/started")
        await until(lambda: os.path.exists(here + "/started"))
        child = os.fork()
        if not child:
            os.close(1), os.close(2)
            time.sleep(60)
            os._exit(0)
        say(pids=[w.pid for w in manager.workers()], child=child)
        await asyncio.sleep(3600)
    """
    app = start_app(tmp_path, body)
    facts = json.loads(app.stdout.readline())
    app.kill()
    try:
        are_gone(facts["pids"], SOON)
    finally:
        os.kill(facts["child"], signal.SIGKILL)
        app.communicate()


def test_a_forked_child_of_the_app_that_exits_leaves_the_workers_alone(tmp_path):
    body = """
        job = await manager.start_job("sleep", seconds=1.5)
        await until(lambda: job.status == "running")
        from harness import way_out
        leave = way_out()
        child = os.fork()
        if not child:
            leave(0)  # runs what atexit has
        os.waitpid(child, 0)
        say(status=(await manager.wait(job.id)).status, error=job.error)
        await manager.shutdown()
    """
    app = start_app(tmp_path, body, end="if __name__ == '__main__':\n    asyncio.run(main())")
    out, err = app.communicate(timeout=120)
    problems = [line for line in err.splitlines() if "use of fork() may lead to deadlocks" not in line]  # Python 3.12
    assert json.loads(out) == {"status": "completed", "error": None}
    assert not [line for line in problems if line.strip() != "child = os.fork()"], err


WORK = """
    await manager.start_job("hold_lock", started=here + "/started", child=here + "/child")
    await manager.start_job("sleep", seconds=3600)
    for _ in range(5):
        await manager.start_job("echo")
    await until(lambda: os.path.exists(here + "/started"))
    say(pids=[w.pid for w in manager.workers()] + [int(open(here + "/child").read())])
"""
ENDS = {
    "normal": (WORK, "asyncio.run(main())", 0, ""),
    "sys.exit": (WORK + "    sys.exit(3)\n", "asyncio.run(main())", 3, ""),
    "sys.exit outside": (WORK, "asyncio.run(main())\nsys.exit(4)", 4, ""),
    "exception": (WORK + "    raise ValueError('of the app')\n", "asyncio.run(main())", 1, "ValueError: of the app"),
    "exception in async with": (
        WORK.replace("await manager.start_job", "await manager.__aenter__(); await manager.start_job", 1)
        + "    raise ValueError('of the app')\n",
        "asyncio.run(main())",
        1,
        "ValueError: of the app",
    ),
    "loop not closed": (WORK, "loop = asyncio.new_event_loop()\nloop.run_until_complete(main())", 0, ""),
    "manager global": (
        WORK + "    globals()['kept'] = manager\n",
        "asyncio.run(main())",
        0,
        "",
    ),
}


def devices() -> set[str]:
    "Memory with a name, as Python makes it; servers of other tests have some of their own."
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {name for name in names if name.startswith(("psm_", "sem.", "cjm"))}


@pytest.mark.parametrize("how", ENDS)
def test_ends_without_shutdown(how, tmp_path):
    body, end, code, word = ENDS[how]
    shared = devices()
    app = start_app(tmp_path, body, end)
    facts = json.loads(app.stdout.readline() or app.stderr.read())
    out, err = end_of(app, 2.0)
    assert app.returncode == code and out == ""
    lines = err.strip().splitlines()
    assert (lines[-1:] == [word] and err.count("Traceback") == 1) if word else err == "", err
    assert "cjm_worker_ext" not in err, err
    are_gone(facts["pids"], SOON)
    assert devices() <= shared


def test_ctrl_c_without_shutdown(tmp_path):
    end = """
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        say(interrupted=True)
        sys.exit(130)
    """
    app = start_app(tmp_path, WORK + "    await asyncio.sleep(3600)", end, start_new_session=True)
    facts = json.loads(app.stdout.readline())
    os.killpg(app.pid, signal.SIGINT)  # as a terminal does it: to the whole foreground group
    out, err = end_of(app, 2.0)
    assert json.loads(out) == {"interrupted": True} and err == "" and app.returncode == 130
    are_gone(facts["pids"], SOON)


def test_ctrl_c_does_not_reach_the_workers(tmp_path):
    body = """
        job = await manager.start_job("sleep", seconds=1.0)
        await until(lambda: job.status == "running")
        import signal
        signal.signal(signal.SIGINT, lambda *args: None)
        say(pids=[w.pid for w in manager.workers()])
        await manager.wait(job.id)
        say(status=job.status, error=job.error)
        await manager.shutdown()
    """
    app = start_app(tmp_path, body, start_new_session=True)
    app.stdout.readline()
    os.killpg(app.pid, signal.SIGINT)
    out, err = app.communicate(timeout=120)
    assert json.loads(out) == {"status": "completed", "error": None} and err == ""


BLOCKING = """
manager = BaseJobManager("orphans", "tests", plugins=plugins, worker_config=config).blocking()
manager.start_job("hold_lock", started=here + "/started")
for _ in range(20):
    manager.start_job("sleep", seconds=3600)
while not os.path.exists(here + "/started"):
    time.sleep(0.005)
say(pids=[w.pid for w in manager.workers()])
"""


@pytest.mark.parametrize("how", ["normal", "exit", "raise"])
def test_a_script_without_shutdown(how, tmp_path):
    code, end = {"normal": (0, ""), "exit": (5, "sys.exit(5)\n"), "raise": (1, "raise ValueError('of the app')\n")}[how]
    app = start_app(tmp_path, "pass", BLOCKING + end)
    facts = json.loads(app.stdout.readline() or app.stderr.read())
    _, err = end_of(app, 2.0)
    assert app.returncode == code
    if how == "raise":
        assert err.endswith("ValueError: of the app\n") and err.count("Traceback") == 1, err
    else:
        assert err == ""
    are_gone(facts["pids"], SOON)


def test_a_shutdown_leaves_nothing(tmp_path):
    "Looked at from inside, in a process of its own: threads, descriptors, children, shared memory."
    body = """
        import threading
        before = sorted(os.listdir("/proc/self/fd"))
        await manager.start_job("hold_lock", started=here + "/started")
        big = await manager.start_job("big_array", megabytes=20)
        await until(lambda: os.path.exists(here + "/started"))
        await manager.wait(big.id)
        assert int(big.result[-1]) == 7
        big = None
        manager.clear_finished_jobs()
        pids = [w.pid for w in manager.workers()]
        await manager.shutdown(timeout=0.5)
        import gc
        gc.collect()
        # libffi (ctypes, which numpy imports) may hold its own file open, from its first callback to the end of the process.
        left = [f"{fd} {os.readlink('/proc/self/fd/' + fd)}" for fd in os.listdir("/proc/self/fd")
                if fd not in before and os.path.exists("/proc/self/fd/" + fd)]
        left = [link for link in left if "/libffi.so" not in link]
        maps = [line for line in open("/proc/self/maps") if "memfd:cjm-worker" in line]
        say(pids=pids, threads=[t.name for t in threading.enumerate()], left=left, maps=maps)
    """
    app = start_app(tmp_path, body)
    out, err = app.communicate(timeout=120)
    assert not err, err
    facts = json.loads(out)
    assert facts["threads"] == ["MainThread"] and facts["left"] == [] and facts["maps"] == []
    assert not any(is_alive(pid) for pid in facts["pids"]), "shutdown returned before the workers were gone"
