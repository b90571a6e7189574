"""Two apps on one store share its jobs; one that runs nothing only submits and watches; a terminal steers all of them."""

import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from durable_lives import PLUGINS, config
from harness import on_loop, until

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.commands.jobs import store_at
from cjm_worker_ext.errors import UnknownJob
from cjm_worker_ext.extensions.stores import JobFilter


class Events:
    def __init__(self):
        self.seen = []

    async def broadcast(self, event_type, data):
        self.seen.append((event_type, data.get("job_id")))


def app(place, workers=1, plugins=PLUGINS, **options):
    return BaseJobManager(
        "durable", worker_config=config(max_workers=workers), plugins=plugins, job_store=store_at(place), **options
    )


def add(tmp_path, name, seconds=0.0):
    return "add", {"trace": str(tmp_path / "trace"), "name": name, "a": 1, "b": 1, "seconds": seconds}


def ran(tmp_path):
    trace = tmp_path / "trace"
    return Counter(trace.read_text().splitlines() if trace.exists() else ())


@on_loop
async def test_each_job_runs_once_in_whichever_app_is_free(place, tmp_path):
    events = Events()
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(app(place, event_broadcaster=events)) for _ in range(2)]
        jobs = [await one.submit_job(*add(tmp_path, f"j{i}", 0.05)) for i in range(40)]
        ended = [await one.wait(job, 120) for job in jobs]
        assert [job.result for job in ended] == [2] * 40
        assert ran(tmp_path) == Counter(f"ran j{i}" for i in range(40))
        both = {job.worker_pid for job in ended}
        assert len(both) == 2, both
    ends = Counter(job_id for kind, job_id in events.seen if kind == "job:completed")
    assert ends == Counter(job.id for job in jobs)


@on_loop
async def test_an_app_without_workers_submits_and_watches(place, tmp_path):
    async with app(place, workers=0) as web:
        job = await web.submit_job(*add(tmp_path, "one"), key="only once", metadata={"user": "Ada"})
        assert (await web.submit_job(*add(tmp_path, "one"), key="only once")).id == job.id
        unwanted = await web.submit_job(*add(tmp_path, "unwanted"), delay_seconds=60)
        assert await web.cancel_job(unwanted)  # nobody has it yet
        async with app(place) as other:
            assert (await web.wait(job, 120)).result == 2
            assert (await other.find_job(job.id)).metadata == {"user": "Ada"}
            long = await web.submit_job(*add(tmp_path, "long", 600))
            await until(lambda: ran(tmp_path)["ran long"])
            assert await web.cancel_job(long)  # it runs in the other app
            assert long.status == "cancelled"
            with pytest.raises(UnknownJob):
                await web.wait("no such job")
    assert ran(tmp_path) == Counter(["ran one", "ran long"])


@on_loop
async def test_a_job_that_another_app_took_wakes_its_waiters(place, tmp_path):
    async with app(place) as busy:
        await busy.submit_job(*add(tmp_path, "long", 600))
        job = await busy.submit_job(*add(tmp_path, "waits"))
        await until(lambda: ran(tmp_path)["ran long"])
        async with app(place):
            assert (await busy.wait(job, 120)).result == 2  # it does not wait until the long one has ended


@on_loop
async def test_a_job_whose_plugin_only_one_app_has_comes_back(place, tmp_path):
    async with app(place) as one, app(place, plugins={"wait": PLUGINS["wait"]}) as two:
        jobs = [await one.submit_job(*add(tmp_path, f"j{i}", 0.1)) for i in range(5)]
        assert [(await one.wait(job, 120)).status for job in jobs] == ["completed"] * 5
        assert two.worker_config.max_workers == 1


@on_loop
async def test_the_terminal_cancels_a_job_of_an_app(place, tmp_path):
    async with app(place) as one:
        job = await one.submit_job(*add(tmp_path, "long", 600))
        await until(lambda: ran(tmp_path)["ran long"])
        command = [
            sys.executable,
            "-c",
            "from cjm_worker_ext.commands.jobs import main; main()",
            place,
            "cancel",
            job.id,
        ]
        done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220  - it ends soon
        assert (await one.wait(job, 120)).status == "cancelled"
        done.communicate(timeout=120)
        assert done.returncode == 0
        page = await one.job_history(JobFilter(statuses=("cancelled",)))
        assert [found.id for found in page.jobs] == [job.id]
