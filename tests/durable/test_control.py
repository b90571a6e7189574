"""Jobs of one process are read, waited for and ended in others, through a store and a channel; then bad things happen."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import redis_server
from control_app import make_manager
from harness import until
from test_two_apps import on_loop, ran

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.commands.jobs import store_at
from cjm_worker_ext.errors import ConfigError, StreamGap, UnknownJob

APP = Path(__file__).with_name("control_app.py")


class Process:
    "A process of the app."

    def __init__(self, places, workers):
        self.places, self.workers, self.answers, self.chunks, self.ready = places, workers, {}, Counter(), False
        self.number = 0

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, APP, *self.places, str(self.workers),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 24,
        )  # fmt: skip
        self.task = asyncio.create_task(self.read())
        await until(lambda: self.ready, 120)
        return self

    async def read(self):
        while line := await self.process.stdout.readline():
            said = json.loads(line)
            self.ready = self.ready or "ready" in said
            if "chunk" in said:
                self.chunks[said["job"]] += 1
            if "answer" in said:
                self.answers[said["answer"]] = said["value"]

    def begin(self, *do, **more):
        "Begin a command; returns the number of its answer."
        self.number += 1
        command = {"number": self.number, "do": do, "more": more}
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        return self.number

    async def answer(self, number):
        await until(lambda: number in self.answers, 120)
        return self.answers[number]

    async def do(self, *do, **more):
        return await self.answer(self.begin(*do, **more))

    def send(self, signum):
        self.process.send_signal(signum)

    async def __aexit__(self, *exc_info):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self.task.cancel()


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def places(request, tmp_path):
    "Where store and channel are."
    if request.param == "postgres":
        dsn = request.getfixturevalue("postgres").dsn()
        words = dict(word.split("=", 1) for word in dsn.split())
        return f"postgresql://{words['user']}@/{words['dbname']}?host={words['host']}", f"postgres {dsn}"
    if request.param == "redis":
        if why := redis_server.missing():
            pytest.skip(why)
        server = redis_server.RedisServer()
        server.__enter__()
        request.addfinalizer(lambda: server.__exit__(None, None, None))
        return str(tmp_path / "jobs.db"), f"redis {server.url}"
    return on_this_machine(tmp_path)


def on_this_machine(tmp_path):
    return str(tmp_path / "jobs.db"), f"sqlite {tmp_path / 'channel.db'}"


def tell(tmp_path, name="told", count=5, **more):
    params = {"trace": str(tmp_path / "trace"), "name": name, "count": count, "path": str(tmp_path / f"go {name}")}
    return "tell", {**params, **more}


def go(tmp_path, name="told"):
    (tmp_path / f"go {name}").touch()


async def read(chunks):
    return [chunk async for chunk in chunks]


@asynccontextmanager
async def owner_and_web(places, **options):
    async with Process(places, 1) as owner, make_manager(*places, 0, **options) as web:
        yield owner, web


@on_loop
async def test_a_job_is_read_waited_for_and_ended_in_other_processes(places, tmp_path):
    "Started in the second process, run by the first, read in all three."
    async with Process(places, 1) as owner, Process(places, 0) as third, make_manager(*places, 0) as web:
        job = await web.submit_job(*tell(tmp_path))
        there = third.begin("stream", job.id), third.begin("wait", job.id), owner.begin("stream", job.id)
        async with aclosing(web.stream(job)) as chunks:
            assert [await anext(chunks) for _ in range(5)] == [0, 1, 2, 3, 4]
            found = web.get_job(job.id)
            assert found is job
            await until(lambda: found.status == "running")  # the store tells that, and chunks come by the channel
            await until(lambda: web.get_job_output(job) == ["told has begun"])
            assert (web.get_job(job.id).progress, found.progress_message) == (0.5, "half")
            await until(lambda: third.chunks[job.id] == owner.chunks[job.id] == 5)
            go(tmp_path)
            assert await read(chunks) == ["last"]
        assert (await web.wait(job, 120)).status == "completed"
        everything = [0, 1, 2, 3, 4, "last"]
        assert [await third.answer(n) for n in there[:2]] == [[everything, None], ["completed", None]]
        assert await owner.answer(there[2]) == [everything, None]
        assert await read(web.stream(job, start=4)) == [4, "last"]  # the owner still has them
        assert await third.do("stream", job.id, 6) == [[], None]

        long = await owner.do("submit", *tell(tmp_path, "long"))
        assert web.get_job(long).status in ("pending", "running")  # known by its id alone
        waits = third.begin("wait", long)
        await until(lambda: ran(tmp_path)["ran long"])
        assert await web.cancel_job(long)
        assert await third.answer(waits) == ["cancelled", None]
        for call in (web.get_job, web.get_job_output):
            with pytest.raises(UnknownJob):
                call("no such job")
        with pytest.raises(UnknownJob):
            await anext(web.stream("no such job"))


@on_loop
async def test_nothing_is_sent_unless_somebody_reads(tmp_path):
    places = on_this_machine(tmp_path)
    async with owner_and_web(places) as (owner, web), Process(places, 0) as third:
        job = await web.submit_job(*tell(tmp_path, count=200))
        await until(lambda: ran(tmp_path)["ran told"])
        waits = third.begin("wait", job.id)
        output = await owner.do("stream", job.id, most=200)  # its own reader: nothing travels
        assert len(output[0]) == 200
        assert await owner.do("sent") == 0 and await third.do("sent") == 0
        async with aclosing(web.stream(job)) as chunks:
            assert await anext(chunks) == 0
        await settles(owner)
        first = await owner.do("sent")
        assert 0 < first < 20  # 200 chunks in batches
        go(tmp_path)
        assert await third.answer(waits) == ["completed", None]
        assert await owner.do("sent") == first  # the reader has left, so `last` and the end stay here


async def settles(process):
    "Wait until the reader that has left is known to have left: its sender says nothing more."
    before, since = await process.do("sent"), time.monotonic()
    while time.monotonic() - since < 0.5:
        if (now := await process.do("sent")) != before:
            before, since = now, time.monotonic()
        await asyncio.sleep(0.02)


@on_loop
async def test_a_job_of_a_killed_owner_ends_for_who_waits_and_reads(places, tmp_path):
    async with owner_and_web(places) as (owner, web), Process(places, 0) as third:
        lost = await owner.do("submit", *tell(tmp_path, "lost"))
        streams, waits = third.begin("stream", lost), third.begin("wait", lost)
        async with aclosing(web.stream(lost)) as chunks:
            assert [await anext(chunks) for _ in range(5)] == [0, 1, 2, 3, 4]
            await until(lambda: third.chunks[lost] == 5)
            owner.send(signal.SIGKILL)
            assert await read(chunks) == []  # it was broken off, as the job was
        job = await web.wait(lost, 120)
        assert (job.status, job.error_type) == ("failed", "JobLost")
        assert await third.answer(waits) == ["failed", "JobLost"]
        assert await third.answer(streams) == [[0, 1, 2, 3, 4], None]
        assert web.get_job(lost).error_type == "JobLost"


@on_loop
async def test_a_job_that_runs_again_elsewhere_streams_on(tmp_path):
    places = on_this_machine(tmp_path)
    async with Process(places, 1) as owner, make_manager(*places, 0) as web:
        again = await owner.do("submit", *tell(tmp_path, "again"), retry=True)
        async with aclosing(web.stream(again)) as chunks:
            assert [await anext(chunks) for _ in range(5)] == [0, 1, 2, 3, 4]
            async with Process(places, 1):
                owner.send(signal.SIGKILL)
                assert [await anext(chunks) for _ in range(5)] == [0, 1, 2, 3, 4]
                go(tmp_path, "again")
                assert await read(chunks) == ["last"]
                assert (await web.wait(again, 120)).attempts == 2


@on_loop
async def test_the_chunks_of_a_completed_job_are_gone_with_its_owner(tmp_path):
    places = on_this_machine(tmp_path)
    async with owner_and_web(places) as (owner, web):
        done = await owner.do("submit", *tell(tmp_path, "done"))
        go(tmp_path, "done")
        await web.wait(done, 120)
        owner.send(signal.SIGKILL)
        await owner.process.wait()
        with pytest.raises(StreamGap, match="the process that ran it does not answer"):
            await read(web.stream(done))
        assert (await web.find_job(done)).status == "completed"


@on_loop
async def test_an_owner_that_stands_still_goes_on(places, tmp_path):
    async with owner_and_web(places) as (owner, web), Process(places, 0) as third:
        job = await owner.do("submit", *tell(tmp_path))
        waits = third.begin("wait", job)
        async with aclosing(web.stream(job)) as chunks:
            assert [await anext(chunks) for _ in range(5)] == [0, 1, 2, 3, 4]
            owner.send(signal.SIGSTOP)
            go(tmp_path)
            with pytest.raises(TimeoutError):
                await web.wait(job, 2)  # nobody takes the job of a process that is alive
            owner.send(signal.SIGCONT)
            assert await read(chunks) == ["last"]
        assert await third.answer(waits) == ["completed", None]
    assert ran(tmp_path) == Counter(["ran told"])


@pytest.mark.skipif(bool(redis_server.missing()), reason=redis_server.missing() or "-")
@on_loop
async def test_a_channel_that_was_away_loses_no_chunk(tmp_path):
    with redis_server.RedisServer() as server:
        places = str(tmp_path / "jobs.db"), f"redis {server.url}"
        async with owner_and_web(places) as (owner, web):
            job = await owner.do("submit", *tell(tmp_path))
            async with aclosing(web.stream(job)) as chunks:
                assert [await anext(chunks) for _ in range(5)] == [0, 1, 2, 3, 4]
                server.kill()
                server.wipe()  # and what was on its way is lost
                go(tmp_path)
                assert (await web.wait(job, 120)).status == "completed"  # the store tells it
                server.start()
                assert await read(chunks) == ["last"]


@on_loop
async def test_a_reader_elsewhere_that_is_too_slow_gets_a_gap(tmp_path):
    places = on_this_machine(tmp_path)
    async with Process(places, 0) as third, make_manager(
        *places, 1, max_buffered_chunks=100, reader_timeout_seconds=0.2
    ) as owner:  # fmt: skip
        begin = tmp_path / "begin"
        job = await owner.submit_job(*tell(tmp_path, count=3000, kind="bytes", after=str(begin)))
        streams = third.begin("stream", job.id)
        await until(lambda: owner._engine.durable.remote.senders)
        begin.touch()
        await until(lambda: third.chunks[job.id] > 0)
        third.send(signal.SIGSTOP)
        await until(lambda: owner.get_job_chunks(job.id)[0] > 2000)  # the job is held up no longer
        go(tmp_path)
        assert (await owner.wait(job, 120)).status == "completed"
        third.send(signal.SIGCONT)
        found, error = await third.answer(streams)
        assert error == "StreamGap"
        assert len(found) < 2500


@on_loop
async def test_a_long_stream_arrives_whole_in_another_process(tmp_path):
    places, count = on_this_machine(tmp_path), 30_000  # more than `max_buffered_chunks`
    async with make_manager(*places, 1) as owner, make_manager(*places, 0) as web:
        begin = tmp_path / "begin"
        job = await owner.submit_job(*tell(tmp_path, count=count, after=str(begin)))
        go(tmp_path)
        reads = asyncio.ensure_future(read(web.stream(job.id)))
        await until(lambda: owner._engine.durable.remote.senders)
        begin.touch()
        assert await reads == [*range(count), "last"]
        await until(lambda: not owner._engine.durable.remote.senders)


@on_loop
async def test_who_waits_for_a_job_elsewhere_does_not_hold_it_up_by_a_stream(tmp_path):
    places = on_this_machine(tmp_path)
    async with make_manager(*places, 1, max_buffered_chunks=100, reader_timeout_seconds=None) as owner:
        async with make_manager(*places, 0) as web:
            owner._engine.durable.remote.LEASE = 1000.0  # else the reader would count as gone before the test ends
            begin = tmp_path / "begin"
            job = await owner.submit_job(*tell(tmp_path, count=3000, kind="bytes", after=str(begin)))
            go(tmp_path)
            async with aclosing(web.stream(job.id)) as chunks:
                first = asyncio.ensure_future(anext(chunks))
                await until(lambda: owner._engine.durable.remote.senders)
                begin.touch()
                assert [await first, await anext(chunks)] == [b"x" * 10_000] * 2
                assert (await web.wait(job.id, 120)).status == "completed"


@on_loop
async def test_chunks_of_all_kinds_travel_and_a_huge_one_says_that_it_does_not(tmp_path):
    places = on_this_machine(tmp_path)
    async with make_manager(*places, 1) as owner, make_manager(*places, 0) as web:
        go(tmp_path)
        job = await owner.submit_job(*tell(tmp_path, count=300, kind="bytes"))
        assert await read(web.stream(job.id)) == [b"x" * 10_000] * 300 + ["last"]
        job = await owner.submit_job(*tell(tmp_path, count=3, kind="set"))
        assert await read(web.stream(job.id)) == [{0}, {1}, {2}, "last"]
        job = await owner.submit_job(*tell(tmp_path, count=1, kind="huge"))
        with pytest.raises(StreamGap, match="too large for a reader in another process"):
            await read(web.stream(job.id))
        assert (await web.wait(job.id, 120)).status == "completed"


@on_loop
async def test_chunks_that_the_channel_never_takes_end_the_stream_of_a_reader_elsewhere(tmp_path):
    store, channel = on_this_machine(tmp_path)
    async with make_manager(store, channel, 1) as owner, make_manager(store, channel, 0) as web:
        append = owner._channel.append

        async def takes_small_ones(entries, writer, number):
            if max(map(len, entries)) > 5_000:
                raise ValueError("an entry may have 5,000 bytes")
            await append(entries, writer, number)

        owner._channel.append = takes_small_ones
        go(tmp_path)
        job = await owner.submit_job(*tell(tmp_path, count=1, kind="bytes"))
        why = rf"job {job.id}: the channel does not take the chunks from 0 to .* \(ValueError: an entry may have 5,000 bytes"
        with pytest.raises(StreamGap, match=why):
            await asyncio.wait_for(read(web.stream(job.id)), 120)
        assert (await web.wait(job.id, 60)).status == "completed"


@on_loop
async def test_without_a_channel_a_stream_of_a_job_elsewhere_is_refused(tmp_path):
    web = BaseJobManager("text", plugins={"p": "os:getpid"}, job_store=store_at(str(tmp_path / "jobs.db")),
                         worker_config=WorkerConfig(max_workers=0))  # fmt: skip
    async with web:
        job = await web.start_job("p")
        with pytest.raises(StreamGap, match=f"job {job.id}: its chunks are in another process; .*channel"):
            web.stream(job)


def test_a_channel_needs_a_store(tmp_path):
    from control_app import make_channel

    with pytest.raises(ConfigError, match="channel needs a job_store"):
        BaseJobManager("text", channel=make_channel(f"sqlite {tmp_path / 'c.db'}"))
    assert store_at(str(tmp_path / "jobs.db"))
