"""What plugins log with `logging`: records reach the app's logging with level, logger, job and traceback, once, as data."""

from __future__ import annotations

import logging
import os
import sys

import pytest
from harness import is_alive, run, until, until_now

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends import framing
from cjm_worker_ext.backends.codec import encode
from cjm_worker_ext.backends.local import ResultReader
from cjm_worker_ext.errors import RefusedType
from cjm_worker_ext.events.plugin_logging import logger_for

LINES = "cjm_worker_ext.engine.engine"  # The logger of what plugins print


# All of these are shipped by value, and import `logging` themselves: a worker has it only then.
def log(level=30, text="quiet passage", *args):
    import logging

    logging.getLogger("acme.asr").log(level, text, *args)


def log_error():
    import logging

    try:
        raise OSError("disk full")
    except OSError:
        logging.getLogger("acme.disk").exception("not written: %s %%", {"track": 1}, stack_info=True)


def log_as_configured(how):
    import logging
    import sys

    log = logging.getLogger("acme.asr")
    if how == "basicConfig":
        logging.basicConfig(level=logging.DEBUG)
    elif how == "forced":
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, force=True)
    elif how == "dictConfig":
        import logging.config

        handlers = {"console": {"class": "logging.StreamHandler", "level": "DEBUG"}}
        logging.config.dictConfig({
            "version": 1, "handlers": handlers, "root": {"level": "DEBUG", "handlers": ["console"]},
            "disable_existing_loggers": False,
        })  # fmt: skip
    elif how == "own handler":  # as transformers has it
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.DEBUG)
        log.propagate = False
    elif how == "descriptor":
        logging.basicConfig(level=logging.DEBUG, stream=open(2, "w", closefd=False))
    elif how == "queue":
        import logging.handlers
        import queue

        logging.getLogger().setLevel(logging.DEBUG)
        records = queue.SimpleQueue()
        logging.getLogger().addHandler(logging.handlers.QueueHandler(records))
        listener = logging.handlers.QueueListener(records, logging.StreamHandler())
        listener.start()
    log.warning("once")
    log.info("not for this app")
    if how == "queue":
        listener.stop()


def log_to_a_file(path):
    import logging

    log = logging.getLogger("acme.file")
    handler = logging.FileHandler(path)
    log.addHandler(handler)
    log.warning("in both")
    log.propagate = False
    log.warning("only in the file")
    handler.close()
    with open(path) as file:
        return file.read()


def log_and_die(code=9):
    import logging
    import os

    print("printed", flush=True)
    logging.getLogger("acme.asr").error("the last words")
    if code:
        os._exit(code)
    import ctypes

    ctypes.string_at(0)


def log_many_and_die(n):
    import ctypes
    import logging

    for i in range(n):
        logging.getLogger("acme.asr").error("number %d %s", i, 1000 * "x")
    ctypes.string_at(0)


def log_from_a_child():
    import logging
    import os

    logging.getLogger("acme.asr").warning("the parent")
    if (pid := os.fork()) == 0:
        logging.getLogger("acme.asr").warning("the child")
        os._exit(0)
    os.waitpid(pid, 0)


def log_many(n, level):
    import logging

    log = logging.getLogger("acme.flood")
    for i in range(n):
        log.log(level, "number %d", i)


def log_while_it_answers():
    "A destructor logs at whatever moment the garbage collector chooses, also while the worker writes."
    import gc
    import logging
    import time

    gone = []

    class Loud:
        def __del__(self):
            logging.getLogger("acme.gone").warning("gone")
            gone.append(1)

    gc.set_threshold(1)
    for i in range(300):
        loud = Loud()
        loud.itself = loud
        yield [{"number": i}]
    del loud
    while len(gone) < 300:  # nothing is collected here while another thread collects
        gc.collect()
        time.sleep(0.001)


