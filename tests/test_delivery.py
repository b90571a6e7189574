"""Queues towards integrations: what waits in them, and what they refuse."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from harness import run, targets, until

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.events.delivery import EventQueue
from cjm_worker_ext.events.failure_log import FailureLog


class Hanging:
    def __init__(self):
        self.seen, self.go_on = [], asyncio.Event()

    async def broadcast(self, event_type, data):
        await self.go_on.wait()
        self.seen.append((event_type, data))


class Large:
    def described(self):
        return {"job_id": "j1"}


def test_events_that_wait_for_a_broadcaster_that_hangs_hold_no_job():
    async def scene():
        broadcaster = Hanging()
        queue = EventQueue("text", broadcaster, FailureLog())
        for _ in range(queue.LONG + 1):
            queue.event("job:queued")
        job = Large()
        queue.later("job:completed", job.described)
        gone = weakref.ref(job)
        del job
        gc.collect()
        assert gone() is None, "its parameters and its result would wait with it"
        broadcaster.go_on.set()
        await until(lambda: len(broadcaster.seen) == queue.LONG + 2)
        assert broadcaster.seen[-1][0] == "job:completed" and broadcaster.seen[-1][1]["job_id"] == "j1"

    run(scene())


@pytest.mark.parametrize("event_type", ["job:\nreviewed", "job:\rreviewed", "job:reviewed\r\n"])
def test_an_event_of_the_app_is_one_line(event_type):
    async def scene():
        async with BaseJobManager("text", plugins=targets("echo")) as manager:
            with pytest.raises(ValueError, match="must be one line"):
                await manager.broadcast_event(event_type, {})

    run(scene())
