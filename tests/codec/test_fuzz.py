"""Random and mutated messages: whatever arrives, the answer is a value or `RefusedType`, and the process lives.

`CODEC_FUZZ_SECONDS=3600 pytest tests/codec/test_fuzz.py` runs for an hour. `CODEC_FUZZ_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import codec_table as table
import messages
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgpack import ExtType, packb

from cjm_worker_ext.backends.codec import MARKED, OUTER_TUPLE, PLAIN, decode, encode
from cjm_worker_ext.backends.codec_adapters import FAMILIES, Allowed, library
from cjm_worker_ext.backends.codec_errors import decode_exception, encode_exception
from cjm_worker_ext.errors import RefusedType

SECONDS = float(os.environ.get("CODEC_FUZZ_SECONDS", "3"))
EXAMPLES = max(200, int(20 * SECONDS))
ALLOWED = Allowed([*table.CLASS_LIST, "codec_table"])
CALM = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
scalars |= (
    st.text(st.characters(exclude_categories=())) | st.binary().map(bytearray) | st.dates() | st.decimals() | st.uuids()
)
scalars |= (
    st.datetimes() | st.timedeltas() | st.fractions() | st.sampled_from([*table.Colour, *table.Access, ..., range(5)])
)
keys = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.tuples(st.integers(), st.text())
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner) | st.dictionaries(st.text(), inner)
    | st.frozensets(keys) | st.sets(keys) | st.builds(table.Plain, inner) | st.lists(st.tuples(inner, inner), min_size=9),
    max_leaves=60,
)  # fmt: skip


@CALM
@given(values)
def test_any_value_arrives_as_it_was(value):
    data, buffers = encode(value)
    arrived = decode(data, [bytearray(buffer) for buffer in buffers], allowed=ALLOWED)
    assert repr(arrived) == repr(value) or table.same(arrived, value)


@CALM
@given(st.binary(max_size=200), st.sampled_from([PLAIN, OUTER_TUPLE, MARKED, b""]))
def test_bytes_of_nobody(data, kind):
    try:
        decode(kind + data, [bytearray(8)], allowed=ALLOWED)
    except RefusedType as e:
        str(e)


def adapter_names() -> list[str]:
    found: list[str] = []
    for module in sorted(set(FAMILIES.values())):
        found += library(module).ADAPTERS
    return found


def parts_of(value: Any) -> Any:
    marks = [ExtType(code, b"") for code in range(1, 8)]
    leaves = [
        ExtType(code, content)
        for code in (16, 17, 18, 19, 20, 32, 33, 34, 99)
        for content in (b"", b"\0\0", b"\0" * 8, b"\xff" * 16)
    ]
    small = [
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        8,
        255,
        2**31,
        2**62,
        2**63,
        -(2**63),
        0.5,
        "",
        "C",
        "F",
        "<f8",
        "|b1",
        "<U1",
        "int64",
        "string",
        "null",
        "a",
        "x" * 300,
    ]
    words = ["numpy", "object", "string", "arrow", "category", "zoned", "period", "interval", "masked", "range", "levels", "column", "list", "enum", "fields", "sub",
             "struct", "dictionary", "list_", "timestamp", "ns", "D", "UTC", "L", "RGB", "P", "Path", "left", "Int8", "codec_table", "Colour", "Word", "Box", "RED"]  # fmt: skip
    return st.recursive(
        st.sampled_from([*marks, *leaves, *small, *words, *(ExtType(code, b"") for code in range(1, 8))]) | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=20),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(lambda code, items: [ExtType(code, b""), *items], st.integers(1, 7), st.lists(inner, max_size=6))
        | st.builds(lambda name, items: [ExtType(5, b""), name, *items], st.sampled_from(value), st.lists(inner, max_size=8)),
        max_leaves=25,
    )  # fmt: skip


@CALM
@given(parts_of(adapter_names()), st.lists(st.binary(max_size=64), max_size=3))
def test_messages_of_the_right_words_in_wrong_places(body, buffers):
    try:
        value = decode(MARKED + packb(body), [bytearray(buffer) for buffer in buffers], allowed=ALLOWED)
    except RefusedType as e:
        assert "RecursionError" not in str(e) and "MemoryError" not in str(e)
    else:
        use(value)


def use(value: Any) -> None:
    "Do with a value what an app does with every result: show it, and send it on."
    try:
        repr(value)
        data, buffers = encode(value, max_bytes=1 << 24)
        decode(data, [bytearray(buffer) for buffer in buffers], allowed=ALLOWED)
    except BaseException as e:  # noqa: BLE001  - a year that pandas cannot show; what counts is that the process lives
        if (
            not isinstance(e, Exception) and type(e).__name__ != "PanicException"
        ):  # of polars, derived from BaseException
            raise


MUTATOR = textwrap.dedent("""
    import random, sys, time
    import test_fuzz
    test_fuzz.mutate(int(sys.argv[1]), float(sys.argv[2]))
