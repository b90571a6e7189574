"""What workers write to stdout and stderr: all of it reaches the log, tagged; the tail explains a crash."""

from __future__ import annotations

import logging
import os
import time

import pytest
from harness import is_alive, run, targets, until
from plugins_for_tests import native_print

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends.local import LocalWorker

LOGGER = "cjm_worker_ext.engine.engine"
NAMES = ("print_and_crash", "print_without_end", "echo", "segfault")


# The next ones are shipped by value, because they are made in a function.
def speakers() -> dict[str, object]:
    def say(text):
        print(text)

    def say_on_stderr(text):
        import sys

        print(text, file=sys.stderr)

    def write(data, fd=1):
        import os

        while data:
            data = data[os.write(fd, data) :]

    def puts(text):
        import ctypes

        libc = ctypes.CDLL(None)
        libc.puts(text.encode())
        libc.fflush(None)

    def run_a_program(text):
        import subprocess

        subprocess.run(["sh", "-c", 'echo "$1"; echo "$1" >&2', "sh", text], check=True)

    def say_and_wait(lines, go_on):
        import os
        import time

        for i in range(lines):
            print("line", i)
        while not os.path.exists(go_on):
            time.sleep(0.005)

    def write_and_die(data):
        import os

        while data:
            data = data[os.write(2, data) :]
        os._exit(4)

    def count_aloud(n):
        for i in range(n):
            print("chunk", i)
            yield i

    return {f.__name__: f for f in locals().values()}


def until_heard(speak):
    "The same, and it goes on until it has been heard."

    def speaker(go_on, **params):
        import os
        import time

        result = speak(**params)
        while not os.path.exists(go_on):
            time.sleep(0.005)
        return result

    return speaker


class LoudLoad:
    def load(self, config):
        print("loads now")

    def execute(self, go_on):
        until_heard(print)(go_on)


HEARD = {f"heard-{name}": until_heard(speak) for name, speak in speakers().items()}
HEARD |= {"heard-native_print": until_heard(native_print), "heard-LoudLoad": LoudLoad}


def make(**config) -> BaseJobManager:
    plugins = targets(*NAMES) | speakers() | HEARD
    return BaseJobManager("output", "tests", plugins=plugins, worker_config=WorkerConfig(**config))


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, LOGGER)
    return caplog


def output(log) -> list[logging.LogRecord]:
    return [r for r in log.records if r.name == LOGGER and hasattr(r, "worker_pid")]


def lines(log) -> list[str]:
    return [r.args[1] for r in output(log)]


async def ended(manager, plugin_id, **params):
    return await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)


