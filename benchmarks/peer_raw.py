"""The limit: a child and a channel, and nothing that a pool has to do beside it."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque

from benchmarks.peers_base import Peer
from benchmarks.raw_workers import BUFFERS, CHUNKS, HEAD, RESULT, pack, pipe_worker, unpack


# ------------------------------------------------------------------------------------------------- socket pair
class _Worker:
    "One child; a request at a time."

    def __init__(self, peer):
        self.peer, self.loop = peer, asyncio.get_running_loop()
        self.sock, theirs = socket.socketpair()
        boot = "import sys; sys.path[:0] = sys.argv[2:]; from benchmarks.raw_workers import socket_worker as w; w(int(sys.argv[1]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", boot, str(theirs.fileno()), *(p for p in sys.path if p)],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.sock.setblocking(False)
        self.future = None
        self.on_chunks = None
        self.buffer = bytearray(1 << 18)
        self.rest = b""
        self.wanted = None  # (head, buffers, index, view) of a large frame
        self.unsent = deque()
        self.loop.add_reader(self.sock, self._readable)

    def send(self, pieces, future):
        self.future = future
        for piece in pieces:
            view = memoryview(piece).cast("B")
            try:
                sent = 0 if self.unsent else self.sock.send(view)
            except BlockingIOError:
                sent = 0
            if sent < view.nbytes:
                self.unsent.append(view[sent:])
        if self.unsent:
            self.loop.add_writer(self.sock, self._writable)

    def _writable(self):
        try:
            while self.unsent:
                sent = self.sock.send(self.unsent[0])
                self.unsent[0] = self.unsent[0][sent:]
                if not self.unsent[0]:
                    self.unsent.popleft()
        except BlockingIOError:
            return
        self.loop.remove_writer(self.sock)

    def _readable(self):
        try:
            if self.wanted is not None:
                return self._large()
            count = self.sock.recv_into(self.buffer)
        except (BlockingIOError, ConnectionResetError):
            count = 0
        if not count:
            self.loop.remove_reader(self.sock)
            self.process.wait()
            self.peer.lost(self)
            return
        data = self.rest + self.buffer[:count] if self.rest else memoryview(self.buffer)[:count]
        at = 0
        while len(data) - at >= HEAD.size + 1:
            length, kind = HEAD.unpack_from(data, at)
            number = data[at + HEAD.size]
            start = at + HEAD.size + 1 + 8 * number
            if len(data) < start + length:
                break
            body = data[start : start + length]
            at = start + length
            if number:
                sizes = [BUFFERS.unpack_from(data, start - 8 * (number - i))[0] for i in range(number)]
                buffers = [bytearray(size) for size in sizes]
                rest = bytes(data[at:])
                buffers[0][: len(rest)] = rest
                self.rest = b""
                self.wanted = (bytes(body), buffers, memoryview(buffers[0])[len(rest) :])
                return
            self._frame(kind, pickle.loads(body))
        self.rest = bytes(data[at:])

    def _large(self):
        body, buffers, view = self.wanted
        view = view[self.sock.recv_into(view) :]
        self.wanted = (body, buffers, view)
        if not view:
            self.wanted = None
            self._frame(RESULT, unpack(body, buffers))

    def _frame(self, kind, value):
        if kind == CHUNKS:
            self.on_chunks(value)
            return
        future, self.future = self.future, None
        self.peer.free(self)
        if not future.done():
            future.set_result(value)


class RawSocket(Peer):
    "A socket pair with add_reader and frames of its own under asyncio; one job on a worker at a time."

    can_cancel = ("spin", "stuck")

    async def open(self, workers=1, standby=0):
        self.loop = asyncio.get_running_loop()
        self.waiting = deque()
        self.idle = [_Worker(self) for _ in range(workers)]
        self.spares = [_Worker(self) for _ in range(standby)]
        self.all = [*self.idle, *self.spares]

    def submit(self, task, *args):
        future = self.loop.create_future()
        pieces = pack((task, tuple(("bytes", pickle.PickleBuffer(a)) if isinstance(a, bytes) else a for a in args)))
        if self.idle:
            self.idle.pop().send(pieces, future)
        else:
            self.waiting.append((pieces, future))
        return future

    def free(self, worker):
        if self.waiting:
            worker.send(*self.waiting.popleft())
        else:
            self.idle.append(worker)

    def lost(self, worker):
        future, worker.future = worker.future, None
        self.free(self.spares.pop() if self.spares else _Worker(self))
        if future is not None and not future.done():
            future.set_exception(RuntimeError("crashed"))

    async def stream(self, count):
        queue = deque()
        state = [None]
        worker = self.idle[-1]

        def on_chunks(chunks):
            queue.extend(chunks)
            if state[0] is not None and not state[0].done():
                state[0].set_result(None)

        worker.on_chunks = on_chunks
        done = self.submit("chunks", count)
        done.add_done_callback(lambda _: on_chunks(()))
        while True:
            while queue:
                yield queue.popleft()
            if done.done():
                return
            state[0] = self.loop.create_future()
            await state[0]

    async def cancel(self, job):
        worker = next(w for w in self.all if w.future is job)
        os.kill(worker.process.pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------- multiprocessing.Pipe
class RawPipe(Peer):
    "multiprocessing.Pipe and a parent that waits: no event loop goes on meanwhile."

    asynchronous = False
    modules = ("multiprocessing.connection",)

    async def open(self, workers=1, standby=0):
        import multiprocessing as mp

        spawn = mp.get_context("spawn")
        self.conns = []
        for _ in range(workers):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=pipe_worker, args=(theirs,), daemon=True).start()
            theirs.close()
            self.conns.append(ours)

    async def call(self, task, *args):
        self.conns[0].send((task, args))
        return self.conns[0].recv()

    async def many(self, task, count):
        from multiprocessing.connection import wait

        request = (task, ())
        left = count
        for conn in self.conns:
            conn.send(request)
        done = 0
        left -= len(self.conns)
        while done < count:
            for conn in wait(self.conns):
                conn.recv()
                done += 1
                if left > 0:
                    conn.send(request)
                    left -= 1

    async def stream(self, count):
        self.conns[0].send(("chunks", (count,)))
        while (chunk := self.conns[0].recv()) is not None:
            yield chunk
