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


def crash():
    os._exit(3)


def say(words):
    print(words)
    return len(words)


def numbers(count):
    yield from range(count)


def large(count):
    return bytes(count)


def note(folder, job):
    "Write down that a job runs; an appended line is written in one piece."
    with open(Path(folder) / "jobs", "a") as log:
        log.write(f"{job}\n")


def print_and_return(n):
    for i in range(n):
        print(f"line {i} " + "x" * 80)
    os.write(1, b"last line")
    return n


def yield_print_return(folder):
    "When there is a file `go on`: yield, print and return; leave the files `began` and `done`."
    (Path(folder) / "began").touch()
    while not (Path(folder) / "go on").exists():
        time.sleep(0.005)
    yield 1
    time.sleep(0.01)  # so that the chunk is on its way
    print("said last")
    (Path(folder) / "done").touch()
