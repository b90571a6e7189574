"""A long day in short: jobs of a plugin that leaks, for as long as you like, on workers with a limit for their memory.

`python -m tests.soak --minutes 60` before a release. It fails if a job is lost, a result is wrong, a worker grows over
the ceiling, or the app itself grows.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # workers import the plugins by it


def main() -> int:
    from soak_run import Soak

    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: %(default)s)")
    soak = Soak(parser.parse_args().minutes * 60, say=lambda line: print(line, flush=True))
    asyncio.run(soak.run())
    print(soak.summary())
    return bool(soak.problems)


if __name__ == "__main__":
    sys.exit(main())
