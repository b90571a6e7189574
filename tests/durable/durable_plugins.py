"""Plugins whose only trace is a line in a file: what ran, how often, and whether to the end."""

import asyncio
import os
import time

from cjm_worker_ext.errors import TransientError
from cjm_worker_ext.plugins import current_context


def note(path, *words):
    "Append one line; a write of this size is whole or absent."
    found = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(found, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(found)


def add(trace, name, a, b, seconds=0.0):
    note(trace, "ran", name)
    time.sleep(seconds)
    return a + b


def stream(trace, name, count):
    note(trace, "ran", name)
    for i in range(count):
        time.sleep(0.001)
        yield i


async def wait(trace, name, seconds):
    note(trace, "ran", name)
    await asyncio.sleep(seconds)
    return name


def fail(trace, name):
    note(trace, "ran", name)
    raise ValueError(f"{name} fails")


def fail_at_first(trace, name):
    "Fails until it has run twice, whoever ran it."
    note(trace, "ran", name)
    with open(trace) as file:
        times = sum(line == f"ran {name}\n" for line in file)
    if times < 2:
        raise TransientError("not yet")
    return times


def crash(trace, name):
    note(trace, "ran", name)
    os._exit(7)


def large(trace, name, size):
    note(trace, "ran", name)
    return "x" * size


def until_there(trace, name, path):
    note(trace, "ran", name)
    while not os.path.exists(path):
        time.sleep(0.01)
    return name


def tell(trace, name, count, path, kind="int", after=None):
    "Writes, reports and yields, and then waits until a file is there; begins when another one is."
    note(trace, "ran", name)
    while after is not None and not os.path.exists(after):
        time.sleep(0.01)
    print(f"{name} has begun")
    current_context().progress(0.5, "half")
    for i in range(count):
        yield {"int": i, "bytes": b"x" * 10_000, "set": {i}, "huge": b"x" * (17 << 20) if kind == "huge" else None}[
            kind
        ]
    while not os.path.exists(path):
        time.sleep(0.01)
    yield "last"


class Configured:
    "Needs a configuration, as a plugin with an API key does."

    def load(self, config):
        self.config = config

    def execute(self, how):
        if how == "raises":
            raise ValueError("no")
        if how == "crashes":
            os._exit(3)
        return len(self.config["api_key"])
