#!/usr/bin/env python3
"""Render the notebooks as a site, without quarto.

python docs/build.py build     run every notebook, render the site into _docs/, check it
python docs/build.py serve     the same, then serve it at http://127.0.0.1:8000
python docs/build.py preview   build without running: pages show the outputs that the notebooks hold
python docs/build.py process   only let nbdev process the notebooks, for `quarto render _proc`
python docs/build.py check     check the existing site: links, empty pages, tracebacks, spelling

This is a script and not a part of the package, because a wheel contains no notebooks. Each build runs the notebooks, so
a page shows what the code does today. A failing cell fails the build after all others: it names each notebook that failed,
and the site is there, with the outputs that such a notebook was saved with.
"""

import ast
import functools
import http.server
import inspect
import io
import itertools
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from html import escape
from pathlib import Path

from layers import Tree, is_within, package, without_numbers
from signatures import first_sentence, is_property, parameters, public_methods, signature

root = Path(__file__).resolve().parent.parent
notebooks, staged, site = root / "nbs", root / "_proc", root / "_docs"
settings = ConfigParser()
settings.read(root / "settings.ini", encoding="utf-8")
hosted = "{git_url}/blob/{branch}".format_map(settings["DEFAULT"])  # where the repository's files can be read
NOTEBOOK_SECONDS = 900  # For one notebook; the longest takes one minute on an idle machine of two cores
functions = ast.FunctionDef | ast.AsyncFunctionDef
shelves = {"Tutorials": "tutorials", "How-to guides": "howto", "Explanation": "explanation"}  # caption: folder
project_pages = {
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "benchmarks/failures.md": "bad_days",
}


# ------------------------------------------------------------------------------------------------ run the notebooks
def execute(source: Path, target: Path) -> None:
    "Run one notebook as `nbdev_test` does, in its own folder, and write it with its outputs."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell

    os.environ["IN_TEST"] = "1"
    os.chdir(source.parent)
    book, shell = read_nb(source), CaptureShell(source)
    shell.run_all(book, exc_stop=True, preproc=lambda cell: cell.cell_type != "code" or "nbdev_export(" in cell.source)
    write_nb(book, target)


def execute_all(into: Path) -> list[str]:  # One paragraph for each notebook that failed, with its name first
    """Run every notebook in an interpreter of its own, two at a time, and one that failed once more, alone.

    A busy machine lets a cell's own limits pass. A notebook that fails twice keeps the outputs that it was saved with.
    """
    books = sorted(into.rglob("*.ipynb"))

    def run(book: Path) -> str:  # Why it failed; empty if it did not
        source = notebooks / book.relative_to(into)
        command = [sys.executable, __file__, "execute", source, book]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=NOTEBOOK_SECONDS)
        except subprocess.TimeoutExpired as e:
            return f"it did not end within {e.timeout:g} s"
        return f"{done.stdout[-2000:]}{done.stderr[-4000:]}".strip() if done.returncode else ""

    with ThreadPoolExecutor(2) as pool:
        again = [book for book, failed in zip(books, pool.map(run, books), strict=True) if failed]
    failures = []
    for book in again:
        sys.stderr.write(f"{book.relative_to(into)} failed, and runs once more\n")
        if failed := run(book):
            failures.append(f"{book.relative_to(into)} failed: {failed}")
    return failures


def process(executed: Path) -> None:
    "Let nbdev hide cells, document definitions and make links, without quarto."
    import fastcore.docments
    from nbdev import processors
    from nbdev.serve import proc_nbs

    def signature(symbol, *, eval_str=False):  # names that only type checkers import stay text
        try:
            return inspect.signature(symbol, eval_str=eval_str)
        except NameError:
            return inspect.signature(symbol)

    def runs(cell):  # nbdev alone would also run a test cell that contains an import
        if cell.cell_type != "code" or "nbdev_export(" in cell.source:
            return False
        if {"export", "exports", "exporti", "exec_doc"} & set(cell.directives_):
            return True
        statements = cell.parsed_() or []
        imports = all(isinstance(s, ast.Import | ast.ImportFrom) for s in statements)
        return imports or any(ast.unparse(s).startswith("show_doc(") for s in statements)

    fastcore.docments.signature = signature
    processors._do_eval = runs
    os.environ["IN_TEST"] = "1"
    proc_nbs(path=executed, n_workers=0, force=True)


