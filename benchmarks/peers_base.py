"""What a peer has to be able to do, seen from an asyncio app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any


class Peer:
    "One way to run functions of `benchmarks.tasks` in other processes."

    asynchronous = True  # whether the event loop goes on meanwhile
    can_cancel: tuple[str, ...] = ()  # `spin` and `stuck`, as far as a running job can be ended
    modules: tuple[str, ...] = ()  # what an app that uses it has imported before its first job
    grace = 0.0  # seconds given to a stuck job before it is killed

    async def open(self, workers: int = 1, standby: int = 0) -> None:
        raise NotImplementedError

    def submit(self, task: str, *args: Any) -> Awaitable[Any]:
        "Start a job at once; what is returned is awaited once for its result."
        raise NotImplementedError

    async def call(self, task: str, *args: Any) -> Any:
        return await self.submit(task, *args)

    async def many(self, task: str, count: int) -> None:
        "Run `count` jobs, all of them handed over at once."
        await asyncio.gather(*(self.submit(task) for _ in range(count)))

    def stream(self, count: int) -> AsyncIterator[Any]:
        "The chunks of one job as they come."
        raise NotImplementedError

    async def cancel(self, job: Any) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        "May be cut short: the process ends afterwards, and what it has started is killed."
