"""Async plugins: many jobs on one worker, and none of them notices the others."""

from __future__ import annotations

import asyncio
import logging

from company_plugins import Configs
from harness import run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.policies import Retry


def make(name: str, config=None, more=None, **settings) -> BaseJobManager:
    return BaseJobManager(
        "async",
        plugins={"plugin": f"company_plugins:{name}", **(more or {})},
        plugin_registry=Configs("plugin", config or {}),
        worker_config=WorkerConfig(**settings),
    )


async def ends(manager, jobs, seconds=30):
    return [await manager.wait(job.id, seconds) for job in jobs]


def test_two_hundred_jobs_run_at_the_same_time_on_one_worker():
    async def scene():
        async with make("Meeting", {"expected": 200}) as manager:
            jobs = [await manager.start_job("plugin", number=n) for n in range(200)]  # each waits for all others
            assert [job.result for job in await ends(manager, jobs)] == list(range(200))
            assert len({job.worker_pid for job in jobs}) == 1

    run(scene())


def test_the_config_may_say_how_many():
    async def scene():
        for settings, most in (({}, 5), ({"max_concurrency": 2}, 2)):
            async with make("Counted", **settings) as manager:
                jobs = await ends(manager, [await manager.start_job("plugin") for _ in range(20)])
                assert max(job.result for job in jobs) == most

    run(scene())


def test_each_job_has_its_own_context_result_and_error(tmp_path):
    async def scene():
        async with make("Room", {"folder": str(tmp_path)}) as manager:
            hows = {"a": "", "b": "raise", "c": "thread", "d": "exit", "e": ""}
            jobs = {n: await manager.start_job("plugin", name=n, how=how) for n, how in hows.items()}
            await ends(manager, jobs.values())
            assert [jobs[n].result for n in "ae"] == [f"{n} {jobs[n].id}" for n in "ae"]
            assert jobs["c"].result == jobs["c"].id, "a thread of asyncio.to_thread knows the job too"
            assert [(jobs[n].status, jobs[n].error_type) for n in "bd"] == [
                ("failed", "KeyError"),
                ("failed", "SystemExit"),
            ]
            assert all(job.progress_message == f"{name} is on its way" for name, job in jobs.items())
            assert len({job.worker_pid for job in jobs.values()}) == 1, "nothing of this ended the worker"

    run(scene())


def test_one_is_cancelled_and_the_others_go_on(tmp_path):
    async def scene():
        async with make("Room", {"folder": str(tmp_path)}, cancel_grace_seconds=30) as manager:
            jobs = [await manager.start_job("plugin", name=n, until="go on") for n in "abc"]
            await until(lambda: all((tmp_path / f"{n} began").exists() for n in "abc"))
            await manager.cancel_job(jobs[1].id)
            await manager.wait(jobs[1].id, 120)
            assert (tmp_path / "b was cancelled").exists() and jobs[0].status == "running"
            (tmp_path / "go on").touch()
            assert [job.status for job in await ends(manager, jobs)] == ["completed", "cancelled", "completed"]
            assert len({job.worker_pid for job in jobs}) == 1

    run(scene())


def test_a_job_that_does_not_end_costs_its_worker_only_once_nobody_needs_it(tmp_path):
    async def scene():
        async with make("Room", {"folder": str(tmp_path)}, cancel_grace_seconds=2.0) as manager:
            deaf = await manager.start_job("plugin", name="deaf", until="never", how="deaf")
            other = await manager.start_job("plugin", name="other", until="go on")
            await until((tmp_path / "other began").exists)
            pid = manager.workers()[0].pid
            await manager.cancel_job(deaf.id)
            assert (await manager.wait(deaf.id, 120)).status == "cancelled"
            assert other.status == "running" and manager.workers()[0].pid == pid
            (tmp_path / "go on").touch()
            assert (await manager.wait(other.id, 120)).status == "completed"
            await until(lambda: pid not in {w.pid for w in manager.workers()}, what="the kill")

    run(scene())


def test_the_time_of_one_runs_out(tmp_path):
    async def scene():
        async with make("Room", {"folder": str(tmp_path)}) as manager:
            slow = await manager.submit_job("plugin", params={"name": "slow", "until": "go on"}, timeout=0.3)
            other = await manager.start_job("plugin", name="other", until="go on")
            assert (await manager.wait(slow.id, 120)).error_type == "JobTimeout"
            (tmp_path / "go on").touch()
            assert (await manager.wait(other.id, 120)).status == "completed"

    run(scene())


def test_a_crash_costs_those_that_ran_there_and_with_retry_only_the_guilty(tmp_path):
    async def scene():
        async with make("Room", {"folder": str(tmp_path)}, hold_after_crashes=0) as manager:
            again = Retry(2, delay_seconds=0.01)
            params = [{"name": n, "until": "go on"} for n in "ab"]
            jobs = [await manager.submit_job("plugin", params=p, retry=again) for p in params]
            await until(lambda: all((tmp_path / f"{n} began").exists() for n in "ab"))
            guilty = await manager.submit_job("plugin", params={"name": "c", "how": "crash"}, retry=again)
            (tmp_path / "go on").touch()
            found = await ends(manager, [*jobs, guilty])
            assert [job.status for job in found] == ["completed", "completed", "failed"]
            assert guilty.attempts == 2 and "SIGKILL" in guilty.error

    run(scene())


