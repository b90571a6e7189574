"""An agent as a process of its own, for tests: started, stopped by its id, and gone at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
TOKEN = "a token for tests"


class AgentProcess:
    "`cjm-worker-agent` on this machine; a context manager."

    def __init__(self, *options: str, token: str = TOKEN, port: int = 0):
        self.options, self.token, self.port = options, token, port
        self.start()

    def start(self) -> None:
        "Start it, again on the same port."
        path = os.pathsep.join([str(TESTS), str(TESTS / "agents"), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, "CJM_WORKER_AGENT_TOKEN": self.token}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from cjm_worker_ext.commands.terminal import agent; sys.exit(agent())",
             "--listen", f"127.0.0.1:{self.port}", *self.options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()
        assert line.startswith("agent on "), (line, self.process.stderr.read())
        self.port = int(line.split()[2].rstrip(":").rpartition(":")[2])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(120)

    def stop(self) -> str:
        "End it, and return what it has logged."
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.communicate(timeout=120)[1]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.process.poll() is None:
            self.stop()
        else:
            self.process.communicate(timeout=120)