WAYS = {
    "say": ({"text": "näive ☃"}, ["näive ☃"]),
    "say_on_stderr": ({"text": "a warning"}, ["a warning"]),
    "write": ({"data": b"from native code\n"}, ["from native code"]),
    "puts": ({"text": "from libc"}, ["from libc"]),
    "run_a_program": ({"text": "from a child"}, ["from a child"] * 2),
    "LoudLoad": ({}, ["loads now"]),
    "native_print": ({}, ["\x00\x01 raw bytes �", "from printf 5", "from a child", "from print"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_reaches_the_log_with_pid_and_job(way, log, tmp_path):
    params, expected = WAYS[way]

    async def scene():
        go_on = tmp_path / "go-on"
        async with make() as manager:
            job = await manager.start_job(f"heard-{way}", go_on=str(go_on), **params)
            await until(lambda: len(lines(log)) >= len(expected), what="the output")
            assert lines(log) == expected == manager.get_job_output(job.id)
            for record in output(log):
                assert (record.worker_pid, record.job_id) == (job.worker_pid, job.id)
                assert record.levelno == logging.INFO
                assert record.getMessage() == f"worker {job.worker_pid}, job {job.id}: {record.args[1]}"
            go_on.write_text("")
            assert (await manager.wait(job.id, 120)).status == "completed", job.error
            assert manager.get_job_output(job.id) == expected

    run(scene())


def test_output_of_a_stream_and_of_a_plugin_that_speaks_and_is_gone_is_all_in_the_log(log):
    async def scene():
        async with make() as manager:
            await ended(manager, "count_aloud", n=300)
            await until(lambda: lines(log) == [f"chunk {i}" for i in range(300)])
            for i in range(20):
                await ended(manager, "say", text=f"text {i}")
            await until(lambda: lines(log)[300:] == [f"text {i}" for i in range(20)])

    run(scene())


def test_each_job_has_its_own_output_even_if_the_loop_was_busy_when_it_came(log):
    async def scene():
        async with make() as manager:
            await ended(manager, "echo")
            jobs = []
            for name in ("say", "puts", "write", "say_on_stderr", "say"):
                text = f"by {name} as number {len(jobs)}"
                params = {"data": f"{text}\n".encode()} if name == "write" else {"text": text}
                job = await manager.start_job(name, **params)
                time.sleep(0.2)  # noqa: ASYNC251  - on purpose: meanwhile plugin, output and answer are all there
                jobs.append(job)
                await manager.wait(job.id, 120)
            silent = await ended(manager, "echo")
            await until(lambda: len(lines(log)) == 5)
            assert [manager.get_job_output(job.id) for job in jobs] == [[line] for line in lines(log)]
            assert [r.job_id for r in output(log)] == [job.id for job in jobs]
            assert manager.get_job_output(silent.id) == []

    run(scene())


def test_it_can_be_read_while_the_job_runs_and_only_the_last_lines_are_kept(log, tmp_path):
    async def scene():
        go_on = tmp_path / "go-on"
        async with make(output_tail_lines=3) as manager:
            job = await manager.start_job("say_and_wait", lines=50, go_on=str(go_on))
            await until(lambda: manager.get_job_output(job.id) == ["line 47", "line 48", "line 49"])
            assert job.status == "running" and len(lines(log)) == 50, "the log gets all of it"
            go_on.write_text("")
            await manager.wait(job.id, 120)
            assert manager.get_job_output(job.id) == ["line 47", "line 48", "line 49"]

    run(scene())


def test_the_tail_is_attached_to_a_crash(log):
    async def scene():
        # without it a plugin's lines would be written at once whatever the worker does
        async with make(output_tail_lines=3, environment={"PYTHONUNBUFFERED": ""}) as manager:
            job = await ended(manager, "print_and_crash", lines=10)
            assert job.exception.output == ("line 8", "line 9", "written by native code")
            assert job.error.endswith("its last output:\n  line 8\n  line 9\n  written by native code")
            assert manager.get_job_output(job.id) == list(job.exception.output)
            assert len(lines(log)) == 11 and {r.job_id for r in output(log)} == {job.id}
            (warning,) = [r for r in log.records if r.levelno == logging.WARNING]
            assert "exited with code 9" in warning.getMessage() and "written by native code" in warning.getMessage()

    run(scene())


def test_no_tail_is_wanted(log):
    async def scene():
        async with make(output_tail_lines=0) as manager:
            job = await ended(manager, "print_and_crash", lines=2)
            assert job.exception.output == () and "last output" not in job.error
            assert manager.get_job_output(job.id) == [] and len(lines(log)) == 3

    run(scene())


def test_a_crash_in_native_code_names_the_line_of_python(log):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "segfault")
            assert "Segmentation fault" in job.error and "in segfault" in job.error

    run(scene())


@pytest.mark.parametrize("data", [b"unfinished", b"\xff\xfe\xc3(\xa0", b"\r\n\n  \nlast\r\n", b"\x00" * 5, b"\xc3"])
def test_last_words_without_an_end_or_a_meaning(data, log):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "write_and_die", data=data)
            expected = [line.rstrip("\r") for line in data.decode(errors="replace").split("\n") if line.strip()]
            assert list(job.exception.output) == expected == lines(log)
            assert str(job.exception).encode("utf-8")  # it can be written anywhere

    run(scene())


def test_a_line_that_is_longer_than_anybody_reads_is_cut_and_costs_nobody_anything(log):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "write", data=b"x" * 3_000_000 + b"the reason\n")
            assert job.status == "completed", job.error
            after = await ended(manager, "say", text="after it")
            assert after.worker_pid == job.worker_pid
            await until(lambda: lines(log)[-1:] == ["after it"])
            assert lines(log)[:-1] == ["…" + "x" * 1989 + "the reason"] == manager.get_job_output(job.id)

    run(scene())


def test_a_long_line_of_a_worker_that_dies(log):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "write_and_die", data=b"start " + b"y" * 50_000 + b" the reason")
            assert job.exception.output == ("…" + "y" * 1988 + " the reason",)
            assert len(job.error) < 2 * 2000

    run(scene())


def until_told(states, ends):
    "Writes states of a progress bar, each when a file says that the state before was told."
    import os
    import time

    for i, state in enumerate(states):
        os.write(2, state)
        while i < len(ends) and not os.path.exists(ends[i]):
            time.sleep(0.005)


