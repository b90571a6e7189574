"""With PostgreSQL too the starts of many short jobs are committed at once; which of them have begun is known on every machine."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from harness import run, until, until_now
from test_held_jobs import many, step

from cjm_worker_ext import BaseJobManager, JobStatus, WorkerConfig
from cjm_worker_ext.engine.durable_jobs import DurableJobs
from cjm_worker_ext.stores.postgres import PostgresJobStore


@pytest.fixture
def dsn(postgres):
    return postgres.dsn()


def an_app(dsn, plugin=step):
    return BaseJobManager(
        "held", plugins={"p": plugin}, worker_config=WorkerConfig(max_workers=1),
        job_store=PostgresJobStore(dsn, lease_seconds=2),
    )  # fmt: skip


async def all_are_held(manager):
    durable = manager._engine.durable
    await until(lambda: len(durable.held) >= 10 and all(one.is_written for one in durable.held.values()))
    return [one.record.job for one in durable.held.values()]


PROGRAM = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from test_postgres_held import all_are_held, an_app, many

async def main():
    async with an_app(sys.argv[1]) as manager:
        first, jobs = await many(Path(sys.argv[2]), manager)
        manager._engine.durable.LOOK = 60.0
        held = await all_are_held(manager)
        print(*(job.id for job in held), "/", *(job.id for job in jobs), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def killed(dsn, tmp_path):
    "Ids of the jobs that an app held when it was killed, and of all that had not ended."
    command = [sys.executable, "-c", PROGRAM, dsn, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        held, _, jobs = app.stdout.readline().partition("/")
        app.send_signal(signal.SIGKILL)
        app.wait()
    assert len(held.split()) >= 10
    return held.split(), jobs.split()


@pytest.mark.parametrize("is_here", [True, False])
def test_no_job_that_is_held_is_lost_with_its_app(dsn, killed, is_here, monkeypatch):
    if not is_here:  # as on another machine, or in another container
        monkeypatch.setattr("cjm_worker_ext.stores.postgres.process_state", lambda identity: "")
    held, jobs = killed
    store = PostgresJobStore(dsn, lease_seconds=2)
    owner = store.open("held")
    ran = {job.id for job in until_now(lambda: store.recover(owner), 120)}
    waits = store.claim(owner, 200, time.time())
    store.close(owner)
    assert not ran & set(held)
    assert len(ran) <= 3, "the one that ran, and those that lay at its worker"
    assert {job.id for job in waits} | ran >= set(jobs) and len(waits) >= 78
    assert {(job.status, job.attempts) for job in waits} == {("pending", 0)}
    with psycopg.connect(dsn) as db:
        assert db.execute("SELECT count(*) FROM cjm_worker_ext.holds").fetchone() == (0,)


def test_after_a_crash_of_the_server_held_jobs_count_as_begun(dsn, killed, postgres):
    postgres.crash()
    postgres.start()
    held, _ = killed
    store = PostgresJobStore(dsn)
    owner = store.open("held")
    ran = {job.id for job in store.recover(owner)}
    store.close(owner)
    assert ran >= set(held)


def test_no_job_begins_before_its_note_is_gone(dsn, tmp_path, monkeypatch):
    monkeypatch.setattr(DurableJobs, "LOOK", 60.0)

    async def play():
        async with an_app(dsn) as manager:
            first, _ = await many(tmp_path, manager)
            held = await all_are_held(manager)
            with psycopg.connect(dsn) as db:
                db.execute("LOCK TABLE cjm_worker_ext.holds IN SHARE MODE")
                (tmp_path / "gate").touch()
                await manager.wait(first.id)
                looks = psycopg.connect(dsn)
                sql = "SELECT count(*) FROM pg_locks WHERE relation = 'cjm_worker_ext.holds'::regclass AND NOT granted"
                await until(lambda: looks.execute(sql).fetchone()[0])
                assert {job.status for job in held} == {JobStatus.PENDING}
                looks.close()
            for job in held:
                assert (await manager.wait(job.id)).status is JobStatus.COMPLETED and job.attempts == 1

    run(play())


def note(path, number):
    with open(path, "a") as file:
        file.write(f"{number}\n")


def test_a_connection_that_is_cut_again_and_again_costs_no_job_and_no_order(dsn, tmp_path):
    path, sql = str(tmp_path / "order"), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE %s"

    async def play():
        async with an_app(dsn, note) as manager:
            await asyncio.gather(*[manager.run("p", path=path, number=-1) for _ in range(60)])
            jobs = await asyncio.gather(*[manager.start_job("p", path=path, number=n) for n in range(600)])
            with psycopg.connect(dsn, autocommit=True) as db:
                cuts = 0
                for job in jobs[::25]:
                    await manager.wait(job.id)
                    cuts += len(db.execute(sql, ("UPDATE holds SET ids = ids - $3%",)).fetchall())
            for job in jobs:
                assert (await manager.wait(job.id)).status is JobStatus.COMPLETED and job.attempts == 1
            return cuts

    cuts = run(play())
    ran = [int(line) for line in Path(path).read_text().split()][60:]
    assert ran == list(range(600)) and cuts