async def log_together(name, go_on):
    import asyncio
    import logging
    import os

    log = logging.getLogger("acme.together")
    log.warning("%s begins", name)
    while not os.path.exists(go_on):  # noqa: ASYNC110  - a file is all that a worker can wait for
        await asyncio.sleep(0.005)
    log.warning("%s ends", name)
    await asyncio.to_thread(log.warning, "%s in a thread", name)


class Batch:
    max_batch_size, batch_wait_seconds = 4, 5.0

    def load(self, config):
        import logging

        logging.getLogger("acme.batch").warning("loads")

    def execute_batch(self, batch):
        import logging

        logging.getLogger("acme.batch").warning("%d jobs", len(batch))
        return [None] * len(batch)


PLUGINS = {
    f.__name__: f
    for f in (log, log_error, log_as_configured, log_to_a_file, log_and_die, log_from_a_child, log_many, log_together)
} | {
    "batch": Batch,
    "log_many_and_die": log_many_and_die,
    "log_while_it_answers": log_while_it_answers,
    "plain": "math:sqrt",
}


def make(**config) -> BaseJobManager:
    return BaseJobManager("logging", "tests", plugins=PLUGINS, worker_config=WorkerConfig(**config))


@pytest.fixture
def heard(caplog):
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.INFO, LINES)
    return caplog


def records(heard, name="acme") -> list[logging.LogRecord]:
    return [r for r in heard.records if r.name.split(".")[0] == name]


def told(heard) -> list[str]:
    return [r.getMessage() for r in records(heard)]


def printed(heard) -> list[str]:
    return [r.args[1] for r in heard.records if r.name == LINES and hasattr(r, "worker_pid")]


async def ended(manager, plugin_id, **params):
    return await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)


def test_a_record_arrives_with_level_logger_job_and_traceback(heard):
    async def scene():
        async with make(output_tail_lines=100) as manager:
            job = await ended(manager, "log_error")
            (record,) = records(heard)
            assert (record.name, record.levelname, record.job_id) == ("acme.disk", "ERROR", job.id)
            assert (record.worker_pid, record.process) == (job.worker_pid, job.worker_pid)
            assert record.getMessage() == "not written: {'track': 1} %"
            assert (record.funcName, record.filename) == ("log_error", "test_plugin_logging.py")
            text = logging.Formatter().format(record)
            assert text.splitlines()[1].startswith("Traceback") and "\nOSError: disk full\nStack (most recent" in text
            assert record.args == () and record.exc_info is None, "text only: nothing of the plugin's objects crosses"
            output = manager.get_job_output(job.id)
            assert output[0] == "ERROR:acme.disk:not written: {'track': 1} %" and "OSError: disk full" in output
            assert printed(heard) == []

    run(scene())


LATE = """
import sys

def modules():
    return "logging" in sys.modules, [type(finder).__name__ for finder in sys.meta_path]

def log():
    import logging
    logging.getLogger("acme.late").warning("imported by the job")
"""


def test_logging_is_loaded_by_the_plugin_and_by_nobody_else_and_is_heard_from_the_first_record_on(
    heard, tmp_path, monkeypatch
):
    (tmp_path / "late_plugin.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    plugins = {name: f"late_plugin:{name}" for name in ("modules", "log")}

    async def scene():
        async with BaseJobManager("late", plugins=plugins) as manager:
            is_loaded, finders = (await ended(manager, "modules")).result
            assert not is_loaded and "LoggingFinder" in finders
            job = await ended(manager, "log")
            is_loaded, finders = (await ended(manager, "modules")).result
            assert is_loaded and "LoggingFinder" not in finders
            (record,) = records(heard)
            assert (record.job_id, record.worker_pid) == (job.id, job.worker_pid)

    run(scene())


HOW = ["not at all", "basicConfig", "forced", "dictConfig", "own handler", "descriptor", "queue"]


@pytest.mark.parametrize("how", HOW)
def test_a_plugin_that_configures_handlers_is_not_heard_twice(how, heard):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "log_as_configured", how=how)
            assert job.status == "completed", job.error
            assert told(heard) == ["once"] and not [line for line in printed(heard) if "once" in line]
            # what the app does not want as a record is a line, as the plugin has configured it
            assert len(printed(heard)) == (how != "not at all"), printed(heard)

    run(scene())


