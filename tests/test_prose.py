"""Pages of prose: every Python block runs, the blocks of a page as one program, and every link to a file finds it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
link = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)[^)]*\)")
pages = [*root.glob("*.md"), *(root / "nbs").rglob("*.md")]
block = re.compile(r"^```python\n(.*?)^```$", flags=re.M | re.S)
# As a notebook does, a page may await at its top level.
runner = """
import ast, asyncio, inspect, sys
code = compile(sys.stdin.read(), sys.argv[1], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
if code.co_flags & inspect.CO_COROUTINE:
    asyncio.run(eval(code))
else:
    exec(code)
"""
programs = {str(page.relative_to(root)): "\n".join(block.findall(page.read_text(encoding="utf-8"))) for page in pages}


@pytest.mark.parametrize("page", [page for page, program in programs.items() if program])
def test_the_blocks_of_a_page_run(page, tmp_path):
    command = [sys.executable, "-c", runner, page]
    done = subprocess.run(command, input=programs[page], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", [*pages, root / "llms.txt"], ids=lambda page: str(page.relative_to(root)))
def test_links_to_files_lead_to_files(page):
    links = link.findall(page.read_text(encoding="utf-8"))
    assert [target for target in links if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("folder", ["howto", "explanation"])
def test_the_index_of_a_folder_links_each_of_its_pages(folder):
    here = root / "nbs" / folder
    linked = set(link.findall((here / "index.md").read_text(encoding="utf-8")))
    pages = {file.name for file in here.iterdir() if file.suffix in (".md", ".ipynb")} - {"index.md"}
    assert sorted(pages - linked) == []


def test_each_promise_names_a_test_that_exists():
    page = root / "nbs" / "explanation" / "guarantees.md"
    promises = re.search(r"^## Guaranteed$(.*?)^## ", page.read_text(encoding="utf-8"), flags=re.M | re.S)[1]
    rows = [
        row
        for row in promises.splitlines()
        if row.startswith("| ") and row not in ("| promise | test |", "| --- | --- |")
    ]
    assert len(rows) > 30
    for row in rows:
        tests = re.findall(r"\[`(\w+)(?:\.py)?`\]\(([\w./]+)\)", row.rpartition(" | ")[2])
        assert tests, f"no test: {row}"
        for name, file in tests:
            source = (page.parent / file).read_text(encoding="utf-8")
            assert re.search(rf"\b(def|class) {name}\b", source) or file.endswith((f"{name}.py", ".ipynb")), (
                f"{name} is not in {file}"
            )