def test_a_progress_bar_is_told_in_time_and_takes_one_line_of_the_output(log, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalWorker, "BAR_SECONDS", 0.02)

    async def scene():
        files = [tmp_path / str(i) for i in range(3)]
        states = [b"begins\n\r 10 % |#", b"\r 20 % |##", b"\r100 % |###\r \r", b"\nand ends"]
        async with BaseJobManager("output", plugins={"bar": until_told}) as manager:
            job = await manager.start_job("bar", states=states, ends=[str(file) for file in files])
            for file, state in zip(files, (" 10 % |#", " 20 % |##", "100 % |###"), strict=True):
                await until(lambda state=state: lines(log)[-1:] == [state], what=f"the state {state!r}")
                assert manager.get_job_output(job.id) == ["begins", state] and job.status == "running"
                file.write_text("")
            assert (await manager.wait(job.id, 120)).status == "completed", job.error
            assert manager.get_job_output(job.id) == ["begins", "100 % |###", "and ends"]
            assert lines(log) == ["begins", " 10 % |#", " 20 % |##", "100 % |###", "and ends"]

    run(scene())


def test_a_progress_bar_does_not_flood_the_log(log):
    def bar(n):
        import sys

        for i in range(n):
            sys.stderr.write(f"\r{i + 1} of {n}")
            sys.stderr.flush()

    async def scene():
        async with BaseJobManager("output", plugins={"bar": bar}) as manager:
            began = time.monotonic()
            job = await ended(manager, "bar", n=5000)
            took = time.monotonic() - began
            assert manager.get_job_output(job.id) == ["5000 of 5000"], "its last state, although the line has no end"
            assert len(lines(log)) <= 3 + took / LocalWorker.BAR_SECONDS
            again = await ended(manager, "bar", n=2)
            assert manager.get_job_output(again.id) == ["2 of 2"]

    run(scene())


def test_a_crash_quotes_the_last_state_of_a_progress_bar(log):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "write_and_die", data=b"one\n\r 10 %\r 99 %")
            assert job.exception.output == ("one", " 99 %") and lines(log)[-1] == " 99 %"

    run(scene())


def test_a_letter_that_is_cut_between_two_reads_is_whole_in_the_log(log):
    async def scene():
        async with make() as manager:
            text = "ä" * 900  # 1,801 bytes a line: reads of 4 KB end inside of letters
            job = await ended(manager, "write", data=(text + "\n").encode() * 50)
            await until(lambda: len(lines(log)) == 50)
            assert set(lines(log)) == {text} and job.status == "completed"

    run(scene())


def test_output_of_an_idle_worker_has_no_job(log, tmp_path):
    def leave_a_talker(go_on):
        import threading

        def talk():
            import os
            import time

            while not os.path.exists(go_on):
                time.sleep(0.005)
            print("between two jobs")

        threading.Thread(target=talk, daemon=True).start()

    async def scene():
        go_on = tmp_path / "go-on"
        async with BaseJobManager("output", "tests", plugins={"talker": leave_a_talker}) as manager:
            job = await ended(manager, "talker", go_on=str(go_on))
            go_on.write_text("")
            await until(lambda: lines(log))
            (record,) = output(log)
            assert (record.worker_pid, record.job_id) == (job.worker_pid, None)
            assert record.getMessage() == f"worker {job.worker_pid}: between two jobs"
            assert manager.get_job_output(job.id) == []

    run(scene())


def test_stdin_is_empty():
    def read():
        import sys

        return sys.stdin.read()

    async def scene():
        async with BaseJobManager("output", "tests", plugins={"read": read}) as manager:
            assert (await ended(manager, "read")).result == ""

    run(scene())


def test_a_child_that_outlives_its_job_and_keeps_the_pipe_does_not_outlive_the_worker(log):
    def leave_a_child():
        import subprocess

        return subprocess.Popen(["sh", "-c", "echo child; exec sleep 3600"]).pid

    async def scene():
        async with BaseJobManager("output", "tests", plugins={"leave": leave_a_child}) as manager:
            job = await ended(manager, "leave")
            await until(lambda: lines(log) == ["child"])
            os.kill(job.worker_pid, 9)
            await until(lambda: not is_alive(job.result))
            await until(lambda: not manager.workers())

    run(scene())


def say(text, then=""):
    import os

    print(text, end="", flush=True)
    if then:
        os.write(2, then.encode())
        os._exit(9)


def test_a_crash_quotes_no_line_of_an_earlier_job():
    async def scene():
        async with BaseJobManager("output", plugins={"say": say}) as manager:
            first = await manager.wait((await manager.start_job("say", text="the secret of Alice\nand no end")).id, 120)
            assert manager.get_job_output(first.id) == ["the secret of Alice", "and no end"]
            second = await manager.wait((await manager.start_job("say", text="Bob\n", then="no memory\n")).id, 120)
            assert second.exception.output == ("Bob", "no memory")
            assert manager.get_job_output(second.id) == ["Bob", "no memory"]

    run(scene())
