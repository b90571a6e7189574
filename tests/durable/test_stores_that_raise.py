"""A store that fails in one call, with whatever it raises, is used again as soon as it works."""

import asyncio
import threading

import pytest
from harness import run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.errors import StoreFailed, UnknownJob
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


class Panic(BaseException):
    "As pyo3's PanicException."


def double(n):
    return 2 * n


class RaisingStore(SQLiteJobStore):
    "Raises once in each call that `bad` names."

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bad, self.error = set(), Panic("rust")

    def _may_raise(self, name):
        if name in self.bad:
            self.bad.discard(name)
            raise self.error

    def open(self, worker_type):
        self._may_raise("open")
        return super().open(worker_type)

    def write(self, owner, changes, told=()):
        self._may_raise("write")
        return super().write(owner, changes, told)

    def find(self, job_ids, whole=True):
        self._may_raise("find")
        return super().find(job_ids, whole)

    def asked(self, owner):
        self._may_raise("asked")
        return super().asked(owner)


def an_app(folder, store=RaisingStore, durability="committed"):
    return BaseJobManager(
        "raises", plugins={"double": double}, job_store=store(folder / "jobs.db", durability=durability),
        worker_config=WorkerConfig(max_workers=1, shutdown_timeout_seconds=5.0),
    )  # fmt: skip


@pytest.mark.parametrize("durability", ["committed", "behind"])
@pytest.mark.parametrize(
    "error", [StoreFailed("not now"), OSError("not now"), Panic("not now")], ids=lambda e: type(e).__name__
)
def test_a_store_that_is_away_at_first_is_opened_later(tmp_path, error, durability):
    async def play():
        manager = an_app(tmp_path, durability=durability)
        manager.job_store.bad, manager.job_store.error = {"open"}, error
        several = await asyncio.gather(*(manager.run("double", n=1) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in several] == [StoreFailed] * 3 and "not now" in str(several[0])
        assert "not now" in manager.store_trouble
        assert await manager.run("double", n=2) == 4
        assert manager.store_trouble is None
        await manager.shutdown()

    run(play())


@pytest.mark.parametrize("call", ["write", "find", "asked"])
@pytest.mark.parametrize("durability", ["committed", "behind"])
def test_a_store_that_panics_once_is_used_again(tmp_path, call, durability):
    async def play():
        manager = await an_app(tmp_path, durability=durability).__aenter__()
        assert await manager.run("double", n=1) == 2
        manager.job_store.bad = {call}
        if call == "find":
            with pytest.raises(StoreFailed, match="Panic: rust"):
                await manager.find_job("nothing")
        elif call == "write" and durability == "committed":
            with pytest.raises(StoreFailed, match="Panic: rust"):
                await manager.run("double", n=1)
        else:
            if call == "write":
                await manager.run("double", n=1)
            await until(lambda: not manager.job_store.bad)
        with pytest.raises(UnknownJob):
            await manager.find_job("nothing")
        await until(lambda: manager.store_trouble is None)
        job = await manager.submit_job("double", {"n": 4})
        assert (await manager.wait(job, 120)).result == 8
        await manager.shutdown()
        (row,) = manager.job_store.find([job.id])
        assert row.status == "completed"

    run(play())


class CountingStore(RaisingStore):
    "Knows when a write was refused."

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.refused = threading.Event()

    def write(self, owner, changes, told=()):
        try:
            return super().write(owner, changes, told)
        except BaseException:
            self.refused.set()
            raise


def test_a_row_that_cannot_be_written_refuses_no_other_job(tmp_path, monkeypatch):
    monkeypatch.setattr("cjm_worker_ext.manager.check_options", lambda *options: None)  # it may refuse such numbers

    async def play():
        manager = await an_app(tmp_path, CountingStore, "behind").__aenter__()
        assert await manager.run("double", n=1) == 2
        await manager.submit_job("double", {"n": 1}, priority=2**63, delay_seconds=600)
        assert await asyncio.to_thread(manager.job_store.refused.wait, 60)
        jobs = [await manager.submit_job("double", {"n": n}) for n in range(3)]
        assert [(await manager.wait(job, 120)).result for job in jobs] == [0, 2, 4]
        assert manager.store_trouble is None
        await manager.shutdown()
        assert {row.status for row in manager.job_store.find([job.id for job in jobs])} == {"completed"}

    run(play())
