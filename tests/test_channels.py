"""The ready-made channels keep every contract on real servers, and a broadcaster goes on when its channel's server does."""

import asyncio
import itertools
import logging
import os
import subprocess
import sys
import time

import postgres_server
import pytest
import redis_server
from test_contracts_ours import TestSSEBroadcaster
from test_sse_hub import Page, frames

from cjm_worker_ext.events.channel_feed import ChannelFeed
from cjm_worker_ext.extensions.contract_tests import ChannelTests
from cjm_worker_ext.extensions.contracts import run_contracts
from cjm_worker_ext.integrations.channel_postgres import PostgresChannel
from cjm_worker_ext.integrations.channel_redis import RedisChannel
from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel
from cjm_worker_ext.integrations.sse import SSEBroadcaster

numbers = itertools.count(1)
needs_redis = pytest.mark.skipif(bool(redis_server.missing()), reason=redis_server.missing() or "-")
needs_postgres = pytest.mark.skipif(bool(postgres_server.missing()), reason=postgres_server.missing() or "-")


# ---------------------------------------------------------------- contracts
class RedisTests(ChannelTests):
    server: redis_server.RedisServer
    kept = 50

    def make(self):
        self.name = f"contract{next(numbers)}"
        return self.another(None)

    def another(self, channel):
        return RedisChannel(self.server.url, self.name, max_entries=self.kept)

    def lose(self, channel):
        self.server.client().flushall()


class PostgresTests(RedisTests):
    server: postgres_server.PostgresServer
    dsn: str

    def another(self, channel):
        return PostgresChannel(self.dsn, self.name, max_entries=self.kept)

    async def lose(self, channel):
        async with await asyncio.wait_for(channel._connection(False), 120) as connection:
            await connection.execute("TRUNCATE cjm_channels, cjm_channel_entries, cjm_channel_writers")


class SQLiteTests(RedisTests):
    folder = None

    def another(self, channel):
        return SQLiteChannel(self.folder / f"{self.name}.db", max_entries=self.kept)

    def lose(self, channel):
        for file in self.folder.glob(f"{self.name}.db*"):
            if file.is_file():
                file.unlink()


@pytest.fixture(scope="module")
def redis():
    with redis_server.RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def postgres():
    with postgres_server.PostgresServer() as server:
        yield server


@needs_redis
class TestRedisChannel(RedisTests):
    @pytest.fixture(autouse=True)
    def _server(self, redis):
        self.server = redis

    def test_every_contract_is_kept(self):
        report = asyncio.run(run_contracts(self))
        assert report.kept == list(self.contracts), str(report)


@needs_postgres
class TestPostgresChannel(PostgresTests):
    @pytest.fixture(autouse=True)
    def _server(self, postgres):
        self.dsn = postgres.dsn()

    def test_every_contract_is_kept(self):
        report = asyncio.run(run_contracts(self))
        assert report.kept == list(self.contracts), str(report)


class TestSQLiteChannel(SQLiteTests):
    @pytest.fixture(autouse=True)
    def _server(self, tmp_path):
        self.folder = tmp_path

    def test_every_contract_is_kept(self):
        report = asyncio.run(run_contracts(self))
        assert report.kept == list(self.contracts), str(report)


class TestSSEBroadcasterWithChannel(TestSSEBroadcaster):
    "A broadcaster with a channel keeps what it promises without one."

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    async def make(self):
        self.pages = []
        events = SSEBroadcaster(channel=SQLiteChannel(self.folder / f"events{next(numbers)}.db"))
        await events.ready()
        return events

    async def close(self, broadcaster):
        await super().close(broadcaster)
        await asyncio.to_thread(broadcaster._feed.stop)


del TestSSEBroadcaster  # its own tests are where it comes from


# ---------------------------------------------------------------- a server that comes and goes
@pytest.fixture(params=["redis", "postgres"])
def server(request):
    "A server that a test may kill, and how to make a channel on it."
    module = redis_server if request.param == "redis" else postgres_server
    if module.missing():
        pytest.skip(module.missing())
    logging.disable(logging.CRITICAL)
    if request.param == "redis":
        with redis_server.RedisServer() as found:
            yield found.kill, found.start, lambda: RedisChannel(found.url, "test")
    else:
        with postgres_server.PostgresServer() as found:
            dsn = found.dsn()
            yield found.crash, found.start, lambda: PostgresChannel(dsn, "test")
    logging.disable(logging.NOTSET)


def seen(page) -> list[tuple[str, str]]:
    "Id and data of every end of a job."
    return [(f["id"], f["data"]) for f in frames(page.body.decode()) if f.get("event") == "job:completed"]


async def end_jobs(events, first, count):
    for n in range(first, first + count):
        await events.broadcast("job:completed", {"job_id": f"j{n}"})


