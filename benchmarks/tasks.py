"""What the workers run: the same functions for every peer. Imports little, because each worker imports it."""

import os
import signal
import sys
import time


def noop():
    return None


def echo(data):
    return data


def getpid():
    return os.getpid()


def make_bytes(size):
    return b"x" * size


_large = {}


def _made_once(make, size):
    "What `make` makes, made once: so the transport is measured, and not `numpy.ones`."
    if (make, size) not in _large:
        _large.clear()
        _large[make, size] = make(size)
    return _large[make, size]


def _array(size):
    import numpy as np

    return np.ones(size // 8)


def _frame(size):
    import pandas as pd

    return pd.DataFrame(_array(size).reshape(-1, 8), columns=list("abcdefgh"))


def _table(size):
    import pyarrow as pa

    return pa.table({name: _array(size // 8) for name in "abcdefgh"})


def make_array(size):
    "A numpy array of `size` bytes."
    return _made_once(_array, size)


def make_frame(size):
    "A pandas DataFrame of `size` bytes in eight columns."
    return _made_once(_frame, size)


def make_table(size):
    "A pyarrow table of `size` bytes in eight columns."
    return _made_once(_table, size)


def chunks(count):
    yield from range(count)


def chunk_list(count):
    return list(range(count))


def put_chunks(queue, count):
    for number in range(count):
        queue.put(number)
    queue.put(None)


def spin(path):
    "Python code that can be interrupted; makes the file when it begins."
    open(path, "w").close()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.001)


def stuck(path):
    "Native code that no signal handler of Python's interrupts."
    import hashlib

    open(path, "w").close()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)


def crash(path, delay=0.3):
    "Die as a segmentation fault would; the file says when."
    time.sleep(delay)
    with open(path, "w") as file:
        file.write(str(time.monotonic_ns()))
    os.kill(os.getpid(), signal.SIGKILL)


def modules():
    return len(sys.modules)


# What goes wrong on a bad day; see `benchmarks.failures`. Each makes a file when it runs, and most wait for the word to go wrong.


def _begin(path, name):
    with open(os.path.join(path, "writing-" + name), "w") as file:
        file.write(str(os.getpid()))
    os.rename(file.name, os.path.join(path, name))


def _wait_for(path, name, seconds=90):
    end = time.monotonic() + seconds
    while not os.path.exists(os.path.join(path, name)) and time.monotonic() < end:
        time.sleep(0.005)


def quick(path):
    return "ok"


def innocent(path):
    "Run beside the bad job until the app says that it may end."
    _begin(path, "running")
    _wait_for(path, "end")
    return "ok"


def patient(path):
    "Do nothing wrong; it is killed from outside."
    _begin(path, "bad")
    _wait_for(path, "go")
    time.sleep(60)
    return "ok"


def kill_itself(path):
    "What the kernel does to a process when memory is short."
    _begin(path, "bad")
    _wait_for(path, "go")
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(path):
    import ctypes

    _begin(path, "bad")
    _wait_for(path, "go")
    ctypes.string_at(0)


def exit_at_once(path):
    _begin(path, "bad")
    _wait_for(path, "go")
    os._exit(3)


def system_exit(path):
    _begin(path, "bad")
    _wait_for(path, "go")
    sys.exit(3)


def hold_lock(path):
    "Native code that keeps the interpreter lock for many minutes."
    _begin(path, "bad")
    return sum(range(10**12))


def return_lock(path):
    "A result that no serializer can send."
    import threading

    _begin(path, "bad")
    _wait_for(path, "go")
    return threading.Lock()


class TwoArguments(Exception):
    "An exception that pickle can write and not read."

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


def raise_unreadable(path):
    _begin(path, "bad")
    _wait_for(path, "go")
    raise TwoArguments(404, "not found")


def leave_child(path):
    "Start a process and return without it."
    import subprocess

    _begin(path, "bad")
    _wait_for(path, "go")
    subprocess.Popen(["sleep", "120"])
    return "ok"


def die_with_child(path):
    "Start a process and be killed."
    import subprocess

    _begin(path, "bad")
    _wait_for(path, "go")
    subprocess.Popen(["sleep", "120"])
    os.kill(os.getpid(), signal.SIGKILL)
