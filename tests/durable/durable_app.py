"""An app with a job store that is killed at any point: `durable_app.py STORE TRACE SEED DURABILITY`.

It submits jobs of every kind, says each id once it is acknowledged, and again once its cancel is, and appends each terminal
event to the trace. STORE is a path, or `postgresql://…`. With the seed 0 it submits nothing, and ends when no job is left
that waits or runs.
"""

import asyncio
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from durable_plugins import note

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.commands.jobs import store_at
from cjm_worker_ext.extensions.stores import JobFilter
from cjm_worker_ext.policies import Retry

LOST = Retry(attempts=5, on=("lost", "crashed", "transient"), delay_seconds=0.01)


class Trace:
    "A broadcaster that appends terminal events to a file."

    def __init__(self, path):
        self.path = path

    async def broadcast(self, event_type, data):
        if event_type in ("job:completed", "job:failed", "job:cancelled"):
            again = "repeated" if data.get("repeated") else "first"
            note(self.path, "event", data["job_id"], event_type.partition(":")[2], again)


def kinds(trace, name, chance):
    "One of each kind of job: plugin, params, options, whether it is to be cancelled, and what it returns if it completes."
    number = chance.randrange(1000)
    few = {"seconds": chance.random() * 0.05}
    yield "add", {"a": number, "b": 1, **few}, {}, False, number + 1
    yield "add", {"a": number, "b": 2, **few}, {"retry": LOST}, False, number + 2
    yield "add", {"a": number, "b": 3}, {"delay_seconds": chance.random() * 0.5}, False, number + 3
    yield "add", {"a": number, "b": 4}, {"priority": chance.randrange(-3, 4), "key": f"k{name}"}, False, number + 4
    yield "stream", {"count": 5}, {}, False, [0, 1, 2, 3, 4]
    yield "wait", {"seconds": 0.02}, {}, False, name
    yield "wait", {"seconds": 5}, {}, True, name  # it completes if the app is killed before it cancels it
    yield "fail", {}, {}, False, None
    yield "fail_at_first", {}, {"retry": LOST}, False, None
    yield "crash", {}, {}, False, None
    yield "large", {"size": 1_500_000}, {}, False, "x" * 1_500_000


async def cancel(manager, job):
    if await manager.cancel_job(job):
        print("cancelled", job.id, flush=True)


async def main(place, trace, seed, durability):
    chance, store = random.Random(seed), store_at(place)
    store.durability = durability
    plugins = {name: f"durable_plugins:{name}" for name in "add stream wait fail fail_at_first crash large".split()}
    config = WorkerConfig(max_workers=3, hold_after_crashes=0, environment={"PYTHONPATH": str(Path(__file__).parent)})
    async with BaseJobManager(
        "durable", worker_config=config, plugins=plugins, event_broadcaster=Trace(trace), job_store=store
    ) as manager:
        print("ready", flush=True)
        number = 0
        while not seed:
            if not store_at(place).list_jobs(JobFilter(statuses=("pending", "running"))).jobs:
                return
            await asyncio.sleep(0.05)
        while True:
            number += 1
            name = f"{seed}-{number}"
            plugin, params, options, cancelled, result = chance.choice([*kinds(trace, name, chance)])
            job = await manager.submit_job(plugin, {"trace": trace, "name": name, **params}, **options)
            retried = "retry" in options
            print("job", job.id, name, plugin, int(retried), int(cancelled), repr(result)[:100], flush=True)
            if cancelled:
                await asyncio.sleep(chance.random() * 0.05)
                task = asyncio.create_task(cancel(manager, job))
                if chance.random() < 0.5:
                    await task
            if number % 10 == 0:
                await manager.wait(job.id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], int(sys.argv[3]), sys.argv[4]))
