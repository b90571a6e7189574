"""What a run does, decided by its seed alone: nothing here looks at a clock, a process or the result of a step.

A plan is a list of rounds. A round has a manager of its own with drawn settings, steps with pauses between them, and a
way to end. A step begins a job or strikes the manager; each kind of fault comes up about as often as its weight says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

JOB_SECONDS = 4.0  # Timeout of a job that should not need it: a stopped worker holds its job as long
READ_SECONDS = 10.0  # The same for a job with readers, which must never hold it as long
HANG_SECONDS = 0.25  # Timeout of a job that hangs
ROUND_SECONDS = 6.0


@dataclass(frozen=True)
class ReaderPlan:
    "Somebody who reads the chunks of a job."

    kind: str  # `fast`, `slow`, `leaves`, `holds`, `never` or `late`
    after: int = 0  # Chunks that are read before it leaves or holds
    seconds: float = 0.0  # How long it holds, or waits between some chunks


@dataclass(frozen=True)
class JobPlan:
    "One job, and what its caller does meanwhile."

    work: str  # Plugin id
    params: dict[str, Any] = field(default_factory=dict)
    timeout: float = JOB_SECONDS
    cancel_after: float | None = None  # Seconds after its submission, or its first chunk if it has readers; None: never
    holds_loop: float = 0.0  # Seconds for which the caller holds the event loop before it cancels, as bad apps do
    waits: float | None = (
        None  # Seconds that a second caller waits for it before it gives up; None: there is no second one
    )
    readers: tuple[ReaderPlan, ...] = ()
    trip: str | None = None  # Hook that raises for this job
    fault: str | None = None  # Kind of fault, None for a plain job
    priority: int = 0
    delay: float = 0.0  # Seconds until it may go to a worker


@dataclass(frozen=True)
class StrikePlan:
    "A fault that comes from outside of any job."

    fault: str
    pick: int  # Which worker, modulo how many there are at that moment
    seconds: float  # How long it lasts


@dataclass(frozen=True)
class Step:
    pause: float  # Seconds before it
    what: JobPlan | StrikePlan


@dataclass(frozen=True)
class RoundPlan:
    number: int
    config: dict[str, Any]  # For `WorkerConfig`
    end: str  # One of `ENDS`
    steps: tuple[Step, ...]
    recycle: dict[str, Any] = field(default_factory=dict)  # For `Recycle`


def small(dice: Random) -> dict[str, Any]:
    return {"work": "mix", "params": {"seed": dice.randrange(1 << 30)}}


def stream(dice: Random) -> dict[str, Any]:
    params = {"seed": dice.randrange(1000), "count": dice.choice([1, 20, 200, 3000]), "pad": dice.choice([0, 10, 500])}
    if params["count"] <= 200:
        params["pause"] = dice.choice([0.0, 0.001, 0.004])
    return {"work": "verses", "params": params}


def together(dice: Random) -> dict[str, Any]:
    return {"work": dice.choice(["Together", "Batched"]), "params": {"seed": dice.randrange(1 << 30)}}


def async_stream(dice: Random) -> dict[str, Any]:
    return stream(dice) | {"work": "async_verses"}


def large(dice: Random) -> dict[str, Any]:
    if dice.randrange(2):
        return {
            "work": "block",
            "params": {"seed": dice.randrange(1000), "size": dice.choice([100_000, 1 << 20, 3 << 20])},
        }
    return {"work": "array", "params": {"seed": dice.randrange(1000), "size": dice.choice([1000, 200_000, 500_000])}}


def huge(dice: Random) -> dict[str, Any]:
    return {"work": "block", "params": {"seed": dice.randrange(1000), "size": dice.randrange(8 << 20, 24 << 20)}}


def bad(work: str, **params: Any) -> Callable[[Random], dict[str, Any]]:
    return lambda dice: {"work": work, "params": params}


def hanging(work: str, **params: Any) -> Callable[[Random], dict[str, Any]]:
    return lambda dice: {"work": work, "params": params, "timeout": HANG_SECONDS}


def odd_together(
    how: str, works: tuple[str, ...] = ("Together", "Batched"), **more: Any
) -> Callable[[Random], dict[str, Any]]:
    return lambda dice: {"work": dice.choice(works), "params": {"seed": dice.randrange(1000), "how": how}} | more


def plain(dice: Random) -> dict[str, Any]:
    "A job of any harmless kind."
    kinds = [small] * 10 + [together] * 8 + [stream] * 4 + [async_stream] * 2 + [large] * 2
    other = [
        {"work": "Configured"},
        {"work": "SlowUnload", "params": {"seed": dice.randrange(1000)}},
        {"work": "progress_then", "params": {"n": dice.randrange(1, 30)}},
    ]
    job = dice.choice([*kinds, *[None] * 4])
    found = job(dice) if job else dice.choice(other)
    if job in (stream, async_stream) and dice.randrange(2):
        found = found | {"timeout": READ_SECONDS, "readers": (ReaderPlan("fast"),)}
    return found


def cancelled(dice: Random) -> dict[str, Any]:
    after = dice.choice([0.0, 0.001, 0.002, 0.004, 0.008, 0.05, 0.3])
    return plain(dice) | {"cancel_after": after}


def stream_cancelled(dice: Random) -> dict[str, Any]:
    params = {"seed": dice.randrange(1000), "count": 2000}
    return {
        "work": dice.choice(["verses", "verses", "async_verses"]),
        "params": params,
        "timeout": READ_SECONDS,
        "cancel_after": dice.random() * 0.004,
        "holds_loop": dice.choice([0.0, 0.01, 0.03]),
        "readers": (ReaderPlan("fast"),),
    }


def tight(dice: Random) -> dict[str, Any]:
    return plain(dice) | {"timeout": dice.choice([0.0, 0.001, 0.005, 0.02, 0.1])}


def impatient(dice: Random) -> dict[str, Any]:
    return plain(dice) | {"waits": dice.choice([0.0, 0.001, 0.01])}


def tripping(hook: str) -> Callable[[Random], dict[str, Any]]:
    return lambda dice: small(dice) | {"trip": hook}


def read_by(kind: str) -> Callable[[Random], dict[str, Any]]:
    def make(dice: Random) -> dict[str, Any]:
        reader = ReaderPlan(kind, dice.choice([0, 1, 10, 100]), dice.choice([0.01, 0.1, 0.5]))
        seed = dice.randrange(1000)
        long = {"work": "verses", "params": {"seed": seed, "count": 3000, "pad": 10}}  # more than is buffered
        readers = (reader, ReaderPlan("fast")) if dice.randrange(2) else (reader,)
        return dice.choice([stream(dice), async_stream(dice), long]) | {"timeout": READ_SECONDS, "readers": readers}

    return make


# Kinds of faults that are jobs, with their weights
JOB_FAULTS: dict[str, tuple[int, Callable[[Random], dict[str, Any]]]] = {
    "plugin kills its worker": (2, bad("kill_self")),
    "plugin exits": (2, bad("exit_now")),
    "plugin crashes natively": (1, bad("segfault")),
    "plugin prints and crashes": (1, bad("print_and_crash")),
    "plugin raises": (3, bad("raise_value_error")),
    "plugin raises what cannot be pickled": (1, bad("raise_not_picklable")),
    "plugin raises what cannot be printed": (1, bad("raise_speechless")),
    "plugin says sys.exit": (1, bad("system_exit")),
    "plugin raises KeyboardInterrupt": (1, bad("keyboard_interrupt")),
    "plugin returns what cannot be sent": (1, bad("unpicklable_result")),
    "plugin sleeps for ever": (2, hanging("sleep", seconds=3600.0)),
    "plugin spins for ever": (1, hanging("spin")),
    "plugin holds the interpreter lock": (1, hanging("hold_lock")),
    "plugin ignores signals": (1, hanging("ignore_sigterm")),
    "plugin finishes although interrupted": (1, hanging("finish_although_cancelled", started="/dev/null")),
    "plugin finishes although cancelled": (
        1,
        lambda dice: bad("finish_although_cancelled", started="/dev/null")(dice) | {"cancel_after": 0.3},
    ),
    "plugin leaves children": (2, bad("leave_children", count=2)),
    "plugin hangs with a child": (1, hanging("hang_with_child")),
    "plugin prints a lot": (1, bad("print_without_end", megabytes=2)),
    "plugin returns a lot": (1, huge),
    "plugin does not load": (1, bad("LoadFails")),
    "plugin crashes at load": (1, bad("CrashingLoad")),
    "stream raises": (2, lambda dice: bad("count_then_fail", n=dice.choice([1, 50, 500]))(dice)),
    "stream crashes": (2, bad("count_then_crash", n=50)),
    "cancel": (8, cancelled),
    "cancel of a stream": (20, stream_cancelled),
    "tight timeout": (5, tight),
    "caller gives up waiting": (3, impatient),
    "prepare_execute_request raises": (1, tripping("prepare")),
    "extract_job_result raises": (1, tripping("extract")),
    "on_job_ended raises": (1, tripping("ended")),
    "one of several raises": (2, odd_together("fail")),
    "one of several crashes": (3, odd_together("crash")),
    "one of several sleeps for ever": (2, odd_together("sleep", timeout=HANG_SECONDS)),
    "one of several hears nothing": (2, odd_together("hear_nothing", timeout=HANG_SECONDS)),
    "one of several is cancelled": (4, lambda dice: together(dice) | {"cancel_after": dice.random() * 0.02}),
    "async job stops its loop": (1, odd_together("stop_the_loop", ("Together",))),
    "async job takes signals": (1, odd_together("take_signals", ("Together",))),
    "async job leaves a task": (1, odd_together("leave_a_task", ("Together",))),
    "parameters that cannot be sent": (1, lambda dice: {"work": "mix", "trip": "lock"}),
    "reader is slow": (2, read_by("slow")),
    "reader leaves": (3, read_by("leaves")),
    "reader holds": (2, read_by("holds")),
    "reader never reads": (2, read_by("never")),
    "reader comes late": (1, read_by("late")),
}
# Kinds of faults that come from outside, with their weights
STRIKES: dict[str, int] = {
    "SIGKILL": 8, "SIGSTOP": 2, "SIGSTOP and SIGCONT": 5, "reload": 3, "load": 1, "unload": 2, "configuration changes": 4,
    "broadcaster raises": 2, "broadcaster sleeps": 2, "broadcaster hangs": 2,
    "resource manager raises": 2, "resource manager sleeps": 2, "resource manager hangs": 2,
    "registry raises": 2, "registry sleeps": 2, "registry hangs": 1,
    "page leaves": 2, "page stops reading": 2, "app forks": 1,
}  # fmt: skip
# How a round ends
ENDS = ("when all is done", "in the middle", "drain", "at once", "twice", "shutdown is cancelled", "integrations hang")


class Planner:
    "Draws a plan; equal arguments give equal plans."

    def __init__(
        self,
        seed: int,
        seconds: float,  # About how long the run takes
        faults: int,  # How many there are in all
    ) -> None:
        self.seed, self.seconds, self.faults = seed, seconds, faults

    def plan(self) -> list[RoundPlan]:
        dice = Random(f"{self.seed}/{self.seconds:g}/{self.faults}")
        rounds = max(2, round(self.seconds / ROUND_SECONDS))
        deck = self._deck(dice)
        ends = [
            ENDS[0],
            *dice.sample(ENDS, len(ENDS)),
        ] * rounds  # each run has a round in which every job ends by itself
        shares = [deck[n * len(deck) // rounds : (n + 1) * len(deck) // rounds] for n in range(rounds)]
        return [self._round(n, shares[n], ends[n], Random(f"{self.seed}/{n}")) for n in range(rounds)]

    def _deck(self, dice: Random) -> list[str]:
        "The faults of the whole run, each kind as often as its weight says, and then shuffled: none is left out by chance."
        weights = {kind: weight for kind, (weight, _) in JOB_FAULTS.items()} | STRIKES
        cards = [kind for kind, weight in weights.items() for _ in range(weight)]
        deck: list[str] = []
        while len(deck) < self.faults:
            dice.shuffle(cards)
            deck += cards
        return deck[: self.faults]

    def _round(self, number: int, faults: list[str], end: str, dice: Random) -> RoundPlan:
        what: list[JobPlan | StrikePlan] = [self._fault(kind, dice) for kind in faults]
        what += [JobPlan(**plain(dice) | self._order(dice)) for _ in range(2 * len(faults))]
        dice.shuffle(what)
        seconds = 0.8 * self.seconds / max(2, round(self.seconds / ROUND_SECONDS))  # the rest is for the end
        pauses = [dice.expovariate(1.0) for _ in what]
        scale = seconds / (sum(pauses) or 1.0)
        steps = tuple(Step(round(pause * scale, 6), step) for pause, step in zip(pauses, what, strict=True))
        return RoundPlan(number, self._config(dice), end, steps, self._recycle(dice))

    def _fault(self, kind: str, dice: Random) -> JobPlan | StrikePlan:
        if kind in STRIKES:
            return StrikePlan(kind, dice.randrange(1000), dice.choice([0.02, 0.1, 0.5]))
        return JobPlan(**JOB_FAULTS[kind][1](dice), fault=kind)

    def _order(self, dice: Random) -> dict[str, Any]:
        return {"priority": dice.choice([0, 0, 0, 1, -1]), "delay": dice.choice([0.0] * 6 + [0.01, 0.3])}

    def _recycle(self, dice: Random) -> dict[str, Any]:
        return dice.choice([{}, {}, {"max_jobs": 7}, {"idle_seconds": 0.1}, {"max_age_seconds": 0.5}])

    def _config(self, dice: Random) -> dict[str, Any]:
        return {
            "max_workers": dice.choice([1, 2, 2, 3, 3, 4]),
            "standby_workers": dice.choice([0, 0, 1]),
            "restart_policy": dice.choice(["always", "backoff"]),
            "restart_backoff_seconds": 0.05,
            "restart_backoff_max_seconds": 0.2,
            "max_restart_attempts": 1000,  # strikes on starting workers are no reason to give up
            "load_timeout_seconds": 5.0,
            "unload_timeout_seconds": 2.0,
            "start_timeout_seconds": 10.0,
            "cancel_grace_seconds": dice.choice([0.05, 0.3]),
            "shutdown_timeout_seconds": 4.0,
            "one_plugin_per_worker": dice.choice([False, False, False, True]),
            "max_concurrency": dice.choice([None, None, 2]),
            "stall_seconds": dice.choice([None, 0.2]),
            "max_pending_jobs": dice.choice([None, None, 30]),
            "max_finished_jobs": dice.choice([20, 1000]),
            "max_buffered_chunks": dice.choice([100, 100, 1000, 10_000]),
            "output_tail_lines": 20,
        }


def needs_no_timeout(plan: JobPlan) -> bool:
    "Whether a job ends by itself long before its timeout."
    return plan.timeout >= JOB_SECONDS


def fingerprint(plan: list[RoundPlan]) -> str:
    "Twelve letters that two plans share only if they are equal."
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:12]
