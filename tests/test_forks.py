"""An app that forks: the child is a stranger to the parent's managers, whatever it does, and the parent does not notice."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

APP = """
import asyncio, json, os, sys, time
sys.path.insert(0, {tests!r})
from cjm_worker_ext import BaseJobManager, WorkerConfig
from harness import way_out

plugins = {{name: "plugins_for_tests:" + name for name in ("progress_then", "echo", "count_slowly")}}

class Listener:  # something for the loop to do, all the time
    async def broadcast(self, event_type, data): ...

def wait_for(child):
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)

{body}
"""


def play(body: str, tmp_path: Path, seconds: float = 120) -> dict:
    "Run an app, and return what it says at its end."
    script = tmp_path / "app.py"
    script.write_text(APP.format(tests=str(Path(__file__).parent), body=textwrap.dedent(body)))
    # From Python 3.12 on a fork beside other threads warns.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CHILDREN = {
    "exits at once": "os._exit(0)",
    "leaves through its loop": "leave(0)",
    "calls the manager": """
            from cjm_worker_ext.errors import ForkedManager
            try:
                await manager.start_job("echo")
            except ForkedManager as e:
                leave(0 if "make a new manager here" in str(e) else 1)
            leave(2)
    """,
    "shuts the manager down": """
            await manager.shutdown()
            leave(0)
    """,
}


@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_child_of_a_running_manager_changes_nothing_in_the_parent(child, loop, tmp_path):
    body = """
        async def main():
            leave, codes = way_out(), []
            async with BaseJobManager("forks", plugins=plugins, event_broadcaster=Listener()) as manager:
                job = await manager.start_job("progress_then", n=400)
                reader = manager.stream((await manager.start_job("echo")).id)
                while job.progress is None and not job.error:
                    await asyncio.sleep(0.001)
                for _ in range(4):
                    pid = os.fork()
                    if not pid:
                        CHILD
                    codes.append(wait_for(pid))
                    await asyncio.sleep(0.01)
                await manager.wait(job.id, 120)
                after = await manager.wait((await manager.start_job("echo", value=7)).id, 120)
                same = after.worker_pid == job.worker_pid
            print(json.dumps({"codes": codes, "status": job.status, "error": job.error, "after": after.result, "same": same}))

        RUN
    """
    body = body.replace("CHILD", textwrap.dedent(child).strip().replace("\n", "\n" + " " * 24))
    run = "asyncio.run(main())" if loop == "asyncio" else "import uvloop\n        uvloop.run(main())"
    said = play(body.replace("RUN", run), tmp_path)
    assert said == {"codes": [0] * 4, "status": "completed", "error": None, "after": 7, "same": True}


def test_a_manager_made_before_the_fork_works_in_the_child_that_uses_it_first(tmp_path):
    said = play(
        """
        manager = BaseJobManager("forks", plugins=plugins)  # at module level, as with `gunicorn --preload`

        async def main():
            async with manager:
                return (await manager.wait((await manager.start_job("echo", value=7)).id, 120)).result

        children = []
        for _ in range(2):
            pid = os.fork()
            if not pid:
                os._exit(0 if asyncio.run(main()) == 7 else 1)
            children.append(pid)
        print(json.dumps({"codes": [wait_for(pid) for pid in children], "parent": asyncio.run(main())}))
        """,
        tmp_path,
    )
    assert said == {"codes": [0, 0], "parent": 7}


def test_a_blocking_manager_is_inert_in_a_child(tmp_path):
    said = play(
        """
        from cjm_worker_ext.errors import ForkedManager
        codes = []
        for calls_first in (False, True):
            with BaseJobManager("forks", plugins=plugins).blocking() as manager:
                if calls_first:
                    manager.start_job("echo")
                pid = os.fork()
                if not pid:
                    try:
                        manager.start_job("echo")
                    except ForkedManager:
                        raise SystemExit(0)  # through the `with`, too
                    raise SystemExit(1)
                codes.append(wait_for(pid))
                job = manager.wait(manager.start_job("echo", value=7).id, 120)
                codes.append(job.result)
        print(json.dumps({"codes": codes}))
        """,
        tmp_path,
    )
    assert said == {"codes": [0, 7, 0, 7]}


def test_a_child_unregisters_no_worker_of_its_parent(tmp_path):
    said = play(
        """
        class Resources:
            def register_worker(self, pid, worker_type): ...
            def update_worker_state(self, pid, **state): ...
            def unregister_worker(self, pid):
                with open("unregistered", "a") as file:
                    file.write(f"{os.getpid()}\\n")

        async def main():
            leave = way_out()
            async with BaseJobManager("forks", plugins=plugins, resource_manager=Resources()) as manager:
                await manager.wait((await manager.start_job("echo")).id, 120)
                pid = os.fork()
                if not pid:
                    leave(0)  # runs what atexit has
                code = wait_for(pid)
            print(json.dumps({"code": code, "by": open("unregistered").read().split() == [str(os.getpid())]}))

        os.chdir(os.path.dirname(__file__))
        asyncio.run(main())
        """,
        tmp_path,
    )
    assert said == {"code": 0, "by": True}


def test_a_frozen_app_is_told_what_to_set(monkeypatch):
    import asyncio

    from cjm_worker_ext import BaseJobManager
    from cjm_worker_ext.errors import PlatformError

    monkeypatch.setattr(sys, "frozen", True, raising=False)

    async def scene():
        with pytest.raises(PlatformError, match="set WorkerConfig.python to a Python interpreter"):
            await BaseJobManager("forks", plugins={"mean": "statistics:mean"}).start_job("mean")

    asyncio.run(scene())
