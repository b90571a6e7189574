#!/usr/bin/env python3
"""Make README.md from nbs/index.ipynb, with the outputs that the notebook holds.

.ci/readme.py             write README.md
.ci/readme.py --run       run the notebook first and store its outputs in it
.ci/readme.py --check     change nothing; exit status 1 if README.md is not what the notebook makes
"""

import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

root = Path(__file__).resolve().parent.parent
notebook, readme = root / "nbs" / "index.ipynb", root / "README.md"


def steady(text):
    "Replace what differs from run to run, so that a second run makes the same file."
    text = re.sub(r"\b(pid|worker) \d+", r"\1 4711", text)
    return re.sub(r"\b\d+(\.\d+)? (ms|s)\b", r"0.1 \2", text)


def one_block(outputs):
    "Put together what was printed before and after something that was left out."
    found = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def run(book):
    "Run every cell, and keep only the output that a reader sees."
    ExecutePreprocessor(timeout=120, kernel_name="python3").preprocess(book, {"metadata": {"path": str(root)}})
    book.metadata.pop("language_info", None)
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = one_block([output for output in cell.outputs if output.get("name") != "stderr"])  # the log
            for output in cell.outputs:
                if "text" in output:
                    output.text = steady(output.text)
                if "execution_count" in output:
                    output.execution_count = None
    text = nbformat.writes(book, indent=1, ensure_ascii=False, sort_keys=True)
    notebook.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def from_root(link):
    "A link of the notebook, seen from the folder that README.md is in."
    return f"]({posixpath.normpath(posixpath.join('nbs', link[1]))})"


def markdown(book):
    "Render the notebook without its hidden cells and directives."
    book.cells = [c for c in book.cells if not c.source.startswith("#| hide")]
    for cell in book.cells:
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip("\n")
    book.metadata.language_info = {"name": "python"}  # the language of the fences
    body, _ = MarkdownExporter().from_notebook_node(book)
    prose_and_code = re.split(r"(^```.*?^```$)", body, flags=re.M | re.S)
    prose_and_code[::2] = [re.sub(r"\n{3,}", "\n\n", prose) for prose in prose_and_code[::2]]
    prose_and_code[::2] = [re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", from_root, prose) for prose in prose_and_code[::2]]
    note = "<!-- Made from nbs/index.ipynb by .ci/readme.py: change it there. -->\n"
    return note + "".join(prose_and_code).strip() + "\n"


def main(arguments):
    book = nbformat.read(notebook, as_version=4)
    if "--run" in arguments:
        run(book)
    text = markdown(book)
    if "--check" not in arguments:
        readme.write_text(text, encoding="utf-8")
    elif readme.read_text(encoding="utf-8") != text:
        return "README.md is not what nbs/index.ipynb makes: run .ci/readme.py"
    if len(text.splitlines()) > 120:
        return f"README.md has {len(text.splitlines())} lines; a first screen and 120 lines are enough"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
