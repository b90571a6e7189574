#!/usr/bin/env python3
"""In an environment with the wheel's [all] and the newest FastHTML, which wants fastcore 2: everything imports, a job runs,
the FastHTML example and the page about guards hold."""

import asyncio
import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import fasthtml.common  # noqa: F401  - it has to live beside us
import without_extras

import cjm_worker_ext


def main():
    assert int(version("fastcore").partition(".")[0]) >= 2, f"fastcore {version('fastcore')} is not the newest"
    for module in pkgutil.walk_packages(cjm_worker_ext.__path__, "cjm_worker_ext."):
        importlib.import_module(module.name)
    asyncio.run(without_extras.core())
    tests = Path(__file__).parent.parent / "tests"
    subprocess.run([sys.executable, tests / "test_examples.py"], check=True)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests / "test_guards.py"], check=True
    )


if __name__ == "__main__":
    sys.exit(main())
