"""Frames as a hostile worker may write them: each begins valid, and then something in it is changed."""

from __future__ import annotations

import random
import struct

from cjm_worker_ext.backends import framing
from cjm_worker_ext.backends.codec import encode as encode_value

KINDS = [
    framing.READY,
    framing.LOADED,
    framing.CHUNKS,
    framing.PROGRESS,
    framing.RESULT,
    framing.FAILED,
    framing.CANCELLED,
    framing.DONE,
    framing.LOG,
]
ODD_SIZES = [0, 1, 7, 15, 16, 255, 65535, 65536, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 64) - 1]
ODD_PLACES = [0, 1, 2, 4097, 1 << 20, 1 << 42, 1 << 63, (1 << 64) - 1]


class Frames:
    "An endless source of frames, repeated by its seed."

    def __init__(self, seed: int, number: int, tame: bool = False, ahead: int = 1) -> None:
        self.random, self.number = random.Random(seed), number
        self.ahead = ahead  # How far the number of an order that is still to come lies ahead
        self.tame = tame  # Only frames that can be cut from the stream: what follows is read too

    def _value(self, depth: int = 0):
        pick = self.random.randrange
        leaves = [None, True, pick(1 << 70), -pick(1 << 40), 0.5, "text", b"bytes", float("nan"), "x" * pick(2000)]
        if depth > 3 or pick(2):
            return self.random.choice(leaves)
        inner = [self._value(depth + 1) for _ in range(pick(5))]
        return self.random.choice([inner, tuple(inner), {str(i): v for i, v in enumerate(inner)}])

    def _content(self, kind: int) -> bytes:
        "What belongs into a frame of this kind, most of the time."
        encode = lambda value: bytes(encode_value(value)[0])  # noqa: E731
        if self.random.random() < 0.15:
            kind = self.random.choice(KINDS)
        if kind == framing.CHUNKS:
            parts = [
                encode([self._value() for _ in range(self.random.randrange(4))])
                for _ in range(self.random.randrange(4))
            ]
            return b"".join(struct.pack("<Q", len(p)) + p for p in parts)
        if kind == framing.PROGRESS:
            return encode((self.random.choice([None, 0.5, -1, 2, float("nan"), "1", 10**30]), self._value()))
        if kind == framing.FAILED:
            names = self.random.sample(["type", "message", "traceback", "exception"], self.random.randrange(5))
            return encode({name: self.random.choice(["text", "", None, b"x", self._value()]) for name in names})
        if kind == framing.LOG:
            fields: list = ["acme.asr", 30, "message", "", "", "f.py", 7, "run", "MainThread", 1e9]
            if self.random.random() < 0.5:
                fields[self.random.randrange(len(fields))] = self._value()
            return encode(tuple(fields))
        if kind == framing.LOADED:
            return self.random.choice([b"\0", b"\1", b"", b"\2\3"])
        return encode(self._value()) if kind == framing.RESULT else b""

    def _changed(self, content: bytes) -> bytes:
        pick, data = self.random.randrange, bytearray(content)
        for _ in range(pick(1, 4)):
            where = pick(len(data) + 1)
            way = pick(4)
            if way == 0 and data:
                data[where % len(data)] = pick(256)
            elif way == 1:
                data[where:where] = self.random.randbytes(pick(9))
            elif way == 2:
                del data[where : where + pick(9)]
            else:
                data[where:where] = data[: pick(100)]
        return bytes(data)

    def next(self) -> bytes:
        "Make the next frame."
        chance, pick, choice = self.random.random, self.random.randrange, self.random.choice
        kind = choice(KINDS)
        number = 0 if kind == framing.READY else self.number
        content = self._content(kind)
        if chance() < 0.3:
            content = self._changed(content)
        if chance() < 0.1:
            kind = pick(256)
        if chance() < 0.15:
            number = choice([0, max(0, self.number - 1), self.number + self.ahead, (1 << 32) - 1])
        places, inline = [], b""
        if chance() < 0.15:
            for _ in range(pick(1, 6)):
                if chance() < 0.5:
                    places.append((pick(100) if self.tame else choice(ODD_SIZES[:9]), choice(ODD_PLACES[1:])))
                else:
                    places.append((size := pick(300), 0))
                    inline += self.random.randbytes(size)
        length, count = len(content), len(places)
        if not self.tame and chance() < 0.003:
            length, count = choice(ODD_SIZES), choice([count, pick(65536)])
        head = framing.HEADER.pack(length, number, count, kind)
        data = head + b"".join(framing.PLACE.pack(*place) for place in places) + content + inline
        return data if self.tame or chance() > 0.002 else data[: pick(len(data))]