def in_order(epoch, count):
    return [(f"{epoch}-{n}", f'{{"job_id":"j{n}"}}') for n in range(1, count + 1)]


def test_a_server_that_is_killed_and_comes_back_with_its_data(server):
    "Nobody misses an end or gets one twice; streams go on, and say that they are stale for a while."
    kill, start, make_channel = server

    async def main():
        here, there = [SSEBroadcaster(channel=make_channel()) for _ in range(2)]
        assert await here.ready() and await there.ready()
        epoch = here.position.partition("-")[0]
        pages = [Page(events.endpoint) for events in (here, there)]
        for page in pages:
            await page.until(b"snapshot")
        await end_jobs(here, 1, 10)
        for page in pages:
            await page.until(b"j10")
        await asyncio.to_thread(kill)
        await end_jobs(here, 11, 10)
        for page in pages:
            await page.until(b'{"stale":true}')
        late = Page(there.endpoint, query=f"last_event_id={epoch}-5".encode())
        await late.until(b"j10")  # it has what the process has, and knows that there may be more
        assert b'{"stale":true}' in late.body
        await asyncio.to_thread(start)
        await end_jobs(here, 21, 10)
        for page in (*pages, late):
            await page.until(b"j30")
            await page.until(b'{"stale":false}')
            await page.leave()
        assert seen(pages[0]) == seen(pages[1]) == in_order(epoch, 30)
        assert seen(late) == in_order(epoch, 30)[5:]
        assert not any("resync" in page.body.decode() or "event: gap" in page.body.decode() for page in (*pages, late))
        for events in (here, there):
            await events.aclose()

    asyncio.run(main())


@needs_redis
def test_an_event_that_the_server_never_takes_is_dropped_and_later_ones_go_on(caplog):
    async def main():
        with redis_server.RedisServer("--proto-max-bulk-len", "1mb") as server:
            events = SSEBroadcaster(channel=RedisChannel(server.url, "test"))
            assert await events.ready()
            page = Page(events.endpoint)
            await page.until(b"snapshot")
            await end_jobs(events, 1, 2)
            await events.broadcast("job:failed", {"job_id": "large", "error": "x" * (1 << 20)})
            await end_jobs(events, 3, 2)
            await page.until(b"j4")
            await page.leave()
            assert [data for _, data in seen(page)] == [f'{{"job_id":"j{n}"}}' for n in range(1, 5)]
            assert b"large" not in page.body and b"stale" not in page.body
            await events.aclose()

    asyncio.run(main())
    dropped = [record.getMessage() for record in caplog.records if "which is dropped" in record.getMessage()]
    assert len(dropped) == 1 and "not 'job:failed' of 1048" in dropped[0], dropped


@needs_redis
@pytest.mark.parametrize("older", [False, True], ids=["without its data", "with older data"])
def test_a_server_that_comes_back_without_what_it_had(older):
    "Every page begins anew, in a new epoch, and goes on in order."
    logging.disable(logging.CRITICAL)

    async def main(server):
        here, there = [SSEBroadcaster(channel=RedisChannel(server.url, "test")) for _ in range(2)]
        assert await here.ready() and await there.ready()
        await end_jobs(here, 1, 5)
        pages = [Page(events.endpoint, query=b"last_event_id=x-1") for events in (here, there)]
        for page in pages:
            await page.until(b"snapshot")
        if older:
            copy = await asyncio.to_thread(server.save)
            await asyncio.to_thread(server.start)
        before = here.position
        await end_jobs(here, 6, 5)
        for page in pages:
            await page.until(b"j10")
        await asyncio.to_thread(server.kill)
        server.restore(copy) if older else server.wipe()
        await asyncio.to_thread(server.start)
        for page in pages:
            await page.until(b'{"reason":"restarted"}')
        await end_jobs(there, 11, 5)
        for page in pages:
            await page.until(b"j15")
        assert here.position == there.position != before
        epoch = here.position.partition("-")[0]
        assert epoch != before.partition("-")[0]
        ends = [[one for one in seen(page) if one[0].startswith(epoch)] for page in pages]
        assert ends[0] == ends[1] and [data for _, data in ends[0]][-5:] == [
            f'{{"job_id":"j{n}"}}' for n in range(11, 16)
        ]
        # an id of the old epoch is unknown, in each process
        late = Page(there.endpoint, query=f"last_event_id={before}".encode())
        await late.until(b'{"reason":"unknown"}')
        for page in (*pages, late):
            await page.leave()
        for events in (here, there):
            await events.aclose()

    with redis_server.RedisServer() as server:
        asyncio.run(main(server))
    logging.disable(logging.NOTSET)


