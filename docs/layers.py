"""The package as its files show it: layers, modules, notebooks, and who imports whom.

`docs/layers.toml` holds the order of the layers and nothing that the tree says itself. What is made from the tree (the
map, the diagram, the order of the site's reference) and the test of the layers read it here.
"""

import ast
import functools
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

package = "cjm_worker_ext"


@dataclass(frozen=True)
class Import:
    "One import in one module of the package."

    importer: str  # A module of the package, without the package's name
    target: str  # Another module of the package, in the same form, or any other module by its whole name
    line: int
    late: bool  # It stands in a function or under TYPE_CHECKING


@dataclass(frozen=True)
class Module:
    "One module, and the notebook that exports it."

    name: str  # "engine.scheduler"
    layer: int  # Its number from the bottom, from 0
    notebook: str  # "nbs/07_engine/01_scheduler.ipynb", or "" if no notebook exports it
    subtitle: str  # What it is, in the words of its notebook


def without_numbers(path: str) -> str:
    "A notebook's path as the site and the package have it: `07_engine/01_scheduler` is `engine/scheduler`."
    return re.sub(r"(^|/)\d+[a-z]?_", r"\1", path)


def is_within(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder + ".")


class Tree:
    "The package under `root`, read once."

    def __init__(
        self,
        root: Path,  # The folder that holds cjm_worker_ext, nbs and docs/layers.toml
    ) -> None:
        self.root = root
        told = tomllib.loads((root / "docs" / "layers.toml").read_text(encoding="utf-8"))
        self.layers: list[dict] = told["layer"]  # bottom to top
        self.rules: list[dict] = told.get("rule", [])
        self.upward: list[dict] = told.get("upward", [])
        self.public: list[str] = told.get(
            "public", []
        )  # modules and folders that apps use, in the order of the reference

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        "Every module that has code, by name."
        found = {}
        for file in sorted((self.root / package).rglob("*.py")):
            name = ".".join(file.relative_to(self.root / package).with_suffix("").parts).removesuffix(".__init__")
            if name not in ("__init__", "_modidx") and file.read_text(encoding="utf-8").strip():
                found[name] = file
        return found

    @functools.cached_property
    def notebooks(self) -> dict[str, Path]:
        "The notebook of each module that one exports."
        found = {}
        for file in sorted((self.root / "nbs").rglob("*.ipynb")):
            sources = ["".join(cell["source"]) for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]]
            exported = re.search(r"^#\| *default_exp +([\w.]+)", "\n".join(sources), flags=re.M)
            if exported and exported[1] != "__init__" and ".ipynb_checkpoints" not in file.parts:
                found[exported[1]] = file
        return found

    @functools.cached_property
    def imports(self) -> list[Import]:
        return [found for name, file in self.files.items() for found in self._imports_of(name, file)]

    def _imports_of(self, name: str, file: Path) -> Iterator[Import]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        early = {id(node) for node in ast.iter_child_nodes(tree)}
        for node in ast.walk(tree):
            for target in self._targets(node, name):
                yield Import(name, target, node.lineno, id(node) not in early)

    def _targets(self, node: ast.AST, name: str) -> list[str]:
        "The modules that one node imports."
        if isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = (package, *name.split("."))[: -node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            deeper = [f"{module}.{alias.name}" for alias in node.names]
            whole = [d if d.removeprefix(package + ".") in self.files else module for d in deeper]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            whole = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            whole = []
        asks_package = isinstance(node, ast.ImportFrom)  # plain `import cjm_worker_ext` only asks where it lies
        targets = {w.removeprefix(package + ".") for w in whole if w != package or asks_package}
        return sorted("__init__" if t == package else t for t in targets)

    def layer_of(self, name: str) -> int | None:  # None if no layer holds it
        for number, layer in enumerate(self.layers):
            if any(is_within(name, part) for part in layer["modules"]):
                return number
        return None

    def inner_imports(self) -> dict[str, set[str]]:
        "For each module the modules of the package that it imports, but for the imports that may point upwards."
        named = {(up["from"], up["to"]) for up in self.upward}
        inner: dict[str, set[str]] = {name: set() for name in self.files}
        for one in self.imports:
            if one.target in self.files and (one.importer, one.target) not in named:
                inner[one.importer].add(one.target)
        return inner

    def modules(self) -> list[Module]:
        "Every module of a layer, in the order of reading: by layer, then by number, and where no number is, by import."
        try:
            by_import = list(_sorted_by_import(self.inner_imports()))
        except CycleError:
            by_import = sorted(self.files)

        def place(name: str) -> tuple:
            path = str(self.notebooks[name].relative_to(self.root)) if name in self.notebooks else ""
            numbered = path if without_numbers(path) != path else ""
            return self.layer_of(name), numbered, by_import.index(name)

        names = sorted((name for name in self.files if self.layer_of(name) is not None), key=place)
        return [self._module(name) for name in names]

    def _module(self, name: str) -> Module:
        notebook, layer = self.notebooks.get(name), self.layer_of(name) or 0
        if notebook is None:
            return Module(name, layer, "", "")
        first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
        subtitle = re.search(r"^> (.+(?:\n> .+)*)", first, flags=re.M)
        words = subtitle[1].replace("\n> ", " ") if subtitle else ""
        return Module(name, layer, notebook.relative_to(self.root).as_posix(), words)

    def between_layers(self) -> dict[int, set[int]]:
        "For each layer the other layers that it imports."
        found: dict[int, set[int]] = {number: set() for number in range(len(self.layers))}
        for importer, targets in self.inner_imports().items():
            for target in targets:
                here, there = self.layer_of(importer), self.layer_of(target)
                if here is not None and there is not None and here != there:
                    found[here].add(there)
        return found


def _sorted_by_import(inner: dict[str, set[str]]) -> Iterator[str]:
    "What imports nothing first, then by name: the same order at each run."
    sorter = TopologicalSorter(inner)
    sorter.prepare()
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        yield from ready
        sorter.done(*ready)
