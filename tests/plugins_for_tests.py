"""Plugins with good and bad days; workers import them, because they get the path of the process that starts them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

loads = 0  # In a worker: how often `Counted` was loaded


def pid_of_worker() -> int:
    return os.getpid()


def echo(value=None):
    return value


def tiny(n: int) -> int:
    return n


class Counted:
    "Says in which process it runs, and how often it was loaded there."

    def load(self, config):
        global loads
        loads += 1

    def execute(self) -> tuple[int, int]:
        return os.getpid(), loads


def touch_and_wait(started: str, go_on: str) -> int:
    "Say that it runs, and run until it may end; both by files."
    Path(started).write_text(str(os.getpid()))
    while not Path(go_on).exists():
        time.sleep(0.005)
    return os.getpid()


# ---------------------------------------------------------------- ends of processes


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_now(code: int = 7) -> None:
    os._exit(code)


def segfault() -> None:
    ctypes.string_at(0)


def print_and_crash(lines: int = 3) -> None:
    for i in range(lines):
        print("line", i)
    os.write(2, b"written by native code\n")
    os._exit(9)


def native_print() -> str:
    os.write(1, b"\x00\x01 raw bytes \xff\n")
    libc = ctypes.CDLL(None)
    libc.printf(b"from printf %d\n", 5)
    libc.fflush(None)
    subprocess.run(["echo", "from a child"], check=True)
    print("from print")
    return "printed"


def print_without_end(megabytes: int) -> None:
    for _ in range(megabytes * 16):
        os.write(1, b"x\n" * (1 << 15))


# ---------------------------------------------------------------- exceptions


def system_exit() -> None:
    sys.exit("enough")


def keyboard_interrupt() -> None:
    raise KeyboardInterrupt


class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def raise_two_arguments() -> None:
    raise TwoArguments("a", "b")


def raise_speechless() -> None:
    raise Speechless


def raise_value_error(text: str = "wrong") -> None:
    raise ValueError(text)


class NotPicklable(Exception):
    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raise_not_picklable() -> None:
    raise NotPicklable


def unpicklable_result():
    return threading.Lock()


class LoadFails:
    def load(self, config):
        raise RuntimeError("the model is not there")

    def execute(self): ...


class SlowLoad:
    def load(self, config):
        time.sleep(float(config.get("seconds", 1.0)))

    def execute(self):
        return os.getpid()


class CrashingLoad:
    def load(self, config):
        os._exit(3)

    def execute(self): ...


# ---------------------------------------------------------------- what is hard to stop


def spin(started: str = "") -> None:
    if started:
        Path(started).write_text(str(os.getpid()))
    while True:
        pass


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def hold_lock(started: str = "", child: str = "") -> None:
    "Keep the interpreter lock in native code, for hours; before that start a child, and write down its pid."
    if child:
        process = subprocess.Popen(["sleep", "3600"])
        Path(child).write_text(str(process.pid))
    signal.signal(signal.SIGURG, signal.SIG_IGN)  # a cancel must not come between here and the native code
    if started:
        Path(started).write_text(str(os.getpid()))
    sum(range(10**14))  # one call of native code, which looks at no signal


def ignore_sigterm(started: str = "") -> None:
    "Ignore what can be ignored."
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            if started:
                Path(started).write_text(str(os.getpid()))  # within: from here on the cancel may come
            time.sleep(3600)
        except BaseException:  # noqa: BLE001  - the very point
            pass


def finish_although_cancelled(started: str) -> str:
    from cjm_worker_ext.errors import JobCancelled

    try:
        Path(started).write_text(str(os.getpid()))  # within: from here on the cancel may come
        time.sleep(60)
    except JobCancelled:
        return "finished all the same"
    return "not cancelled"


# ---------------------------------------------------------------- results


def big_bytes(megabytes: int) -> bytes:
    return b"\xa5" * (megabytes << 20)


def big_array(megabytes: int, value: int = 7):
    import numpy as np

    return np.full(megabytes << 17, value, dtype=np.int64)


def nested_bytes(size: int):
    return {"a": [b"1" * size, {"b": (bytearray(b"2" * size), "text")}], "c": b"3"}


def deep_bytes(megabytes: int):
    return [[[[[b"\x5a" * (megabytes << 20)]]]]]


def many_arrays(count: int, size: int = 4096):
    import numpy as np

    return [np.full(size, i, dtype=np.int64) for i in range(count)]


def sum_of_arrays(arrays) -> int:
    return sum(int(a[0]) for a in arrays)


def size_of(data) -> int:
    return len(data)


# ---------------------------------------------------------------- attacks on the process that reads


class Attack:
    "Writes a file where it is unpickled."

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


class AttackByError(Exception):
    def __init__(self, path: str):
        super().__init__(path)
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def attack_by_result(path: str):
    return {"harmless": [1, Attack(path)]}


def attack_by_chunk(path: str):
    yield "harmless"
    yield Attack(path)
    yield "late"


def attack_by_error(path: str):
    raise AttackByError(path)


def socket_of_worker() -> int:
    "The descriptor on which this worker talks to its manager."
    import gc

    from cjm_worker_ext.backends.worker_main import Channel

    gc.unfreeze()  # what a worker made while it booted is among the objects then
    return next(o.fd for o in gc.get_objects() if isinstance(o, Channel))


def request_of_worker() -> int:
    import gc

    from cjm_worker_ext.backends.worker_main import Outbox

    gc.unfreeze()  # what a worker made while it booted is among the objects then
    return next(o._task_number for o in gc.get_objects() if isinstance(o, Outbox))


def send_frame(kind: int, payload: bytes, length: int | None = None, buffers: int = 0) -> str:
    "Write a frame of one's own, with the number of the request that runs."
    from cjm_worker_ext.backends.framing import HEADER

    head = HEADER.pack(len(payload) if length is None else length, request_of_worker(), buffers, kind)
    os.write(socket_of_worker(), head + payload)
    return "sent"


def attack_by_frame(kind: int, path: str) -> str:
    import pickle

    return send_frame(kind, pickle.dumps(Attack(path)))


def attack_by_chunk_frame(path: str) -> str:
    import pickle

    from cjm_worker_ext.backends.framing import CHUNKS

    data = pickle.dumps([Attack(path)])
    return send_frame(CHUNKS, len(data).to_bytes(8, "little") + data)


def send_nonsense() -> None:
    os.write(socket_of_worker(), b"\xff" * 4096)
    time.sleep(60)


def claim_shared_memory(size: int) -> str:
    "Say that the result lies in shared memory where there is none."
    import pickle

    from cjm_worker_ext.backends.framing import HEADER, PLACE, RESULT

    data = pickle.dumps(None)
    os.write(
        socket_of_worker(),
        HEADER.pack(len(data), request_of_worker(), 1, RESULT) + PLACE.pack(size, 1) + data,
    )
    return "sent"


# ---------------------------------------------------------------- streams


def count(n: int, pad: int = 0):
    for i in range(n):
        yield (i, "x" * pad) if pad else i


def count_and_log(n: int, path: str, pad: int = 1000):
    "Yield, and say in a file how far it has come."
    with open(path, "w", buffering=1) as log:
        for i in range(n):
            log.write(f"{i}\n")
            yield (i, "x" * pad)


def many_texts(n: int) -> list[str]:
    return [f"text {i}" for i in range(n)]


def chunks_of_all_sizes(n: int, crash: bool, ctx):
    for i in range(3):
        yield f"small {i}"
        yield many_texts(n)
        ctx.progress(i / 3, "on the way")
    if crash:
        kill_self()


def raise_long_text(n: int) -> None:
    raise ValueError(*many_texts(n))


def count_slowly(started: str = ""):
    i = 0
    while True:
        yield i
        i += 1
        if started and i == 3:
            Path(started).write_text(str(os.getpid()))
        time.sleep(0.005)


def count_then_fail(n: int):
    yield from range(n)
    raise ValueError("after the chunks")


def count_then_crash(n: int):
    yield from range(n)
    time.sleep(0.05)
    os._exit(5)


def progress_then(n: int, ctx):
    for i in range(n):
        ctx.progress((i + 1) / n, f"step {i + 1}")
        time.sleep(0.002)
    return n


# ---------------------------------------------------------------- what many watch


def write_pages(pages: int):
    "Stream text of 10,000 characters a page."
    for number in range(pages):
        yield f"{number:5}" * 2000


# ---------------------------------------------------------------- what goes well at a later attempt


class Busy(Exception):
    "Not an error of this library: it says by an attribute what kind of failure it is."

    def __init__(self, text: str, category: str):
        super().__init__(text)
        self.category = category


def note_attempt(log: str) -> int:
    "Write down that it runs; how often it has."
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")
    return Path(log).read_text().count("\n")


def fail(how: str, n: int) -> None:
    from cjm_worker_ext.errors import TransientError

    if how == "crash":
        os._exit(7)
    while how in ("hang", "deaf"):
        try:
            time.sleep(600)
        except BaseException:  # noqa: BLE001  - the very point
            if how == "hang":
                raise
    if how in ("attribute", "input", "fatal"):
        texts = {"attribute": "busy", "input": "not a number", "fatal": "broken for good"}
        raise Busy(texts[how], "transient" if how == "attribute" else how)
    raise {"transient": TransientError, "memory": MemoryError, "value": ValueError}[how](
        {"transient": "the network is away", "memory": "no room", "value": f"no good {n}"}[how]
    )


def flaky(log: str, how: str, good: int = 3) -> str:
    "Fail in some way before the attempt that is good."
    if (n := note_attempt(log)) < good:
        fail(how, n)
    return f"attempt {n}"


def flaky_stream(log: str, how: str, good: int = 2):
    n = note_attempt(log)
    for i in range(4):
        yield f"{n}.{i}"
    if n < good:
        time.sleep(0.05)
        fail(how, n)


def stuck(started: str, go_on: str) -> None:
    "Clean up for long when it is interrupted."
    try:
        Path(started).write_text("runs")
        time.sleep(600)
    finally:
        Path(started).write_text("cleans up")
        while not Path(go_on).exists():
            time.sleep(0.005)


# ---------------------------------------------------------------- workers that are to be replaced


def retire(reason: str = "the card is gone", then: str = "return") -> int:
    from cjm_worker_ext.plugins import current_context

    current_context().retire_worker(reason)
    if then == "raise":
        raise ValueError("after it")
    if then == "crash":
        os._exit(7)
    return os.getpid()


def retire_in_a_thread(started: str, go_on: str) -> int:
    thread = threading.Thread(target=retire)
    thread.start()
    thread.join()
    return touch_and_wait(started, go_on)


def retire_again_and_again(started: str) -> None:
    "So that a cancel comes while it is told."
    retire("x" * 200)  # the cancel may come before another one
    Path(started).touch()
    while True:
        retire("x" * 200)


class RetiresInLoad:
    def load(self, config):
        retire("its driver is too old")

    def execute(self):
        return os.getpid()


leaked: list[bytes] = []


def leak(megabytes: int) -> int:
    leaked.append(os.urandom(1 << 20) * megabytes)
    return os.getpid()


def raise_as(module: str, name: str, text: str, behind: str = "") -> None:
    "Raise an exception that looks like one of another library, or one of ours behind which it is."
    error = type(name, (RuntimeError,), {"__module__": module})(text)
    if behind:
        raise OSError(behind) from error
    raise error


def crash_unless(path: str) -> str:
    if not Path(path).exists():
        os._exit(7)
    return "it works"


class SlowUnload:
    def execute(self):
        return os.getpid()

    def unload(self):
        time.sleep(600)


def fail_on_file(file: str, log: str) -> str:
    "Run until there is a file; fail then, if it is the first attempt."
    from cjm_worker_ext.errors import TransientError

    if note_attempt(log) > 1:
        file += ".2"
    while not Path(file).exists():
        time.sleep(0.01)
    if not file.endswith(".2"):
        raise TransientError("not yet")
    return "it works"
