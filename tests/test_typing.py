"""What strict type checkers say about consumers of the protocols: errors on the marked lines, and nowhere else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "typing"
FILES = sorted(FOLDER.glob("*.py"))


def marked(file: Path, checker: str) -> set[int]:
    "The lines on which a checker has to find an error."
    lines = file.read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith(("  # wrong", f"  # wrong: {checker}"))}


def mypy_errors(cache: Path) -> dict[str, dict[int, str]]:
    "Messages of mypy strict, by file name and line."
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={cache}", *map(str, FILES)]
    env = os.environ | {"MYPYPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    errors: dict[str, dict[int, str]] = {file.name: {} for file in FILES}
    for line in done.stdout.splitlines():
        if match := re.match(r"(?:.*/)?(\w+\.py):(\d+): error: (.*)", line):
            errors.setdefault(match[1], {})[int(match[2])] = match[3]
    assert done.returncode in (0, 1) and not done.stderr, done.stdout + done.stderr
    return errors


def pyright_errors(folder: Path) -> dict[str, dict[int, str]]:
    "Messages of pyright strict, by file name and line."
    project = folder / "pyrightconfig.json"
    settings = {
        "include": [str(FOLDER)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
    }
    project.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--project", str(project), "--outputjson"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    errors: dict[str, dict[int, str]] = {file.name: {} for file in FILES}
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(FILES), report["summary"]
    for found in report["generalDiagnostics"]:
        errors[Path(found["file"]).name][found["range"]["start"]["line"] + 1] = found["message"]
    return errors


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def checked(request, tmp_path_factory):
    find = {"mypy": mypy_errors, "pyright": pyright_errors}[request.param]
    return request.param, find(tmp_path_factory.mktemp("types"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_errors_are_on_the_marked_lines(checked, file):
    checker, errors = checked
    assert set(errors[file.name]) == marked(file, checker), errors[file.name]


def test_something_is_marked():
    assert len(marked(FOLDER / "wrong.py", "mypy")) >= 17
    assert not marked(FOLDER / "right.py", "mypy")
