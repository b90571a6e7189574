"""A whole run: a plan, its rounds one after the other, and what must hold over all of them."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable

from chaos_checks import Holdings, LogCheck, Memory
from chaos_plan import JobPlan, Planner, RoundPlan, Step, fingerprint
from chaos_round import Report, Round, left_behind

GAP = 3.0  # Seconds that the loop may stand still: on a machine that has other work too
BUSY = 0.5  # Seconds of processor time that one turn of the loop may take


class Run:
    "Carries out a plan; `problems` of its report is empty if every promise was kept."

    def __init__(
        self,
        seed: int,
        seconds: float,
        faults: int,
        say: Callable[[str], object] = print,  # Called with a line after each round
    ):
        self.command = f"python -m tests.chaos --seed {seed} --seconds {seconds:g} --faults {faults}"
        self.rounds = Planner(seed, seconds, faults).plan()
        self.report, self.memory, self._say = Report(), Memory(), say

    async def run(self) -> Report:
        problems = self.report.problems
        log = LogCheck(problems)
        logger, hooks = logging.getLogger("cjm_worker_ext"), (sys.unraisablehook, threading.excepthook)
        propagates, logger.propagate = logger.propagate, False
        logger.addHandler(log)
        sys.unraisablehook, threading.excepthook = log.unraisable, log.in_thread
        asyncio.get_running_loop().set_exception_handler(log.on_loop)
        try:
            await self._warm_up()
            before = Holdings()
            for plan in self.rounds:
                await self._round(plan, before)
                if problems:
                    break
        finally:
            logger.removeHandler(log)
            logger.propagate = propagates
            sys.unraisablehook, threading.excepthook = hooks
        self._check()
        return self.report

    async def _warm_up(self) -> None:
        "What is imported and opened once for all is no leak."
        jobs = (
            JobPlan("array", {"seed": 1, "size": 500_000}),
            JobPlan("verses", {"seed": 1, "count": 20}),
            JobPlan("Configured"),
        )
        warm = RoundPlan(-1, self.rounds[0].config, "when all is done", tuple(Step(0.0, job) for job in jobs))
        report = Report()
        await Round(warm, report).run()
        self.report.problems += report.problems

    async def _round(self, plan: RoundPlan, before: Holdings) -> None:
        began, round = time.monotonic(), Round(plan, self.report)
        await round.run()
        jobs, mark, shutdown = len(round.lives), round.mark, round.shutdown_seconds
        del round  # and with it every job, result and event
        for problem in await left_behind(before, mark):
            self.report.problems.append(f"round {plan.number} ({plan.end}): {problem}")
        self.memory.measure()
        self._say(
            f"round {plan.number + 1:3} of {len(self.rounds)}: {jobs:5} jobs, {sum(self.report.faults.values()):6} faults "
            f"so far, {time.monotonic() - began:5.1f} s, shutdown ({plan.end}) {shutdown:4.1f} s, "
            f"{self.memory.resident[-1] >> 20} MiB, {len(self.report.problems)} problems"
        )

    def _check(self) -> None:
        report = self.report
        if report.gap > GAP or report.busy > BUSY:
            report.problems.append(f"the loop stood still for {report.gap:.2f} s, and was busy for {report.busy:.2f} s")
        if report.late > max(3, sum(report.ends.values()) // 100):
            report.problems.append(f"{report.late} jobs ran into their timeout without a reason")
        report.problems += self.memory.problems()

    def summary(self) -> str:
        "The tables, the problems and the command that repeats the run."
        report = self.report
        lines = [f"\n{sum(report.faults.values()):,} faults", ""]
        lines += [f"{count:7,}  {kind}" + self._missed(kind) for kind, count in report.faults.most_common()]
        lines += ["", f"{sum(report.ends.values()):,} jobs", ""]
        lines += [f"{count:7,}  {end}" for end, count in report.ends.most_common()]
        lines += ["", f"{report.late} jobs ran into their timeout without a reason"]
        lines += [f"longest gap of the loop {report.gap:.2f} s, of which busy at most {report.busy:.2f} s"]
        lines += [f"plan {fingerprint(self.rounds)}; to repeat it: {self.command}"]
        lines += ["", *report.problems[:20]]
        if len(report.problems) > 20:
            lines.append(f"and {len(report.problems) - 20} more problems")
        return "\n".join(lines)

    def _missed(self, kind: str) -> str:
        missed = self.report.missed[kind]
        return f" ({missed} found nothing to strike)" if missed else ""
