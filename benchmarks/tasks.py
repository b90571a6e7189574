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


_array = None


def make_array(size):
    "A numpy array of `size` bytes; made once, so that the transport is measured and not `numpy.ones`."
    global _array
    if _array is None or _array.nbytes != size:
        import numpy as np

        _array = np.ones(size // 8)
    return _array


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
