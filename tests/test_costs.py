"""What a warm job costs, counted and not timed: today's counts are the ceiling on every machine."""

import gc
import json
import shutil
import subprocess
import sys
import textwrap

import pytest

from cjm_worker_ext.backends.codec import decode
from cjm_worker_ext.backends.codec import encode as encode_value
from cjm_worker_ext.backends.framing import EXECUTE, RESULT, encode
from cjm_worker_ext.backends.order_pickles import dumps

PROGRAM = textwrap.dedent("""
    import asyncio, gc, json, sys
    from pathlib import Path
    from cjm_worker_ext import BaseJobManager, WorkerConfig

    def switches(pid, without=None):
        "How often threads went to sleep; the one that looks may do so while it reads."
        found = 0
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            if status.parent.name != str(without):
                found += sum(int(li.split()[1]) for li in status.read_text().splitlines() if li.startswith("voluntary"))
        return found

    def count_turns(loop):
        select, found = loop._selector.select, [0]

        def counted(timeout=None):
            found[0] += timeout is None or timeout > 0  # it may sleep
            return select(timeout)

        loop._selector.select = counted
        return found

    def look(turns, mine, worker):
        return turns[0], switches(mine, mine), switches(worker)

    def all_sleep(*pids):
        threads = [t for pid in pids for t in Path(f"/proc/{pid}/task").glob("*/stat")]
        return [t.read_text().rpartition(")")[2].split()[0] for t in threads].count("R") <= 1  # the one that looks

    async def rest(turns, *pids):
        "Wait until the end of the last job has gone its way, however busy the machine is."
        quiet = 0
        async with asyncio.timeout(120):
            while quiet < 5:
                before = look(turns, *pids)
                await asyncio.sleep(0.1)
                after = look(turns, *pids)
                quiet = quiet + 1 if all_sleep(*pids) and after == (before[0] + 1, *before[1:]) else 0

    def count_calls(found):
        def take(frame, event, what):
            found["calls"] += event in ("call", "c_call")
        return take

    async def main(jobs, idle):
        config = WorkerConfig(max_finished_jobs=10)
        plugins = {"pid": "os:getpid"}
        async with BaseJobManager("test", "test", worker_config=config, plugins=plugins) as manager:
            async def run(count, plugin="pid"):
                for _ in range(count):
                    job = await manager.wait((await manager.start_job(plugin)).id)
                    assert job.status == "completed", job.error
                return job.result
            pid = await run(200)
            gc.collect()
            blocks = sys.getallocatedblocks()
            await run(jobs)
            gc.collect()
            report = {"blocks": sys.getallocatedblocks() - blocks, "calls": 0}
            sys.setprofile(count_calls(report))
            await run(100)
            sys.setprofile(None)
            report["calls"] /= 100
            if idle:
                import os
                turns = count_turns(asyncio.get_running_loop())
                await rest(turns, os.getpid(), pid)
                before = look(turns, os.getpid(), pid)
                await asyncio.sleep(idle)
                after = look(turns, os.getpid(), pid)
                report |= dict(zip(("turns", "parent", "worker"), (b - a for a, b in zip(before, after))))
        return report

    print(json.dumps(asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))))
""")


BATCHES = textwrap.dedent("""
    import asyncio, json, sys
    from cjm_worker_ext import BaseJobManager, WorkerConfig

    USERS, ROUNDS, TOKENS = 32, 5, list(range(128))

    async def main():
        found = []
        config = WorkerConfig(max_workers=1, max_finished_jobs=10)
        plugins = {"batch": "tests.company_plugins:Embeds"}
        async with BaseJobManager("test", "test", worker_config=config, plugins=plugins) as manager:
            calls = 0

            def count(frame, event, what):
                nonlocal calls
                calls += event in ("call", "c_call")

            async def user(rounds):
                for _ in range(rounds):
                    job = await manager.wait((await manager.start_job("batch", tokens=TOKENS)).id)
                    assert job.status == "completed" and len(job.result) == 768, job.error

            await asyncio.gather(*(user(3) for _ in range(USERS)))
            for _ in range(10):
                calls = 0
                sys.setprofile(count)
                await asyncio.gather(*(user(ROUNDS) for _ in range(USERS)))
                sys.setprofile(None)
                found.append(calls / USERS / ROUNDS)
        return min(found)  # a batch that was cut in two costs some calls more

    print(json.dumps(asyncio.run(main())))
""")


CALLS = 175  # Of Python and of C in the app, for a job and the wait for its end; those of the test included


ARRAY_CALLS = 14  # To write and read one
BATCH_CALLS = 195  # The same for each of 32 jobs that go to a plugin together, with 128 numbers, and return an array


