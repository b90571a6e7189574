"""The layers of the package: imports point downwards, notebooks are numbered in the order of reading.

Each rule is a function that names what breaks it in a tree; it is asked about this repository, and about a tree of a
few lines that breaks it.
"""

import json
import re
from pathlib import Path

import pytest
from package_tree import layers, root


# ---------------------------------------------------------------- the rules
def without_layer(tree):
    "Modules that no layer holds, and names in docs/layers.toml that no module has."
    yield from (f"{name} belongs to no layer" for name in tree.files if tree.layer_of(name) is None)
    for part in (part for layer in tree.layers for part in layer["modules"]):
        if not any(layers.is_within(name, part) for name in tree.files):
            yield f"docs/layers.toml names {part}, which does not exist"


def upward(tree):
    "Imports of a higher layer; the exceptions are named in docs/layers.toml, stand late, and are really used."
    named = {(one["from"], one["to"]): False for one in tree.upward}
    for one in (one for one in tree.imports if one.target in tree.files):
        here, there = tree.layer_of(one.importer), tree.layer_of(one.target)
        if here is None or there is None or there <= here:
            continue
        named[one.importer, one.target] = (one.importer, one.target) in named
        if not named[one.importer, one.target]:
            yield f"{one.importer}:{one.line} imports {one.target}, which is in a higher layer"
        elif not one.late:
            yield f"{one.importer}:{one.line} imports {one.target} at once, not in a function or under TYPE_CHECKING"
    yield from (f"no import needs the exception {a} -> {b}" for (a, b), used in named.items() if not used)


def through_the_package(tree):
    "Imports of the package's lazy names: they hide which module is meant."
    for one in tree.imports:
        if one.target == "__init__":
            yield f"{one.importer}:{one.line} imports a name of the package, not of the module that defines it"


def cycles(tree):
    try:
        list(layers.TopologicalSorter(tree.inner_imports()).static_order())
    except layers.CycleError as e:
        yield " imports ".join(reversed(e.args[1]))


def not_mirrored(tree):
    "Modules without a notebook of the same place and name, and numbers that are not the order of the layers."
    for name in tree.files:
        path = tree.notebooks[name].relative_to(tree.root / "nbs").as_posix() if name in tree.notebooks else "none"
        if layers.without_numbers(path) != name.replace(".", "/") + ".ipynb":
            yield f"{name} is exported from {path}"
    numbered = [m.notebook for m in tree.modules() if layers.without_numbers(m.notebook) != m.notebook]
    in_order = sorted(numbered)
    yield from (f"{a} stands where {b} is by number" for a, b in zip(numbered, in_order, strict=True) if a != b)


def read_too_early(tree):
    "Modules whose notebook comes before one that it needs."
    order = [module.name for module in tree.modules()]
    for importer, targets in tree.inner_imports().items():
        for target in targets:
            if order.index(importer) < order.index(target):
                yield f"{importer} imports {target}, whose notebook comes later"


def against_a_rule(tree):
    for one in tree.imports:
        for rule in (rule for rule in tree.rules if layers.is_within(one.importer, rule["of"])):
            never = [name for name in rule.get("never", []) if layers.is_within(one.target, name)]
            allowed = any(layers.is_within(one.target, name) for name in rule.get("but", []))
            if (never and not allowed) or one.target not in rule.get("only", [one.target]):
                yield f"{one.importer}:{one.line} imports {one.target}. {rule['why']}"


# ---------------------------------------------------------------- this repository
@pytest.fixture(scope="module")
def tree():
    return layers.Tree(root)


every = (without_layer, upward, through_the_package, cycles, not_mirrored, read_too_early, against_a_rule)


@pytest.mark.parametrize("rule", every, ids=lambda rule: rule.__name__)
def test_the_package_keeps_its_layers(tree, rule):
    assert list(rule(tree)) == []


def test_every_notebook_says_what_its_module_is(tree):
    assert [module.name for module in tree.modules() if not module.subtitle] == []


# ---------------------------------------------------------------- trees that break a rule
TOML = """
[[layer]]
modules = ["low", "base"]
what = "at the bottom"
[[layer]]
modules = ["folder"]
what = "in the middle"
[[layer]]
modules = ["top"]
what = "above"
[[upward]]
from = "low"
to = "top"
why = "low.make() makes a Top."
[[rule]]
of = "folder"
never = ["os", "base"]
but = ["base.seam"]
why = "It knows no files."
[[rule]]
of = "top"
only = ["folder.one", "folder.two", "base.seam"]
why = "It is small."
"""
RIGHT = {
    "00_low": "def make():\n    from cjm_worker_ext.top import Top",
    "01_base/00_seam": "import os",
    "01_base/01_bytes": "import cjm_worker_ext.base.seam",
    "02_folder/00_one": "from cjm_worker_ext import low\nfrom cjm_worker_ext.base.seam import Seam",
    "02_folder/01_two": "from .one import x\nfrom ..low import make",
    "03_top": "from cjm_worker_ext.folder.two import x",
}


