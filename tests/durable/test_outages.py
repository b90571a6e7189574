"""The store of an app fails: jobs that were acknowledged go on, and new ones are refused with the reason."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

program = str(Path(__file__).with_name("durable_faults.py"))


@functools.cache
def can_mount():
    if not shutil.which("unshare"):
        return False
    return not subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode


def live_through(tmp_path, name, size):
    if size and not can_mount():
        pytest.skip("this system does not let users mount in a namespace")
    before = ["unshare", "-Urm"] if size else []
    command = [*before, sys.executable, program, name, str(tmp_path), *([size] if size else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stdout + done.stderr


@pytest.mark.parametrize(("name", "size"), [
    ("disk_full", "4m"), ("read_only", "4m"), ("locked", None), ("hangs", None), ("corrupt", None), ("gone", None),
])  # fmt: skip
def test_an_outage_costs_no_acknowledged_job(tmp_path, name, size):
    live_through(tmp_path, name, size)


@pytest.mark.parametrize(("name", "size"), [
    ("behind_disk_full", "4m"), ("behind_locked", None), ("behind_gone", None), ("behind_replaced", None),
])  # fmt: skip
def test_a_store_that_is_written_behind_takes_no_job_while_it_is_away(tmp_path, name, size):
    live_through(tmp_path, name, size)
