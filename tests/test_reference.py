"""What the reference says of a call: its whole signature, whole comments, and all public methods."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

from cjm_worker_ext import BaseJobManager

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import signatures  # noqa: E402  - a script's module, and no part of the package


@pytest.mark.parametrize(
    "written", ["(a, /, b, *, c=1, **more)", "(*many, c=None)", "(a=(1, 2), *, b)", "()", "(a, /)"]
)
def test_a_signature_is_whole(written):
    assert signatures.signature(ast.parse(f"def f{written}: ...").body[0]) == written


def test_the_signatures_of_the_manager_are_those_that_python_sees():
    parts = ast.parse((ROOT / "cjm_worker_ext" / "manager.py").read_text(encoding="utf-8")).body
    (node,) = (part for part in parts if getattr(part, "name", "") == "BaseJobManager")
    methods = signatures.public_methods(node)
    assert {m.name for m in methods} == {name for name in vars(BaseJobManager) if not name.startswith("_")}
    for method in methods:
        if isinstance(vars(BaseJobManager)[method.name], property):
            continue
        seen = list(inspect.signature(getattr(BaseJobManager, method.name)).parameters.values())[1:]
        told = inspect.signature(
            eval(f"lambda {signatures.signature(method)[1:-1]}: 0", {"signal": __import__("signal")})
        )
        assert [(p.name, p.kind) for p in told.parameters.values()] == [(p.name, p.kind) for p in seen], method.name
        assert [p.default is p.empty for p in told.parameters.values()] == [p.default is p.empty for p in seen]


def test_a_comment_that_goes_on_is_whole(tmp_path):
    pytest.importorskip("nbdev")
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    file = tmp_path / "m.py"
    file.write_text(
        "# alone\ndef f(\n    a,  # one\n    # two\n    # three\n    b,  # four\n):\n    # alone\n    ...\n"
    )
    nodes, comments = build.parsed(file)
    rows = build.function_rows(nodes[2], comments, "def")
    assert [row[3] for row in rows] == ["one two three", "four"]