# ------------------------------------------------------------------------------------------------ the entries of the API
@functools.cache
def parsed(file: Path) -> tuple[dict[int, ast.AST], dict[int, str]]:
    "The definitions of a module by line, and its comments by line, without the directives of type checkers."
    text = file.read_text(encoding="utf-8")
    nodes = {n.lineno: n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef | functions)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {t.start[0]: t.string.removeprefix("#").strip() for t in tokens if t.type == tokenize.COMMENT}
    lines, anchor = text.splitlines(), 0
    for line in sorted(comments):  # a comment behind code may go on in the next lines, alone there
        if not lines[line - 1].lstrip().startswith("#"):
            anchor = line
        elif all(n in comments for n in range(anchor, line)):
            comments[anchor] += " " + comments[line]
    directive = re.compile(r"(#\s*)?(type: ignore|pyright: ignore|noqa)[^#]*(#\s*)?")
    return nodes, {line: directive.sub("", comment).strip() for line, comment in comments.items()}


def function_rows(node: ast.AST, comments: dict[int, str], said: str) -> list[tuple[str, ...]]:
    "Name, type, default and meaning of each parameter, then of what is returned."
    rows = [
        (name, ast.unparse(kind) if kind else "", ast.unparse(default) if default else "", line)
        for name, kind, default, line in parameters(node)
        if name not in ("self", "cls")
    ]
    returns = ast.unparse(node.returns) if node.returns else "None"
    alone = {line for *_, line in rows if line != node.lineno}  # a comment on the `def` line is about what is returned
    rows = [(*row, comments.get(line, "") if line in alone else "") for *row, line in rows]
    meaning = comments.get(node.returns.lineno, "") if node.returns and node.returns.lineno not in alone else ""
    if meaning or (returns != "None" and rows and said != "class"):
        rows.append(("returns", returns, "", meaning))
    return rows


def class_rows(node: ast.ClassDef, comments: dict[int, str]) -> list[tuple[str, ...]]:
    "The parameters of `__init__`, or the fields of a dataclass, or the members of an enumeration."
    for part in node.body:
        if isinstance(part, functions) and part.name == "__init__":
            return function_rows(part, comments, "class")
    rows = []
    for part in node.body:
        meaning = comments.get(getattr(part, "lineno", 0), "")
        if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
            value = ast.unparse(default_of(part.value)) if part.value else ""
            made = re.search(r"default_factory=(?:lambda: )?(\w+)", value)
            rows.append(
                (ast.unparse(part.target), ast.unparse(part.annotation), f"{made[1]}()" if made else value, meaning)
            )
        elif isinstance(part, ast.Assign) and meaning:
            rows.append((ast.unparse(part.targets[0]), "", ast.unparse(part.value), meaning))
    return rows


def default_of(value: ast.expr) -> ast.expr:
    "What a reader wants to see of a field's value: of `whole(1, most=10)`, a number with its rule, the number."
    is_rule = isinstance(value, ast.Call) and ast.unparse(value.func) in ("whole", "seconds")
    return value.args[0] if is_rule else value


def cell_text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(rows: list[tuple[str, ...]], titles: tuple[str, ...]) -> str:
    "A table of the rows, without empty columns."
    kept = [n for n in range(4) if n == 0 or any(row[n] for row in rows)]
    lines = [[titles[n] for n in kept], ["---"] * len(kept)]
    for name, kind, default, meaning in rows:
        code = [f"`{cell_text(c)}`" if c else "" for c in (kind, default)]
        cells = ["*returns*" if name == "returns" else f"`{name}`", *code, cell_text(meaning)]
        lines.append([cells[n] for n in kept])
    return ":::{rst-class} api-table\n:::\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def has_init(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(isinstance(p, functions) and p.name == "__init__" for p in node.body)


