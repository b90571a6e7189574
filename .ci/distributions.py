#!/usr/bin/env python3
"""Check what a built wheel and sdist hold: `.ci/distributions.py dist/`."""

import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def problems(folder):
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(info))
    package = root / "cjm_worker_ext"
    wanted = {
        str(file.relative_to(root)) for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }
    if missing := sorted(wanted - names):
        yield f"the wheel lacks {missing}"
    if extra := sorted(n for n in names - wanted if ".dist-info/" not in n):
        yield f"the wheel holds more than the package: {extra}"
    if "cjm_worker_ext/py.typed" not in names:
        yield "the wheel lacks py.typed"
    if not any(n.endswith("licenses/LICENSE") for n in names):
        yield "the wheel lacks the licence"
    if "# cjm-worker-ext" not in (metadata.get_payload() or ""):
        yield "the README is not the wheel's description"
    provided = set(metadata.get_all("Provides-Extra", []))
    if lacking := {"all", "registry", "resources", "sse", "monitor", "demo"} - provided:
        yield f"extras {sorted(lacking)} are not provided"
    with tarfile.open(sdist) as archive:
        inside = {n.partition("/")[2] for n in archive.getnames()}
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if name not in inside:
            yield f"the sdist lacks {name}: it cannot be built"
    if tests := sorted(n for n in inside if n.startswith(("tests/", "benchmarks/", "nbs/"))):
        yield f"the sdist holds {tests[:3]}: what is not installed belongs to the repository"


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1])))
    sys.exit("\n".join(found) or 0)