def run(jobs, idle=0.0, *before, program=PROGRAM):
    command = [*before, sys.executable, "-c", program, str(jobs), str(idle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_small_job_is_few_bytes():
    job = ("0" * 32, "plugin", None, False, {})
    assert len(encode(EXECUTE, 1, dumps(job)[0])[0]) <= 83
    assert len(encode(RESULT, 1, dumps(None)[0])[0]) <= 20


def test_jobs_leave_nothing_behind_in_memory():
    assert run(5120)["blocks"] < 500, "a tenth of a block for each job"  # ids are made 256 at a time


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other Pythons count calls of C in other ways")
def test_a_job_is_few_calls_in_the_app():
    assert run(10)["calls"] <= CALLS


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other Pythons count calls of C in other ways")
def test_a_job_of_a_batch_is_few_calls_in_the_app():
    assert run(0, program=BATCHES) <= BATCH_CALLS


def test_a_small_array_is_few_calls_on_both_sides():
    np = pytest.importorskip("numpy")
    array, calls = np.zeros(768, np.float32), 0

    def count(frame, event, what):
        nonlocal calls
        calls += event in ("call", "c_call")

    for _ in range(2):  # the first of its kind and shape is looked at, the second has its beginning made
        decode(encode_value(array)[0])
    gc.disable()  # what earlier tests left behind may have finalizers
    try:
        sys.setprofile(count)
        arrived = decode(encode_value(array)[0])
        sys.setprofile(None)
    finally:
        gc.enable()
    assert (arrived.dtype, arrived.shape) == (array.dtype, array.shape)
    assert calls <= ARRAY_CALLS, calls


@pytest.mark.skipif(sys.platform != "linux", reason="counts context switches in /proc")
def test_nobody_wakes_up_while_idle():
    report = run(10, idle=3.0)
    assert (report["worker"], report["parent"]) == (0, 0), report
    assert report["turns"] == 1, ("its own sleep, and nothing else", report)


@pytest.mark.skipif(not shutil.which("strace"), reason="counts system calls with strace")
def test_a_job_is_six_system_calls(tmp_path):
    def calls(jobs):
        counts, path = {}, tmp_path / f"{jobs}"
        run(jobs, 0.0, "strace", "-f", "-c", "-o", str(path))
        for line in path.read_text().splitlines()[2:]:
            words = line.split()
            if len(words) >= 5 and words[3].isdigit() and words[-1] not in ("total", "getpid"):  # 3.11's asyncio asks
                counts[words[-1]] = int(words[3])
        return counts

    few, many = calls(100), calls(1100)
    each = {name: (count - few.get(name, 0)) / 1000 for name, count in many.items()}
    each = {name: round(count, 1) for name, count in each.items() if count > 0.05}
    # app: send, receive, one look of the loop, a look for output; worker: read, write
    assert sum(each.values()) <= 6.1, each


CHECKS = textwrap.dedent("""
    import asyncio, json, sys
    from collections import Counter
    from cjm_worker_ext import BaseJobManager
    from cjm_worker_ext.stores.sqlite import SQLiteJobStore

    found = Counter()

    def count(frame, event, what):
        if event == "call" and frame.f_code.co_name == "__instancecheck__":
            found[frame.f_code.co_filename] += 1

    async def main(folder, durability):
        store = SQLiteJobStore(f"{folder}/jobs.db", durability=durability)
        async with BaseJobManager("test", "test", plugins={"pid": "os:getpid"}, job_store=store) as manager:
            async def run(count):
                for job in await asyncio.gather(*(manager.start_job("pid") for _ in range(count))):
                    await manager.wait(job)
            await run(10)
            sys.setprofile(count)
            await run(100)
            sys.setprofile(None)
        return sum(found.values())

    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
""")


@pytest.mark.parametrize("durability", ["committed", "behind"])
def test_no_step_of_a_durable_job_asks_what_its_store_is(tmp_path, durability):
    done = subprocess.run(
        [sys.executable, "-c", CHECKS, tmp_path, durability], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 10, "to ask whether it has a protocol's methods takes 20 µs"


DELIVERY = textwrap.dedent("""
    import asyncio, json, logging, sys
    from types import SimpleNamespace
    from starlette.applications import Starlette
    from starlette.routing import Route
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from cjm_worker_ext.integrations.sse import SSEBroadcaster

    async def main(clients, stuck):
        events, wire = SSEBroadcaster(), []
        app = Starlette(routes=[Route("/", events.endpoint)])
        transport = SimpleNamespace(
            write=wire.append, close=lambda: None, abort=lambda: None, get_write_buffer_size=lambda: 0,
            is_closing=lambda: False,
        )
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "query_string": b"", "root_path": ""}
        log, tasks = logging.getLogger("test"), []
        logging.disable()
        for _ in range(clients + stuck):
            cycle = RequestResponseCycle(
                {**scope, "headers": [(b"host", b"localhost")]}, transport, FlowControl(transport), log, log, False, [],
                asyncio.Event(), False, True, lambda: None
            )
            cycle.more_body = False
            tasks.append(asyncio.create_task(cycle.run_asgi(app)))

        async def publish(count):
            for _ in range(count):
                await events.broadcast("job:started", {"job_id": "a"})
            for _ in range(3):
                await asyncio.sleep(0)

        while sum(b"snapshot" in data for data in wire) < clients + stuck:
            await asyncio.sleep(0)
        if stuck:
            cycle.flow.pause_writing()
        await publish(1)  # a stuck client waits in `send` from here on
        report = {"calls": 0, "writes": -len(wire)}

        def take(frame, event, what):
            report["calls"] += event in ("call", "c_call")
        sys.setprofile(take)
        for _ in range(10):
            await publish(4)
        sys.setprofile(None)
        report["writes"] += len(wire)
        events.close()
        await asyncio.wait(tasks)
        return {name: count / 10 for name, count in report.items()}

    print(json.dumps([asyncio.run(main(*clients)) for clients in ((1, 0), (101, 0), (101, 1))]))
""")
DELIVERY_CALLS = 5  # Of Python and of C for each client; the write is one of them. With `send` and a task they are 27
TURN_CALLS = 215  # The same for four events and one client, their encoding and the turn of the loop included


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other Pythons count calls of C in other ways")
def test_the_events_of_a_turn_are_one_write_and_few_calls_for_each_client():
    pytest.importorskip("uvicorn.protocols.http.httptools_impl")
    done = subprocess.run([sys.executable, "-c", DELIVERY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, many, with_a_stuck_one = json.loads(done.stdout)
    assert (one["writes"], many["writes"]) == (1, 101), "four events of one turn are one piece"
    assert (many["calls"] - one["calls"]) / 100 <= DELIVERY_CALLS, (one, many)
    assert one["calls"] <= TURN_CALLS, one
    assert with_a_stuck_one == many, "a client that reads nothing costs the others nothing"
