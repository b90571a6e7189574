"""A process of an app, which does what it is told: `control_app.py STORE CHANNEL WORKERS`, one command on each line.

Each command is JSON with a number, and so is each answer. `CHANNEL` is `redis URL`, `sqlite PATH` or `postgres DSN`.
"""

import asyncio
import json
import sys
from contextlib import aclosing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from durable_lives import config

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.commands.jobs import store_at
from cjm_worker_ext.policies import Retry

PLUGINS = {name: f"durable_plugins:{name}" for name in ("add", "tell")}


def make_channel(text):
    kind, _, address = text.partition(" ")
    if kind == "redis":
        from cjm_worker_ext.integrations.channel_redis import RedisChannel

        return RedisChannel(address, "control")
    if kind == "sqlite":
        from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel

        return SQLiteChannel(address)
    from cjm_worker_ext.integrations.channel_postgres import PostgresChannel

    return PostgresChannel(address, "control")


def make_manager(store, channel, workers, **options):
    return BaseJobManager(
        "durable",
        worker_config=config(max_workers=workers, **options),
        plugins=PLUGINS,
        job_store=store_at(store),
        channel=make_channel(channel),
    )


class Commands:
    def __init__(self, manager):
        self.manager = manager

    async def submit(self, plugin, params, retry=False):
        policy = Retry(3, on=("lost",), delay_seconds=0) if retry else None
        return (await self.manager.submit_job(plugin, params, retry=policy)).id

    async def stream(self, job, start=0, most=None):
        "What came, and what ended it."
        found = []
        try:
            async with aclosing(self.manager.stream(job, start)) as chunks:
                async for chunk in chunks:
                    found.append(len(chunk) if isinstance(chunk, bytes) else chunk)
                    print(json.dumps({"chunk": str(chunk)[:20], "job": job}), flush=True)
                    if len(found) == most:
                        break
        except Exception as e:  # noqa: BLE001  - shown by the test
            return [found, type(e).__name__]
        return [found, None]

    async def wait(self, job):
        job = await self.manager.wait(job, 120)
        return [str(job.status), job.error_type]

    async def cancel(self, job):
        return await self.manager.cancel_job(job)

    async def sent(self):
        return self.manager._engine.durable.remote.sent


async def main(store, channel, workers):
    loop, running = asyncio.get_running_loop(), set()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with make_manager(store, channel, int(workers)) as manager:
        commands = Commands(manager)

        async def do(number, name, *arguments, **more):
            print(
                json.dumps({"answer": number, "value": await getattr(commands, name)(*arguments, **more)}), flush=True
            )

        print(json.dumps({"ready": True}), flush=True)
        while line := await reader.readline():
            command = json.loads(line)
            task = loop.create_task(do(command["number"], *command["do"], **command["more"]))
            running.add(task)
            task.add_done_callback(running.discard)
        for task in running:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
