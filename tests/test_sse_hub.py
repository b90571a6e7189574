"""The event stream inside one process: who may listen, where a client continues, bad data, bursts, and one loop after another."""

import asyncio
import contextlib
import gc
import json
import logging
import threading
import weakref
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse

from cjm_worker_ext.integrations import sse
from cjm_worker_ext.integrations.sse import SSEBroadcaster

SECRET = {"job_id": "a", "text": "secret"}


class Page:
    "One request to an ASGI app, and what it has answered."

    def __init__(self, app, method="GET", query=b"", headers=(), reads=True):
        self.status, self.headers, self.body = None, {}, b""
        self.gone, self.news, self.reads = asyncio.Event(), asyncio.Event(), asyncio.Event()
        if reads:
            self.reads.set()
        scope = {"type": "http", "http_version": "1.1", "method": method, "path": "/", "query_string": query}
        self.task = asyncio.create_task(
            app({**scope, "headers": [(b"host", b"localhost"), *headers]}, self.receive, self.send)
        )

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            await self.reads.wait()
            self.body += message.get("body", b"")
        self.news.set()

    async def until(self, ending: bytes) -> str:
        "Everything received, as soon as it contains `ending` or the answer has ended."
        async with asyncio.timeout(120):
            while ending not in self.body and not self.task.done():
                self.news.clear()
                news = asyncio.create_task(self.news.wait())
                await asyncio.wait({news, self.task}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
        return self.body.decode()

    async def leave(self):
        self.gone.set()
        await asyncio.wait_for(self.task, 120)


def frames(text: str) -> list[dict[str, str]]:
    return [
        dict(line.split(": ", 1) for line in frame.splitlines() if ": " in line)
        for frame in text.split("\n\n")
        if frame
    ]


def of_type(text: str, event_type: str) -> list[dict]:
    return [json.loads(frame["data"]) for frame in frames(text) if frame.get("event") == event_type]


# ------------------------------------------------------------------------------------------------- who may listen
REFUSALS = {
    "None": (None, 403),
    "False": (False, 403),
    "an empty text": ("", 403),
    "zero": (0, 403),
    "an empty tuple": ((), 403),
    "an empty dict": ({}, 403),
    "a redirect": (RedirectResponse("/login", 303), 303),
    "a page": (HTMLResponse("sign in", 401), 401),
    "a page with status 200": (HTMLResponse("sign in"), 200),
    "JSON": (JSONResponse({"error": "no"}, 403), 403),
    "an exception that was not raised": (HTTPException(401, "sign in"), 401),
    "a response of another framework": (SimpleNamespace(status_code=302, headers={}), 403),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_authorize_returns_instead_of_a_principal_refuses(name, is_async, method):
    returned, status = REFUSALS[name]

    def plain(request):
        return returned

    async def awaited(request):
        return returned

    async def main():
        events = SSEBroadcaster(snapshot=lambda principal: [SECRET], authorize=awaited if is_async else plain)
        page = Page(events.endpoint, method)
        await events.broadcast("job:completed", SECRET)
        text = await page.until(b"secret")
        assert page.task.done() and "secret" not in text
        assert page.status == status and page.headers.get(b"content-type", b"") != b"text/event-stream; charset=utf-8"
        assert events.clients == 0

    asyncio.run(main())


@pytest.mark.parametrize("principal", ["ann", 7, {"name": "ann"}, SimpleNamespace(name="ann")])
def test_anything_true_is_a_principal(principal):
    async def main():
        events = SSEBroadcaster(snapshot=lambda p: [{"is": p is principal}], authorize=lambda request: principal)
        page = Page(events.endpoint)
        assert of_type(await page.until(b"snapshot"), "snapshot") == [{"items": [{"is": True}]}]
        await page.leave()

    asyncio.run(main())


def test_proxies_must_not_transform_the_stream():
    async def main():
        for method in ("GET", "HEAD"):
            page = Page(SSEBroadcaster().endpoint, method)
            await page.until(b"snapshot")
            directives = page.headers[b"cache-control"].decode().split(", ")
            assert {"no-store", "no-transform"} <= set(directives)
            await page.leave()

    asyncio.run(main())


# -------------------------------------------------------------------------------------------- where a client continues
@pytest.mark.parametrize(
    ("query", "header", "expected"),
    [
        ("last_event_id={0}-2", "", [3, 4]),
        ("lastEventId={0}-2", "", [3, 4]),
        ("lastEventId={0}-1", "{0}-3", [4]),  # the address of a polyfill is older than its reconnect
        ("lastEventId={0}-3", "{0}-1", [4]),  # and the other way round
        ("last_event_id={0}-1&lastEventId={0}-3", "", [4]),
        ("last_event_id=other-1&lastEventId={0}-2", "nonsense", [3, 4]),
        ("last_event_id={0}-999", "{0}-2", [3, 4]),
    ],
)
def test_the_newest_known_id_counts(query, header, expected):
    async def main():
        events = SSEBroadcaster()
        for n in range(1, 5):
            await events.broadcast("job:started", {"n": n})
        epoch = events.position.partition("-")[0]
        headers = [(b"last-event-id", header.format(epoch).encode())] if header else []
        page = Page(events.endpoint, query=query.format(epoch).encode(), headers=headers)
        text = await page.until(b'"n":4')
        assert [data["n"] for data in of_type(text, "job:started")] == expected
        assert not of_type(text, "snapshot") and not of_type(text, "resync")
        await page.leave()

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------- bad data
@pytest.mark.parametrize("with_client", [False, True])
@pytest.mark.parametrize("data", [["a"], "text", None, 7, [("job_id", "a")], object()])
def test_data_that_is_no_dict_is_refused_for_every_caller(data, with_client):
    async def main():
        events = SSEBroadcaster()
        page = Page(events.endpoint, query=b"job=a") if with_client else None
        if page:
            await page.until(b"snapshot")
        before = events.position
        with pytest.raises(TypeError, match="must be a dict"):
            await events.broadcast("job:started", data)
        assert events.position == before
        if page:
            await events.broadcast("job:completed", {"job_id": "a"})
            await page.until(b"job:completed")
            await page.leave()

    asyncio.run(main())


@pytest.mark.parametrize("job_id", [["a"], {"a": 1}, 7, None, True])
@pytest.mark.parametrize("event_type", ["job:started", "job:progress", "job:chunk", "job:completed"])
def test_an_odd_job_id_disturbs_nobody(event_type, job_id):
    """Neither the clients that wait, nor one that catches up, nor one that returns."""

    async def main():
        events = SSEBroadcaster(visible=lambda event, principal: True)
        start = events.position.encode()
        pages = [Page(events.endpoint, query=query) for query in (b"job=a", b"worker_type=text", b"")]
        for page in pages:
            await page.until(b"snapshot")
        for n in range(3):
            odd = {"job_id": job_id, "worker_type": job_id, "chunks": [n], "index": n, "progress": n}
            await events.broadcast(event_type, odd)
        await events.broadcast("job:completed", {"job_id": "a", "worker_type": "text", "last": True})
        pages.append(Page(events.endpoint, headers=[(b"last-event-id", start)]))
        for page in pages:
            assert of_type(await page.until(b'"last":true'), "job:completed")[-1]["job_id"] == "a"
            await page.leave()
        assert len(of_type(pages[-1].body.decode(), event_type)) == 3 + (event_type == "job:completed")

    asyncio.run(main())


def test_data_that_is_changed_later_breaks_no_replay():
    async def main():
        events = SSEBroadcaster()
        start = events.position.encode()
        shared = {"job_id": "a", "chunks": ["one"], "index": 0}
        await events.broadcast("job:chunk", shared)
        shared["chunks"].append(object())
        await events.broadcast("job:chunk", {"job_id": "a", "chunks": ["two"], "index": 1})
        await events.broadcast("job:completed", {"job_id": "a"})
        page = Page(events.endpoint, headers=[(b"last-event-id", start)])
        assert of_type(await page.until(b"job:completed"), "job:chunk")[0]["chunks"] == ["one", "two"]
        await page.leave()

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------------ bursts
@pytest.mark.parametrize("event_type", ["job:started", "job:completed"])
def test_a_client_that_reads_at_once_survives_a_burst(event_type):
    async def main():
        events = SSEBroadcaster()
        page = Page(events.endpoint)
        await page.until(b"snapshot")
        for n in range(10_000):
            await events.broadcast(event_type, {"job_id": f"j{n}", "n": n})
        text = await page.until(b'"n":9999')
        assert [data["n"] for data in of_type(text, event_type)] == list(range(10_000))
        assert not page.task.done() and not of_type(text, "gap")
        await page.leave()

    asyncio.run(main())


def test_a_client_that_does_not_read_gets_a_gap_and_not_the_end():
    """10,000 ends of jobs are more than what is held for a client; it gets a snapshot in their place."""

    async def main():
        events = SSEBroadcaster(snapshot=lambda principal: [{"all": "jobs"}])
        page = Page(events.endpoint, reads=False)
        while not events.clients:  # noqa: ASYNC110  - there is no event for that
            await asyncio.sleep(0)
        for n in range(10_000):
            await events.broadcast("job:completed", {"job_id": f"j{n}", "n": n})
        held = [len(s.held) for s in events._hub.fan_out.subscribers]
        assert max(held) <= 2 * 2048, "what is held for a client is bounded"
        page.reads.set()
        text = await page.until(b'"n":9999')
        (gap,) = of_type(text, "gap")
        seen = [data["n"] for data in of_type(text, "job:completed")]
        assert gap["missed"] + len(seen) == 10_000 and seen == sorted(set(seen)) and seen[-1] == 9999
        assert of_type(text, "snapshot")[-1] == {"items": [{"all": "jobs"}]} and not page.task.done()
        await page.leave()

    asyncio.run(main())


def test_a_burst_from_another_loop_leaves_the_clients_loop_free():
    async def main():
        events = SSEBroadcaster()
        page = Page(events.endpoint)
        await page.until(b"snapshot")

        async def burst():
            for n in range(10_000):
                await events.broadcast("job:completed", {"job_id": f"j{n}", "n": n})

        thread = threading.Thread(target=lambda: asyncio.run(burst()))
        thread.start()
        text = await page.until(b'"n":9999')
        await asyncio.to_thread(thread.join)
        assert [data["n"] for data in of_type(text, "job:completed")] == list(range(10_000))
        await page.leave()

    asyncio.run(main())


# --------------------------------------------------------------------------------------------- one loop after another
async def listen(events, **page):
    "Connect, see an event arrive and a heartbeat, and stay connected."
    client = Page(events.endpoint, **page)
    await client.until(b"snapshot")
    await events.broadcast("job:completed", {"job_id": "a"})
    await client.until(b"job:completed")
    await client.until(b"\n:\n")
    return client


def leave_a_closed_loop(events):
    asyncio.run(listen(events))  # cancels the client's task


def leave_a_stopped_loop(events):
    """As a notebook or a test tool does that goes on with another loop: nothing is cancelled, nothing closed."""
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(listen(events))
    left.append((loop, client))


left: list = []


@pytest.fixture(autouse=True)
def close_loops():
    yield
    for loop, client in left:
        client.task.cancel()
        loop.run_until_complete(asyncio.gather(client.task, return_exceptions=True))
        loop.close()
    left.clear()


@pytest.mark.parametrize("leave", [leave_a_closed_loop, leave_a_stopped_loop])
def test_a_broadcaster_on_successive_loops(leave):
    """Each loop works as the first did: clients, events, heartbeats; nothing of earlier loops is kept."""
    events = SSEBroadcaster(heartbeat_seconds=0.02)
    for _ in range(3):
        leave(events)

    async def last():
        client = await listen(events)
        assert events.clients == 1 and len(events._hub.streams.open) == 1
        await client.leave()
        assert events.clients == 0

    asyncio.run(last())
    asyncio.run(events.broadcast("job:completed", {"job_id": "b"}))
    assert not events._hub.fan_out.waiting and not events._hub.fan_out.subscribers


@pytest.mark.parametrize("leave", [leave_a_closed_loop, leave_a_stopped_loop])
def test_broadcasts_after_a_loop_has_gone_pile_up_nowhere(leave):
    events = SSEBroadcaster(heartbeat_seconds=0.02, max_events=10)
    leave(events)
    tracked = []

    async def publish():
        for n in range(1000):
            data = type("Data", (dict,), {})(n=n)
            tracked.append(weakref.ref(data))
            await events.broadcast("job:completed", data)

    asyncio.run(publish())
    gc.collect()
    assert sum(ref() is not None for ref in tracked) < 30, "events are kept that the log has dropped"
    assert events.position.endswith("-1001")


@pytest.mark.parametrize("leave", [leave_a_closed_loop, leave_a_stopped_loop])
def test_a_server_on_the_next_loop_can_end(leave):
    """It is found although a server on an earlier loop was found before."""

    class Server:
        should_exit = False

        async def serve(self):
            await asyncio.Event().wait()

    events = SSEBroadcaster(heartbeat_seconds=0.02)
    leave(events)

    async def main():
        server = Server()
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
        client = await listen(events)
        server.should_exit = True
        await asyncio.wait_for(client.task, 120)
        assert client.body.endswith(b":\n") or client.body
        serving.cancel()

    asyncio.run(main())


def test_two_loops_at_the_same_time_are_told_apart(caplog):
    """Clients on two running loops are refused by name; events of both loops arrive."""
    caplog.set_level(logging.ERROR)

    async def main():
        events = SSEBroadcaster()
        page = Page(events.endpoint)
        await page.until(b"snapshot")

        async def elsewhere():
            await events.broadcast("job:completed", {"job_id": "other loop"})
            with pytest.raises(sse.WrongLoop):
                await Page(events.endpoint).task

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        await page.until(b"other loop")
        with contextlib.suppress(asyncio.CancelledError):
            await page.leave()

    asyncio.run(main())
