"""The starts of many short jobs are committed at once. Until such a job goes to a worker, nothing is lost with its app."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness import run, until

from cjm_worker_ext import BaseJobManager, JobStatus, WorkerConfig
from cjm_worker_ext.engine.durable_jobs import DurableJobs
from cjm_worker_ext.stores.sqlite import SQLiteJobStore


def step(gate=None):
    while gate is not None and not Path(gate).exists():
        time.sleep(0.005)


async def many(folder, manager):
    "Let jobs be known to be short; then, of many that wait, one takes long."
    await asyncio.gather(*[manager.run("p") for _ in range(60)])
    gates = [*[None] * 30, str(folder / "gate"), *[None] * 80]
    jobs = await asyncio.gather(*[manager.start_job("p", gate=gate) for gate in gates])
    for job in jobs[:30]:
        await manager.wait(job.id)
    await until(lambda: jobs[30].status is JobStatus.RUNNING)
    return jobs[30], jobs[31:]


def an_app(folder):
    return BaseJobManager(
        "held", plugins={"p": step}, worker_config=WorkerConfig(max_workers=1),
        job_store=SQLiteJobStore(folder / "jobs.db"),
    )  # fmt: skip


def rows_of(store, jobs):
    return [row.status for row in store.find([job.id for job in jobs], whole=False)]


def test_what_waits_long_may_go_to_another_process(tmp_path):
    async def play():
        async with an_app(tmp_path) as manager:
            first, jobs = await many(tmp_path, manager)
            store = manager.job_store
            await until(lambda: rows_of(store, jobs).count("running") <= 2)  # these lie at the worker
            held = manager._engine.durable.held
            assert not held
            (tmp_path / "gate").touch()
            for job in [first, *jobs]:
                assert (await manager.wait(job.id)).status is JobStatus.COMPLETED
            assert [row.attempts for row in store.find([job.id for job in jobs])] == [1] * 80

    run(play())


def test_cancel_and_shutdown_of_jobs_that_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(DurableJobs, "LOOK", 60.0)

    async def play():
        async with an_app(tmp_path) as manager:
            first, jobs = await many(tmp_path, manager)
            store, durable = manager.job_store, manager._engine.durable
            await until(lambda: durable.held and all(one.is_written for one in durable.held.values()))
            held = [one.record.job for one in durable.held.values()]
            assert rows_of(store, held) == ["running"] * len(held) and {job.status for job in held} == {"pending"}
            await manager.cancel_job(held[-1].id)
            await manager.wait(held[-1].id)
            assert rows_of(store, [held[-1]]) == ["cancelled"]
            manager.set_priority(held[-2].id, 5)
            (tmp_path / "gate").touch()
            await manager.wait(first.id)
        return held

    held = run(play())
    look = SQLiteJobStore(tmp_path / "jobs.db")
    assert set(rows_of(look, held)) <= {"pending", "completed", "cancelled"}

    async def go_on():
        async with an_app(tmp_path) as manager:
            for job in held[:-1]:
                job = await manager.wait(job.id)
                # the shutdown has cancelled those that ran
                assert job.status is JobStatus.COMPLETED or (job.status is JobStatus.CANCELLED and job.attempts), job

    run(go_on())


PROGRAM = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from test_held_jobs import an_app, many
from harness import until

async def main():
    async with an_app(Path(sys.argv[1])) as manager:
        first, jobs = await many(Path(sys.argv[1]), manager)
        durable = manager._engine.durable
        durable.LOOK = 60.0
        await until(lambda: durable.held and all(one.is_written for one in durable.held.values()))
        print(len(durable.held), *(job.id for job in jobs), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_no_job_that_is_held_is_lost_with_its_app(tmp_path):
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True) as app:
        count, *jobs = app.stdout.readline().split()
        app.send_signal(signal.SIGKILL)
        app.wait()
    store = SQLiteJobStore(tmp_path / "jobs.db")
    owner = store.open("held")
    ran = store.recover(owner)
    waits = store.claim(owner, 200, time.time())
    store.close(owner)
    assert int(count) >= 10
    assert len(ran) <= 3, "the one that ran, and those that lay at its worker"
    assert {job.id for job in waits} | {job.id for job in ran} >= set(jobs) and len(waits) >= 78
    assert {(job.status, job.attempts) for job in waits} == {("pending", 0)}
