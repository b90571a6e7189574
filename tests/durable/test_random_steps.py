"""Two apps share a store while random steps of benign users come: each job runs once, ends once, and says the right thing.

`DURABLE_STEPS=2000 DURABLE_SEED=7 pytest tests/durable/test_random_steps.py` is the long form.
"""

import asyncio
import os
import random
from collections import Counter
from functools import partial

import pytest
from durable_lives import PLUGINS, config
from harness import run

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.errors import UnknownJob
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

steps = int(os.environ.get("DURABLE_STEPS", "250"))
seed = int(os.environ.get("DURABLE_SEED", "1"))


class Events:
    def __init__(self):
        self.ends = Counter()

    async def broadcast(self, event_type, data):
        if event_type in ("job:completed", "job:failed", "job:cancelled"):
            self.ends[data["job_id"]] += 1


class Users:
    "What the users of both apps do, and what they were promised."

    def __init__(self, folder, durability):
        self.durability = durability
        self.place, self.trace, self.events = folder / "jobs.db", folder / "trace", Events()
        self.random, self.apps, self.jobs, self.cancelled, self.cut = random.Random(seed), [], {}, set(), set()

    async def open(self):
        app = BaseJobManager(
            "steps", plugins=PLUGINS, worker_config=config(max_workers=1), job_store=SQLiteJobStore(self.place, durability=self.durability),
            event_broadcaster=self.events,
        )  # fmt: skip
        await app.__aenter__()
        return app

    async def known(self, ask):
        "Ask an app for a job, perhaps of the other one, which may not have written it yet."
        while True:
            try:
                return await ask()
            except UnknownJob:
                assert self.durability == "behind"
                await asyncio.sleep(0.005)

    async def submit(self, app, count):
        for _ in range(count):
            name = f"j{len(self.jobs)}"
            self.jobs[name] = ""
            params = {"trace": str(self.trace), "name": name, "a": len(self.jobs), "b": 1}
            options = {}
            if self.random.random() < 0.1:
                options["priority"] = self.random.randint(-2, 2)
            if self.random.random() < 0.05:
                options["delay_seconds"] = 0.01
            if self.random.random() < 0.1:
                options["key"] = name
            job = await app.submit_job("add", params, **options)
            self.jobs[name] = job.id

    async def step(self):
        place = self.random.randrange(2)
        app, what, names = self.apps[place], self.random.random(), list(self.jobs)
        if what < 0.3:
            await self.submit(app, self.random.choice([1, 3, 20]))
        elif what < 0.4:
            await asyncio.gather(*[self.submit(app, 1) for _ in range(60)])
        elif what < 0.6 and names:
            name = self.random.choice(names[-100:])
            if await self.known(lambda: app.cancel_job(self.jobs[name])):
                self.cancelled.add(name)
        elif what < 0.75:
            for job in self.random.sample(app.get_queue(), min(2, len(app.get_queue()))):
                app.set_priority(job, self.random.randint(-2, 2))
        elif what < 0.8 and names:
            name = self.random.choice(names)
            await self.known(lambda: app.wait(self.jobs[name], 120))
        elif what < 0.84:
            drain = self.random.random() < 0.3
            await app.shutdown(drain=drain)
            self.cut.add(place)
            self.apps[place] = await self.open()
        else:
            await asyncio.sleep(self.random.random() * 0.01)

    async def check(self):
        ran = Counter(self.trace.read_text().splitlines())
        for number, (name, job_id) in enumerate(self.jobs.items()):
            job = await self.known(partial(self.apps[number % 2].wait, job_id, 60))
            times, status = ran[f"ran {name}"], job.status.value
            if status == "completed":
                assert (times, job.result, name in self.cancelled) == (1, number + 2, False), (name, times, job)
            else:
                # a shutdown interrupts what runs
                assert status == "cancelled" and (name in self.cancelled or self.cut), (name, times, job)
                assert times <= 1 and (job.attempts or name in self.cancelled), (name, times, job)


async def play(folder, durability):
    users = Users(folder, durability)
    users.apps = [await users.open(), await users.open()]
    try:
        for _ in range(steps):
            await users.step()
        for job_id in users.jobs.values():
            await users.known(partial(users.apps[0].wait, job_id, 120))
        await users.check()
    finally:
        for app in users.apps:
            await app.shutdown()
    assert users.events.ends == Counter(users.jobs.values()), users.events.ends - Counter(users.jobs.values())


@pytest.mark.parametrize("durability", ["committed", "behind"])
def test_random_steps_of_two_apps(tmp_path, durability):
    run(play(tmp_path, durability))
