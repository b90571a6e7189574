#!/usr/bin/env python3
"""Record `cjm-worker-demo` in a terminal, as the animated picture nbs/images/demo.svg.

pip install -e '.[demo]' 'termtosvg-ng>=1.4' && python docs/record_demo.py

The recording is real, and slowed down so that a reader can follow the bars. Only the folder of this machine's Python is
shown as /usr. Process ids and times differ with each recording.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
picture = root / "nbs" / "images" / "demo.svg"
slower, shortest_frame_ms, rest_at_the_end_ms = 3, 100, 8000
columns, rows = 88, 29
most_bytes = 300_000
prompt = "$ cjm-worker-demo"


def record(cast: Path) -> None:
    "Run the demo in a separate terminal; termtosvg records its output with the times."
    command = [sys.executable, "-m", "termtosvg", "record", cast, "-g", f"{columns}x{rows}"]
    demo = f"{shlex.quote(sys.executable)} -c 'from cjm_worker_ext.commands.terminal import demo; demo()'"
    script = f"printf {shlex.quote(prompt)}; sleep 0.3; echo; exec {demo}"
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(columns)}
    hold, keys = os.pipe()  # a terminal closes at the end of its input, so keep the input open
    try:
        done = subprocess.run(
            [*command, "-c", f"sh -c {shlex.quote(script)}"], stdin=hold, stdout=subprocess.DEVNULL, env=environment
        )
    finally:
        os.close(keys)
        os.close(hold)
    if done.returncode:
        sys.exit(done.returncode)


def slow_down(cast: Path) -> str:
    "Stretch the times of a recording, and return its text."
    place = str(Path(sysconfig.get_path("stdlib")).parent.parent)
    header, *events = [json.loads(line) for line in cast.read_text(encoding="utf-8").splitlines()]
    lines = [header, *([seconds * slower, kind, text.replace(place, "/usr")] for seconds, kind, text in events)]
    cast.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return "".join(text for _seconds, _kind, text in events)


def keep_still(drawing: str) -> str:
    "Show only the last frame if the reader's system asks for less motion."
    if "prefers-reduced-motion" in drawing:
        return drawing
    last = re.search(r"100\.000%\{(transform:[^}]+)\}", drawing)
    if last is None:
        sys.exit("the last frame cannot be found; termtosvg draws otherwise than it did")
    rule = f"@media (prefers-reduced-motion: reduce) {{ #screen_view {{ animation: none; {last[1]}; }} }}"
    head, end, tail = drawing.partition("]]></style>")  # of the style that moves it
    return f"{head}    {rule}\n        {end}{tail}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cast = Path(folder) / "demo.cast"
        record(cast)
        if "Every job ended as it should" not in slow_down(cast):
            sys.exit("the demo did not end as it should; nothing is written")
        timing = ["-m", str(shortest_frame_ms), "-D", str(rest_at_the_end_ms)]
        render = [sys.executable, "-m", "termtosvg", "render", cast, picture, "-t", "window_frame", *timing]
        subprocess.run(render, check=True)
    picture.write_text(keep_still(picture.read_text(encoding="utf-8")), encoding="utf-8")
    size = picture.stat().st_size
    sys.stdout.write(f"{picture.relative_to(root)}: {size:,} bytes\n")
    if size > most_bytes:
        sys.exit(f"a page should not load more than {most_bytes:,}")


if __name__ == "__main__":
    main()
