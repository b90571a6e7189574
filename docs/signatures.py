"""What a definition looks like to its callers: whole signatures, and the public methods of a class, from the source."""

import ast
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(node: Function) -> Iterator[tuple[str, ast.expr | None, ast.expr | None, int]]:
    "Name with its stars, annotation, default and line of each parameter, in the order in which they are written."
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    for one, default in zip(positional, defaults, strict=True):
        yield one.arg, one.annotation, default, one.lineno
    if given.vararg:
        yield "*" + given.vararg.arg, given.vararg.annotation, None, given.vararg.lineno
    for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield one.arg, one.annotation, default, one.lineno
    if given.kwarg:
        yield "**" + given.kwarg.arg, given.kwarg.annotation, None, given.kwarg.lineno


def signature(
    node: Function,
    bound: bool = True,  # Whether `self` or `cls` is left out
) -> str:  # For example `(plugin_id, /, *, timeout=None)`; without types, which a table has
    "Write what a caller may pass: names, defaults, `/` and `*`."
    parts = []
    for name, _, default, _ in parameters(node):
        if name == (node.args.kwonlyargs[0].arg if node.args.kwonlyargs else None) and not node.args.vararg:
            parts.append("*")
        parts.append(f"{name}={ast.unparse(default)}" if default else name)
        if node.args.posonlyargs and name == node.args.posonlyargs[-1].arg:
            parts.append("/")
    if bound and parts and parts[0] in ("self", "cls"):
        del parts[: 2 if parts[1:2] == ["/"] else 1]
    return f"({', '.join(parts)})"


def first_sentence(node: Function | ast.ClassDef) -> str:  # Empty without a docstring
    "The promise of a definition: the first paragraph of its docstring, in one line."
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def is_property(node: Function) -> bool:
    return any(ast.unparse(mark).endswith(("property", ".setter")) for mark in node.decorator_list)


def public_methods(node: ast.ClassDef) -> list[Function]:
    "The methods and properties that a class itself defines and callers may use, once each, in the order of the source."
    found = [part for part in node.body if isinstance(part, Function) and not part.name.startswith("_")]
    calls = [part for part in found if not any(ast.unparse(mark).endswith("setter") for mark in part.decorator_list)]
    return list({part.name: part for part in calls}.values())