def maker(node: ast.ClassDef, nodes: dict[int, ast.AST]) -> ast.ClassDef:
    "The class whose `__init__` applies: for a class with several bases the first of them that has one."
    here = {n.name: n for n in nodes.values() if isinstance(n, ast.ClassDef)}
    parts = [ast.unparse(base) for base in node.bases] if len(node.bases) > 1 and not has_init(node) else []
    while parts:
        part = here.get(parts.pop(0))
        if part is not None and has_init(part):
            return part
        parts += [ast.unparse(base) for base in part.bases] if part is not None else []
    return node


def documented(markdown: str, own: str) -> tuple[str, str, int] | None:
    """Name, file and line of what an output of show_doc is about, or None.

    nbdev finds a definition by its name alone, in whichever module comes first. The page's own module has precedence.
    """
    heading = re.search(r"^#+ (.+)$", markdown, flags=re.M)
    source = re.search(r"\[source\]\([^)]*/blob/[^/]+/([^)#]+)#L(\d+)\)", markdown)
    if not (heading and source):
        return None
    name, path, number = heading[1].replace("\\", "").strip(), source[1], int(source[2])
    if path != own and (root / own).is_file():
        tree = ast.parse((root / own).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | functions) and node.name == name:
                return name, own, node.lineno
    return name, path, number


def methods_table(node: ast.ClassDef, place: str, up: str, module: str) -> str:
    "What a class offers: a row for each public method and property, which leads to its own entry if there is one."
    rows = []
    for part in public_methods(node):
        line = part.name if is_property(part) else part.name + signature(part)
        kind = "await " if isinstance(part, ast.AsyncFunctionDef) else ""
        entry = f"[`{cell_text(kind + line)}`](#entry:{place}.{node.name}.{part.name}.def)"
        source = f'<a class="api-source" href="{up}source/{module}.html#L-{part.lineno}">source</a>'
        rows.append(f"| {entry} {source} | {cell_text(first_sentence(part))} |")
    head = "| method | what it does |\n| --- | --- |\n"
    return ":::{rst-class} method-table\n:::\n\n" + head + "\n".join(rows) if rows else ""


def api_entry(markdown: str, up: str, asked: str, own: str) -> str:
    "Turn the output of show_doc into a heading, a line with a link to the source, the text, and a table."
    found = documented(markdown, own)
    if found is None:
        return markdown
    name, path, number = found
    heading = re.search(r"^#+ .+$", markdown, flags=re.M)
    nodes, comments = parsed(root / path)
    node = nodes[min(line for line in nodes if line >= number)]  # past its decorators
    module = path.removesuffix(".py").replace("/", ".")
    is_class = isinstance(node, ast.ClassDef)
    kind = "class" if is_class else "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    rows = class_rows(maker(node, nodes), comments) if is_class else function_rows(node, comments, kind)
    made = (
        next((p for p in maker(node, nodes).body if getattr(p, "name", "") == "__init__"), None) if is_class else node
    )
    fields = ", ".join(r[0] + (f"={r[2]}" if r[2] else "") for r in rows)  # of a dataclass
    whole = signature(made) if made else f"({fields})"
    enumeration = is_class and any("Enum" in ast.unparse(base) for base in node.bases)
    titles = ("member", "", "value", "meaning") if enumeration else ("parameter", "type", "default", "meaning")
    bases = ", ".join(ast.unparse(base) for base in node.bases) if is_class else ""
    shown = asked if asked.rpartition(".")[2] == name.rpartition(".")[2] else name  # not the part that it comes from
    line = f"{shown}({bases})" if is_class and (enumeration or not rows) else shown + whole
    block = re.search(r"^```python\n.*?^```\n?", markdown, flags=re.M | re.S)
    text = markdown[(block or heading).end() :].strip()
    text = re.sub(r"\A\*(.+?)\*(?=\n\n|\Z)", r"\1", text, flags=re.S)  # a promise, not an aside
    link = f'<a class="api-source" href="{up}source/{module}.html#L-{node.lineno}">source</a>'
    parts = [
        f"({module.removeprefix(package + '.')}.{name}{'' if is_class else '.def'})=\n### `{shown}`",  # Check, check
        f'<div class="api"><code><span class="api-kind">{kind}</span> {escape(line)}</code>{link}</div>',
        text,
        table(rows, titles) if rows else "",
        methods_table(node, module.removeprefix(package + "."), up, module) if is_class else "",
    ]
    return "\n\n".join(p for p in parts if p)


