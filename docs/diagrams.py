#!/usr/bin/env python3
"""Draw the diagrams: `python docs/diagrams.py` writes nbs/images/*.svg.

The layers are drawn from the tree, the other pictures by hand: plain SVG from a few shapes, so a change of a box is a
change of one line here. Colours are variables. In a picture of its own they follow the reader's dark mode; in a page of
the site they follow the switch of the site.
"""

import sys
from html import escape
from pathlib import Path
from textwrap import wrap

from layers import Tree

root = Path(__file__).resolve().parent.parent
images = root / "nbs" / "images"

STYLE = """
.diagram { --ink: #1f2933; --line: #64748b; --soft: #f1f5f9; --accent: #2f6f4f; --bad: #b42318;
  font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 14px; }
@media (prefers-color-scheme: dark) {
  .diagram { --ink: #e6edf3; --line: #8b98a9; --soft: #1b2430; --accent: #6fcf97; --bad: #ff8a7a; } }
.diagram text { fill: var(--ink); }
.diagram .small { font-size: 12px; fill: var(--line); }
.diagram .strong { font-weight: 600; }
.diagram .code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px; }
.diagram .box { fill: var(--soft); stroke: var(--line); stroke-width: 1.2; }
.diagram .zone { fill: none; stroke: var(--line); stroke-dasharray: 5 4; }
.diagram .good { stroke: var(--accent); stroke-width: 2; }
.diagram .bad { stroke: var(--bad); stroke-width: 2; }
.diagram .arrow { fill: none; stroke: var(--line); stroke-width: 1.4; }
.diagram .tip { fill: var(--line); }
.diagram .arrow.bad { stroke: var(--bad); }
.diagram .arrow.late { stroke-dasharray: 3 4; }
.diagram .thread { fill: none; stroke: var(--line); stroke-width: 1; opacity: .35; }
.diagram .dot { fill: var(--accent); stroke: var(--accent); stroke-width: 1.4; }
.diagram .dot.late { fill: var(--soft); }
"""


def text(x, y, words, kind="", anchor="middle"):
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def box(x, y, width, height, title, *lines, kind="", title_kind="strong"):
    "A box with a title and smaller lines under it, all centred."
    middle, top = x + width / 2, y + height / 2 + 5 - 9 * len(lines)
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="box {kind}"/>']
    parts.append(text(middle, top, title, title_kind))
    parts += [text(middle, top + 18 * n, line, "small") for n, line in enumerate(lines, start=1)]
    return "\n".join(parts)


def zone(x, y, width, height, title):
    rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="12" class="zone"/>'
    return rect + "\n" + text(x + 14, y + 22, title, "small", "start")


def arrow(*points, label="", at=None, kind="", anchor="middle"):
    "A line through the points, with a tip at its end and a label at `at`."
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    parts = [f'<path d="{path}" class="arrow {kind}" marker-end="url(#tip)"/>']
    if label:
        x, y = at or ((points[0][0] + points[-1][0]) / 2, (points[0][1] + points[-1][1]) / 2 - 7)
        parts.append(text(x, y, label, "small", anchor))
    return "\n".join(parts)


def picture(width, height, title, *parts):
    tip = '<path d="M0 0 L8 4 L0 8 z" class="tip"/>'
    marker = f'<marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">{tip}</marker>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'class="diagram">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<defs>{marker}</defs>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def families(names):
    "The names of a folder, without those that belong to a shorter one: `sse` stands for `sse_log` too."
    return [name for name in names if not any(name.startswith(other + "_") for other in names)]


def band(y, layer, rows):
    "One layer: its modules, its sentence, and for a folder what is in it."
    height = 52 + 18 * len(rows)
    parts = [
        f'<rect x="10" y="{y}" width="500" height="{height}" rx="8" class="box"/>',
        text(26, y + 22, ", ".join(layer["modules"]), "strong", "start"),
        text(26, y + 40, layer["what"], "small", "start"),
        *(text(26, y + 60 + 18 * n, row, "code", "start") for n, row in enumerate(rows)),
    ]
    return parts, height


def rails(tree, tops):
    """The imports between layers: a layer that is imported has a rail, and a dot on it is a layer that imports it.

    Each rail leads down to its layer, because imports point downwards. A dashed one is an exception, and leads up.
    """
    uses = tree.between_layers()
    late = {(tree.layer_of(up["from"]), tree.layer_of(up["to"])) for up in tree.upward}
    used = {(by, target) for by, targets in uses.items() for target in targets}
    columns = sorted({target for _, target in used | late}, reverse=True)
    x = {target: 540 + 24 * n for n, target in enumerate(columns)}
    start = {layer: top + 35 for layer, top in tops.items()}  # where its imports leave a layer, below what comes in
    parts = []
    for by in tops:
        reached = [x[target] for importer, target in used | late if importer == by]
        parts += [f'<path d="M510 {start[by]} H{max(reached)}" class="thread"/>'] if reached else []
    for target in columns:
        for importers, kind in ((used, ""), (late, "late")):
            ys = [start[by] for by, to in importers if to == target]
            if ys:
                far, corner = (max(ys), 10) if kind else (min(ys), -10)
                turn = f"V{tops[target] + 16 + corner} q0 {-corner} -10 {-corner} H510"
                parts.append(f'<path d="M{x[target]} {far} {turn}" class="arrow {kind}" marker-end="url(#tip)"/>')
                parts += [f'<circle cx="{x[target]}" cy="{y}" r="4" class="dot {kind}"/>' for y in ys]
    return parts