""")


def mutate(seed: int, seconds: float) -> None:
    "Change bytes of right messages for a while; run in a process of its own, since it looks for crashes."
    import faulthandler

    faulthandler.enable()
    rng = random.Random(seed)
    seeds = [
        encode(value) for value in (*table.STANDARD.values(), *table.CLASSES.values()) if not isinstance(value, str)
    ]
    for name, make in table.LIBRARIES.items():
        try:
            __import__(name)
        except ImportError:
            continue
        seeds += [encode(value) for value in make().values()]
    seeds += [
        (encode_exception(e)["exception"], [])
        for e in (ValueError(1), OSError(2, "a", "b"), UnicodeDecodeError("a", b"b", 0, 1, "c"))
    ]
    seeds += [(message, []) for message in messages.refused().values()]
    seeds = [
        (data, buffers) for data, buffers in seeds if len(data) < 20_000 and sum(b.nbytes for b in buffers) < 4_000_000
    ]
    end, count, accepted = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        data, buffers = rng.choice(seeds)
        message = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            change(rng, message, rng.choice(seeds)[0])
        sent = [bytearray(buffer) for buffer in buffers]
        for buffer in sent:
            if rng.random() < 0.5:
                change(rng, buffer, b"\xff" * 16)
        with open("last-message", "wb") as file:
            file.write(bytes(message))
        try:
            value = decode(bytes(message), sent, allowed=ALLOWED)
            decode_exception(bytes(message), ALLOWED)
        except RefusedType as e:
            assert "MemoryError" not in str(e), bytes(message)
        else:
            accepted += 1
            use(value)
        count += 1
    print(f"{count} messages, {accepted} of them made a value")


def change(rng: random.Random, message: bytearray, other: Any) -> None:
    if not message:
        return
    at = rng.randrange(len(message))
    kind = rng.randrange(6)
    if kind == 0:
        message[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        message[at] = rng.choice((0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC4, 0xC6, 0xC7, 0xC9, 0xD4, 0xDC, 0xDD, 0xDF, 0xFF))
    elif kind == 2:
        del message[at : at + rng.randrange(1, 9)]
    elif kind == 3:
        message[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5)))
    elif kind == 4:
        start = rng.randrange(len(other)) if other else 0
        message[at : at + 8] = other[start : start + rng.randrange(1, 40)]
    else:
        message[at : at + 8] = rng.choice((0, 1, 255, 2**31 - 1, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "big")


def test_mutated_messages(tmp_path):
    seed = int(os.environ.get("CODEC_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MUTATOR, str(seed), str(SECONDS)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=SECONDS + 300,
    )  # fmt: skip
    last = (tmp_path / "last-message").read_bytes() if (tmp_path / "last-message").exists() else b""
    assert done.returncode == 0, f"seed {seed}, last message {last[:2000]!r}\n{done.stderr[-5000:]}"
    print(done.stdout, f"seed {seed}, {time.monotonic() - began:.0f} s")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_missing_and_short_buffers(count):
    for library_name in ("numpy", "pandas", "pyarrow", "polars"):
        try:
            __import__(library_name)
        except ImportError:
            continue
        for value in table.LIBRARIES[library_name]().values():
            data, buffers = encode(value)
            if buffers:
                with pytest.raises(RefusedType):
                    decode(data, [bytearray(buffer[:count]) for buffer in buffers], allowed=ALLOWED)
