"""Plugins for the tests of agents. They write down that they run, so that a test sees what runs twice."""

import os
import time
from pathlib import Path


def run_until(folder, ctx):
    "Write a file with the process id, and run until there is a file `go on`."
    with open(Path(folder) / "runs", "a") as log:
        log.write(f"{os.getpid()}\n")
    ctx.progress(None, "runs")
    while not (Path(folder) / "go on").exists():
        time.sleep(0.005)
    return os.getpid()


def pid():
    return os.getpid()


def say(words):
    print(words)
    return len(words)


def numbers(count):
    yield from range(count)


def large(count):
    return bytes(count)
