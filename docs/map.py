#!/usr/bin/env python3
"""Write what follows from the tree: the map in CONTRIBUTING.md, the lists of calls and modules in llms.txt.

python docs/map.py            write both
python docs/map.py --check    change nothing; exit status 1 if one of them is not what the tree says
"""

import ast
import re
import sys
from pathlib import Path

from layers import Module, Tree
from signatures import Function, first_sentence, public_methods, signature

root = Path(__file__).resolve().parent.parent


def table(tree: Tree) -> str:
    "The map: a row for each layer, and below it a row for each of its modules."
    rows = ["| module | what it is |", "| --- | --- |"]
    modules = tree.modules()
    for number, layer in enumerate(tree.layers):
        here = [module for module in modules if module.layer == number]
        if len(layer["modules"]) > 1 or len(here) > 1:  # one module alone says what its layer is
            rows.append(f"| **{', '.join(layer['modules'])}** | *{layer['what']}* |")
        rows += [f"| [`{module.name}`]({module.notebook}) | {module.subtitle} |" for module in here]
    return "\n".join(rows) + "\n"


def list_item(module: Module) -> str:
    return f"- [{module.name}]({module.notebook}): {module.subtitle}\n"


def calls(tree: Tree) -> str:
    "What an app calls: the manager's constructor and each of its public methods, whole."
    parts = ast.parse(tree.files["manager"].read_text(encoding="utf-8")).body
    (manager,) = (part for part in parts if isinstance(part, ast.ClassDef) and part.name == "BaseJobManager")
    (init,) = (part for part in manager.body if isinstance(part, Function) and part.name == "__init__")
    lines = [f"- `BaseJobManager{signature(init)}`: {first_sentence(manager)}\n"]
    for part in public_methods(manager):
        word = "await " if isinstance(part, ast.AsyncFunctionDef) else ""
        lines.append(f"- `{word}{part.name}{signature(part)}`: {first_sentence(part)}\n")
    return "".join(lines)


def made(tree: Tree) -> dict[Path, str]:  # The whole text of each file
    contributing, llms = root / "CONTRIBUTING.md", root / "llms.txt"
    map_of = re.compile(r"^\| module \|.*?\n(?=\n)", flags=re.M | re.S)
    list_of = re.compile(r"(?<=^## Modules\n\n).*?(?=\n## |\Z)", flags=re.M | re.S)
    calls_of = re.compile(r"(?<=^## Calls\n\n).*?(?=\n## |\Z)", flags=re.M | re.S)
    items = "".join(list_item(module) for module in tree.modules())
    with_modules = list_of.sub(lambda _: items, llms.read_text(encoding="utf-8"), count=1)
    return {
        contributing: map_of.sub(lambda _: table(tree), contributing.read_text(encoding="utf-8"), count=1),
        llms: calls_of.sub(lambda _: calls(tree), with_modules, count=1),
    }


def main(arguments: list[str]) -> str | int:
    for file, text in made(Tree(root)).items():
        if "--check" not in arguments:
            file.write_text(text, encoding="utf-8")
        elif file.read_text(encoding="utf-8") != text:
            return f"{file.name} is not what the tree says: run docs/map.py"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