def test_a_slow_reader_holds_up_its_own_job_only(tmp_path):
    async def scene():
        async with make("Tokens", max_buffered_chunks=50) as manager:
            slow = await manager.start_job("plugin", count=20_000)
            reader = manager.stream(slow.id)
            assert await anext(reader) == 0
            other = await manager.start_job("plugin", count=5000)
            assert [chunk async for chunk in manager.stream(other.id)] == list(range(5000))
            assert slow.status == "running" and other.worker_pid == slow.worker_pid
            rest = [chunk async for chunk in reader]
            assert rest == list(range(1, 20_000))

            paused = await manager.start_job("plugin", count=20_000)
            reader = manager.stream(paused.id)
            await anext(reader)
            await manager.cancel_job(paused.id)
            assert (await manager.wait(paused.id, 120)).status == "cancelled"

    run(scene())


def test_what_was_loaded_lives_on_between_jobs_and_leaves_at_the_end(tmp_path):
    async def scene():
        plain = {"plain": "company_plugins:runs_a_loop_of_its_own"}
        async with make("Room", {"folder": str(tmp_path)}, more=plain) as manager:

            async def beats() -> int:
                job = await manager.wait((await manager.start_job("plugin", name="x", how="beats")).id, 120)
                return int(job.result)

            first = before = await beats()
            for pause in (0.1, 1, 10, 30):  # nothing runs: only the plugin's own task goes on; a machine may be busy
                await asyncio.sleep(pause)
                before, after = first, await beats()
                if after > before + 15:
                    break
            assert after > before + 15
            job = await manager.wait((await manager.start_job("plain", x=4)).id, 120)
            assert job.result == 8, "a plain plugin beside it may run a loop of its own"
            assert await beats() > first
        assert int((tmp_path / "unloaded").read_text()) > 5

    run(scene())


def test_a_call_that_blocks_the_loop_is_told_with_its_stack(tmp_path, caplog):
    async def scene():
        with caplog.at_level(logging.INFO, "cjm_worker_ext"):
            async with make("Room", {"folder": str(tmp_path)}) as manager:
                job = await manager.start_job("plugin", name="a", how="block")
                await until(lambda: any(job.id in message for message in caplog.messages), what="what is told")
                (tmp_path / "told").touch()
                assert (await manager.wait(job.id, 120)).status == "completed"
        words = "\n".join(caplog.messages)
        assert "stands still for over" in words and "self.block()" in words and "company_plugins.py" in words, words

    run(scene())


def test_a_worker_is_replaced_once_all_its_jobs_have_ended(tmp_path):
    async def scene():
        async with make("Room", {"folder": str(tmp_path)}) as manager:
            old = await manager.start_job("plugin", name="a", until="go on")
            await until((tmp_path / "a began").exists)
            asks = await manager.wait((await manager.start_job("plugin", name="b", how="retire")).id, 120)
            new = await manager.start_job("plugin", name="c")
            (tmp_path / "go on").touch()
            await ends(manager, [old, new])
            assert old.status == new.status == "completed"
            assert old.worker_pid == asks.worker_pid != new.worker_pid

    run(scene())


def test_draining_ends_what_runs(tmp_path):
    async def scene():
        manager = make("Counted")
        jobs = [await manager.start_job("plugin", seconds=0.05) for _ in range(12)]
        await manager.shutdown(drain=True)
        assert [job.status for job in jobs] == ["completed"] * 12

    run(scene())


def test_a_forked_child_of_an_async_job_takes_no_order():
    async def scene():
        async with make("Forks") as manager:
            assert await manager.run("plugin", number=0) == 0
            jobs = []
            for number in range(1, 60):
                jobs.append(await manager.start_job("plugin", number=number, fork=number % 10 == 1))
                await asyncio.sleep(0.01)
            assert [job.result for job in await ends(manager, jobs)] == list(range(1, 60))
            assert len({job.worker_pid for job in jobs}) == 1

    run(scene())


def test_a_job_that_holds_up_the_event_loop_for_ever_costs_its_worker(tmp_path):
    "The others there could never end, and new jobs would go to them."

    async def scene():
        settings = {"cancel_grace_seconds": 0.3, "hold_after_crashes": 0}
        async with make("Room", {"folder": str(tmp_path)}, **settings) as manager:
            other = await manager.start_job("plugin", name="other", until="never")
            again = await manager.submit_job(
                "plugin", {"name": "again", "until": "go on"}, retry=Retry(2, delay_seconds=0.01)
            )
            await until(lambda: all((tmp_path / f"{name} began").exists() for name in ("other", "again")))
            wedged = await manager.start_job("plugin", name="wedged", how="wedge")
            await until((tmp_path / "wedged began").exists)
            (tmp_path / "go on").touch()
            await manager.cancel_job(wedged.id)
            assert (await manager.wait(wedged.id, 120)).status == "cancelled"
            assert (await manager.wait(other.id, 120)).error_type == "WorkerCrashed"
            assert (await manager.wait(again.id, 120)).status == "completed", "alone, on another worker"

    run(scene())