@needs_redis
def test_another_process_that_wrote_over_what_was_seen_is_noticed(redis):
    "A server with older data may have got new entries at the same positions before a reader comes back."

    async def main():
        name = f"rewritten{next(numbers)}"
        events = SSEBroadcaster(channel=RedisChannel(redis.url, name))
        await events.ready()
        page = Page(events.endpoint)
        await page.until(b"snapshot")
        await end_jobs(events, 1, 3)
        await page.until(b"j3")
        client = redis.client()
        state, log = f"{{{name}}}:state", f"{{{name}}}:log"
        entries = client.xrange(log)
        pipe = client.pipeline(transaction=True)
        pipe.delete(log)
        for entry_id, fields in entries:
            pipe.xadd(log, {**fields, b"d": fields[b"d"].replace(b"j", b"k")}, id=entry_id)
        pipe.hset(state, "last", entries[-1][0].split(b"-")[0])
        pipe.execute()
        client.client_kill_filter(skipme=True, _type="normal")
        await page.until(b'{"reason":"restarted"}')
        await page.leave()
        await events.aclose()

    logging.disable(logging.CRITICAL)
    asyncio.run(main())
    logging.disable(logging.NOTSET)


# ---------------------------------------------------------------- who may see what
def test_visible_and_filters_hold_for_events_of_other_processes(tmp_path):
    "Each process asks its own functions, live and in a replay."

    async def main():
        def make():
            return SSEBroadcaster(
                authorize=lambda request: request.query_params.get("user"),
                visible=lambda event, user: event.data.get("owner") == user,
                channel=SQLiteChannel(tmp_path / "events.db"),
            )

        here, there = make(), make()
        await here.ready(), await there.ready()
        since = there.position
        live = {user: Page(there.endpoint, query=f"user={user}".encode()) for user in ("ann", "bob")}
        for page in live.values():
            await page.until(b"snapshot")
        for n in range(1, 11):
            await here.broadcast("job:completed", {"job_id": f"j{n}", "owner": "bob" if n % 2 else "ann"})
        await live["ann"].until(b"j10")
        await live["bob"].until(b"j9")
        again = Page(there.endpoint, query=f"user=ann&last_event_id={since}".encode())
        await again.until(b"j10")
        one = Page(there.endpoint, query=f"user=ann&job=j4&last_event_id={since}".encode())
        await one.until(b"j4")
        stranger = Page(there.endpoint)
        await stranger.until(b"Forbidden")
        for page, owner in ((live["ann"], "ann"), (again, "ann"), (live["bob"], "bob")):
            assert len(seen(page)) == 5 and all(f'"owner":"{owner}"' in data for _, data in seen(page))
        assert [event_id for event_id, _ in seen(one)] == [since.replace("-0", "-4")]
        assert stranger.status == 403
        for page in (*live.values(), again, one):
            await page.leave()
        for events in (here, there):
            await events.aclose()

    asyncio.run(main())


# ---------------------------------------------------------------- bounds
class Away:
    "A channel that cannot be reached."

    async def append(self, entries, writer, number):
        raise OSError("no route")

    async def read(self, epoch, position, wait_seconds):
        raise OSError("no route")

    async def renew(self, epoch): ...

    async def close(self): ...


def test_what_waits_for_a_channel_is_bounded_and_ends_of_jobs_are_kept():
    async def main():
        events = SSEBroadcaster(channel=Away())
        for n in range(30_000):
            await events.broadcast("job:progress", {"job_id": "j", "progress": n})
            if n % 100 == 0:
                await events.broadcast("job:completed", {"job_id": f"j{n}"})
        queue = events._feed._outgoing
        batch_on_its_way = ChannelFeed.BATCH_ENTRIES
        assert len(queue) == 10_000
        waiting = queue.take(20_000, 1 << 30)
        assert sum(entry.startswith(b"job:completed") for entry in waiting) >= 300 - batch_on_its_way // 100 - 1
        await events.aclose(0)

    logging.disable(logging.CRITICAL)
    asyncio.run(main())
    logging.disable(logging.NOTSET)


def test_an_app_whose_loop_is_blocked_does_not_pile_up_what_others_publish(tmp_path):
    "Its reader stops, and goes on when the loop does: nothing is lost that the channel keeps."
    count = 25_000
    program = tmp_path / "others.py"
    program.write_text(
        "import asyncio, sys\n"
        "from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel\n"
        "async def main():\n"
        "    channel = SQLiteChannel(sys.argv[1], max_entries=100_000)\n"
        f"    for n in range(1, {count} // 100 + 1):\n"
        "        await channel.append([b'note\\n{}'] * 99 + [b'job:completed\\n{}'], 'w1', n)\n"
        "    await channel.close()\n"
        "asyncio.run(main())\n"
    )

    async def main():
        path = tmp_path / "events.db"
        events = SSEBroadcaster(channel=SQLiteChannel(path, max_entries=100_000))
        await events.ready()
        page = Page(events.endpoint, query=b"event=job:completed")
        await page.until(b"snapshot")
        subprocess.run([sys.executable, program, path], check=True, timeout=120)  # noqa: ASYNC221  - it blocks the loop
        deadline = time.monotonic() + 120
        while len(events._hub._handed_over) < 10_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # noqa: ASYNC251
        time.sleep(0.2)  # noqa: ASYNC251  - it could go on reading now
        assert len(events._hub._handed_over) <= 10_000 + 2 * SQLiteChannel.READ_AT_ONCE
        await page.until(f"-{count}\n".encode())
        assert len(seen(page)) == count // 100
        await page.leave()
        await events.aclose()

    asyncio.run(main())


