"""Batches: jobs of several users go to the plugin together, and each still has a life of its own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from company_plugins import Configs, SlowToRead
from harness import let_pass, run, time_is_up, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.policies import Recycle, Retry

MODEL = "company_plugins:Model"


def make(plugin=MODEL, config=None, manager=BaseJobManager, recycle=None, **settings):
    return manager(
        "batches",
        plugins={"model": plugin},
        plugin_registry=Configs("model", config or {}),
        worker_config=WorkerConfig(**settings),
        recycle=recycle,
    )


async def submit(manager, *params, **options):
    return [await manager.submit_job("model", params=p, **options) for p in params]


async def ends(manager, jobs, seconds=30):
    return [await manager.wait(job.id, seconds) for job in jobs]


async def loaded(manager):
    "One job before the others, so that the plugin is there."
    await manager.wait((await manager.start_job("model", x=0)).id, 120)


def batches(log: Path) -> list[list[int]]:
    return [[int(x) for x in line.split()] for line in log.read_text().splitlines()]


def test_jobs_go_together_and_each_has_its_own_result(tmp_path):
    async def scene():
        async with make(config={"scale": 10, "log": str(tmp_path / "log")}) as manager:
            await loaded(manager)
            hows = ["", "fail", "", "lambda"]
            jobs = await ends(manager, await submit(manager, *({"x": x, "how": how} for x, how in enumerate(hows))))
            assert batches(tmp_path / "log")[1:] == [[0, 1, 2, 3]], "the order is the jobs' order"
            assert [job.status for job in jobs] == ["completed", "failed", "completed", "failed"]
            assert [jobs[0].result, jobs[2].result] == [{"y": 0, "of": 4}, {"y": 20, "of": 4}]
            assert (jobs[1].error_type, jobs[1].error) == ("ValueError", "not 1")
            assert "lambda" in jobs[3].error or "function" in jobs[3].error
            assert len({job.worker_pid for job in jobs}) == 1

    run(scene())


@pytest.mark.parametrize(("plugin", "together"), [(MODEL, True), ("builtins:dict", False)])
def test_only_the_answers_of_batches_may_take_a_longer_turn_of_the_loop(plugin, together):
    "So that the next jobs go to the worker in one piece; what other plugins yield or print holds the loop up no longer."

    async def scene():
        async with make(plugin) as manager:
            await loaded(manager)
            (worker,) = manager._engine.backend.workers.values()
            share = worker.frames.share
            assert share.short == (share.LONG / 2 if together else share.SHORT)

    run(scene())


def test_what_a_batch_prints_is_told_before_its_answers(caplog):
    async def scene():
        async with make("company_plugins:Prints") as manager:
            await loaded(manager)
            for _ in range(50):
                first, *others = await submit(manager, {}, {}, {})
                await manager.wait(first.id, 120)
                assert f"line {first.result} of a batch" in caplog.text
                await ends(manager, others)

    with caplog.at_level("INFO"):
        run(scene())


def test_more_than_a_batch_waits_for_the_next_one(tmp_path):
    async def scene():
        async with make(config={"log": str(tmp_path / "log")}) as manager:
            jobs = await ends(manager, await submit(manager, *({"x": x} for x in range(30))))
            assert [job.result["y"] for job in jobs] == list(range(30))
            found = batches(tmp_path / "log")
            assert sum(found, []) == list(range(30)) and max(map(len, found)) == 4

    run(scene())


@pytest.mark.parametrize(("how", "error"), [("raise for all", "the whole batch"), ("too few", "4")])
def test_what_fails_the_batch_fails_each_of_its_jobs(how, error):
    async def scene():
        async with make() as manager:
            await loaded(manager)
            jobs = await ends(
                manager, await submit(manager, *({"x": x, "how": how if x == 2 else ""} for x in range(4)))
            )
            assert all(job.status == "failed" and error in job.error for job in jobs), [job.error for job in jobs]
            await loaded(manager)
            assert len(manager.workers()) == 1, "and the worker goes on"

    run(scene())


def test_jobs_of_another_configuration_never_mix(tmp_path):
    async def scene():
        log = tmp_path / "log"
        async with make(config={"log": str(log)}) as manager:
            await loaded(manager)
            go_on = tmp_path / "go on"
            first = await submit(manager, {"x": 1, "until": str(go_on)}, {"x": 2})
            await until(lambda: len(batches(log)) == 2)
            manager.plugin_registry.config = {"log": str(log), "scale": 100}
            second = await submit(manager, {"x": 3}, {"x": 4})
            go_on.touch()
            assert [job.result["y"] for job in await ends(manager, first + second)] == [1, 2, 300, 400]
            assert [1, 2] in batches(log) and [3, 4] in batches(log)

    run(scene())


def test_a_crash_costs_its_batch_and_with_retry_only_the_guilty(tmp_path):
    async def scene():
        async with make(config={"log": str(tmp_path / "log")}, hold_after_crashes=0) as manager:
            await loaded(manager)
            params = [{"x": x, "how": "crash" if x == 2 else ""} for x in range(4)]
            jobs = await ends(manager, await submit(manager, *params))
            assert [job.status for job in jobs] == ["failed"] * 4 and "SIGKILL" in jobs[0].error

            await loaded(manager)
            again = Retry(2, delay_seconds=0.01)
            jobs = await ends(manager, await submit(manager, *params, retry=again))
            assert [job.status for job in jobs] == ["completed", "completed", "failed", "completed"]
            assert [job.attempts for job in jobs] == [2, 2, 2, 2]
            assert [job.result["of"] for job in jobs if job.result] == [1, 1, 1], "each has a worker for itself"

    run(scene())


def test_jobs_that_were_sent_and_did_not_begin_go_to_another_worker(tmp_path):
    "The worker dies between two batches: one runs, the next one lies there."

    async def scene():
        log, go_on = tmp_path / "log", tmp_path / "go on"
        async with make(config={"log": str(log)}) as manager:
            await loaded(manager)
            first = await submit(manager, *({"x": x, "until": str(go_on)} for x in range(4)))
            await until(lambda: len(batches(log)) == 2)
            second = await submit(manager, *({"x": x} for x in range(10, 14)))
            assert all(job.status == "running" for job in second), "they are at the worker already"
            pid = manager.workers()[0].pid
            os.kill(pid, signal.SIGKILL)
            assert [job.status for job in await ends(manager, first)] == ["failed"] * 4
            second = await ends(manager, second)
            assert [job.result["y"] for job in second] == [10, 11, 12, 13]
            assert [job.attempts for job in second] == [1] * 4 and pid not in {job.worker_pid for job in second}
            assert sorted(sum(batches(log), [])) == [0, 0, 1, 2, 3, 10, 11, 12, 13], "nothing ran twice"

    run(scene())


def test_one_of_a_batch_is_cancelled_and_the_others_go_on(tmp_path):
    async def scene():
        go_on = tmp_path / "go on"
        async with make("company_plugins:Busy") as manager:
            jobs = await submit(manager, *({"until": str(go_on)} for _ in range(3)))
            await until(lambda: all(job.progress is not None for job in jobs), what="the progress of each job")
            assert [job.progress_message for job in jobs] == ["part 0", "part 1", "part 2"]
            assert await manager.cancel_job(jobs[1].id)
            await manager.wait(jobs[1].id, 120)
            assert jobs[1].status == "cancelled" and jobs[0].status == "running", "it does not wait for the batch"
            go_on.touch()
            assert [job.status for job in await ends(manager, jobs)] == ["completed", "cancelled", "completed"]
            assert [jobs[0].result, jobs[2].result] == [False, False]
            assert len(manager.workers()) == 1

    run(scene())


def test_a_batch_that_nobody_wants_is_interrupted(tmp_path):
    async def scene():
        never = tmp_path / "never"
        async with make("company_plugins:Busy", cancel_grace_seconds=30) as manager:
            jobs = await submit(manager, *({"until": str(never)} for _ in range(3)))
            await until(lambda: all(job.progress is not None for job in jobs))
            pid = manager.workers()[0].pid
            for job in jobs:
                await manager.cancel_job(job.id)
            assert [job.status for job in await ends(manager, jobs)] == ["cancelled"] * 3
            job = await manager.wait((await manager.submit_job("model", params={})).id, 120)
            assert (job.status, job.worker_pid) == ("completed", pid), "the worker was not killed for it"

    run(scene())


def test_a_batch_that_hears_nothing_costs_its_worker_only_once_nobody_needs_it(tmp_path):
    async def scene():
        go_on = tmp_path / "go on"
        async with make("company_plugins:Deaf", cancel_grace_seconds=0.05) as manager:
            started = [tmp_path / f"started {x}" for x in range(2)]
            jobs = await submit(manager, *({"until": str(go_on), "started": str(path)} for path in started))
            await until(lambda: all(path.exists() for path in started))
            pid = manager.workers()[0].pid
            await manager.cancel_job(jobs[0].id)
            await manager.wait(jobs[0].id, 120)
            assert (jobs[0].status, jobs[1].status) == ("cancelled", "running")
            assert manager.workers()[0].pid == pid, "the other job still runs there"
            await manager.cancel_job(jobs[1].id)
            await manager.wait(jobs[1].id, 120)
            await until(lambda: pid not in {w.pid for w in manager.workers()}, what="the kill")

    run(scene())


def test_the_time_of_one_runs_out_and_the_others_go_on(tmp_path):
    async def scene():
        go_on = tmp_path / "go on"
        async with make("company_plugins:Busy") as manager:
            jobs = await submit(manager, *({"until": str(go_on)} for _ in range(2)))
            jobs += await submit(manager, {}, timeout=600)
            await until(lambda: all(job.progress is not None for job in jobs))
            await time_is_up(manager, jobs[2])
            await manager.wait(jobs[2].id, 120)
            assert (jobs[2].status, jobs[2].error_type, jobs[0].status) == ("failed", "JobTimeout", "running")
            go_on.touch()
            assert [job.status for job in await ends(manager, jobs)] == ["completed", "completed", "failed"]

    run(scene())


def test_cancels_while_batches_are_answered_end_each_job_once():
    async def scene():
        rng, seen = random.Random(7), []

        class Manager(BaseJobManager):
            def on_job_ended(self, job):
                seen.append(job.id)

        async with make(manager=Manager, config={}) as manager:
            await loaded(manager)
            seen.clear()
            pid = manager.workers()[0].pid
            jobs = []
            for x in range(300):
                jobs += await submit(manager, {"x": x})
                if rng.random() < 0.4:
                    await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003]))
                    await manager.cancel_job(rng.choice(jobs[-8:]).id)
            for job in await ends(manager, jobs):
                assert job.status in ("completed", "cancelled"), job.error
                assert job.status == "cancelled" or job.result["y"] == job.params["x"]
            assert sorted(seen) == sorted(job.id for job in jobs) and len(set(seen)) == 300
            assert {job.status for job in jobs} == {"completed", "cancelled"}
            assert manager.workers()[0].pid == pid

    run(scene())


def test_a_worker_is_replaced_after_the_batch_that_asks_for_it(tmp_path):
    async def scene():
        async with make(recycle=Recycle(max_jobs=6)) as manager:
            await loaded(manager)
            first = await ends(manager, await submit(manager, {"x": 1, "how": "retire"}, {"x": 2}))
            second = await ends(manager, await submit(manager, *({"x": x} for x in range(8))))
            third = await ends(manager, await submit(manager, {"x": 1}))
            assert [job.status for job in first + second + third] == ["completed"] * 11
            pids = [{job.worker_pid for job in jobs} for jobs in (first, second, third)]
            assert not pids[0] & pids[1] and len(set.union(*pids)) >= 3, "and after six jobs once more"

    run(scene())


def test_a_transient_error_of_one_tries_that_one_again():
    async def scene():
        async with make() as manager:
            await loaded(manager)
            params = [{"x": 1, "how": "transient"}, {"x": 2}]
            jobs = await ends(manager, await submit(manager, *params, retry=Retry(3, delay_seconds=0.01)))
            assert [(job.status, job.attempts) for job in jobs] == [("failed", 3), ("completed", 1)]

    run(scene())


def test_large_results_of_a_batch_cross():
    async def scene():
        async with make() as manager:
            jobs = await ends(manager, await submit(manager, *({"x": x, "how": "array"} for x in range(12))))
            for x, job in enumerate(jobs):
                assert np.all(job.result == x) and job.result.nbytes == 2 << 20

    run(scene())


def test_draining_ends_what_was_sent():
    async def scene():
        manager = make()
        await loaded(manager)
        jobs = await submit(manager, *({"x": x} for x in range(20)))
        await manager.shutdown(drain=True)
        assert [job.status for job in jobs] == ["completed"] * 20

    run(scene())


def test_time_in_front_of_a_batch_is_not_the_time_of_a_job(tmp_path):
    "A batch that gathers takes what fits; the job that is left over waits for its end."

    async def scene():
        log, go_on = tmp_path / "log", tmp_path / "go on"
        async with make(config={"log": str(log)}) as manager:
            await loaded(manager)
            first = await submit(manager, *({"x": x, "until": str(go_on)} for x in range(4)))
            (short,) = await submit(manager, {"x": 4}, timeout=600)
            await until(lambda: len(batches(log)) == 2)
            assert short.status == "running", "it is at the worker already"
            number, timers = manager._engine.jobs.find(short).task.number, manager._engine.timers
            await until(lambda: ("timeout", number) not in timers._handles, what="the app's knowledge of the batch")
            let_pass(601)
            with pytest.raises(TimeoutError):
                await manager.wait(short.id, 0.3)
            go_on.touch()
            assert [job.status for job in await ends(manager, [*first, short])] == ["completed"] * 5

    run(scene(), 900)


def test_a_worker_that_never_comes_to_the_next_batch_does_not_hold_it_for_ever(tmp_path):
    async def scene():
        log, go_on = tmp_path / "log", tmp_path / "go on"
        async with make(config={"log": str(log)}, cancel_grace_seconds=0.05) as manager:
            await loaded(manager)
            first = await submit(manager, {"x": 1, "until": str(go_on)})
            await until(lambda: len(batches(log)) == 2)
            (slow,) = await submit(manager, {"x": SlowToRead(600)}, timeout=0.3)
            (other,) = await submit(manager, {"x": 2})
            go_on.touch()
            assert [job.status for job in await ends(manager, first)] == ["completed"]
            assert (await manager.wait(slow.id, 120)).error_type == "JobTimeout"
            assert (await manager.wait(other.id, 120)).status == "completed", "it goes to another worker"

    run(scene())


def test_an_odd_result_fails_its_own_job_and_leaves_none_without_an_answer():
    async def scene():
        async with make("company_plugins:Odd") as manager:
            await loaded(manager)
            jobs = await ends(manager, await submit(manager, {"x": 1}, {"ghost": True}, {"x": 3}))
            assert [job.status for job in jobs] == ["completed", "failed", "completed"]
            assert jobs[1].error == "nobody is here"
            jobs = await ends(manager, await submit(manager, {"x": 1}, {"liar": True}))
            assert all("a list of 2 results, one for each job; got 0" in job.error for job in jobs)
            await loaded(manager)

    run(scene())
