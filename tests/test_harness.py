"""What other tests measure with: rest counts, and work does not, of whatever process."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from harness import are_gone, end_of, let_pass

WORKS = "import time\nwhile time.process_time() < 1.5: pass\n"
BELOW = "import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', sys.argv[1]], check=True)\n"


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-S", "-c", *arguments], stdout=-1, stderr=-1, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the time of threads in /proc")
@pytest.mark.parametrize("arguments", [(WORKS,), (BELOW, WORKS)], ids=["itself", "what it has started"])
def test_a_program_may_work_for_longer_than_it_may_rest(arguments):
    app = start(*arguments)
    end_of(app, 0.75)
    assert app.returncode == 0


def test_a_program_that_rests_is_ended():
    app = start("import time; time.sleep(600)")
    with pytest.raises(AssertionError, match=r"has rested for 0\.3 s"):
        end_of(app, 0.3)
    assert app.returncode == -9


def test_processes_that_rest_are_ended():
    app = start("import time; time.sleep(600)")
    with pytest.raises(AssertionError, match=r"1 of 1 processes are left, and have rested for 0\.3 s"):
        are_gone([app.pid], 0.3)
    app.communicate()
    are_gone([app.pid], 0.3)


def test_the_clock_of_a_loop_goes_forward():
    async def scene():
        loop, fired = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(600, fired.set)
        let_pass(600)
        await asyncio.wait_for(fired.wait(), 120)

    asyncio.run(scene())