def test_a_reader_that_was_away_for_long_says_how_much_is_missing(tmp_path):
    "The channel keeps a hundred events; a process that stood still while a thousand came tells its clients."

    async def main():
        path = tmp_path / "events.db"
        here, there = [SSEBroadcaster(channel=SQLiteChannel(path, max_entries=100)) for _ in range(2)]
        await here.ready(), await there.ready()
        page = Page(there.endpoint)
        await page.until(b"snapshot")
        held, receive = asyncio.Event(), there._feed._channel.read
        loop = asyncio.get_running_loop()

        async def stand_still(*arguments):
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(held.wait(), loop))
            return await receive(*arguments)

        there._feed._channel.read = stand_still
        await end_jobs(here, 1, 1)
        await page.until(b"j1")  # the read that was under way
        for n in range(2, 1002):
            await end_jobs(here, n, 1)
        while not here.position.endswith("-1001"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        held.set()
        await page.until(b'"j1001"')
        text = page.body.decode()
        missed = next(f["data"] for f in frames(text) if f.get("event") == "gap")
        got = [int(event_id.partition("-")[2]) for event_id, _ in seen(page)]
        assert got == [1, *range(got[1], 1002)] and missed == f'{{"missed":{got[1] - 2}}}'
        await page.leave()
        for events in (here, there):
            await events.aclose()

    asyncio.run(main())


# ---------------------------------------------------------------- without a channel
def test_without_a_channel_nothing_of_it_is_imported():
    code = (
        "import sys; from cjm_worker_ext.integrations.sse import SSEBroadcaster; SSEBroadcaster(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name for name in done.stdout.split() if "channel" in name or name in ("redis", "psycopg", "sqlite3")}


def calls_of(broadcast) -> int:
    "How many functions, of Python and of C, one broadcast calls."
    found = []

    async def main():
        await broadcast("job:started", {"job_id": "a"})
        await asyncio.sleep(0)
        sys.setprofile(lambda frame, event, argument: found.append(event) if "call" in event else None)
        await broadcast("job:started", {"job_id": "a"})
        sys.setprofile(None)

    asyncio.run(main())
    return len(found)


def test_without_a_channel_a_broadcast_calls_what_it_called():
    assert calls_of(SSEBroadcaster().broadcast) <= 35  # 33 on Python 3.11, as before there were channels


def test_a_process_that_ends_sends_its_last_events(tmp_path):
    "Also if it does not say that it ends: nothing but a kill keeps the last event from the others."
    program = tmp_path / "last.py"
    program.write_text(
        "import asyncio, sys\n"
        "from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel\n"
        "from cjm_worker_ext.integrations.sse import SSEBroadcaster\n"
        "events = SSEBroadcaster(channel=SQLiteChannel(sys.argv[1]))\n"
        "async def main():\n"
        "    for n in range(1000):\n"
        "        await events.broadcast('job:completed', {'job_id': str(n)})\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "events.db"
    subprocess.run([sys.executable, program, path], check=True, timeout=120, env={**os.environ})

    async def main():
        channel = SQLiteChannel(path)
        page = await channel.read("", 0, 0)
        assert (page.start, page.end) == (0, 1000)
        await channel.close()

    asyncio.run(main())


def test_a_forked_child_is_told_that_its_channel_is_the_parents(tmp_path):
    "It has no thread that sends; without a word each of its events would be lost."
    code = f"""
import asyncio, os
from cjm_worker_ext.errors import ForkedManager
from cjm_worker_ext.integrations.channel_sqlite import SQLiteChannel
from cjm_worker_ext.integrations.sse import SSEBroadcaster

async def publish(events):
    await events.broadcast("job:started", {{"job_id": "a"}})

events = SSEBroadcaster(channel=SQLiteChannel({str(tmp_path / "events.db")!r}))
asyncio.run(publish(events))
pid = os.fork()
if not pid:
    try:
        asyncio.run(publish(events))
    except ForkedManager as e:
        print(e, flush=True)
    asyncio.run(events.aclose())
    raise SystemExit(3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
asyncio.run(publish(events))
asyncio.run(events.aclose())
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    told = "event channel: was started before the fork; make a broadcaster of its own in the child"
    assert done.stdout == f"{told}\nended\n", done.stderr