def planted(folder: Path, sources: dict[str, str]) -> layers.Tree:
    "A tree with a module and its notebook for each path of a notebook; a path that ends in .py has no notebook."
    (folder / "docs").mkdir()
    (folder / "docs" / "layers.toml").write_text(TOML)
    for path, code in sources.items():
        name = layers.without_numbers(path).removesuffix(".py")
        exports = re.search("exported as (.+)", code)  # from a notebook that stands elsewhere
        name = exports[1] if exports else name
        module, notebook = folder / "cjm_worker_ext" / f"{name}.py", folder / "nbs" / f"{path}.ipynb"
        for file in (module, notebook):
            file.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(code + "\n")
        if not path.endswith(".py"):
            cells = [f"# {name}\n\n> What it is.", f"#| default_exp {name.replace('/', '.')}"]
            notebook.write_text(json.dumps({"cells": [{"source": [cell]} for cell in cells]}))
    return layers.Tree(folder)


def test_a_right_tree_breaks_no_rule(tmp_path):
    tree = planted(tmp_path, RIGHT)
    assert [problem for rule in every for problem in rule(tree)] == []
    assert [module.name for module in tree.modules()] == [
        *("low", "base.seam", "base.bytes", "folder.one", "folder.two", "top")
    ]


CYCLE = {"01_base/00_seam": "def f():\n    import cjm_worker_ext.base.bytes"}
LATE = "def make():\n    from cjm_worker_ext.top import Top\n\n\nif TYPE_CHECKING:\n    from cjm_worker_ext."
BROKEN = {
    "a module that no layer holds": (without_layer, {"04_stray": "x = 1"}, "stray belongs to no layer"),
    "a layer that is gone": (without_layer, {"03_top": None}, "names top, which does not exist"),
    "upwards in a function": (
        *(upward, {"01_base/00_seam": "def f():\n    from ..folder import one"}),
        "base.seam:2 imports folder.one, which is in a higher layer",
    ),
    "upwards for a type": (upward, {"00_low": LATE + "folder.one import One"}, "low:6 imports folder.one"),
    "upwards by a string": (upward, {"01_base/00_seam": 'import_module("cjm_worker_ext.top")'}, "seam:1 imports top"),
    "an exception that is loaded at once": (
        upward,
        {"00_low": "import cjm_worker_ext.top"},
        "low:1 imports top at once",
    ),
    "an exception that nothing needs": (upward, {"00_low": "x = 1"}, "no import needs the exception low -> top"),
    "a lazy name": (through_the_package, {"03_top": "from cjm_worker_ext import Low"}, "top:1 imports a name"),
    "a cycle in a layer": (cycles, CYCLE, "base.bytes"),
    "a module without a notebook": (not_mirrored, {"folder/more.py": "x = 1"}, "folder.more is exported from none"),
    "a notebook in another folder": (
        *(not_mirrored, {"01_base/02_more": "# exported as folder/more"}),
        "folder.more is exported from 01_base/02_more.ipynb",
    ),
    "a layer numbered too early": (
        *(not_mirrored, {"03_top": None, "01_top": "x = 1"}),
        "nbs/02_folder/00_one.ipynb stands where",
    ),
    "a module numbered before what it imports": (
        *(read_too_early, {"02_folder/01_two": None, "02_folder/00_a": "import cjm_worker_ext.folder.one"}),
        "folder.a imports folder.one, whose notebook comes later",
    ),
    "what a rule forbids": (against_a_rule, {"02_folder/00_one": "import os.path"}, "folder.one:1 imports os.path"),
    "what a rule does not except": (
        *(against_a_rule, {"02_folder/00_one": "from cjm_worker_ext.base import bytes"}),
        "folder.one:1 imports base.bytes. It knows no files.",
    ),
    "more than what a rule allows": (against_a_rule, {"03_top": "import json"}, "top:1 imports json. It is small."),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_named(case, tmp_path):
    rule, changed, said = BROKEN[case]
    sources = {path: code for path, code in {**RIGHT, **changed}.items() if code is not None}
    tree = planted(tmp_path, sources)
    problems = list(rule(tree))
    assert any(said in problem for problem in problems), problems
