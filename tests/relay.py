"""A backend whose workers another process keeps: it shows that the engine does not notice.

`RelayBackend` starts this file as a program, which hosts a `LocalBackend`. Each order and each event crosses as a pickled
record over a socket. It is a test's relay and trusts the other side; it shows which promises a real one has to keep.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection
from typing import Any

import cloudpickle

from cjm_worker_ext.backends.base import (
    BackendHost,
    ExitReason,
    JobOrder,
    Lost,
    Place,
    PluginEntry,
    WorkerExit,
    WorkerSetup,
)
from cjm_worker_ext.backends.local import LocalBackend, PluginTargets
from cjm_worker_ext.backends.order_pickles import dumps
from cjm_worker_ext.config import WorkerConfig


def packed(record: Any) -> bytes:
    data = cloudpickle.dumps(record)
    return len(data).to_bytes(8, "little") + data


class RelayBackend:
    "The workers of one manager, kept by another process; implements `backends.base.Backend`."

    def __init__(self, config: WorkerConfig, host: BackendHost, setup: WorkerSetup) -> None:
        self.host, self.loop = host, asyncio.get_running_loop()
        self.pids: dict[int, int] = {}  # of the workers that have not ended; 0 before they have started
        self.exits: list[WorkerExit] = []
        self._sent: dict[int, set[int]] = {}  # worker: the orders that were sent to it, and are not answered
        self._targets, self._is_lost, self._outbox = PluginTargets(), False, queue.SimpleQueue()
        ours, theirs = socket.socketpair()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=env
        )
        theirs.close()
        self._outbox.put(packed((config, setup)))
        self._threads = [threading.Thread(target=run, args=(ours,), daemon=True) for run in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    # what crosses, in threads

    def _write(self, sock: socket.socket) -> None:
        while (data := self._outbox.get()) is not None:
            try:
                sock.sendall(data)
            except OSError:  # the reader learns it too
                return

    def _read(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file:
            while len(head := file.read(8)) == 8:
                data = file.read(int.from_bytes(head, "little"))
                if self._call(self._on_event, data) is None:
                    return
            self._call(self._on_lost)

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed
            return None

    # orders

    def _order(self, method: str, *args: Any) -> bool:
        if not self._is_lost:
            self._outbox.put(packed((method, args)))
        return not self._is_lost

    def prepare(self, plugin: PluginEntry) -> None:
        self._targets.bytes_of(plugin)

    def start(self, worker: int) -> None:
        self.pids[worker] = 0
        if not self._order("start", worker):
            self.loop.call_soon(self._on_exit, worker, WorkerExit(ExitReason.REFUSED, output=("the relay has ended",)))

    def execute(self, worker: int, order: JobOrder) -> bool:
        dumps(order.params, f"the parameters of job {order.job_id!r}", by_value=True)
        self._sent.setdefault(worker, set()).add(order.task_number)
        return self._order("execute", worker, order)

    def load(self, worker: int, task_number: int, plugin: PluginEntry) -> bool:
        dumps(plugin.config, f"the configuration of plugin {plugin.plugin_id!r}", by_value=True)
        self._sent.setdefault(worker, set()).add(task_number)
        return self._order("load", worker, task_number, plugin)

    def unload(self, worker: int, task_number: int, plugin: PluginEntry) -> bool:
        self._sent.setdefault(worker, set()).add(task_number)
        return self._order("unload", worker, task_number, plugin)

    def interrupt(self, worker: int, task_number: int) -> None:
        self._order("interrupt", worker, task_number)

    def pause(self, worker: int, task_number: int, paused: bool) -> None:
        self._order("pause", worker, task_number, paused)

    def is_deaf(self, worker: int) -> bool:
        return False  # the relay does not tell what its workers have read

    def dump_stacks(self, worker: int) -> None:
        self._order("dump_stacks", worker)

    def stop(self, worker: int) -> None:
        self._order("stop", worker)

    def kill(self, worker: int) -> None:
        self._order("kill", worker)

    def forget(self, worker: int) -> None:
        self._order("forget", worker)
        self._sent.pop(worker, None)

    def abandon(self) -> None:
        self.process.kill()  # its workers go with it
        self.process.wait()
        for worker, pid in list(self.pids.items()):
            self.host.on_exit(worker, WorkerExit(ExitReason.LOST, pid or 0))

    async def close(self) -> None:
        self._order("close")
        try:
            await asyncio.to_thread(self.process.wait, 10)
        finally:
            self.process.kill()
            self._outbox.put(None)

    # events

    def _on_event(self, data: bytes) -> None:
        event, worker, args = pickle.loads(data)
        if worker not in self.pids:
            return
        if event == "on_started":
            self.pids[worker] = args[0].pid
        elif event == "on_dying":
            # Orders and events pass one another. The relay says which orders it had when the worker died, and those that
            # were sent after that surely did not arrive.
            undelivered, received = args
            args = ({*undelivered, *(self._sent.get(worker, set()) - received)},)
        elif event == "on_answer":
            self._sent[worker].discard(args[0])
        if event == "on_exit":
            self._on_exit(worker, *args)
        else:
            getattr(self.host, event)(worker, *args)

    def _on_exit(self, worker: int, end: WorkerExit) -> None:
        del self.pids[worker]
        self.exits.append(end)
        self.host.on_exit(worker, end)

    def _on_lost(self) -> None:
        "The relay is gone, and its workers with it."
        self._is_lost = True
        for worker, pid in list(self.pids.items()):
            if pid:
                self.host.on_dying(worker, ())
            self._on_exit(worker, WorkerExit(ExitReason.LOST, pid, output=("the relay has ended",)))


# ---------------------------------------------------------------- the other process
class RelayHost:
    "Sends each event of a backend on; implements `backends.base.BackendHost`."

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.received: dict[int, set[int]] = {}  # worker: the orders that it was given

    def __getattr__(self, event: str) -> Any:
        return lambda worker, *args: self._writer.write(packed((event, worker, args)))

    def on_started(self, worker: int, place: Place) -> None:
        self._writer.write(packed(("on_started", worker, (place,))))

    def on_dying(self, worker: int, undelivered: Collection[int]) -> None:
        self._writer.write(packed(("on_dying", worker, (list(undelivered), self.received.pop(worker, set())))))


def give_order(backend: LocalBackend, host: RelayHost, method: str, args: Any) -> None:
    "Pass an order on; only what the local backend surely took counts as received."
    if method not in ("execute", "load", "unload"):
        getattr(backend, method)(*args)
        return
    worker, task_number = args[0], args[1].task_number if method == "execute" else args[1]
    try:
        if getattr(backend, method)(*args):
            host.received.setdefault(worker, set()).add(task_number)
    except Exception as e:  # noqa: BLE001  - what it raises belongs to the job
        host.received.setdefault(worker, set()).add(task_number)
        host.on_answer(worker, task_number, Lost(e))


async def relay(fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd), limit=1 << 30)

    async def next_record() -> Any:
        return pickle.loads(await reader.readexactly(int.from_bytes(await reader.readexactly(8), "little")))

    host = RelayHost(writer)
    config, setup = await next_record()
    backend = LocalBackend(config, host, setup)
    try:
        while (record := await next_record())[0] != "close":
            give_order(backend, host, *record)
    except asyncio.IncompleteReadError:
        pass  # the app is gone
    await backend.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(relay(int(sys.argv[1])))
