"""A private PostgreSQL server for tests and measurements: in a temporary folder, on a Unix socket only.

It needs the programs of Debian's package `postgresql` (or of Homebrew's), and no service that runs. `missing()` says why
there is none.
"""

from __future__ import annotations

import atexit
import getpass
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

LONGEST = 1800  # Seconds that a server lives at most, also if the one who started it was killed
_numbers = itertools.count(1)


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parent.name.rpartition("@")[2].split(".") if part.isdigit())


def programs() -> Path | None:
    "The folder that has `initdb` and `postgres`, of the newest version; Debian has it outside PATH."
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/opt/homebrew/opt").glob("postgresql@*/bin")]
    found = [place for place in places if (place / "initdb").exists() and (place / "postgres").exists()]
    if found:
        return max(found, key=_version)
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def missing() -> str:
    "Why no server can be started here; empty: it can."
    return "" if programs() else "PostgreSQL is not installed; apt-get install postgresql"


def _user() -> str:
    "Who runs the server: it refuses root."
    if os.geteuid():
        return getpass.getuser()
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


class PostgresServer:
    "One server; `dsn()` gives a new, empty database."

    def __init__(self, **settings: object) -> None:
        found = programs()
        assert found, missing()
        self.programs, self.settings = found, settings
        self.folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # the path of a socket has 107 bytes at most
        self.user = _user()
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)  # a notebook that fails does not reach its last cell
        if not os.geteuid():
            shutil.chown(self.folder, self.user)
        self._run(
            "initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"
        )

    def _as_user(self) -> dict[str, object]:
        if os.geteuid():
            return {}
        entry = pwd.getpwnam(self.user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _run(self, program: str, *options: str) -> None:
        command = [self.programs / program, *options]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=120, **self._as_user())  # type: ignore[call-overload]
        assert done.returncode == 0, f"{program} failed: {done.stderr}"

    def start(self) -> PostgresServer:
        "Start it, and return when it answers."
        settings = {"listen_addresses": "", "unix_socket_directories": self.folder, **self.settings}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [self.programs / "postgres", "-D", "data", *options]
        if shutil.which("timeout"):
            command = ["timeout", "--foreground", "--signal=QUIT", str(LONGEST), *command]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as_user()
            )  # type: ignore[call-overload]
        deadline = time.monotonic() + 120
        while not self._ready():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)
        return self

    def _ready(self) -> bool:
        "The last line of the file says `ready` when the server takes connections."
        try:
            return (self.folder / "data/postmaster.pid").read_text().split()[-1] == "ready"
        except (OSError, IndexError):
            return False

    def _end(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(120)

    def stop(self) -> None:
        "Stop it as an administrator does: connections are cut, and what is committed is written."
        self._end(signal.SIGINT)

    def crash(self) -> None:
        "End all of its processes at once, so that it has to recover at the next start."
        self._end(signal.SIGQUIT)

    def dsn(self) -> str:
        "The address of a new database."
        name = f"test{os.getpid()}_{next(_numbers)}"
        self._run("createdb", "-h", str(self.folder), "-U", "postgres", name)
        return f"host={self.folder} user=postgres dbname={name}"

    def close(self) -> None:
        atexit.unregister(self.close)
        self.crash()  # nobody needs what it has: no checkpoint
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> PostgresServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()