def test_other_handlers_of_a_plugin_get_all_of_it(heard, tmp_path):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "log_to_a_file", path=str(tmp_path / "log"))
            assert job.result.splitlines() == ["in both", "only in the file"] and told(heard) == ["in both"]

    run(scene())


def test_levels_of_the_app_hold_in_its_workers(heard):
    async def scene():
        heard.set_level(logging.ERROR, "acme.flood")
        heard.set_level(logging.DEBUG, "acme.asr")
        async with make() as manager:
            await ended(manager, "log_many", n=100_000, level=logging.WARNING)
            await ended(manager, "log", level=logging.DEBUG, text="a detail")
            assert told(heard) == ["a detail"] and printed(heard) == []

    run(scene())


def test_levels_and_handlers_of_the_app_hold_for_what_arrives(heard):
    async def scene():
        async with make() as manager:
            await ended(manager, "log")
            logging.getLogger("acme.asr").setLevel(logging.ERROR)
            try:
                await ended(manager, "log")
            finally:
                logging.getLogger("acme.asr").setLevel(logging.NOTSET)
            assert told(heard) == ["quiet passage"]

    run(scene())


def test_an_app_can_turn_it_off(heard):
    async def scene():
        async with make(forward_logging=False) as manager:
            job = await ended(manager, "log")
            assert told(heard) == [] and printed(heard) == ["quiet passage"] == manager.get_job_output(job.id)

    run(scene())


@pytest.mark.parametrize("code", [9, 0])
def test_the_tail_of_a_crash_holds_the_last_records_and_the_reason(code, heard):
    async def scene():
        async with make(output_tail_lines=50) as manager:
            job = await ended(manager, "log_and_die", code=code)
            output = job.exception.output
            assert "ERROR:acme.asr:the last words" in output and "printed" in output, output
            assert code or any("Segmentation fault" in line for line in output)
            assert told(heard) == ["the last words"] and records(heard)[0].job_id == job.id

    run(scene())


def test_records_that_are_read_after_the_end_stand_before_the_reason(heard):
    async def scene():
        async with make(output_tail_lines=40) as manager:
            job = await manager.start_job("log_many_and_die", n=60)
            await until(lambda: job.worker_pid, what="the start")
            until_now(lambda: not is_alive(job.worker_pid), what="the end")  # meanwhile the app reads nothing
            await manager.wait(job.id, 120)
            output = job.exception.output
            reason = next(i for i, line in enumerate(output) if "Segmentation fault" in line)
            assert len(output) == 40 and output[reason - 1].startswith("ERROR:acme.asr:number 59 x"), output
            assert len(told(heard)) == 60

    run(scene())


def test_no_tail_is_wanted(heard):
    async def scene():
        async with make(output_tail_lines=0) as manager:
            job = await ended(manager, "log_and_die")
            assert job.exception.output == () and manager.get_job_output(job.id) == []

    run(scene())


def test_each_of_several_jobs_at_a_time_has_its_own(heard, tmp_path):
    async def scene():
        go_on = tmp_path / "go-on"
        async with make() as manager:
            jobs = {name: await manager.start_job("log_together", name=name, go_on=str(go_on)) for name in "abc"}
            await until(lambda: len(told(heard)) == 3, what="the beginnings")
            go_on.write_text("")
            for name, job in jobs.items():
                await manager.wait(job.id, 120)
                mine = [r.getMessage() for r in records(heard) if r.job_id == job.id]
                assert mine == [f"{name} begins", f"{name} ends", f"{name} in a thread"]
                assert manager.get_job_output(job.id) == [f"WARNING:acme.together:{text}" for text in mine]
            assert len({job.worker_pid for job in jobs.values()}) == 1

    run(scene())


