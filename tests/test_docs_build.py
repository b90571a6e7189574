"docs/build.py builds nothing for a word that it does not know."

import json
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parent.parent / "docs" / "build.py"


@pytest.mark.parametrize("words", [["construct"], ["check", "now"], ["execute"], [""]])
def test_an_unknown_word(words):
    done = subprocess.run([sys.executable, BUILD, *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("not known; write one of build, serve, preview, process, check\n")


@pytest.fixture
def build(monkeypatch, tmp_path):
    "The script as a module, with notebooks of its own."
    monkeypatch.syspath_prepend(BUILD.parent)
    import build

    (tmp_path / "nbs").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(build, "notebooks", tmp_path / "nbs")
    return build


def write(build, name, code):
    cell = dict(cell_type="code", id="a", metadata={}, execution_count=None, outputs=[], source=code)
    text = json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5))
    for folder in (build.notebooks, build.notebooks.parent / "run"):
        (folder / name).write_text(text)


def test_each_notebook_runs_and_each_that_fails_is_named(build):
    write(build, "a.ipynb", "1 / 0")
    write(build, "b.ipynb", "print(6 * 7)")
    write(build, "c.ipynb", "raise LookupError('of the third')")
    folder = build.notebooks.parent / "run"
    first, third = build.execute_all(folder)
    assert first.startswith("a.ipynb failed: ") and "ZeroDivisionError" in first
    assert third.startswith("c.ipynb failed: ") and "of the third" in third
    assert "42" in (folder / "b.ipynb").read_text()


def test_a_notebook_that_fails_once_runs_again(build):
    write(build, "a.ipynb", "import os\nif not os.path.exists('seen'):\n    os.mkdir('seen')\n    1 / 0\nprint(6 * 7)")
    folder = build.notebooks.parent / "run"
    assert build.execute_all(folder) == []
    assert "42" in (folder / "a.ipynb").read_text()


def test_a_notebook_that_does_not_end_is_named(build, monkeypatch):
    monkeypatch.setattr(build, "NOTEBOOK_SECONDS", 0.5)
    write(build, "a.ipynb", "import threading; threading.Event().wait()")
    assert build.execute_all(build.notebooks.parent / "run") == ["a.ipynb failed: it did not end within 0.5 s"]


def test_the_contents_show_what_apps_import_and_fold_the_rest(monkeypatch):
    monkeypatch.syspath_prepend(BUILD.parent)
    import build

    modules = [module.name.replace(".", "/") for module in build.Tree(build.root).modules()]
    known = dict.fromkeys(["index", "init", *modules], Path("page.ipynb"))
    groups, shown = build.groups_of(known), build.contents(known).split()
    assert groups["Reference"][:2] == ["init", "manager"] and "integrations/sse" in groups["Reference"]
    assert {*groups["Reference"], *groups["Inside"]} == {"init", *modules}
    assert {*groups["Reference"], "inside"} <= {*shown} and not {*groups["Inside"]} & {*shown}
    assert set(build.openings) <= {*groups["Reference"]}


def test_the_default_of_a_setting_is_its_number(monkeypatch):
    monkeypatch.syspath_prepend(BUILD.parent)
    import build

    nodes, comments = build.parsed(build.root / "cjm_worker_ext/config.py")
    (config,) = (node for node in nodes.values() if getattr(node, "name", "") == "WorkerConfig")
    rows = {name: row for name, *row in build.class_rows(config, comments)}
    assert rows["max_workers"][:2] == ["int", "1"] and rows["cancel_grace_seconds"][1] == "2.0"
    assert rows["gpus"][1] == "None" and rows["lanes"][1] == "dict()"
