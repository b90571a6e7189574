"""Rules of the engine that real processes show by chance only: here a backend does nothing by itself, and the test speaks for it."""

from __future__ import annotations

import asyncio
import logging

from harness import run

from cjm_worker_ext.backends.base import ExitReason, Interrupted, Lost, Place, PluginEntry, Returned, WorkerExit
from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.engine.chunk_log import ChunkLog
from cjm_worker_ext.engine.engine import Engine
from cjm_worker_ext.engine.job_book import JobRecord
from cjm_worker_ext.engine.plugin_resolver import PluginResolver
from cjm_worker_ext.engine.scheduler import Task
from cjm_worker_ext.errors import RefusedType
from cjm_worker_ext.events.delivery import EventQueue, ResourceQueue
from cjm_worker_ext.events.failure_log import FailureLog
from cjm_worker_ext.events.job_events import JobEvents
from cjm_worker_ext.jobs import BaseJob, approximate_bytes

ENTRY = PluginEntry("p", "p", None, {}, 1)


class Backend:
    "Starts workers, and notes all other orders."

    def __init__(self, host):
        self.host, self.calls = host, []

    def start(self, worker):
        self.host.on_started(worker, Place(1000 + worker, "2026-01-31T12:00:00+00:00"))
        self.host.on_ready(worker)

    def execute(self, worker, order):
        self.calls.append(("execute", worker))
        return True

    def interrupt(self, worker, task_number):
        self.calls.append(("interrupt", worker))

    def pause(self, worker, task_number, paused):
        self.calls.append(("pause" if paused else "resume", worker))

    def kill(self, worker):
        self.calls.append(("kill", worker))
        end = WorkerExit(ExitReason.CRASHED, 1000 + worker, -9)
        asyncio.get_running_loop().call_soon(self.host.on_exit, worker, end)

    def stop(self, worker): ...
    def prepare(self, plugin): ...
    def forget(self, worker): ...
    def abandon(self): ...
    async def close(self): ...


class Hooks:
    def prepare_execute_request(self, job):
        return job.params

    def extract_job_result(self, job, raw):
        return len(raw) if isinstance(raw, bytes) else raw

    def on_job_ended(self, job): ...
    def plugin_resource_identifier(self, config): ...


def make_engine(**config) -> Engine:
    failures = FailureLog()
    queues = EventQueue("rules", None, failures), ResourceQueue(None, failures)
    job_events = JobEvents("rules", *queues, lambda config: None, failures)
    return Engine(Hooks(), WorkerConfig(max_workers=1, **config), job_events, failures, Backend)


def submit(engine: Engine) -> JobRecord:
    record = JobRecord(BaseJob("p"), Task(engine.next_number(), "p", 1), ENTRY)
    engine.jobs.add(record)
    engine.submit(record)
    return record


def running(engine: Engine) -> JobRecord:
    record = submit(engine)
    engine.on_loaded(1, record.task.number, True, 1)
    assert record.job.status == "running"
    return record


def test_a_chunk_that_cannot_be_read_fails_its_job_even_if_the_plugin_finishes():
    async def scene():
        engine = make_engine()
        record = running(engine)
        engine.on_chunks(1, record.task.number, Lost(RefusedType("a chunk was refused")))
        engine.on_answer(1, record.task.number, Returned("a whole result"))
        assert (record.job.status, record.job.error_type) == ("failed", "RefusedType")

    run(scene())


def test_an_interrupted_job_does_not_wait_for_its_readers():
    async def scene():
        engine = make_engine(max_buffered_chunks=10)
        record = running(engine)
        reader = engine.log_of(record).read()
        engine.on_chunks(1, record.task.number, list(range(20)))
        assert engine.backend.calls[-1] == ("pause", 1)
        engine.cancel(record)
        assert engine.backend.calls[-2:] == [("resume", 1), ("interrupt", 1)], "else it could not say that it has ended"
        engine.on_chunks(1, record.task.number, list(range(100)))
        assert engine.backend.calls[-1] == ("interrupt", 1) and record.chunks.end == 20
        engine.on_answer(1, record.task.number, Interrupted())
        assert record.job.status == "cancelled" and [chunk async for chunk in reader] == list(range(20))

    run(scene())


def test_a_closing_engine_kills_what_does_not_end_in_time():
    async def scene():
        engine = make_engine(cancel_grace_seconds=60)
        record = running(engine)
        await engine.close(0.01, drain=False)
        assert ("kill", 1) in engine.backend.calls and record.job.status == "cancelled"

    run(scene())


def test_a_raw_result_is_let_go_once_the_hook_has_made_something_of_it():
    async def scene():
        engine = make_engine()
        record = running(engine)
        engine.on_answer(1, record.task.number, Returned(bytes(1000)))
        assert record.job.result == 1000 and record.answer is None

    run(scene())


def test_chunks_that_nobody_reads_are_bounded_in_bytes():
    log = ChunkLog(1000, most_bytes=10_000)
    for _ in range(100):
        log.add(["x" * 500])
        assert approximate_bytes(list(log.kept)) < 11_000
    assert log.end == 100 and log.first > 0


def test_a_configuration_that_cannot_be_masked_is_not_shown(caplog):
    class Registry:
        def get_plugins_by_category(self, category):
            return []

        def get_plugin(self, plugin_id):
            return {"name": "p", "target": "m:p"}

        def load_plugin_config(self, plugin_id):
            return {"key": "secret"}

        def mask_config(self, plugin_id, config):
            raise ValueError("no schema")

    async def scene():
        entry = await PluginResolver({}, Registry(), False, FailureLog()).find("p")
        assert entry.config == {"key": "secret"} and "secret" not in repr(entry.shown_config)

    with caplog.at_level(logging.CRITICAL):
        run(scene())
