"""The table of the page "what can cross", made from the adapters: `python tests/codec/page.py` writes it into the page."""

from __future__ import annotations

import sys
from pathlib import Path

from cjm_worker_ext.backends.codec_adapters import FAMILIES, Adapter, library

PAGE = Path(__file__).resolve().parents[2] / "nbs" / "explanation" / "what_can_cross.md"
BEGIN, END = "<!-- made from the adapters -->\n", "<!-- until here -->\n"
PLAIN = [
    ("`None`, `bool`, `int`, `float`, `complex`, `str`", "equal, of any size; lone surrogates too", "copied", ""),
    ("`bytes`, `bytearray`", "equal", "copied; from 1 MiB through shared memory", ""),
    ("`list`, `tuple`, `dict`, `set`, `frozenset`", "equal, with any keys", "copied", "at most 100 in one another"),
    ("exceptions that a plugin raises", "type, message, notes, causes, traceback as text; the exception itself if its class is known", "copied",
     "name its class in `WorkerConfig.allowed_types`"),
]  # fmt: skip


def adapters() -> list[Adapter]:
    return [adapter for module in dict.fromkeys(FAMILIES.values()) for adapter in library(module).ADAPTERS.values()]


def table() -> str:
    rows = [*PLAIN, *((a.title, a.crosses, a.memory, a.remedy) for a in adapters())]
    lines = ["| type | how it arrives | memory | if it cannot cross |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines) + "\n"


def page_with_table() -> str:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
