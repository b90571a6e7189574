"""The plugins of `backend_scenes`. They look now and then whether they are still wanted: a thread cannot be interrupted."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from cjm_worker_ext.errors import JobCancelled, TransientError
from cjm_worker_ext.plugins import current_context


def add(a, b=1):
    return a + b


class Broken(Exception):
    pass


def fails(kind="ValueError", text="no good"):
    if kind == "Broken":
        raise Broken(text)
    raise {"ValueError": ValueError, "SystemExit": SystemExit}[kind](text)


def spell(word, ctx):
    for i, letter in enumerate(word, start=1):
        yield letter
        ctx.progress(i / len(word), f"{i} of {len(word)}")


def count(n, fail_at=None):
    for i in range(n):
        if i == fail_at:
            raise ValueError(f"failed at {i}")
        yield i


def work(ctx, ended="", then="raise"):
    "Work until cancelled, and say how it ended; then let the cancellation pass, return, or raise something else."
    try:
        while True:
            ctx.progress(None, f"job {current_context().job_id}")
            time.sleep(0.001)
    except JobCancelled as e:
        if ended:
            Path(ended).write_text(f"cancelled: {ctx.cancelled}")
        ctx.progress(None, "cleaned up")
        if then == "return":
            return "finished all the same"
        if then == "fail":
            raise ValueError("while cleaning up") from e
        raise
    finally:
        if ended:
            Path(ended).write_text(Path(ended).read_text() + ", cleaned up")


def look(ctx):
    "Do what a plugin in native code does: look, and return early."
    while not ctx.cancelled:
        time.sleep(0.001)
    return "half of it"


def endless():
    n = 0
    while True:
        yield n
        n += 1


def deaf(go_on, started):
    "Listen to nothing until there is a file."
    while True:
        try:
            Path(started).touch()  # within: from here on the cancel may come
            if Path(go_on).exists():
                return "too late"
            time.sleep(0.002)
        except BaseException:  # noqa: BLE001  - the very point
            pass


def sum_of(array):
    return float(array.sum())


def array(n):
    import numpy as np

    return {"array": np.arange(n), "bytes": bytes(2 << 20)}


def lock():
    return threading.Lock()


class Own:
    def __init__(self, n):
        self.n = n


def own(n):
    return Own(n)


def chunks_with_lock():
    yield 1
    yield threading.Lock()


def chunks_with_own():
    yield 1
    yield Own(2)
    yield 3


class Model:
    "Keeps a log in a file of what was done to it."

    def load(self, config):
        self.config = config
        self.say("load")

    def execute(self, ctx):
        self.say("execute")
        return dict(self.config) | {"seen": dict(ctx.config)}

    def unload(self):
        self.say("unload")

    def say(self, what):
        with open(self.config["log"], "a") as log:
            log.write(f"{what} {self.config.get('size', '')}".strip() + "\n")


class LoadFails:
    def load(self, config):
        raise OSError("the weights are not there")

    def execute(self): ...


class UnloadFails:
    def execute(self):
        return 1

    def unload(self):
        raise OSError("device busy")


class EndlessLoad:
    def load(self, config):
        while True:
            current_context().progress(None, "loading")
            time.sleep(0.002)

    def execute(self): ...


def dies(simulated):
    if simulated:
        from cjm_worker_ext.testing import SimulateCrash

        raise SimulateCrash(7)
    os._exit(7)


class Shelf:
    "An app's own plugin manager."

    def __init__(self):
        self.loaded = {}

    def discover_plugins(self):
        return ["repeat"]

    def load_plugin(self, plugin_id, config):
        self.loaded[plugin_id] = config.get("times", 2)

    def execute_plugin(self, plugin_id, **params):
        return params["text"] * self.loaded[plugin_id]

    def execute_plugin_stream(self, plugin_id, **params):
        for _ in range(self.loaded[plugin_id]):
            yield params["text"]

    def check_streaming_support(self, plugin_id):
        return True

    reload_plugin = load_plugin

    def unload_plugin(self, plugin_id):
        del self.loaded[plugin_id]


def report_from_threads(ctx):
    "Report from a thread, also after the job was cancelled; say where that was noticed."

    def report(message):
        thread = threading.Thread(target=ctx.progress, args=(0.5, message))
        thread.start()
        thread.join()

    report("from a thread")
    while not ctx.cancelled:
        time.sleep(0.001)
    report("from a second thread")
    try:
        ctx.progress(1.0)
    except JobCancelled:
        return "in the job's own thread"
    return "nowhere"


CHUNK = list(range(5000))


def dear_chunks(n):
    "Chunks that cost little to yield, and much to tell."
    for _ in range(n):
        yield CHUNK


def fails_at_first(log, how, simulated, ctx):
    "Yield two chunks at each attempt; fail at the first one."
    with open(log, "a") as file:
        file.write("x")
    n = len(Path(log).read_text())
    for i in range(2):
        yield f"{n}.{i}"
    ctx.progress(None, "chunks are sent before it")
    if n == 1:
        while how == "crash" and not Path(f"{log} read").exists():  # so that it does not swallow them
            time.sleep(0.002)
        if how == "crash":
            dies(simulated)
        while how == "hang":
            time.sleep(0.002)
            ctx.progress(None, "still here")
        raise {"transient": TransientError, "value": ValueError}[how]("not yet")


def asks_for_another(reason, ctx):
    ctx.retire_worker(reason)