def test_a_record_of_a_batch_has_no_job_but_the_worker(heard):
    async def scene():
        async with make() as manager:
            await manager.load_plugin("batch")
            jobs = [await manager.start_job("batch") for _ in range(4)]
            for job in jobs:
                await manager.wait(job.id, 120)
            loads, together = records(heard)
            assert (loads.getMessage(), loads.job_id, loads.worker_pid) == ("loads", None, jobs[0].worker_pid)
            assert (together.getMessage(), together.job_id) == ("4 jobs", None)

    run(scene())


def test_a_forked_child_of_a_plugin_writes_lines(heard):
    async def scene():
        async with make() as manager:
            await ended(manager, "log_from_a_child")
            assert told(heard) == ["the parent"] and printed(heard) == ["the child"]

    run(scene())


def test_a_flood_is_bounded_and_that_is_told(heard):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "log_many", n=50_000, level=logging.ERROR)
            assert job.status == "completed"
            count = len(records(heard))
            assert 5000 <= count < 50_000, count
            dropped = [r for r in heard.records if "were dropped so far" in r.getMessage()]
            assert dropped and dropped[0].levelname == "WARNING" and dropped[0].job_id == job.id
            assert len(manager.get_job_output(job.id)) == 20

    run(scene())


def test_a_destructor_that_logs_while_the_worker_writes_breaks_no_message(heard):
    async def scene():
        async with make() as manager:
            job = await manager.start_job("log_while_it_answers")
            chunks = [chunk async for chunk in manager.stream(job.id)]
            assert chunks == [[{"number": i}] for i in range(300)] and job.status == "completed", job.error
            assert set(told(heard)) == {"gone"} and len(told(heard)) == 300

    run(scene())


# ---------------------------------------------------------------- what a worker may send
GOOD = ("acme.asr", 30, "message", "", "", "f.py", 7, "run", "MainThread", 1e9)


def read(*fields):
    return ResultReader().log(framing.Frame(framing.LOG, 0, encode(fields)[0]))


def test_a_record_that_makes_no_sense_is_refused():
    assert read(*GOOD).message == "message"
    for i in range(len(GOOD)):
        for value in (None, ["text"], b"bytes", True, {"a": 1}, 10**30, (1, 2)):
            with pytest.raises((RefusedType, TypeError, ValueError)):
                read(*GOOD[:i], value, *GOOD[i + 1 :])
    for fields in (
        (),
        (*GOOD, 1),
        ("name\nforged line", *GOOD[1:]),
        (*GOOD[:2], "x" * (1 << 18), *GOOD[3:]),
    ):
        with pytest.raises((RefusedType, TypeError, ValueError)):
            read(*fields)


def test_a_name_from_a_worker_makes_no_logger(heard):
    async def scene():
        before = len(logging.root.manager.loggerDict)
        async with make() as manager:
            await ended(manager, "log")
        assert told(heard) and len(logging.root.manager.loggerDict) <= before + 5
        assert logger_for("acme.unheard.of") in (logging.root, logging.getLogger("acme"))

    run(scene())


# ---------------------------------------------------------------- an interpreter without this package
def test_an_interpreter_without_this_package_is_named_once_with_the_remedy(caplog, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\ncd /\nexec {sys.executable} -I -S "$@"\n')
    os.chmod(bare, 0o755)

    async def scene():
        async with BaseJobManager("bare", plugins=PLUGINS, worker_config=WorkerConfig(python=str(bare))) as manager:
            job = await ended(manager, "plain")
            assert job.status == "failed" and "no package cjm-worker-ext" in job.error, job.error
            assert f"{bare} -m pip install cjm-worker-ext==" in job.error
            assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1

    run(scene())
