"""An app whose job store fails in one way; run: NAME FOLDER [SIZE]. With a size, the store is on a disk of that size."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from durable_lives import config
from harness import until

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.errors import StoreFailed
from cjm_worker_ext.extensions.stores import JobFilter
from cjm_worker_ext.integrations.health import JobHealth
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

PLUGINS = {"until_there": "durable_plugins:until_there"}


class Bus:
    def __init__(self):
        self.ends = []

    async def broadcast(self, event_type, data):
        if event_type == "job:completed":
            self.ends.append(data["job_id"])


async def outage(folder, store, begin, reason):
    "Acknowledged jobs go on, new ones are refused, and ends are told once the store has them."
    trace, bus = str(folder / "trace"), Bus()

    def params(name):
        return {"trace": trace, "name": name, "path": str(folder / f"go {name}")}

    manager = BaseJobManager("durable", worker_config=config(), plugins=PLUGINS, job_store=store, event_broadcaster=bus)
    async with manager:
        job = await manager.submit_job("until_there", params("one"))
        pending = await manager.submit_job("until_there", params("two"), timeout=3)
        await until(lambda: Path(trace).exists())
        with begin():
            try:
                for _ in range(200):  # what is left in the last page of a file is used up first
                    await manager.submit_job("until_there", params("new") | {"name": "x" * 50_000}, delay_seconds=600)
                raise AssertionError("a new job was acknowledged")
            except StoreFailed as e:
                assert reason in str(e), e
            Path(folder / "go one").touch()
            Path(folder / "go two").touch()
            await until(lambda: manager.workers()[0].status == "running")
            with suppress(TimeoutError):
                await manager.wait(job, 3.3)
            if reason in (manager.store_trouble or ""):
                assert (job.status, pending.status, bus.ends) == ("running", "pending", [])
        assert (await manager.wait(job, 120)).result == "one"
        assert (await manager.wait(pending, 120)).result == "two", pending.error  # its time began when it was sent
        await until(lambda: bus.ends == [job.id, pending.id])
        await until(lambda: manager.store_trouble is None)
        rows = {row.id: row.status for row in store.find([job.id, pending.id])}
        assert rows == {job.id: "completed", pending.id: "completed"}, rows


async def outage_behind(folder, store, begin, reason):
    "What was in the store before stays there, and what was acknowledged since is written when the store is back."
    trace, bus, accepted = str(folder / "trace"), Bus(), []

    def params(name, path):
        return {"trace": trace, "name": name, "path": str(folder / path)}

    manager = BaseJobManager("durable", worker_config=config(), plugins=PLUGINS, job_store=store, event_broadcaster=bus)
    app = JobHealth(manager, details=True)
    async with manager:
        runs = await manager.submit_job("until_there", params("runs", "go one"))
        waits = await manager.submit_job("until_there", params("waits", "go two"), key="one of its kind")
        await until(lambda: [row.status for row in store.find([runs.id])] == ["running"])
        await until(lambda: Path(trace).exists())
        assert app.look("/ready")[0] == 200
        with begin():
            refused = None
            async with asyncio.timeout(120):
                while refused is None:  # until the store has been tried, at most 20 ms later, jobs are taken
                    try:
                        more = params("new", "go") | {"padding": "x" * 50_000}
                        accepted.append(await manager.submit_job("until_there", more, delay_seconds=600))
                        await asyncio.sleep(0.001)
                    except StoreFailed as e:
                        refused = str(e)
            assert reason in refused, refused
            for options in ({}, {"key": "another"}):
                with contextlib.suppress(StoreFailed):
                    accepted.append(await manager.submit_job("until_there", params("new", "go"), **options))
                    raise AssertionError("a new job was acknowledged while the store was known to be away")
            health = app.look("/ready")
            assert (health[0], health[1]["managers"][0]["problems"]) == (503, ["its job store does not work"]), health
            assert reason in health[1]["managers"][0]["store_trouble"], health
            for path in ("go one", "go two"):
                Path(folder / path).touch()
            assert (await manager.wait(runs, 120)).result == "runs"  # it is told at once, and written later
            assert (await manager.wait(waits, 120)).result == "waits"
            assert manager.store_trouble is not None
        await until(lambda: manager.store_trouble is None)
        assert app.look("/ready")[0] == 200
        ends = {runs.id: "completed", waits.id: "completed"} | {job.id: "pending" for job in accepted}
        await until(lambda: {row.id: row.status for row in store.find(list(ends), whole=False)} == ends)
        await until(lambda: sorted(bus.ends) == sorted([runs.id, waits.id]))
    left = {job.id for job in store.list_jobs(JobFilter(statuses=("pending",)), limit=10_000).jobs}
    assert left == {job.id for job in accepted}  # the next life has them


@contextmanager
def filled(disk):
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def locked_by_another(disk):
    other = sqlite3.connect(disk / "jobs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")


@contextmanager
def moved_away(disk):
    (disk / "jobs.db").rename(disk / "elsewhere")
    try:
        yield
    finally:
        (disk / "elsewhere").rename(disk / "jobs.db")


@contextmanager
def replaced(disk):
    with moved_away(disk):
        (disk / "jobs.db").write_bytes((disk / "elsewhere").read_bytes())
        yield


def at(disk, durability="committed"):
    return SQLiteJobStore(disk / "jobs.db", busy_seconds=0.2, durability=durability)


FULL, LOCKED = "free some space on its disk", "another program holds its lock"
GONE, OTHER = "its file is gone; put it back", "another file is in its place"


async def disk_full(folder, disk):
    await outage(folder, at(disk), lambda: filled(disk), FULL)


async def locked(folder, disk):
    await outage(folder, at(disk), lambda: locked_by_another(disk), LOCKED)


async def gone(folder, disk):
    await outage(folder, at(disk), lambda: moved_away(disk), GONE)


async def behind_disk_full(folder, disk):
    await outage_behind(folder, at(disk, "behind"), lambda: filled(disk), FULL)


async def behind_locked(folder, disk):
    await outage_behind(folder, at(disk, "behind"), lambda: locked_by_another(disk), LOCKED)


async def behind_gone(folder, disk):
    await outage_behind(folder, at(disk, "behind"), lambda: moved_away(disk), GONE)


async def behind_replaced(folder, disk):
    await outage_behind(folder, at(disk, "behind"), lambda: replaced(disk), OTHER)


class Hanging(SQLiteJobStore):
    def __init__(self, path):
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()

    def write(self, owner, changes, told=()):
        self.gate.wait(120)
        return super().write(owner, changes, told)


async def hangs(folder, disk):
    store = Hanging(disk / "jobs.db")

    @contextmanager
    def hang():
        store.gate.clear()
        try:
            yield
        finally:
            store.gate.set()

    from cjm_worker_ext.stores.journal import JobJournal

    JobJournal.SLOW = 0.3
    await outage(folder, store, hang, "the job store has not answered within 0.3 s")


async def does_not_open(folder, disk, reason):
    manager = BaseJobManager(
        "durable", worker_config=config(), plugins=PLUGINS, job_store=SQLiteJobStore(disk / "jobs.db")
    )
    for call in (manager.__aenter__, lambda: manager.submit_job("until_there")):
        try:
            await call()
            raise AssertionError("it opened")
        except StoreFailed as e:
            assert reason in str(e), e
    await asyncio.wait_for(manager.shutdown(), 120)


async def corrupt(folder, disk):
    (disk / "jobs.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8192)
    await does_not_open(folder, disk, "restore it from a backup")


async def read_only(folder, disk):
    await does_not_open(folder, disk, "job store")


if __name__ == "__main__":
    name, folder, *size = sys.argv[1:]
    disk = Path(folder) / "disk"
    disk.mkdir()
    if size:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size[0]}", "tmpfs", str(disk)], check=True)
    if name == "read_only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    asyncio.run(globals()[name](Path(folder), disk))
    print("ok")