# ------------------------------------------------------------------------------------------------ pages
def pages() -> dict[str, Path]:
    "Every staged page by its name on the site: `05_backends/05_local.ipynb` is `backends/local`."
    found = sorted([*staged.rglob("*.ipynb"), *staged.rglob("*.md")])
    return {without_numbers(str(p.relative_to(staged).with_suffix(""))): p for p in found}


def inline_diagram(match: re.Match, folder: str) -> str:
    "Put an SVG into the page itself, so that it follows the site's light and dark mode."
    picture = staged / posixpath.normpath(posixpath.join(folder, match[2]))
    svg = picture.read_text(encoding="utf-8")
    if 'class="diagram"' not in svg:  # a picture with colours of its own stays a file
        return match[0]
    svg = re.sub(r"<\?xml.*?\?>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"\n\s*", " ", svg).strip()
    return f'<figure class="diagram-box" role="img" aria-label="{escape(match[1])}">{svg}</figure>'


def relink(text: str, page: str, known: dict[str, Path], targets: set[str]) -> str:
    "Point links at pages of this site: nbdev writes addresses of the published site, and pages name files."
    folder = posixpath.dirname(page)
    text = re.sub(r"!\[([^\]]*)\]\(([^)]+\.svg)\)", lambda m: inline_diagram(m, folder), text)

    def published(match: re.Match) -> str:
        name, fragment = without_numbers(match[1]), match[2] or ""
        target = f"{name.replace('/', '.')}.{fragment.lstrip('#')}"
        for label in (target, target + ".def"):
            if label in targets:
                return f"(#{label})"
        return f"({posixpath.relpath(name, folder or '.')}.md)" if name in known else match[0]

    def local(match: re.Match) -> str:
        path, fragment = match[1], match[2] or ""
        full = posixpath.normpath(posixpath.join(folder, path))
        if full.startswith("../") and full[3:] in project_pages:
            full = f"project/{project_pages[full[3:]]}.md"
        name = without_numbers(posixpath.splitext(full)[0])
        if name not in known:
            return match[0]
        return f"({posixpath.relpath(name + known[name].suffix, folder or '.')}{fragment})"

    def outside(match: re.Match) -> str:
        "A file that is no page of the site, a test for example, or a folder is shown by the repository's host."
        file = posixpath.normpath(posixpath.join("nbs", folder, match[1]))
        return f"({hosted}/{file})" if not file.startswith("nbs/") and (root / file).exists() else match[0]

    def entry(match: re.Match) -> str:
        "A method that has an entry of its own is a link to it."
        label = match[2].lower()
        return f"[{match[1]}](#{label})" if label in targets else match[1]

    text = re.sub(r"\[([^\]]*`[^`]+`)\]\(#entry:([\w.]+)\)", entry, text)
    text = re.sub(r"\((?:\.\./)+examples/\)", f"({hosted}/examples)", text)
    text = re.sub(r"\((\.\./[^()\s#]+\.(?:py|toml|ini))\)", outside, text)
    text = re.sub(r"\(https://[\w.-]+\.github\.io/[\w-]+/([\w/]+)\.html(#[\w.]+)?\)", published, text)
    return re.sub(r"\((?!\w+:|#)([^()\s]+\.(?:ipynb|md|html))(#[\w.-]+)?\)", local, text)


def shown_cell(cell: dict, up: str, own: str) -> dict | None:
    "One cell in the form that Sphinx reads, or None if it is not shown."
    text = "".join(cell["source"])
    if cell["cell_type"] == "raw" or "AUTOGENERATED! DO NOT EDIT" in text:
        return None
    if cell["cell_type"] == "code" and "show_doc(" in text:
        asked = re.findall(r"show_doc\(([\w.]+)", text)
        said = ["".join(o["data"]["text/markdown"]) for o in cell["outputs"] if "data" in o]
        entries = [api_entry(m, up, asked[0] if len(asked) == len(said) == 1 else "", own) for m in said]
        return dict(cell_type="markdown", id=cell["id"], metadata={}, source="\n\n".join(entries))
    if cell["cell_type"] == "code":
        wishes = {"echo: false": "remove-input", "code-fold: true": "hide-input", "output: false": "remove-output"}
        tags = [tag for wish, tag in wishes.items() if f"#| {wish}" in text]
        text = re.sub(r"^#\|.*\n?", "", text, flags=re.M).strip("\n")
        outputs = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        for o in outputs:
            o.setdefault("metadata", {}) if o["output_type"] != "stream" else None
        return dict(cell, source=text, outputs=outputs, metadata=dict(tags=tags), execution_count=None)
    return dict(cell, source=text, metadata={})


def in_order(cells: list[dict], own: str) -> list[dict]:
    "Sort the entries of one cell in the order of its definitions: nbdev adds them in reverse."

    def line(cell: dict) -> int:
        text = "".join("".join(o["data"]["text/markdown"]) for o in cell["outputs"] if "data" in o)
        found = documented(text, own)
        return found[2] if found else 0

    def added(cell: dict) -> bool:
        text = re.sub(r"^#\|.*\n?", "", "".join(cell["source"]), flags=re.M).strip()
        return cell["cell_type"] == "code" and bool(re.fullmatch(r"show_doc\(\w+(, title_level=\d)?\)", text))

    groups = [(is_added, list(group)) for is_added, group in itertools.groupby(cells, added)]
    return [cell for is_added, group in groups for cell in (sorted(group, key=line) if is_added else group)]


openings = {  # The section that a reader of the reference wants first; before it stands what it is made of
    "manager": "The manager",
    "blocking": "An event loop in a thread",
    "config": "Settings",
    "testing": "A whole app",
    "extensions/stores": "The protocol",
    "extensions/channels": "EventChannelProtocol",
    "extensions/conformance": "The check",
    "integrations/registry": "The registry",
    "integrations/resources": "The resource manager",
    "integrations/resources_admission": "The queue",
    "integrations/sse": "The broadcaster",
    "integrations/monitor": "The app",
    "integrations/health": "The app",
    "integrations/metrics": "The broadcaster",
    "integrations/broadcasters": "The broadcasters",
    "integrations/channel_redis": "The channel",
    "integrations/channel_sqlite": "The channel",
    "integrations/channel_postgres": "The channel",
    "stores/sqlite": "The store",
    "stores/postgres": "The store",
    "backends/hosts": "What an app writes",
    "backends/ray": "What an app writes",
    **dict.fromkeys(
        (f"commands/{name}" for name in ("check", "plugins", "serve", "jobs", "agent", "demo")), "The command"
    ),
}
inner_parts = """## The parts inside

What follows is made for the section above and for other modules of the package. An app does not need it."""
synonyms = {  # Words that readers search for, by the page that answers; the search finds them there
    "explanation/what_can_cross": "DataFrame Series ndarray Tensor Image serialization pickle",
    "config": "virtualenv venv conda interpreter environment",
    "howto/watch_jobs": "dashboard admin metrics monitoring login proxy nginx CSRF rebinding",
    "integrations/resources": "metrics statistics psutil CPU memory usage",
    "howto/order_and_retries": "priority queue backoff retry delay schedule",
    "howto/gpu_plugins": "GPU CUDA VRAM NVIDIA card MIG",
    "howto/workers_on_ray": "cluster autoscaler KubeRay Kubernetes actor",
    "howto/stream_tokens": "LLM generator SSE chunks",
    "howto/cancel_and_timeouts": "kill abort stop deadline",
}


def search_words(page: str) -> str:
    "What gives the site's search more words for a page, which readers do not see."
    words = ", ".join(synonyms[page].split())  # Sphinx takes each part between two commas for one word
    return f"```{{eval-rst}}\n.. meta::\n   :keywords: {words}\n```"


def opened(cells: list[dict], page: str) -> list[dict]:
    "Move the section that the reference opens with, and all after it, before the sections that it builds on."
    if page not in openings:
        return cells
    titles = ["".join(cell["source"]).partition("\n")[0] for cell in cells]
    heads = [n for n, title in enumerate(titles) if title.startswith("## ")]
    wanted = titles.index(f"## {openings[page]}")  # else `openings` names a section that is there no more
    if wanted == heads[0]:
        return cells
    divider = dict(cell_type="markdown", id="inner-parts", metadata={}, source=inner_parts)
    return [*cells[: heads[0]], *cells[wanted:], divider, *cells[heads[0] : wanted]]


def stage_notebook(page: str, path: Path) -> None:
    "Add title, entries and footer to a processed notebook."
    book = json.loads(path.read_text(encoding="utf-8"))
    front = "".join(book["cells"][0]["source"]) if book["cells"][0]["cell_type"] == "raw" else ""
    import yaml

    told = yaml.safe_load(front.strip().strip("-")) or {} if front else {}
    up = "../" * page.count("/")
    own = f"{package}/{'__init__' if page == 'init' else page}.py"  # the module of this page, if it has one
    is_module = (root / own).exists()
    shown = (shown_cell(cell, up, own) for cell in in_order(book["cells"], own))
    cells = [cell for cell in shown if cell and "".join(cell["source"]).strip()]
    title = [f"# {page.replace('/', '.') if is_module and '/' in page else told.get('title', page)}"]
    if told.get("description"):
        title.append(f":::{{rst-class}} lead\n:::\n\n{told['description']}")
    cells = opened(cells, page)
    if page in synonyms:
        title.append(search_words(page))
    cells.insert(0, dict(cell_type="markdown", id="title", metadata={}, source="\n\n".join(title)))
    original = next(notebooks.glob(str(path.relative_to(staged))))
    foot = f"This page is the notebook `{original.relative_to(root)}`."
    if is_module:
        name = package if page == "init" else f"{package}.{page.replace('/', '.')}"
        foot += f' The whole module: <a href="{up}source/{name}.html">{name}</a>.'
    cells.append(dict(cell_type="markdown", id="foot", metadata={}, source=f"---\n\n{foot}"))
    book["cells"] = cells
    book["metadata"]["language_info"] = {"name": "python"}
    path.unlink()
    target = staged / f"{page}.ipynb"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(book), encoding="utf-8")


