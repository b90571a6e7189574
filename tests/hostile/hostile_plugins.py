"""Plugins that take their worker's socket and send what they like; and innocent ones, which must not notice."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time

from cjm_worker_ext.backends.codec import encode as encode_value
from cjm_worker_ext.backends.framing import (
    BEGUN,
    CANCELLED,
    CHUNKS,
    DONE,
    FAILED,
    HEADER,
    LOADED,
    PLACE,
    PROGRESS,
    READY,
    RESULT,
)

NUMBER = struct.Struct("<Q")


def square(n: int) -> int:
    return n * n


def _channel():
    from cjm_worker_ext.backends.worker_main import Channel

    gc.unfreeze()  # what a worker made while it booted is among the objects then
    return next(o for o in gc.get_objects() if isinstance(o, Channel))


def _number() -> int:
    from cjm_worker_ext.backends.worker_main import Outbox

    gc.unfreeze()  # what a worker made while it booted is among the objects then
    return next(o._task_number for o in gc.get_objects() if isinstance(o, Outbox))


def frame(kind: int, payload: bytes = b"", number: int | None = None, places=(), length: int | None = None) -> bytes:
    head = HEADER.pack(
        len(payload) if length is None else length, _number() if number is None else number, len(places), kind
    )
    return head + b"".join(PLACE.pack(*place) for place in places) + payload


def value(thing) -> bytes:
    return bytes(encode_value(thing)[0])


def chunks(*parts: bytes) -> bytes:
    return b"".join(NUMBER.pack(len(part)) + part for part in parts)


def write(data: bytes, fd: int | None = None) -> None:
    view, fd = memoryview(data), _channel().fd if fd is None else fd
    while view:
        view = view[os.write(fd, view) :]


def flood(data: bytes, seconds: float = 1.0, fd: int | None = None) -> None:
    "Send the same again and again, in vain once the app has closed its end; frames twenty times, however busy the machine."
    least = 20 if fd is None else 1
    fd, data = _channel().fd if fd is None else fd, data * (1 + (1 << 16) // len(data))
    end, times = time.monotonic() + seconds, 0
    while time.monotonic() < end or times < least:
        write(data, fd)
        times += 1


def in_own_session(work) -> int:
    "Fork a child that leaves the worker's process group, and runs for 10 seconds at most."
    if child := os.fork():
        return child
    try:
        os.setsid()
        signal.alarm(10)
        work()
    finally:
        os._exit(0)


# ---------------------------------------------------------------- floods


def flood_ready():
    flood(frame(READY, number=0))


def flood_loaded():
    flood(frame(LOADED, b"\1"))


def flood_loaded_past_the_timeout():
    while True:  # each would start the job's clock again
        write(frame(LOADED, b"\1"))
        time.sleep(0.05)


def flood_begun():
    flood(frame(BEGUN, _number().to_bytes(4, "little")))


def begin_ten_million():
    write(frame(BEGUN, _number().to_bytes(4, "little") * 10_000_000))


class BeginsAgain:
    "A batch that says again and again that it begins, which would start the clocks of its jobs again."

    max_batch_size = 4

    def execute_batch(self, batch):
        while True:
            write(frame(BEGUN, _number().to_bytes(4, "little")))
            time.sleep(0.05)


def flood_progress():
    flood(frame(PROGRESS, value((0.5, "x"))))


def flood_long_progress():
    flood(frame(PROGRESS, value((0.5, "x" * 1_000_000))))


def flood_broken_progress():
    flood(frame(PROGRESS, value((0.5, ["no text"]))))


def flood_one_byte_chunks():
    flood(frame(CHUNKS, chunks(value([b"x"]))))


def ten_million_chunks():
    data = frame(CHUNKS, chunks(value([b"x"] * 10_000)))
    for _ in range(1000):
        write(data)


def too_many_chunks():
    write(frame(CHUNKS, chunks(value([1] * 1_000_000))))


def chunks_in_empty_parts():
    write(frame(CHUNKS, chunks(*[value([])] * 3_000_000)))


def flood_empty_chunks():
    flood(frame(CHUNKS, chunks(value([]))))


def flood_no_chunks():
    flood(frame(CHUNKS, b""))


def flood_other_numbers():
    flood(
        b"".join(frame(kind, value(1), _number() + n) for kind in (RESULT, FAILED, DONE, LOADED) for n in (-1, 7, 99))
    )


def flood_unknown_kinds():
    flood(b"".join(frame(kind, b"x") for kind in (0, 1, 8, 15, 24, 99, 255)))


def flood_small_buffers():
    flood(frame(RESULT, value(1), number=99, places=[(0, 0)] * 500))


def flood_one_byte_at_a_time():
    fd, end = _channel().fd, time.monotonic() + 1.0
    data = frame(CHUNKS, b"x" * 60_000)
    while time.monotonic() < end:
        for i in range(20_000):
            os.write(fd, data[i : i + 1])


def flood_output():
    flood(b"x\n", 1.5, fd=1)


def flood_output_and_answer():
    import fcntl

    fcntl.fcntl(1, 1031, 1 << 20)  # F_SETPIPE_SZ
    write(b"x\n" * (1 << 17), fd=1)
    return "answered"


# ---------------------------------------------------------------- answers


def answer_early():
    write(frame(RESULT, value("early")))
    time.sleep(60)


def answer_early_and_speak():
    write(frame(RESULT, value("early")))
    for i in range(100_000):
        print("words of the first job")
        write(frame(PROGRESS, value((0.5, "words of the first job"))))
        write(frame(CHUNKS, chunks(value([f"chunk {i}"]))))
        time.sleep(0.01)


def answer_twice():
    write(frame(RESULT, value("one")) + frame(RESULT, value("two")) + frame(FAILED, b"three"))
    return "three"


def fail_without_words():
    write(frame(FAILED, value({})))


def fail_with_empty_words():
    write(frame(FAILED, value({"type": "", "message": "", "traceback": "", "exception": None, "category": ""})))


def fail_with_other_types():
    nested = [[[["x"] * 50] * 50] * 50] * 20
    write(frame(FAILED, value({"type": 5, "message": nested, "traceback": None, "exception": 7})))


def fail_with_many_words():
    write(
        frame(
            FAILED,
            value({"type": "E", "message": "x" * 50_000_000, "traceback": "", "exception": None, "category": ""}),
        )
    )


def say_cancelled():
    write(frame(CANCELLED))


def say_done():
    write(frame(DONE))


# ---------------------------------------------------------------- frames that lie


def announce_4_gib():
    write(frame(RESULT, b"x" * 65536, length=4 << 30))
    time.sleep(60)


def announce_2_63():
    write(frame(RESULT, b"x" * 65536, length=1 << 63))
    time.sleep(60)


def announce_what_is_allowed():
    write(frame(RESULT, b"x" * 65536, length=60 << 20))
    time.sleep(60)


def announce_buffers():
    write(frame(RESULT, value(1), places=[(1 << 20, 0)] * 50))
    time.sleep(60)


def announce_65535_buffers():
    write(HEADER.pack(10, _number(), 65535, RESULT) + b"\0" * 65536)
    time.sleep(60)


def begin_a_header():
    write(b"\1\2\3")
    time.sleep(60)


def answer_and_begin_another():
    "What follows would be taken for the rest of this message: the answer to the next job too."
    write(frame(RESULT, value("early")) + frame(RESULT, b"", length=10_000))


def announce_much_after_the_answer():
    write(frame(RESULT, value("early")) + frame(RESULT, b"", length=60 << 20))


def places_beyond_the_file():
    write(frame(RESULT, value(1), places=[(1 << 20, 1 << 50)]))


def sparse_terabytes():
    from cjm_worker_ext.backends.worker_main import Worker

    gc.unfreeze()  # what a worker made while it booted is among the objects then
    fd = next(o.shared.fd for o in gc.get_objects() if isinstance(o, Worker))
    os.ftruncate(fd, 1 << 42)
    write(frame(RESULT, value(1), places=[(1 << 20, 1 + (1 << 41) + (i << 21)) for i in range(50)]))


def name_a_place_again():
    "A result of an earlier job lies there, and the app still has it."
    write(frame(RESULT, value(1), places=[(1 << 20, 1)]))


def big_array(n: int):
    import numpy as np

    return np.full(1 << 20, n)


def sparse_terabytes_with_a_result():
    import numpy as np

    from cjm_worker_ext.backends.worker_main import Worker

    gc.unfreeze()  # what a worker made while it booted is among the objects then
    shared = next(o.shared for o in gc.get_objects() if isinstance(o, Worker))
    os.ftruncate(shared.fd, 1 << 42)
    return np.ones(1 << 20)


# ---------------------------------------------------------------- sockets


def shut_write():
    socket.socket(fileno=os.dup(_channel().fd)).shutdown(socket.SHUT_WR)
    time.sleep(60)


def shut_read():
    socket.socket(fileno=os.dup(_channel().fd)).shutdown(socket.SHUT_RD)
    return "answered"


def shut_read_and_stay():
    "The app can send nothing more, and the worker lives on."
    socket.socket(fileno=os.dup(_channel().fd)).shutdown(socket.SHUT_RD)
    write(frame(RESULT, value("early")))
    time.sleep(60)


def close_socket():
    os.close(_channel().fd)
    time.sleep(60)


def close_socket_that_a_child_keeps():
    fd = _channel().fd
    in_own_session(lambda: time.sleep(10))
    os.close(fd)
    time.sleep(60)


def stop_reading():
    write(frame(RESULT, value("early")))
    while True:
        time.sleep(60)


def stop_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_itself_after_the_answer():
    write(frame(RESULT, value("early")))
    os.kill(os.getpid(), signal.SIGSTOP)


# ---------------------------------------------------------------- children


def be_deaf(seconds: float):
    "Not hostile: what native code does that looks at no signal."
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    time.sleep(seconds)
    return "heard nothing"


def child_answers():
    fd, data = _channel().fd, frame(RESULT, value("of a child"))
    if not os.fork():
        write(data, fd)
        os._exit(0)
    time.sleep(0.2)
    return "of the worker"


def child_floods():
    fd, data = _channel().fd, frame(PROGRESS, value((0.1, "child")), number=0)
    child = os.fork()
    if not child:
        try:
            flood(data, 2.0, fd)
        finally:
            os._exit(0)
    time.sleep(0.5)
    return "of the worker"


def child_returns():
    os.fork()
    return os.getpid()


def grandchild_floods_output_after_the_end():
    in_own_session(lambda: flood(b"x\n", 3.0, fd=1))
    time.sleep(0.3)
    os._exit(7)


def grandchild_floods_socket_after_the_end():
    fd, data = _channel().fd, frame(PROGRESS, value((0.5, "x")))
    in_own_session(lambda: flood(data, 3.0, fd))
    time.sleep(0.3)
    os._exit(7)


# ---------------------------------------------------------------- ends


def never_stop():
    "Answer, and ignore the order to end."
    threading.Thread(target=time.sleep, args=(60,)).start()  # the interpreter waits for it
    return "answered"


def eat_memory_of_the_reader():
    "A message that grows as long as it may."
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    write(HEADER.pack(60 << 20, _number(), 0, RESULT))
    for _ in range(59):
        write(b"x" * (1 << 20))
    time.sleep(60)


def fuzz(seed: int, seconds: float):
    "Send frames that a grammar makes; see `frame_grammar`."
    import frame_grammar

    # a number that may be another job's would be believed: that job's order lies in this worker's socket
    frames, fd = frame_grammar.Frames(seed, _number(), ahead=1 << 30), _channel().fd
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        write(frames.next(), fd)
    return "survived"


def sizes(data: bytes) -> int:
    return len(data)


def attack(name: str, **params):
    return getattr(sys.modules[__name__], name)(**params)