def architecture():
    "The layers of the package, drawn from docs/layers.toml and from what each module imports."
    tree, parts, tops, y = Tree(root), [], {}, 10
    for number, layer in reversed(list(enumerate(tree.layers))):
        inside = [m.name.partition(".")[2] for m in tree.modules() if m.layer == number and "." in m.name]
        drawn, height = band(y, layer, wrap(", ".join(families(inside)), width=60))
        tops[number] = y
        parts += drawn
        y += height + 8
    parts += rails(tree, tops)
    parts.append(text(10, y + 18, "A dot: this layer imports the layer at the end of the arrow.", "small", "start"))
    parts.append(text(750, y + 18, "Dashed: imported only when called.", "small", "end"))
    return picture(760, y + 32, "The layers of the package, and which layer imports which", *parts)


def processes():
    return picture(
        *(760, 400, "A web app with a manager and two workers"),
        zone(10, 10, 470, 380, "the app's process: one event loop"),
        box(40, 50, 150, 60, "pages, routes", "your app"),
        box(230, 50, 220, 60, "BaseJobManager", "start, stream, wait, cancel"),
        box(230, 150, 170, 60, "scheduler", "decides, and only that"),
        box(230, 250, 220, 60, "backends.local", "starts, feeds, kills; decides nothing"),
        box(40, 165, 150, 50, "your registry", "which plugins?"),
        box(40, 235, 150, 50, "your resources", "who uses what?"),
        box(40, 305, 150, 50, "your broadcaster", "who listens?"),
        arrow((190, 80), (230, 80)),
        arrow((306, 110), (306, 150), label="events", at=(298, 134), anchor="end"),
        arrow((326, 150), (326, 110), label="actions", at=(334, 134), anchor="start"),
        arrow((425, 110), (425, 250)),
        '<path d="M250 110 L250 130 L210 130 L210 330" class="arrow"/>',
        *(arrow((210, y), (190, y)) for y in (190, 260, 330)),
        box(
            570,
            60,
            170,
            110,
            "worker 1",
            "a process group of its own",
            "plugin loaded and kept",
            "one job, or several",
            kind="good",
        ),
        box(
            570, 200, 170, 110, "worker 2", "killed by SIGSEGV", "costs what ran there,", "and is replaced", kind="bad"
        ),
        arrow((450, 270), (510, 270), (510, 115), (570, 115), label="socket pair", at=(518, 190), anchor="start"),
        arrow((450, 285), (570, 285)),
        text(655, 345, "own session, output captured,", "small"),
        text(655, 362, "ends when the app ends", "small"),
    )


def life_of_a_job():
    return picture(
        *(760, 330, "pending, running, perhaps pending again, and then one of completed, failed, cancelled"),
        box(30, 130, 130, 60, "pending", "job:queued"),
        box(290, 130, 150, 60, "running", "job:started"),
        box(605, 40, 140, 60, "completed", "job:completed", kind="good"),
        box(605, 130, 140, 60, "failed", "job:failed", kind="bad"),
        box(605, 220, 140, 60, "cancelled", "job:cancelled"),
        arrow((160, 160), (290, 160), label="a worker is free", at=(225, 152)),
        arrow((440, 145), (460, 145), (460, 70), (605, 70), label="result", at=(532, 62)),
        arrow((440, 160), (605, 160), label="error, timeout, crash", at=(532, 152)),
        arrow((440, 175), (460, 175), (460, 243), (605, 243), label="cancel", at=(532, 235)),
        arrow((95, 190), (95, 262), (605, 262), label="cancel while pending", at=(246, 280)),
        '<path d="M330 130 C330 85 400 85 400 126" class="arrow" marker-end="url(#tip)"/>',
        text(365, 84, "job:progress, job:chunk", "small"),
        arrow((365, 190), (365, 216), (128, 216), (128, 190), label="tried again (job:retrying),", at=(246, 208)),
        text(246, 234, "or its worker ended before it began", "small"),
        text(675, 312, "final, published once", "small"),
    )


def ending_a_job():
    return picture(
        *(760, 260, "Cancel and timeout: first an exception inside the plugin, then a kill of the process group"),
        box(20, 95, 150, 60, "cancel or timeout", "of a running job"),
        box(230, 95, 170, 60, "JobCancelled", "raised inside the plugin"),
        box(480, 20, 250, 60, "the plugin ends", "worker and loaded model stay", kind="good"),
        box(480, 170, 250, 60, "SIGKILL to the process group", "ffmpeg and loaders go too", kind="bad"),
        arrow((170, 125), (230, 125)),
        arrow((400, 115), (440, 115), (440, 50), (480, 50), label="within the grace", at=(448, 104), anchor="start"),
        arrow(
            (400, 135),
            (440, 135),
            (440, 200),
            (480, 200),
            label="after cancel_grace_seconds",
            at=(448, 158),
            anchor="start",
        ),
        text(620, 130, "either way the next job runs", "small"),
    )


def main():
    images.mkdir(exist_ok=True)
    for draw in (architecture, processes, life_of_a_job, ending_a_job):
        (images / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
