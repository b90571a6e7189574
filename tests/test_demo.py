"""The command `cjm-worker-demo`, started as its console script: on a pipe, on a terminal, and interrupted."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """import sys
from cjm_worker_ext.commands.terminal import demo
if __name__ == "__main__":
    sys.exit(demo())
"""


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    (tmp_path / "cjm-worker-demo").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "cjm-worker-demo")]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("to be or not to be\nTODO: decide\n")
    (folder / "b.txt").write_bytes("Grüße, TODO\n".encode("utf-16"))
    (folder / "c.txt").write_bytes("Grüße\n".encode("latin-1"))
    (folder / "d.bin").write_bytes(b"TODO\0\1\2")
    (folder / "e\x1b[2J.txt").write_text("TODO \x1b[2J [red]\n")
    return folder


def run(script: list[str], *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=120)


def on_terminal(command: list[str], until: str = "", stop: int = 0) -> tuple[int, str]:
    "Run a command on a terminal of 80 columns; send `stop` as soon as `until` is seen. Status and output."
    main, other = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"}
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=env, start_new_session=True)
    os.close(other)
    shown, deadline = b"", time.monotonic() + 120
    while select.select([main], [], [], deadline - time.monotonic())[0]:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if stop and until.encode() in shown:
            process.send_signal(stop)
            stop = 0
    os.close(main)
    return process.wait(120), shown.decode()


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_plain_lines_on_a_pipe(script: list[str], texts: Path) -> None:
    done = run(script, texts)
    assert (done.returncode, done.stderr) == (0, "")
    for expected in (
        "search      a.txt:2: TODO: decide",
        "search      b.txt:1: Grüße, TODO",
        "e\\x1b[2J.txt:1: TODO \\x1b[2J [red]",
        "4 text files",
        "killed by SIGKILL",
        "3 matches in 3 files",
        "Every job ended as expected",
    ):
        assert expected in done.stdout, done.stdout
    assert "\x1b" not in done.stdout


def test_json_has_the_same_content(script: list[str], texts: Path) -> None:
    done = run(script, texts, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr, document["ok"]) == (0, "", True)
    jobs = {job["plugin"]: job for job in document["jobs"]}
    assert [(name, job["status"]) for name, job in jobs.items()] == [
        ("find-files", "completed"),
        ("word-count", "completed"),
        ("crash", "failed"),
        ("search", "completed"),
        ("slow", "cancelled"),
    ]
    assert jobs["find-files"]["result"]["binary"] == 1 and jobs["word-count"]["result"]["words"] == 14
    assert jobs["crash"]["error_type"] == "WorkerCrashed"
    assert len(document["matches"]) == 3
    events = document["events"]
    assert (events["job:queued"], events["job:completed"], events["job:failed"], events["job:cancelled"]) == (
        5,
        3,
        1,
        1,
    )
    assert events["worker:started"] == events["worker:crashed"] + events["worker:stopped"] == len(document["workers"])
    assert all(worker["has_ended"] for worker in document["workers"])
    assert not alive([worker["pid"] for worker in document["workers"]])


def test_bars_on_a_terminal(script: list[str], texts: Path) -> None:
    status, shown = on_terminal([*script, str(texts)])
    assert status == 0, shown
    for expected in ("def slow(", "━━━━", "100%", "cancelled", "WorkerCrashed", "a.txt:2: TODO: decide", "\x1b[?25h"):
        assert expected in shown, shown
    assert "\x1b[2J" not in shown, "a file name reached the terminal unescaped"


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_quiet_and_leaves_nothing(script: list[str], texts: Path, stop: int, status: int) -> None:
    found, shown = on_terminal([*script, str(texts)], until="step 1", stop=stop)
    assert found == status, shown
    assert "Traceback" not in shown and "Error" not in shown.replace("WorkerCrashed", "")
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor is still hidden"
    workers = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(texts) not in workers


def test_a_reader_that_closes_the_pipe(script: list[str], texts: Path) -> None:
    process = subprocess.Popen([*script, str(texts)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(120), error) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["/no/such/folder"], "No such file or directory"),
        (["{empty}"], "empty; name"),
        (["{binary}"], "no text among 1 binary and 0 unreadable files"),
        ([os.devnull], "neither a folder nor a file"),
        (["{empty}", "--search", ""], "no search term"),
    ],
)
def test_bad_input_is_one_line_and_status_two(
    script: list[str], tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    names = {"empty": tmp_path / "empty", "binary": tmp_path / "binary"}
    for folder in names.values():
        folder.mkdir()
    (names["binary"] / "x").write_bytes(bytes(9))
    done = run(script, "--json", *(argument.format(**names) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("cjm-worker-demo: ") and complaint in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder(script: list[str], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    done = run(script, locked)
    assert done.returncode == 2 and "Permission denied" in done.stderr


def test_an_ascii_terminal(script: list[str], texts: Path) -> None:
    done = run(script, texts, PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert done.returncode == 0 and "Gr\\xfc\\xdfe" in done.stdout


def test_the_recording_does_not_move_under_reduced_motion() -> None:
    drawing = (Path(__file__).parent.parent / "nbs" / "images" / "demo.svg").read_text(encoding="utf-8")
    (last_frame,) = re.findall(r"100\.000%\{(transform:[^}]+)\}", drawing)
    rule = f"@media (prefers-reduced-motion: reduce) {{ #screen_view {{ animation: none; {last_frame}; }} }}"
    assert drawing.count(rule) == 1
    assert drawing.index(rule) > drawing.index("animation-name:roll")  # of two rules the later one counts
