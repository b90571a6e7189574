#!/usr/bin/env python3
"""Check the wheel's [all] with the newest FastHTML, which needs fastcore 2: everything imports, a job runs, the FastHTML
example works, and the page about guards holds."""

import asyncio
import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import fasthtml.common  # noqa: F401  - it must work in the same environment
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
