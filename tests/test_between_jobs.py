"""What a plugin's own threads say between two jobs costs neither their worker nor a job."""

from __future__ import annotations

import asyncio
import logging

import pytest
from harness import is_alive, run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends import local


class Logs:
    "A thread of it logs all the time, as much as a record may hold."

    def load(self, config):
        import threading

        threading.Thread(target=self.talk, daemon=True).start()

    def execute(self, n):
        return n

    def talk(self):
        import logging

        wide = "\U0001f600" * 20_000  # 200 KB in all: more than the system takes in one piece
        while True:
            record = logging.makeLogRecord({"name": "acme.talks", "levelno": 30, "msg": wide})
            record.exc_text = record.stack_info = wide
            logging.getLogger("acme.talks").handle(record)


class Prints(Logs):
    def talk(self):
        while True:
            print("x" * 60_000)


def plain(folder=None):
    import os
    import threading

    if folder is not None:
        open(os.path.join(folder, "job"), "w").close()
        while not os.path.exists(os.path.join(folder, "written")):
            threading.Event().wait(0.01)
    return "done"


def log_in_two_parts(folder):
    """A thread writes the first part of a record between two jobs, and the rest when it may.

    The next record begins at once, and ends while the next job runs.
    """
    import gc
    import os
    import threading

    from cjm_worker_ext.backends.framing import LOG, encode
    from cjm_worker_ext.backends.worker_main import Channel

    (frame,) = encode(LOG, 0, b"x" * 100)
    gc.unfreeze()  # what a worker made while it booted is among the objects then
    fd = next(o for o in gc.get_objects() if isinstance(o, Channel)).fd

    def write():
        for name, part in (("begin", frame[:50]), ("end", frame[50:] + frame[:50]), ("job", frame[50:])):
            while not os.path.exists(os.path.join(folder, name)):
                threading.Event().wait(0.01)
            os.write(fd, part)
        open(os.path.join(folder, "written"), "w").close()

    threading.Thread(target=write, daemon=True).start()


def make() -> BaseJobManager:
    plugins = {"Logs": Logs, "Prints": Prints, "log_in_two_parts": log_in_two_parts, "plain": plain}
    return BaseJobManager("between", "tests", plugins=plugins, worker_config=WorkerConfig(max_workers=1))


class Heard(logging.Handler):
    "Lets a test wait for what a worker says."

    def __init__(self):
        super().__init__()
        self.event = asyncio.Event()

    def emit(self, record):
        self.event.set()

    async def next(self):
        self.event.clear()
        await self.event.wait()


@pytest.mark.parametrize(("plugin", "name"), [("Logs", "acme.talks"), ("Prints", "cjm_worker_ext.engine.engine")])
def test_a_worker_that_is_in_the_middle_of_a_message_keeps_its_jobs(plugin, name, monkeypatch):
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "propagate", False)  # it is a lot to show

    async def scene():
        heard, level = Heard(), logger.level
        logger.addHandler(heard)
        logger.setLevel(logging.INFO)
        try:
            async with make() as manager:
                jobs = []
                for n in range(60):
                    jobs.append(await manager.wait((await manager.start_job(plugin, n=n)).id, 120))
                    await heard.next()  # the worker has nothing to do, and its next message is on its way
                assert [job.result for job in jobs] == list(range(60))
                assert len({job.worker_pid for job in jobs}) == 1
        finally:
            logger.removeHandler(heard)
            logger.setLevel(level)

    run(scene())


def test_an_order_waits_for_the_end_of_a_message(tmp_path):
    async def scene():
        async with make() as manager:
            await manager.wait((await manager.start_job("plain")).id, 120)  # it is loaded, which is a message too
            first = await manager.wait((await manager.start_job("log_in_two_parts", folder=str(tmp_path))).id, 30)
            (tmp_path / "begin").touch()
            (worker,) = [worker for backend in local._backends for worker in backend.workers.values()]
            await until(lambda: worker.frames.reader.part)
            cancelled, second = [await manager.start_job("plain", folder=str(tmp_path)) for _ in range(2)]
            await until(lambda: cancelled.status == "running")
            await manager.cancel_job(cancelled.id)
            assert (await manager.wait(cancelled.id, 120)).status == "cancelled" and is_alive(first.worker_pid)
            (tmp_path / "end").touch()
            await manager.wait(second.id, 120)
            assert (second.result, second.worker_pid, second.attempts) == ("done", first.worker_pid, 1)

    run(scene())


def test_a_message_that_never_ends_costs_its_worker_and_no_job(tmp_path, monkeypatch):
    async def scene():
        async with make() as manager:
            first = await manager.wait((await manager.start_job("log_in_two_parts", folder=str(tmp_path))).id, 30)
            (tmp_path / "begin").touch()
            (worker,) = [worker for backend in local._backends for worker in backend.workers.values()]
            await until(lambda: worker.frames.reader.part)
            monkeypatch.setattr(local.LocalWorker, "LOOK_SECONDS", 0.2)  # not before: a start takes longer than this
            second = await manager.wait((await manager.start_job("plain")).id, 120)
            assert (second.result, second.attempts) == ("done", 1) and second.worker_pid != first.worker_pid

    run(scene())
