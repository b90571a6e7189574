"""Runs jobs, strikes at them with every fault there is, and checks that no promise was broken.

`python -m tests.chaos --seconds 600 --faults 5000` before a release. The seed alone decides what is done, and in which
order; what a fault meets still depends on the moment, so a failing seed may need a few tries.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # workers import the plugins by it


def main() -> int:
    from chaos_plan import fingerprint
    from chaos_run import Run

    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the plan (default: a fresh one)")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="print the plan, and do nothing")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 30) if options.seed is None else options.seed
    run = Run(seed, options.seconds, options.faults, lambda line: print(line, flush=True))
    if options.plan:
        for round in run.rounds:
            print(f"round {round.number} ({round.end}): {round.config}", *round.steps, sep="\n  ")
        print(fingerprint(run.rounds))
        return 0
    print(run.command, flush=True)
    asyncio.run(run.run())
    print(run.summary())
    return bool(run.report.problems)


if __name__ == "__main__":
    sys.exit(main())
