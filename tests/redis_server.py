"""A private Redis server for tests and measurements: in a temporary folder, on a loopback port of its own.

It needs the program of Debian's package `redis-server`, and no service that runs. `missing()` says why there is none.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

LONGEST = 1800  # Seconds that a server lives at most, also if the one who started it was killed


def missing() -> str:
    "Why no server can be started here; empty: it can."
    return "" if shutil.which("redis-server") else "Redis is not installed; apt-get install redis-server"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class RedisServer:
    "One server; it writes every command to its disk before it answers, so that a kill loses nothing."

    def __init__(self, *options: str) -> None:
        assert not missing(), missing()
        self.port, self.options = free_port(), options
        self.url = f"redis://127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="redis"))
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)  # a notebook or a benchmark that fails does not reach its end

    def start(self) -> RedisServer:
        "Start it, with the data that is there, and return when it answers."
        settings = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder / "data",
            "save": "",
            "loglevel": "warning",
        }
        settings |= {"appendonly": "yes", "appendfsync": "always", "databases": 1}
        settings["dir"].mkdir(exist_ok=True)
        command = ["redis-server", *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]
        command += self.options
        if shutil.which("timeout"):
            command = ["timeout", "--foreground", str(LONGEST), *command]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self._ready():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)
        return self

    def _ready(self) -> bool:
        try:
            return self.client().ping()
        except Exception:  # noqa: BLE001  - not yet there, or still loading
            return False

    def client(self) -> Any:
        "A client of redis-py that blocks."
        import redis

        return redis.Redis.from_url(self.url, retry=None, socket_timeout=10)

    def kill(self) -> None:
        "End it at once."
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the group: `timeout` cannot pass on a kill
            self.process.wait(120)

    def save(self) -> Path:
        "Kill it, and keep a copy of its data as it is now; `restore` brings that back."
        self.kill()
        copy = self.folder / "copy"
        shutil.copytree(self.folder / "data", copy)
        return copy

    def restore(self, copy: Path) -> None:
        self.wipe()
        copy.rename(self.folder / "data")

    def wipe(self) -> None:
        "Remove its data, while it does not run."
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def close(self) -> None:
        atexit.unregister(self.close)
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()
