"""`WorkerConfig.gpus` on a real NVIDIA card: the worker sees NVML's card, and the memory is back when an end is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cards import ended, make, tell, what_is_missing
from harness import run, until

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=missing or "there is a card")


def test_the_worker_sees_the_card_of_nvml(card):
    async def scene():
        for gpus in ("all", (card.uuid,)):
            async with make(gpus=gpus) as manager:
                job = await ended(manager, "which_card")
                assert job.status == "completed", job.error
                count, uuid = job.result
                tell(f"gpus={gpus!r}: torch sees {count} card, {uuid}; the manager says {manager.workers()[0].device}")
                assert count == 1 and uuid in card.uuid
                assert manager.workers()[0].device == "GPU 0"

    run(scene())


@pytest.mark.parametrize("how", ["cancel", "crash"])
def test_the_memory_is_back_when_an_end_is_told(card, tmp_path, how):
    size = card.total * 6 // 10

    async def scene():
        async with make(max_workers=2, hold_after_crashes=0, gpus=(0,)) as manager:
            await until(lambda: card.free() >= size, what=f"{size:,} free bytes on the card")
            started, go_on, again = (tmp_path / name for name in ("started", "go on", "again"))
            params = {"size": size, "go_on": str(go_on)}
            job = await manager.start_job("hold", started=str(started), end=how, **params)
            await until(started.exists, 60, "the first job on the card")
            assert (await ended(manager, "touch", library="torch")).result[0] != job.worker_pid
            before, since = card.free(), time.perf_counter()
            if how == "cancel":
                await manager.cancel_job(job.id)
            else:
                go_on.touch()
            await manager.wait(job.id, 20)
            free, took = card.free(), time.perf_counter() - since
            assert job.status == {"cancel": "cancelled", "crash": "failed"}[how]
            tell(
                f"{how} with gpus=(0,): free {before >> 20:,} MiB before, {free >> 20:,} at the end, {took:.3f} s later"
            )
            assert free >= size
            Path(go_on).touch()
            second = await ended(manager, "hold", started=str(again), **params)
            assert second.status == "completed", second.error

    run(scene())