def stage_sources() -> None:
    "Write a page for each module, with a number and an anchor at each line."
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    (staged / "source").mkdir()
    for file in sorted((root / package).rglob("*.py")):
        name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if file.name == "_modidx.py" or not file.read_text().strip():
            continue
        form = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=False, cssclass="highlight source-page")
        code = highlight(file.read_text(encoding="utf-8"), PythonLexer(), form)
        page = f"---\norphan: true\n---\n\n# {name}\n\n```{{raw}} html\n{code}\n```\n"
        (staged / "source" / f"{name}.md").write_text(page, encoding="utf-8")


def in_index(folder: str) -> list[str]:
    "The pages of a folder in the order in which its index links them, the index first."
    index = notebooks / folder / "index.md"
    links = re.findall(r"\]\((\w+)\.(?:md|ipynb)\)", index.read_text(encoding="utf-8")) if index.exists() else []
    return [f"{folder}/{name}" for name in ("index", *links)]


def groups_of(known: dict[str, Path]) -> dict[str, list[str]]:
    "The pages by caption, in the order of the table of contents; those of `Inside` are for who changes the package."
    left = set(known) - {"index", "inside"} - {p for p in known if p.startswith("source/")}
    linked = [page for folder in shelves.values() for page in in_index(folder)]
    groups = {}
    for caption, folder in shelves.items():
        here = {p for p in left if p.startswith(folder + "/")}
        groups[caption] = sorted(here, key=lambda p: (linked.index(p) if p in linked else len(linked), p))
        left -= here
    groups["Project"] = sorted(p for p in left if p.startswith("project/"))
    left -= set(groups["Project"])
    tree = Tree(root)
    modules = [module.name for module in tree.modules()]  # in the order of reading
    public = [m for part in tree.public for m in modules if is_within(m, part)]
    groups["Reference"] = [p for p in ("init", *(m.replace(".", "/") for m in public)) if p in left]
    left -= set(groups["Reference"])
    inner = [p for p in (m.replace(".", "/") for m in modules) if p in left]
    groups["Inside"] = inner + sorted(left - set(inner))
    order = ["Tutorials", "How-to guides", "Reference", "Explanation", "Project", "Inside"]
    return {caption: groups[caption] for caption in order}


