"""A network between manager and agent that delays, drops and cuts; it runs in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import threading


class Proxy:
    "Passes bytes to a port of this machine; a context manager. The properties may be set at any time."

    def __init__(self, port: int):
        self._target, self.delay, self.refuses = port, 0.0, False
        self.silent_ways: set[str] = set()  # `"up"`: nothing reaches the manager; `"down"`: nothing reaches the agent
        self._tasks: set[asyncio.Task] = set()
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def serve():
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
            self._stop = asyncio.Event()
            self._ready.set()
            await self._stop.wait()
            self._server.close()
            self._cut(range(len(self._pairs)))
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._loop.run_until_complete(serve())

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _connected(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        if self.refuses:
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._pairs.append((writer, there_writer))
        await asyncio.gather(
            self._pass("down", reader, there_writer), self._pass("up", there_reader, writer), return_exceptions=True
        )
        writer.close()
        there_writer.close()

    async def _pass(self, way, reader, writer):
        while data := await reader.read(1 << 16):
            if self.delay:
                await asyncio.sleep(self.delay)
            if way not in self.silent_ways:
                writer.write(data)
                await writer.drain()
        writer.close()

    def _cut(self, numbers) -> None:
        for number in numbers:
            for writer in self._pairs[number]:
                writer.transport.abort()

    def cut(self, *numbers: int) -> None:
        "Cut connections, by the order in which they came; without numbers all."
        self._loop.call_soon_threadsafe(lambda: self._cut(numbers or range(len(self._pairs))))

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *exc_info):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(120)
