"""What may come back from a worker: any amount of data, and no code, whichever message it is hidden in."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle

import numpy as np
import pytest
from harness import descriptors, is_alive, run, targets, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends import framing
from cjm_worker_ext.errors import NotSerializable, RefusedType

NAMES = (
    "echo", "attack_by_result", "attack_by_chunk", "attack_by_error", "attack_by_frame", "attack_by_chunk_frame",
    "send_frame", "send_nonsense", "claim_shared_memory", "nested_bytes", "deep_bytes", "big_bytes", "big_array", "many_arrays",
    "sum_of_arrays", "count", "size_of", "kill_self", "LoadFails", "raise_value_error",
)  # fmt: skip


@dataclasses.dataclass
class Point:
    x: int


def make_point(x: int) -> Point:
    return Point(x)


def make(**config) -> BaseJobManager:
    plugins = targets(*NAMES) | {"point": "test_results:make_point"}
    return BaseJobManager("results", "tests", plugins=plugins, worker_config=WorkerConfig(**config))


async def result_of(manager: BaseJobManager, plugin_id: str, **params):
    job = await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)
    assert job.status == "completed", job.error
    return job.result


async def still_works(manager: BaseJobManager, harm: str) -> None:
    assert await result_of(manager, "echo", value="fine") == "fine"
    assert not os.path.exists(harm), "a worker has run code in the manager's process"


@pytest.mark.parametrize("plugin_id", ["attack_by_result", "attack_by_chunk", "attack_by_error"])
def test_objects_that_would_run_code(plugin_id, tmp_path):
    async def scene():
        harm = str(tmp_path / "harm")
        async with make() as manager:
            job = await manager.start_job(plugin_id, path=harm)
            chunks = [chunk async for chunk in manager.stream(job.id)]
            await manager.wait(job.id, 120)
            assert job.status == "failed" and is_alive(job.worker_pid)
            if plugin_id == "attack_by_error":
                assert job.error_type == "AttackByError" and job.exception is None
            else:
                assert job.error_type == "NotSerializable" and "Attack" in job.error
                assert isinstance(job.exception, NotSerializable) and chunks in ([], ["harmless"])
            await still_works(manager, harm)

    run(scene())


@pytest.mark.parametrize("kind", range(16, 24))
def test_frames_that_would_run_code(kind, tmp_path):
    async def scene():
        harm = str(tmp_path / "harm")
        async with make() as manager:
            job = await manager.wait((await manager.start_job("attack_by_frame", kind=kind, path=harm)).id, 120)
            assert job.status in ("completed", "failed", "cancelled")
            await still_works(manager, harm)

    run(scene())


def test_chunk_frames_that_would_run_code(tmp_path):
    async def scene():
        harm = str(tmp_path / "harm")
        async with make() as manager:
            job = await manager.wait((await manager.start_job("attack_by_chunk_frame", path=harm)).id, 120)
            assert job.error_type == "RefusedType"
            await still_works(manager, harm)

    run(scene())


JUNK = [b"", b"junk", pickle.dumps(None), pickle.dumps([1]), pickle.dumps({"type": 5}), pickle.dumps("text")]


@pytest.mark.parametrize("kind", [*range(16, 24), 99, 255])
def test_frames_of_junk(kind, tmp_path):
    async def scene():
        async with make() as manager:
            for junk in JUNK:
                job = await manager.wait((await manager.start_job("send_frame", kind=kind, payload=junk)).id, 120)
                assert job.status.is_final
            await still_works(manager, str(tmp_path / "harm"))

    run(scene())


@pytest.mark.parametrize("length,buffers", [(1 << 63, 0), (1 << 62, 0), (5 << 30, 0), (0, 65535), (1 << 40, 3)])
def test_huge_frame_headers(length, buffers, tmp_path):
    async def scene():
        async with make() as manager:
            job = await manager.start_job(
                "send_frame", kind=framing.RESULT, payload=b"x" * 65536, length=length, buffers=buffers
            )
            if buffers != 65535:  # else it is no more than a long message that has not arrived
                await manager.wait(job.id, 120)
                assert job.error_type == "WorkerCrashed"
            else:
                assert await manager.cancel_job(job.id) in (True, False)
            await still_works(manager, str(tmp_path / "harm"))

    run(scene())


def test_nonsense_instead_of_frames(tmp_path):
    async def scene():
        async with make() as manager:
            job = await manager.wait((await manager.start_job("send_nonsense")).id, 120)
            assert job.error_type == "WorkerCrashed"
            await still_works(manager, str(tmp_path / "harm"))

    run(scene())


@pytest.mark.parametrize("size", [1 << 20, 1 << 62, (1 << 64) - 1])
def test_shared_memory_that_is_not_there(size, tmp_path):
    async def scene():
        async with make() as manager:
            job = await manager.wait((await manager.start_job("claim_shared_memory", size=size)).id, 120)
            assert job.status == "failed" and job.error_type in ("ValueError", "WorkerCrashed")
            await still_works(manager, str(tmp_path / "harm"))

    run(scene())


def test_classes_of_the_app():
    async def scene():
        async with make() as manager:
            refused = await manager.wait((await manager.start_job("point", x=1)).id, 120)
            assert refused.error_type == "RefusedType" and "test_results.Point" in refused.error
        for allowed in ((Point,), ("test_results",)):
            async with make(allowed_types=allowed) as manager:
                assert await result_of(manager, "point", x=3) == Point(3)

    run(scene())


def test_max_result_bytes():
    async def scene():
        async with make(max_result_bytes=1 << 20) as manager:
            for plugin_id, params in (
                ("big_bytes", {"megabytes": 2}), ("big_array", {"megabytes": 2}), ("echo", {"value": list(range(500_000))}),
            ):  # fmt: skip
                job = await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)
                assert (job.status, job.error_type) == ("failed", "NotSerializable")
                assert (
                    "1,048,576 are allowed" in job.error
                    and "max_result_bytes" in job.error
                    and is_alive(job.worker_pid)
                )
            assert await result_of(manager, "big_bytes", megabytes=0) == b""

    run(scene())


def test_max_result_bytes_holds_for_chunks_too():
    async def scene():
        async with make(max_result_bytes=1 << 20) as manager:
            job = await manager.wait((await manager.start_job("count", n=3, pad=3 << 20)).id, 120)
            assert (job.status, job.error_type) == ("failed", "NotSerializable"), job.error
            assert "1,048,576 are allowed" in job.error and "max_result_bytes" in job.error and is_alive(job.worker_pid)

    run(scene())


def test_max_result_items():
    async def scene():
        async with make(max_result_items=400_000) as manager:
            for value in ([[]] * 200_000, list(range(500_000))):
                job = await manager.wait((await manager.start_job("echo", value=value)).id, 120)
                assert (job.status, job.error_type) == ("failed", "RefusedType")
                assert "more than 400,000 items" in job.error and "WorkerConfig.max_result_items" in job.error
            assert await result_of(manager, "echo", value=[[]] * 100_000) == [[]] * 100_000

    run(scene())


@pytest.mark.parametrize("size", [0, 1000, 20_000, 1 << 20, 5 << 20])
def test_bytes_inside_containers(size):
    async def scene():
        async with make() as manager:
            value = await result_of(manager, "nested_bytes", size=size)
            one, inner = value["a"]
            assert type(one) is bytes and one == b"1" * size
            two, text = inner["b"]
            assert type(two) is bytearray and two == b"2" * size and text == "text" and value["c"] == b"3"
            assert await result_of(manager, "echo", value=value) == value

    run(scene())


@pytest.mark.parametrize("count", [10, 600, 1500, 3000])
def test_many_arrays_there_and_back(count):
    "Each array is a buffer of its own; the system writes a limited number of buffers at once."

    async def scene():
        async with make() as manager:
            arrays = await result_of(manager, "many_arrays", count=count)
            assert len(arrays) == count and all(int(a[0]) == i == int(a[-1]) for i, a in enumerate(arrays))
            assert await result_of(manager, "sum_of_arrays", arrays=arrays) == count * (count - 1) // 2

    run(scene())


def test_an_array_outlives_its_worker_and_its_manager():
    async def scene():
        async with make() as manager:
            first = await result_of(manager, "big_array", megabytes=16, value=1)
            await manager.wait((await manager.start_job("kill_self")).id, 120)
            second = await result_of(manager, "big_array", megabytes=16, value=2)
            third = await result_of(manager, "big_array", megabytes=16, value=3)
            second[0] = 22
        for array, value in ((first, 1), (second, 2), (third, 3)):
            assert int(array[-1]) == value and int(array[5]) == value
        assert int(second[0]) == 22

    run(scene())


def test_large_results_of_workers_that_die_at_once_after_them():
    "The bytes are copied by a thread; meanwhile the next job ends the worker that they came from."

    async def scene():
        async with make() as manager:
            for _ in range(5):
                large = await manager.start_job("big_bytes", megabytes=64)
                crash = await manager.start_job("kill_self")
                await manager.wait(crash.id, 120)
                await manager.wait(large.id, 120)
                assert large.status == "completed", large.error
                assert len(large.result) == 64 << 20 and large.result[-1] == 0xA5
                manager.clear_finished_jobs()

    run(scene())


def shared_bytes(pid: int) -> int:
    "Shared memory that a worker occupies, by the blocks of its file."
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        if "cjm-worker-results" in os.readlink(path):
            return os.stat(path).st_blocks * 512
    raise AssertionError("the worker has no shared memory")


def test_shared_memory_is_used_again_and_given_back():
    async def scene():
        async with make(max_finished_jobs=1) as manager:
            sizes = []
            for value in range(12):
                array = await result_of(manager, "big_array", megabytes=32, value=value)
                assert np.all(array[:: 1 << 12] == value)
                (worker,) = manager.workers()
                sizes.append(shared_bytes(worker.pid))
                del array
            assert sizes[-1] <= 4 * (32 << 20), f"the shared memory grows: {[s >> 20 for s in sizes]} MB"

    run(scene())


def test_results_that_are_dropped_leave_no_descriptor():
    async def scene():
        async with make(max_finished_jobs=1) as manager:
            await result_of(manager, "big_array", megabytes=16)
            await manager.wait((await manager.start_job("kill_self")).id, 120)
            await result_of(manager, "echo")
            gc.collect()
            before = descriptors()
            for _ in range(5):
                await result_of(manager, "big_array", megabytes=16)
                await manager.wait((await manager.start_job("kill_self")).id, 120)
                await result_of(manager, "echo")
            gc.collect()
            await until(lambda: descriptors() <= before + 1, 5)

    run(scene())


@pytest.mark.parametrize(
    "value",
    [None, True, 1 << 200, 1.5, float("inf"), 2j, "ü\ud800", (), frozenset({1}), range(3), slice(1, 2), Ellipsis],
    ids=repr,
)
def test_plain_values_there_and_back(value):
    async def scene():
        async with make() as manager:
            assert await result_of(manager, "echo", value=value) == value

    run(scene())


def test_unreadable_answers_are_named():
    assert issubclass(NotSerializable, TypeError) and issubclass(RefusedType, TypeError)