def toctree(pages: list[str], caption: str = "") -> str:
    "A table of contents that only the sidebar shows."
    options = ":hidden:\n" + (f":caption: {caption}\n" if caption else "")
    return f"```{{toctree}}\n{options}\n" + "\n".join(pages) + "\n```"


def contents(known: dict[str, Path]) -> str:
    "The table of contents, which goes to the end of the first page. What is inside is one entry, folded."
    groups = groups_of(known)
    groups["Project"] = [*groups["Project"], "inside"]
    return "\n\n".join(toctree(groups[g], g) for g in groups if groups[g] and g != "Inside")


def stage_inside(known: dict[str, Path]) -> None:
    "Write the page that leads to the modules which apps do not import."
    lines = [
        "# How it is made",
        "These modules are for those who change the package; an app does not import them. They stand in the order of the "
        "layers, from the bottom to the top: a module imports only from layers before its own.",
    ]
    pages, tree = groups_of(known)["Inside"], Tree(root)
    for layer in tree.layers:
        here = [p for p in pages if any(is_within(p.replace("/", "."), m) for m in layer["modules"])]
        lines += [f"## {', '.join(layer['modules'])}\n\n{layer['what']}"] if here else []
        lines += ["\n".join(f"- [{p.replace('/', '.')}]({p}{known[p].suffix}): {promise_of(p)}" for p in here)]
    lines.append(toctree(pages))
    (staged / "inside.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def promise_of(page: str) -> str:
    "The first line of a module's text."
    file = root / package / f"{page}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else None
    return (text or "").partition("\n")[0]


def stage() -> None:
    "Turn nbdev's output into what Sphinx reads."
    (staged / "project").mkdir(exist_ok=True)
    for file, name in project_pages.items():
        text = (root / file).read_text(encoding="utf-8").replace("](nbs/", "](../")  # links as seen from the site
        (staged / "project" / f"{name}.md").write_text(text, encoding="utf-8")
    for page, path in pages().items():
        if path.suffix == ".ipynb":
            stage_notebook(page, path)
    stage_inside(pages())
    known = pages()
    texts = {page: path.read_text(encoding="utf-8") for page, path in known.items()}
    targets = {t.lower() for text in texts.values() for t in re.findall(r"\(((?:\w+\.)+\w+)\)=", text)}
    for page, path in known.items():
        if path.suffix == ".md":
            words = f"\n\n{search_words(page)}\n" if page in synonyms else ""
            path.write_text(relink(texts[page], page, known, targets) + words, encoding="utf-8")
            continue
        book = json.loads(texts[page])
        for cell in book["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relink("".join(cell["source"]), page, known, targets)
        if page == "index":
            book["cells"].append(dict(cell_type="markdown", id="contents", metadata={}, source=contents(known)))
        path.write_text(json.dumps(book), encoding="utf-8")
    stage_sources()


# ------------------------------------------------------------------------------------------------ checks
def check() -> list[str]:
    "Find broken internal links, empty pages, tracebacks and misspelled words."
    from bs4 import BeautifulSoup

    problems, ids, soups = [], {}, {}
    for file in sorted(site.rglob("*.html")):
        soups[file] = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        ids[file] = {tag["id"] for tag in soups[file].find_all(id=True)}
        ids[file] |= {tag["name"] for tag in soups[file].find_all("a", attrs={"name": True})}
    for file, soup in soups.items():
        page = file.relative_to(site)
        for tag, attribute in [
            *((t, "href") for t in soup.find_all(href=True)),
            *((t, "src") for t in soup.find_all(src=True)),
        ]:
            address = tag[attribute]
            if re.match(r"[a-z]+:|//", address) or address in ("#", ""):
                continue
            path, _, fragment = address.partition("#")
            target = (file.parent / path.partition("?")[0]).resolve() if path else file
            if not target.exists():
                problems.append(f"{page}: {address} leads nowhere")
            elif fragment and target in ids and fragment not in ids[target]:
                problems.append(f"{page}: {address} has no such place")
        body = soup.find("article")
        words = body.get_text(" ").split() if body else []
        if body and len(words) < 20 and page.name != "search.html":
            problems.append(f"{page}: {len(words)} words are not a page")
        if body and "source" not in page.parts and "Traceback (most recent call last)" in body.get_text():
            problems.append(f"{page}: a raw traceback")
    return problems + not_found() + spelling()


def not_found() -> list[str]:
    "Words that the site's own search does not find on any page."
    from sphinx.search.en import SearchEnglish

    index = (site / "searchindex.js").read_text(encoding="utf-8")
    terms = json.loads(index[index.index("(") + 1 : index.rindex(")")])
    stem = SearchEnglish({}).stem
    words = ["DataFrame", "virtualenv", "metrics", "priority", "GPU", "timeout", "retry", "proxy"]
    return [
        f"search: {w} is on no page" for w in words if not {*terms["terms"], *terms["titleterms"]} & {stem(w.lower())}
    ]


def spelling() -> list[str]:
    where = ["README.md", *project_pages, "llms.txt", "settings.ini", "nbs", "tests", "docs", ".ci"]
    done = subprocess.run([sys.executable, "-m", "codespell_lib", *where], cwd=root, capture_output=True, text=True)
    return [f"spelling: {line}" for line in (done.stdout + done.stderr).splitlines() if "==>" in line or "rror" in line]


# ------------------------------------------------------------------------------------------------ commands
def build(run: bool = True, render: bool = True) -> list[str]:  # What failed, a paragraph each
    os.chdir(root)
    sys.path.insert(0, str(root))
    shutil.rmtree(staged, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / "nbs"
        shutil.copytree(notebooks, executed, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        failures = execute_all(executed) if run else []
        process(executed)
    if not render:
        return []
    stage()
    with tempfile.TemporaryDirectory() as folder:  # MyST-NB leaves a folder next to its output
        sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "2", "-b", "html", "-c", "docs"]
        done = subprocess.run([*sphinx, "-d", f"{folder}/doctrees", staged, f"{folder}/html"])
        if done.returncode:
            failures.append(f"sphinx: ended with {done.returncode}; its warnings are above")
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(f"{folder}/html", site)
    return failures


def main(command: str = "build", *arguments: str) -> None:
    known = {"build": 0, "serve": 0, "preview": 0, "process": 0, "check": 0, "execute": 2}  # Words that follow
    if known.get(command) != len(arguments):
        words = " ".join([command, *arguments])
        sys.exit(f"docs/build.py {words}: not known; write one of build, serve, preview, process, check")
    if command == "execute":
        return execute(*map(Path, arguments))
    if command == "process":
        from nbdev.quarto import nbdev_sidebar

        nbdev_sidebar.__wrapped__()
        build(run=False, render=False)
        return
    problems = build(run=command != "preview") if command in ("build", "serve", "preview") else []
    problems += check()
    sys.stdout.write("".join(f"{p}\n" for p in problems))
    sys.stdout.write(f"{len(list(site.rglob('*.html')))} pages in {site}, {len(problems)} problems\n")
    if command == "serve":
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
        http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()
    elif problems:
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
