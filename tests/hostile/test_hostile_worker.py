"""A plugin that takes its worker's own descriptors costs that worker and its job, and nothing else.

What the bytes of a value can do is in `tests/codec`; here it is what a process can do. `HOSTILE_SECONDS=300` makes the
fuzzers run longer, `HOSTILE_SEED` repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from pathlib import Path

import frame_grammar
import hostile_plugins
import pytest
from harness import Ticker, is_alive, run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends.base import WorkerSetup
from cjm_worker_ext.backends.local import ChildProcess, LocalBackend, LocalOrder, LocalWorker, ResultReader
from cjm_worker_ext.backends.local import Ticker as LocalTicker
from cjm_worker_ext.backends.shared_memory import SharedMemoryReader, create_shared_memory

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "20"))
SEED = int(os.environ.get("HOSTILE_SEED", str(random.randrange(1 << 30))))
GAP = 0.5 if SECONDS <= 60 else 2.0  # Seconds that the loop may stand still; less than 0.1 if nothing else runs
MEMORY = 200 << 20  # Bytes by which the app may grow: three of the largest results that `make` allows
SHOW = os.environ.get("HOSTILE_SHOW")


def make(**config) -> BaseJobManager:
    settings = {"max_workers": 2, "cancel_grace_seconds": 0.3, "max_result_bytes": 64 << 20} | config
    plugins = {name: f"hostile_plugins:{name}" for name in ("attack", "square")}
    return BaseJobManager("hostile", "tests", plugins=plugins, worker_config=WorkerConfig(**settings))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    "Watches memory and loop of the app, and the innocent jobs that run beside an attack."

    def __init__(self, manager: BaseJobManager, may_crash: bool = False):
        self.manager, self.innocent, self.crashed = manager, 0, 0
        self.may_crash = may_crash  # A job may be at a worker that answered too early, and end with it

    async def __aenter__(self):
        self.ticker = await Ticker().__aenter__()
        self.before = self.most = resident()
        self._task = asyncio.create_task(self._work())
        return self

    async def _work(self):
        for n in range(1_000_000):
            job = await self.manager.wait((await self.manager.start_job("square", n=n)).id, 120)
            if self.may_crash and job.error_type == "WorkerCrashed":
                self.crashed += 1
                continue
            assert job.status == "completed" and job.result == n * n, job
            assert not job.progress_message and not self.manager.get_job_output(job.id), "words of another job"
            self.innocent += 1
            self.most = max(self.most, resident())
            await asyncio.sleep(0.02)

    async def __aexit__(self, kind, *exc_info):
        await self.ticker.__aexit__()
        working = not self._task.done()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if kind is None:
            grown = self.most - self.before
            if SHOW:
                print(
                    f"gap {self.ticker.gap * 1000:.0f} ms, grown {grown >> 20} MiB, innocent {self.innocent}, lost {self.crashed}"
                )
            assert working and self.ticker.gap < GAP and grown < MEMORY, (self.ticker.gap, grown >> 20)


async def under_attack(manager: BaseJobManager, name: str, timeout: float = 2.0, **params):
    "Run an attack while innocent jobs run, and check that later ones are well."
    for n in range(2):  # both workers are there
        await manager.start_job("square", n=n)
    await until(lambda: [w.status for w in manager.workers()] == ["idle"] * 2)
    async with Watch(manager) as watch:
        job = await manager.submit_job("attack", {"name": name} | params, timeout=timeout)
        await manager.wait(job.id, 120)
        seen = watch.innocent
        await until(lambda: watch.innocent >= seen + 3 or watch._task.done(), 120)
    later = [await manager.start_job("square", n=n) for n in range(6)]
    for n, other in enumerate(later):
        await manager.wait(other.id, 120)
        assert other.result == n * n and other.attempts == 1, other
    return job


# What each attack may end as; a crash is the end of its worker
ENDS = {
    "flood_ready": "WorkerCrashed", "flood_loaded": "WorkerCrashed", "flood_loaded_past_the_timeout": "JobTimeout",
    "flood_begun": "WorkerCrashed", "begin_ten_million": "completed",
    "flood_progress": "completed", "flood_long_progress": "completed", "flood_broken_progress": "WorkerCrashed",
    "flood_one_byte_chunks": "completed", "flood_empty_chunks": "completed", "flood_no_chunks": "completed",
    "too_many_chunks": "RefusedType", "chunks_in_empty_parts": "RefusedType",
    "flood_other_numbers": "WorkerCrashed", "flood_unknown_kinds": "WorkerCrashed", "flood_small_buffers": "any",
    "flood_one_byte_at_a_time": "any", "flood_output": "completed", "flood_output_and_answer": "completed",
    "answer_early": "completed", "answer_early_and_speak": "completed", "answer_twice": "completed",
    "fail_without_words": "RefusedType", "fail_with_empty_words": "Exception", "fail_with_other_types": "RefusedType",
    "fail_with_many_words": "RefusedType", "say_cancelled": "cancelled", "say_done": "RefusedType",
    "announce_4_gib": "WorkerCrashed", "announce_2_63": "WorkerCrashed", "announce_what_is_allowed": "WorkerCrashed",
    "announce_buffers": "WorkerCrashed", "announce_65535_buffers": "WorkerCrashed", "begin_a_header": "WorkerCrashed",
    "places_beyond_the_file": "ValueError", "sparse_terabytes": "completed", "sparse_terabytes_with_a_result": "completed",
    "shut_write": "WorkerCrashed", "shut_read": "completed", "shut_read_and_stay": "completed", "close_socket": "WorkerCrashed",
    "close_socket_that_a_child_keeps": "JobTimeout", "stop_reading": "completed", "stop_itself": "JobTimeout",
    "stop_itself_after_the_answer": "completed", "child_answers": "completed", "child_floods": "any", "child_returns": "completed",
    "grandchild_floods_output_after_the_end": "WorkerCrashed", "grandchild_floods_socket_after_the_end": "WorkerCrashed",
    "answer_and_begin_another": "completed", "announce_much_after_the_answer": "completed", "eat_memory_of_the_reader": "WorkerCrashed",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_attacks_cost_their_own_job(name, monkeypatch):
    monkeypatch.setattr(LocalWorker, "LOOK_SECONDS", 0.3)

    async def scene():
        async with make() as manager:
            # Most end by themselves, which may take long on a busy machine.
            job = await under_attack(manager, name, timeout=2 if ENDS[name] in ("JobTimeout", "any") else 20)
            assert job.status.is_final
            if ENDS[name] != "any":
                assert ENDS[name] in (job.status, job.error_type), job
            assert job.status != "failed" or job.error, "a failed job has a sentence"

    run(scene())


def test_a_batch_that_begins_again_has_no_more_time():
    async def scene():
        plugins = {"again": "hostile_plugins:BeginsAgain"}
        async with BaseJobManager("hostile", plugins=plugins) as manager:
            job = await manager.submit_job("again", timeout=0.5)
            assert (await manager.wait(job.id, 120)).error_type == "JobTimeout"

    run(scene())


def test_ten_million_chunks(monkeypatch):
    monkeypatch.setattr(LocalWorker, "LOOK_SECONDS", 0.3)

    async def scene():
        async with make(max_buffered_chunks=1000) as manager:
            job = await under_attack(manager, "ten_million_chunks", timeout=60)
            assert job.status == "completed" and len(job.result) <= 20_000, job.error

    run(scene())


def test_every_attack_in_a_row_on_one_worker(monkeypatch):
    "One worker after the other is lost, and the manager goes on."
    monkeypatch.setattr(LocalWorker, "LOOK_SECONDS", 0.1)
    quick = [
        "answer_twice",
        "fail_without_words",
        "say_done",
        "announce_2_63",
        "shut_write",
        "close_socket",
        "shut_read_and_stay",
        "answer_and_begin_another",
        "announce_much_after_the_answer",
    ]

    async def scene():
        async with make(max_workers=1, restart_policy="always") as manager:
            for name in quick:
                job = await manager.wait((await manager.start_job("attack", name=name)).id, 120)
                assert job.status.is_final
                innocent = await manager.wait((await manager.start_job("square", n=7)).id, 120)
                assert (innocent.result, innocent.attempts) == (49, 1), (name, innocent)

    run(scene())


def test_a_worker_that_is_stopped_while_it_has_nothing_to_do(monkeypatch):
    monkeypatch.setattr(LocalWorker, "LOOK_SECONDS", 0.2)

    async def scene():
        async with make(max_workers=1) as manager:
            first = await manager.wait((await manager.start_job("square", n=2)).id, 120)
            os.kill(first.worker_pid, 19)
            second = await manager.wait((await manager.start_job("square", n=3)).id, 120)
            assert (second.result, second.attempts) == (9, 1) and second.worker_pid != first.worker_pid
            assert not is_alive(first.worker_pid)

    run(scene())


def test_an_interrupted_job_has_all_of_its_grace(monkeypatch):
    "It does not read the message that cancels it, and is not taken for a worker that reads nothing."
    monkeypatch.setattr(LocalWorker, "LOOK_SECONDS", 0.4)

    async def scene():
        async with make(max_workers=1, cancel_grace_seconds=30) as manager:
            job = await manager.submit_job("attack", {"name": "be_deaf", "seconds": 2.5}, timeout=0.1)
            await manager.wait(job.id, 120)
            assert job.status == "completed" and is_alive(job.worker_pid), job

    run(scene())


def test_parameters_that_nobody_reads_go_to_another_worker(monkeypatch):
    "More than the socket takes: a part of the order stays with the app."
    monkeypatch.setattr(LocalWorker, "LOOK_SECONDS", 0.2)

    async def scene():
        async with make(max_workers=1) as manager:
            await manager.wait((await manager.start_job("attack", name="stop_reading")).id, 120)
            job = await manager.start_job("attack", name="sizes", data=b"x" * (8 << 20))
            await manager.wait(job.id, 120)
            assert (job.result, job.attempts) == (8 << 20, 1), job

    run(scene())


def test_a_place_in_use_is_not_given_back():
    "Else the next result would be written over one that the app still holds."

    async def scene():
        async with make(max_workers=1) as manager:
            first = await manager.wait((await manager.start_job("attack", name="big_array", n=1)).id, 120)
            bad = await manager.wait((await manager.start_job("attack", name="name_a_place_again")).id, 120)
            assert bad.error_type == "ValueError" and bad.worker_pid == first.worker_pid
            del bad
            for n in (2, 3):
                later = await manager.wait((await manager.start_job("attack", name="big_array", n=n)).id, 120)
                assert (later.result == n).all() and (first.result == 1).all()

    run(scene())


def test_a_worker_that_ignores_the_order_to_end():
    async def scene():
        async with make(shutdown_timeout_seconds=0.5) as manager:
            job = await manager.wait((await manager.start_job("attack", name="never_stop")).id, 120)
            began = time.monotonic()
        assert not is_alive(job.worker_pid) and time.monotonic() - began < 20

    run(scene())


# ---------------------------------------------------------------- fuzzing


class Notes:
    "A host that counts what it is told, and refuses what a host is never told."

    def __init__(self):
        self.counts, self.order, self.answers, self.dead = {}, 0, 0, False

    def __getattr__(self, name):
        def note(worker, *args):
            assert not self.dead, f"{name} after the end"
            self.counts[name] = self.counts.get(name, 0) + 1
            if name in ("on_loaded", "on_chunks", "on_progress", "on_answer"):
                assert args[0] == self.order != 0, f"{name} for no order"
            if name == "on_answer":
                self.order, self.answers = 0, self.answers + 1
            if name == "on_progress":
                assert isinstance(args[2], str) and (args[1] is None or isinstance(args[1], float))
            self.dead = self.dead or name == "on_exit"

        return note


class NoProcess:
    "What a `LocalWorker` needs of a process, with a socket whose other end the test has."

    class popen:
        returncode = None

    class watch:
        pass

    def __init__(self):
        self.socket, self.theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.pid, self.killed, self.disowned, self.abandoned, self.released = 0, False, False, False, []
        self.output, self.ends = os.pipe()
        self.watch.fd, self.alive = os.pipe()
        os.set_blocking(self.output, False)
        self.shared = SharedMemoryReader(create_shared_memory(), self.released.append)

    open_frames = ChildProcess.open_frames

    def kill(self):
        self.killed = True

    def signal_interrupt(self): ...

    def close(self):
        loop = asyncio.get_running_loop()
        for fd in (self.socket, self.output, self.watch.fd):
            loop.remove_reader(fd)
        self.socket.close(), self.theirs.close()
        for fd in (self.output, self.ends, self.watch.fd, self.alive):
            os.close(fd)


@pytest.mark.parametrize("tame", [True, False], ids=["frames that can be cut", "any frames"])
def test_fuzzed_frames_in_process(tame):
    "Frames against the app's side, without a process: some thousand a second."

    async def scene():
        scratch, reader, frames, kills, answers, most = bytearray(1 << 18), ResultReader(), 0, 0, 0, 0.0
        end, seed, loop = time.monotonic() + SECONDS / 4, SEED, asyncio.get_running_loop()
        ticker = LocalTicker(loop, 5.0, lambda: None)
        while time.monotonic() < end:
            seed += 1
            process, notes = NoProcess(), Notes()
            worker = LocalWorker(1, process, WorkerConfig(max_result_bytes=1 << 20), notes, reader, scratch, ticker)
            source, number = frame_grammar.Frames(seed, 1, tame), 0
            for _ in range(200):
                if not notes.order:
                    number += 1
                    notes.order = source.number = number
                    worker.order(LocalOrder(number, number, "p", number % 5 > 0, number % 3 == 0), [b"order"])
                data = b"".join(source.next() for _ in range(source.random.randrange(1, 8)))
                frames += 1
                began = loop.time()
                process.theirs.sendall(data[: 1 << 16])
                for _ in range(3):
                    if not process.killed:
                        worker._on_readable()
                most = max(most, loop.time() - began)
                if process.killed:
                    break
                await asyncio.sleep(0)
            kills += process.killed
            answers += notes.answers
            assert notes.counts.get("on_ready", 0) <= 1 and notes.answers <= number, f"seed {seed}"
            process.close()
        if SHOW:
            print(
                f"{frames:,} bundles, {seed - SEED:,} workers, {kills:,} killed, {answers:,} answers, {most * 1000:.1f} ms"
            )
        assert answers and most < GAP, f"seed {SEED}"

    run(scene(), SECONDS + 60)


def test_fuzzed_frames_of_workers(monkeypatch):
    "Frames of real workers against a whole manager; jobs of another manager never notice, and no result is ever wrong."
    monkeypatch.setattr(LocalWorker, "LOOK_SECONDS", 0.3)

    async def scene():
        settings = {"restart_policy": "always", "max_finished_jobs": 50}
        async with make(**settings) as manager, make(max_workers=1) as other:
            end, seed, ends = time.monotonic() + SECONDS / 2, SEED, {}
            async with Watch(other) as strict, Watch(manager, may_crash=True) as watch:
                while time.monotonic() < end:
                    seed += 1
                    params = {"name": "fuzz", "seed": seed, "seconds": 0.5}
                    job = await manager.submit_job("attack", params, timeout=3.0)
                    await manager.wait(job.id, 120)
                    kind = job.error_type or str(job.status)
                    ends[kind] = ends.get(kind, 0) + 1
                    assert job.status != "failed" or job.error, f"seed {seed}"
                    assert not watch._task.done() and not strict._task.done(), (
                        f"seed {seed}: {watch._task} {strict._task}"
                    )
            assert watch.crashed <= 0.1 * watch.innocent + 3, (watch.crashed, watch.innocent)
            if SHOW:
                print(f"{seed - SEED} jobs: {ends}")

    run(scene(), SECONDS + 90)


def test_the_names_are_there():
    assert all(callable(getattr(hostile_plugins, name)) for name in ENDS)

    async def scene():
        assert LocalBackend(WorkerConfig(), Notes(), WorkerSetup()).workers == {}

    run(scene())
