"""An app is killed, and the next one goes on with its jobs; each promise that a restart makes, with a real kill."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from durable_lives import PLUGINS, config
from harness import on_loop, until

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.commands.jobs import store_at
from cjm_worker_ext.errors import DuplicateJob, ManagerClosed, NotSerializable
from cjm_worker_ext.policies import Retry
from cjm_worker_ext.stores.journal import JobJournal
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

program = str(Path(__file__).with_name("durable_lives.py"))


class Events:
    def __init__(self):
        self.seen = []

    async def broadcast(self, event_type, data):
        self.seen.append((event_type, data))

    def ends(self):
        kinds = ("job:completed", "job:failed", "job:cancelled")
        return [(data["job_id"], kind, data.get("repeated", False)) for kind, data in self.seen if kind in kinds]


def manager_at(path, plugins=PLUGINS, **options):
    options = {"worker_config": config(max_workers=2)} | options
    return BaseJobManager("durable", plugins=plugins, job_store=SQLiteJobStore(path), **options)


@contextlib.contextmanager
def life_at(place, tmp_path):
    "An app that has jobs in every state, and their ids by name."
    command = [sys.executable, program, place, str(tmp_path / "trace")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            ids = {}
            for line in process.stdout:
                if line == "ready\n":
                    break
                name, ids[name] = line.split()
            assert "gone" in ids
            yield process, ids
        finally:
            process.kill()


@pytest.fixture
def life(tmp_path):
    with life_at(str(tmp_path / "jobs.db"), tmp_path) as found:
        yield found


def ran(tmp_path):
    return [line.split()[1] for line in (tmp_path / "trace").read_text().splitlines()]


@on_loop
async def test_jobs_of_a_killed_app_go_on_in_their_order(life, tmp_path):
    process, ids = life
    process.kill()
    process.wait()
    events = Events()
    few = {name: PLUGINS[name] for name in ("add", "wait")}
    killed = time.time()
    async with manager_at(tmp_path / "jobs.db", few, event_broadcaster=events, worker_config=config()) as manager:
        once = await manager.wait(ids["once"], 120)
        assert time.time() - killed < 5
        assert (once.status, once.error_type, once.attempts) == ("failed", "JobLost", 1)
        assert "may have run in part" in once.error
        assert once.params["seconds"] == 60
        jobs = {name: await manager.wait(ids[name], 120) for name in ids}
        assert [jobs[name].result for name in ("later", "usual", "keyed", "urgent")] == [2, 3, 4, 5]
        assert (jobs["again"].status, jobs["again"].attempts, jobs["again"].result) == ("completed", 2, 7)
        assert (jobs["gone"].status, jobs["gone"].error_type) == ("failed", "UnknownPlugin")
        assert jobs["usual"].metadata == {"user": "Ada"}
        order = ran(tmp_path)[2:]
        assert order.index("urgent") < order.index("usual") < order.index("keyed") < order.index("later")
        assert sorted(order) == sorted(["again", "urgent", "usual", "keyed", "later"])
    assert sorted(events.ends()) == sorted((job.id, f"job:{job.status}", False) for job in jobs.values())


@on_loop
async def test_a_key_holds_over_a_restart(life, tmp_path):
    process, ids = life
    process.kill()
    process.wait()
    async with manager_at(tmp_path / "jobs.db", worker_config=config(max_workers=0)) as manager:
        params = {"trace": str(tmp_path / "trace"), "name": "other", "a": 0, "b": 0}
        joined = await manager.submit_job("add", params, key="report")
        assert joined.id == ids["keyed"]
        with pytest.raises(DuplicateJob, match="has the key 'report' and is pending"):
            await manager.submit_job("add", params, key="report", on_duplicate="refuse")


@on_loop
async def test_the_jobs_of_a_stopped_app_are_its_own(life, tmp_path):
    process, ids = life
    process.send_signal(signal.SIGSTOP)
    try:
        async with manager_at(tmp_path / "jobs.db") as manager:
            usual = await manager.wait(ids["usual"], 120)  # it waits, so whoever has a free worker runs it
            assert usual.result == 3
            with pytest.raises(TimeoutError):
                await manager.wait(ids["once"], 2.5)  # longer than two looks for dead owners
            assert (await manager.job_history()).jobs
            (row,) = manager.job_store.find([ids["once"]])
            assert row.status == "running"
    finally:
        process.send_signal(signal.SIGCONT)


@on_loop
async def test_what_a_killed_app_has_left_is_settled_as_soon_as_the_next_one_opens(
    place, tmp_path, monkeypatch, capsys
):
    "No lease, heartbeat or look is waited for: they come once an hour here."
    monkeypatch.setattr(JobJournal, "RECOVER", 3600.0)
    monkeypatch.setattr(JobJournal, "POLL", 3600.0)
    with life_at(place, tmp_path) as (process, ids):
        process.kill()
        process.wait()
        few = {name: PLUGINS[name] for name in ("add", "wait")}
        manager = BaseJobManager("durable", plugins=few, worker_config=config(), job_store=store_at(place))
        began = time.monotonic()
        async with manager:
            opened = time.monotonic() - began
            once = await manager.wait(ids["once"], 120)
            seconds = time.monotonic() - began
            assert (once.status, once.error_type) == ("failed", "JobLost")
            assert (await manager.wait(ids["gone"], 120)).error_type == "UnknownPlugin"
            assert (await manager.wait(ids["usual"], 120)).result == 3
    with capsys.disabled():
        kind = "PostgreSQL" if place.startswith("postgresql") else "SQLite"
        print(f"\n{kind}: opened after {opened:.3f} s, settled after {seconds:.3f} s")


@on_loop
async def test_a_stopped_app_keeps_what_runs_however_often_others_look(place, tmp_path, monkeypatch):
    monkeypatch.setattr(JobJournal, "RECOVER", 0.0)
    monkeypatch.setattr(JobJournal, "POLL", 0.005)
    store, looks = store_at(place), []
    recover = store.recover

    def counted(owner):
        looks.append(recover(owner))
        return looks[-1]

    store.recover = counted
    with life_at(place, tmp_path) as (process, ids):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)  # noqa: ASYNC222  - it stops at once
        async with BaseJobManager("durable", plugins=PLUGINS, worker_config=config(), job_store=store) as manager:
            await until(lambda: len(looks) > 200, 120)
            assert not any(looks)
            assert [row.status for row in store.find([ids["once"], ids["again"]])] == ["running"] * 2
            process.kill()  # and now it is dead
            process.wait()
            assert (await manager.wait(ids["once"], 120)).error_type == "JobLost"
            assert (await manager.wait(ids["again"], 120)).result == 7


@on_loop
async def test_an_end_that_was_not_told_is_told_by_the_next_app(tmp_path):
    class Deaf:
        async def broadcast(self, event_type, data):
            await asyncio.sleep(600)

    params = {"trace": str(tmp_path / "trace"), "name": "x", "a": 1, "b": 2}
    first = manager_at(tmp_path / "jobs.db", event_broadcaster=Deaf())
    job = await first.submit_job("add", params)
    assert (await first.wait(job, 120)).result == 3
    await first.shutdown(0)
    events = Events()
    async with manager_at(tmp_path / "jobs.db", event_broadcaster=events) as manager:
        assert (await manager.wait(job.id, 120)).result == 3
        await manager.broadcast_event("app:last", {})
    assert events.ends() == [(job.id, "job:completed", True)]
    async with manager_at(tmp_path / "jobs.db", event_broadcaster=(third := Events())):
        pass
    assert third.ends() == []


@on_loop
async def test_a_shutdown_leaves_pending_jobs_in_the_store(tmp_path):
    def params(name):
        return {"trace": str(tmp_path / "trace"), "name": name}

    manager = manager_at(tmp_path / "jobs.db", worker_config=config())
    running = await manager.submit_job("wait", {**params("runs"), "seconds": 60})
    again = await manager.submit_job(
        "wait", {**params("again"), "seconds": 60}, retry=Retry(2, on=("lost",)), priority=-1
    )
    pending = await manager.submit_job("add", {**params("waits"), "a": 1, "b": 2}, priority=-2)
    await until(lambda: running.status == "running")
    waiter = asyncio.create_task(manager.wait(pending))
    await asyncio.sleep(0)
    await manager.shutdown()
    with pytest.raises(ManagerClosed, match="the job stays in the store, and runs with the next one"):
        await waiter
    assert (running.status, again.status, pending.status) == ("cancelled", "pending", "pending")
    async with manager_at(tmp_path / "jobs.db") as manager:
        assert (await manager.wait(pending.id, 120)).result == 3
        assert await manager.cancel_job(again.id)


@on_loop
async def test_what_cannot_be_stored_fails_its_job_alone(tmp_path):
    class Odd(BaseJobManager):
        def extract_job_result(self, job, raw):
            return print if job.params["name"] == "odd" else raw

    params = {"trace": str(tmp_path / "trace"), "a": 1, "b": 2}
    async with Odd(
        "durable", plugins=PLUGINS, worker_config=config(), job_store=SQLiteJobStore(tmp_path / "jobs.db")
    ) as manager:
        with pytest.raises(NotSerializable, match=r"its parameters cannot be stored: params\['a'\] is a function"):
            await manager.submit_job("add", {**params, "name": "x", "a": lambda: 1})
        job = await manager.wait(await manager.submit_job("add", {**params, "name": "odd"}), 120)
        assert (job.status, job.error_type) == ("failed", "NotSerializable"), job.error
        assert (await manager.wait(await manager.submit_job("add", {**params, "name": "even"}), 120)).result == 3
        (row,) = manager.job_store.find([job.id])
        assert (row.status, row.error_type) == ("failed", "NotSerializable")


class WithSecret:
    "A registry whose plugin gets a secret as its configuration."

    def get_plugins_by_category(self, category):
        return []

    def get_plugin(self, plugin_id):
        return SimpleNamespace(id=plugin_id, name=plugin_id, category=None, target="durable_plugins:Configured")

    def load_plugin_config(self, plugin_id):
        return {"api_key": "".join(("x-secret-", "of-the-", "app"))}


@on_loop
async def test_no_configuration_is_stored(place, tmp_path):
    "Neither of a job that ends well, nor of one that fails, crashes, is tried again or waits."
    manager = BaseJobManager(
        "durable", plugin_registry=WithSecret(), worker_config=config(max_workers=1), job_store=store_at(place)
    )
    async with manager:
        done = await manager.wait(await manager.submit_job("configured", how="returns"), 60)
        assert done.result == len(WithSecret().load_plugin_config("")["api_key"])
        for how in ("raises", "crashes"):
            job = await manager.submit_job("configured", how=how, retry=Retry(2, on=("crashed",), delay_seconds=0))
            assert (await manager.wait(job, 60)).status == "failed"
        await manager.submit_job("configured", how="returns", delay_seconds=600)
    assert b"of-the-app" not in everything_of(place)


def everything_of(place):
    if not place.startswith("postgresql"):
        return b"".join(path.read_bytes() for path in Path(place).parent.glob("jobs.db*") if path.is_file())
    import psycopg

    with psycopg.connect(place) as db:
        rows = db.execute("SELECT row_to_json(jobs)::text FROM cjm_worker_ext.jobs").fetchall()
        assert len(rows) == 4
        return str(rows).encode()
