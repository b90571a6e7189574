"""What `cjm-worker-serve` leaves in the folder for temporary files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def start(tmp_path):
    "Starts the command; returns it and its folder for uploads."
    servers = []
    (tmp_path / "texts").mkdir()

    def start():
        before = set(tmp_path.glob("cjm-worker-serve-*"))
        script = str(Path(__file__).with_name("serve_command.py"))
        process = subprocess.Popen(
            [sys.executable, script, "--port", "0", "--folder", str(tmp_path / "texts"), "--workers", "1"],
            stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        servers.append(process)
        assert process.stdout.readline().startswith("http://")
        (folder,) = set(tmp_path.glob("cjm-worker-serve-*")) - before
        return process, folder

    yield start
    for process in servers:
        process.kill()
        process.wait(30)
        process.stdout.close()


def test_a_killed_server_leaves_nothing_for_long(start):
    """The next server removes what it left; no server removes what another one uses."""
    living, in_use = start()
    killed, left = start()
    (left / "upload.txt").write_text("text")
    killed.kill()
    killed.wait(30)
    assert left.exists()
    last, own = start()
    assert not left.exists() and in_use.exists()
    for process in (last, living):
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert not own.exists() and not in_use.exists()
