"""Workers on a real NVIDIA card: errors that never go away, memory that comes back, figures, tensors.

    python3 -m pytest -q -s tests/gpu tests/codec/test_torch_tensors.py

They need torch and nvidia-ml-py, and are skipped where no card is; `-s` shows the figures. They take 3 minutes at most.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from pathlib import Path

import pytest
from backend_scenes import Events
from cards import Card, ended, make, tell, what_is_missing
from harness import is_alive, run, until

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=missing or "there is a card")


async def memory_is_back(card: Card, size: int) -> None:
    await until(lambda: card.free() >= size, what=f"{size:,} free bytes on the card")


# ---------------------------------------------------------------- errors of a card that never go away


@pytest.mark.parametrize("library", ["torch", "cupy", "jax", "numba"])
def test_a_poisoned_card_costs_one_job(library):
    "The job fails with the reason, its worker is replaced, and the next job works."
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")

    async def scene():
        events = Events()
        async with make(events) as manager:
            works = await ended(manager, "touch", library=library)
            if works.status != "completed":
                pytest.skip(f"{library} cannot use the card: {works.error_type}: {works.error}"[:300])
            pid, value = works.result
            assert value == 2000
            poisoned = await ended(manager, "poison", library=library, own=library == "torch")
            tell(f"{library}: {poisoned.error_type}: {str(poisoned.error).splitlines()[0][:160]}")
            assert poisoned.status == "failed" and poisoned.worker_pid == pid
            started = time.perf_counter()
            again = await ended(manager, "touch", library=library)
            assert again.status == "completed", again.error
            assert again.result[0] != pid and again.result[1] == 2000
            tell(f"{library}: the next job took {time.perf_counter() - started:.1f} s, on a new worker")
            await until(lambda: not is_alive(pid), what="the end of the poisoned worker")
        told = {kind: data for kind, data in events.seen if data.get("pid") == pid and kind.startswith("worker:")}
        tell(
            f"{library}: of the old worker was told {', '.join(told)}; {told.get('worker:recycled', {}).get('reason')}"
        )
        # jax may end its process by itself, which has the same effect
        assert "worker:recycled" in told or (library == "jax" and "worker:crashed" in told)

    run(scene())


def test_running_out_of_memory_costs_no_worker(card):
    async def scene():
        async with make() as manager:
            job = await ended(manager, "swallow_everything", megabytes=2 * (card.total >> 20))
            assert job.status == "failed" and "out of memory" in job.error, job.error
            tell(f"out of memory: {job.error_type}: {job.error.splitlines()[0][:120]}")
            again = await ended(manager, "touch", library="torch")
            assert again.result == (job.worker_pid, 2000)

    run(scene())


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("how", "warm"), [("cancel", True), ("crash", True), ("crash", False)])
def test_the_memory_of_a_killed_worker_is_there_for_the_next_job(card, tmp_path, how, warm):
    "Two jobs of 60 % of the card, one after the other: the second one never runs out of memory."
    size = card.total * 6 // 10

    async def scene():
        async with make(max_workers=2 if warm else 1, hold_after_crashes=0) as manager:
            await memory_is_back(card, size)
            files = [str(tmp_path / name) for name in ("started", "go on", "started 2", "go on 2")]
            job = await manager.start_job("hold", size=size, started=files[0], go_on=files[1], end=how)
            await until(lambda: Path(files[0]).exists(), 60, "the first job on the card")
            if warm:  # the fastest way to the card: CUDA runs already in the second worker
                assert (await ended(manager, "touch", library="torch")).result[0] != job.worker_pid
            before, since = card.free(), time.perf_counter()
            if how == "cancel":
                await manager.cancel_job(job.id)
            else:
                Path(files[1]).touch()
            await manager.wait(job.id, 20)
            at_end, took = card.free(), time.perf_counter() - since
            assert job.status == {"cancel": "cancelled", "crash": "failed"}[how]
            Path(files[3]).touch()
            done = await ended(manager, "hold", size=size, started=files[2], go_on=files[3])
            assert done.status == "completed", done.error
            assert done.result == done.worker_pid + 1 != job.worker_pid + 1
            tell(
                f"{how}, {'loaded' if warm else 'new'} worker: free {before >> 20:,} MiB before, {at_end >> 20:,} when "
                f"the job had ended ({took:.3f} s); second job done after {time.perf_counter() - since:.2f} s"
            )

    run(scene())


def test_the_figures_of_a_worker(card, tmp_path):
    pytest.importorskip("psutil")
    from cjm_worker_ext.integrations.resources import ProcessResourceManager
    from cjm_worker_ext.integrations.resources_gpu import sees_host_pids

    resources = ProcessResourceManager()
    size = 2 << 30

    async def scene():
        async with make(resources=resources) as manager:
            started, go_on = tmp_path / "started", tmp_path / "go on"
            job = await manager.start_job("hold", size=size, started=str(started), go_on=str(go_on))
            await until(started.exists, 60, "the job on the card")
            since = time.perf_counter()
            snapshot = await asyncio.to_thread(resources.snapshot, 0)
            first = time.perf_counter() - since
            since = time.perf_counter()
            snapshot = await asyncio.to_thread(resources.snapshot, 0)
            again = time.perf_counter() - since
            (row,) = [row for row in snapshot.workers if row.pid == job.worker_pid]
            tell(f"{card.name}: worker {row.pid} uses {row.gpu_bytes} bytes of it; all cards: {snapshot.gpus}")
            tell(f"a measurement took {first * 1000:.1f} ms, the next one {again * 1000:.1f} ms")
            if sees_host_pids():
                assert row.gpu_bytes is not None and size <= row.gpu_bytes < size + (4 << 30)
            else:
                assert row.gpu_bytes is None, "process ids of another namespace are unknown, and not 0"
            (free,) = {gpu.free_bytes for gpu in snapshot.gpus if gpu.index == 0}
            assert free is not None and abs(free - card.free()) < 1 << 30
            go_on.touch()
            assert (await manager.wait(job.id, 20)).status == "completed"

    try:
        run(scene())
    finally:
        resources.close()


# ---------------------------------------------------------------- results


def test_a_tensor_of_the_card_arrives_on_the_cpu():
    import torch

    async def scene():
        async with make() as manager:
            await ended(manager, "touch", library="torch")
            for kind, count in (("float32", 16 << 20), ("bfloat16", 32 << 20), ("int64", 3), ("bool", 1000)):
                since = time.perf_counter()
                job = await ended(manager, "tensor", kind=kind, count=count)
                took = time.perf_counter() - since
                assert job.status == "completed", job.error
                arrived = job.result
                assert arrived.device.type == "cpu" and arrived.dtype is getattr(torch, kind)
                assert torch.equal(arrived, (torch.arange(count) % 251).to(arrived.dtype))
                arrived[0] = 1  # it is the app's own
                size = arrived.numel() * arrived.element_size()
                tell(f"a {kind} tensor of {size / (1 << 20):.3g} MiB arrived after {took * 1000:.1f} ms")

    run(scene())
