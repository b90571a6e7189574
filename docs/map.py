#!/usr/bin/env python3
"""Write what follows from the tree: the map in CONTRIBUTING.md and the list of modules in llms.txt.

python docs/map.py            write both
python docs/map.py --check    change nothing; exit status 1 if one of them is not what the tree says
"""

import re
import sys
from pathlib import Path

from layers import Module, Tree

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


def made(tree: Tree) -> dict[Path, str]:  # The whole text of each file
    contributing, llms = root / "CONTRIBUTING.md", root / "llms.txt"
    map_of = re.compile(r"^\| module \|.*?\n(?=\n)", flags=re.M | re.S)
    list_of = re.compile(r"(?<=^## Modules\n\n).*?(?=\n## |\Z)", flags=re.M | re.S)
    items = "".join(list_item(module) for module in tree.modules())
    return {
        contributing: map_of.sub(lambda _: table(tree), contributing.read_text(encoding="utf-8"), count=1),
        llms: list_of.sub(lambda _: items, llms.read_text(encoding="utf-8"), count=1),
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
