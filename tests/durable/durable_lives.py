"""An app that is to be killed while it has jobs in every state: `durable_lives.py STORE TRACE`.

It prints what each job is for and its id, and then waits for its end.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.commands.jobs import store_at
from cjm_worker_ext.policies import Retry

PLUGINS = {name: f"durable_plugins:{name}" for name in ("add", "wait", "fail_at_first")}
LOST = Retry(3, on=("lost",), delay_seconds=0)


def config(**options):
    return WorkerConfig(environment={"PYTHONPATH": str(Path(__file__).parent)}, **options)


def lines_of(path):
    return set(Path(path).read_text().splitlines(keepends=True)) if Path(path).exists() else set()


async def main(place, trace):
    manager = BaseJobManager("durable", worker_config=config(max_workers=2), plugins=PLUGINS, job_store=store_at(place))
    async with manager:

        async def submit(name, plugin, params, **options):
            job = await manager.submit_job(plugin, {"trace": trace, "name": name, **params}, **options)
            print(name, job.id, flush=True)
            return job

        once = await submit("once", "add", {"a": 1, "b": 5, "seconds": 60})
        again = await submit("again", "add", {"a": 1, "b": 6, "seconds": 2}, retry=LOST)
        while not {"ran once\n", "ran again\n"} <= lines_of(trace):  # noqa: ASYNC110  - plugins write it
            await asyncio.sleep(0.01)
        assert (once.status, again.status) == ("running", "running")
        await submit("usual", "add", {"a": 1, "b": 2}, metadata={"user": "Ada"})
        await submit("keyed", "add", {"a": 1, "b": 3}, key="report")
        await submit("urgent", "add", {"a": 1, "b": 4}, priority=5)
        await submit("later", "add", {"a": 1, "b": 1}, delay_seconds=1.5, timeout=60)
        await submit("gone", "fail_at_first", {})
        print("ready", flush=True)
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
