"""Apps are killed again and again at random points; then every acknowledged job is there, and ran and ended once.

`DURABLE_KILLS=200 DURABLE_SEED=2 pytest tests/durable/test_kills.py` is the long form. What a seed does differs from run to
run, since processes do.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

from cjm_worker_ext.commands.jobs import store_at
from cjm_worker_ext.extensions.stores import JobFilter

app = str(Path(__file__).with_name("durable_app.py"))
kills, seed = int(os.environ.get("DURABLE_KILLS", "6")), int(os.environ.get("DURABLE_SEED", "1"))


class App:
    "One life of the app."

    def __init__(self, place, trace, seed, durability):
        command = [sys.executable, app, place, str(trace), str(seed), durability]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, self.errors = [], ""
        self.threads = [threading.Thread(target=self.read), threading.Thread(target=self.read_errors)]
        for thread in self.threads:
            thread.start()

    def read(self):
        for line in self.process.stdout:
            if line.endswith("\n"):  # else it was killed in the middle of it
                self.lines.append(line.split())

    def read_errors(self):
        self.errors = self.process.stderr.read()

    def end(self, kill=True):
        if kill:
            self.process.kill()
        self.process.wait(120)
        for thread in self.threads:
            thread.join(120)
        return [line for line in self.lines if line[0] in ("job", "cancelled")]


def live(place, trace, seed, durability, seconds, from_start):
    "One life of the app, that long since its start or since it is ready; what it has acknowledged."
    one = App(place, trace, seed, durability)
    try:
        until(one, lambda: from_start or one.lines, 120)
        deadline = time.monotonic() + seconds  # the kill is to come at a random time, not at an event
        until(one, lambda: time.monotonic() > deadline, 120)
    finally:
        acknowledged = one.end()
    return acknowledged


def until(one, condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert one.process.poll() is None, one.errors
        assert time.monotonic() < deadline, "the app has not said that it is ready"
        time.sleep(0.01)


def stored(place):
    store, after, jobs = store_at(place), None, {}
    while True:
        page = store.list_jobs(JobFilter(), after, 500)
        jobs |= {job.id: job for job in store.find([job.id for job in page.jobs])}
        if (after := page.after) is None:
            return jobs


def traced(trace):
    "How often each job ran, and what was told of it."
    ran, events = Counter(), defaultdict(list)
    for words in (line.split() for line in trace.read_text().splitlines()):
        if words[0] == "ran":
            ran[words[1]] += 1
        else:
            events[words[1]].append(tuple(words[2:]))
    return ran, events


def check(place, trace, acknowledged):
    "What must hold after all lives."
    jobs, (ran, events) = stored(place), traced(trace)
    cancels = {line[1] for line in acknowledged if line[0] == "cancelled"}
    acknowledged = [line for line in acknowledged if line[0] == "job"]
    missing = [line for line in acknowledged if line[1] not in jobs]
    assert not missing, f"{len(missing)} acknowledged jobs are not in the store: {missing[:3]}"
    for job in jobs.values():
        name = json.loads(job.params)["name"]
        what = f"job {job.id} ({job.plugin_id}, {name}): {job.status}, {job.error_type}: {job.error}"
        assert job.is_final, what
        assert ran[name] <= (5 if job.retry else 1), f"{what}; it ran {ran[name]} times"
        told = events[job.id]
        assert told and {status for status, _ in told} == {job.status}, f"{what}; told as {told}"
        assert told.count((job.status, "first")) <= 1, f"{what}; told as {told}"
        if job.status == "completed":
            assert ran[name] >= 1, what
    check_ends(jobs, acknowledged, cancels)
    return Counter((job.status, job.error_type) for job in jobs.values())


def check_ends(jobs, acknowledged, cancels=()):
    for _, job_id, _, plugin, _, cancelled, *result in acknowledged:
        job = jobs[job_id]
        what = f"job {job_id} ({plugin}): {job.status}, {job.error_type}: {job.error}"
        if job.status == "completed" and plugin not in ("fail_at_first",):
            assert repr(json.loads(job.result))[:100] == " ".join(result), what
        if job.status == "failed" and plugin not in ("fail", "crash", "fail_at_first"):
            assert job.error_type == "JobLost", what
        assert job.status != "cancelled" or cancelled == "1", what
        assert job_id not in cancels or job.status == "cancelled", f"{what}, although its cancel was acknowledged"


def check_behind(place, trace, lives):
    "What must hold with `behind`: of each life the last moments may be gone, and nothing before them."
    jobs, (ran, events) = stored(place), traced(trace)
    for acknowledged in lives:
        mine = [line for line in acknowledged if line[0] == "job"]
        there = [line[1] in jobs for line in mine]
        assert there == sorted(there, reverse=True), f"a later job is there, and an earlier one is not: {mine}"
        check_ends(jobs, [line for line in mine if line[1] in jobs])
    for job in jobs.values():
        name = json.loads(job.params)["name"]
        what = f"job {job.id} ({job.plugin_id}, {name}): {job.status}, {job.error_type}: {job.error}"
        assert job.is_final, what
        assert job.status in {status for status, _ in events[job.id]}, f"{what}; told as {events[job.id]}"
        assert job.status != "completed" or ran[name] >= 1, what
    return Counter((job.status, job.error_type) for job in jobs.values())


def settle(place, trace, durability="committed"):
    last = App(place, trace, 0, durability)
    last.end(kill=False)
    assert last.process.returncode == 0, last.errors


def run(place, trace, kills, seed, durability="committed"):
    chance, lives = random.Random(seed), []
    for number in range(1, kills + 1):
        short = number % 7 in (3, 4)  # twice during the recovery
        seconds = chance.uniform(0.2, 0.7) if short else chance.uniform(0.2, 1.5)
        lives.append(live(place, trace, seed * 1000 + number, durability, seconds, short))
    settle(place, trace, durability)
    if durability == "behind":
        return check_behind(place, trace, lives)
    return check(place, trace, sum(lives, []))


def run_two(place, trace, kills, seed):
    """Two apps have the store; one after the other is killed, now and then both, and each recovers what the other left.

    Now and then one stands still meanwhile.
    """
    chance, acknowledged = random.Random(seed), []
    apps = [App(place, trace, seed * 1000 + n, "committed") for n in range(2)]
    try:
        until(apps[0], lambda: apps[0].lines, 60)
        for number in range(2, kills + 2):
            deadline = time.monotonic() + chance.uniform(0.1, 1.0)
            until(apps[0], lambda deadline=deadline: time.monotonic() > deadline, 60)
            both, first = number % 5 == 0, chance.randrange(2)
            stopped = None if both or number % 3 else apps[1 - first].process.pid
            if stopped is not None:
                os.kill(stopped, signal.SIGSTOP)
            for which in (first, 1 - first)[: 1 + both]:
                acknowledged += apps[which].end()
                apps[which] = App(place, trace, seed * 1000 + number * 2 + which, "committed")
            if stopped is not None:
                deadline = time.monotonic() + chance.uniform(0.1, 2.0)
                until(apps[first], lambda deadline=deadline: time.monotonic() > deadline, 60)
                os.kill(stopped, signal.SIGCONT)
    finally:
        for one in apps:
            acknowledged += one.end()
    settle(place, trace)
    return check(place, trace, acknowledged)


def test_nothing_is_lost_or_done_twice(place, tmp_path):
    found = run(place, tmp_path / "trace", kills, seed)
    assert found["completed", None] > kills, found
    assert kills < 20 or found["failed", "JobLost"], found


def test_nothing_is_lost_or_done_twice_by_two_apps(place, tmp_path):
    found = run_two(place, tmp_path / "trace", kills, seed)
    assert found["completed", None] > 0, found


def test_what_is_written_behind_loses_the_last_moments_only(place, tmp_path):
    found = run(place, tmp_path / "trace", kills, seed, "behind")
    assert found["completed", None] > kills, found
