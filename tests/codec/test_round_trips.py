"""Every kind of value that can cross goes out and comes back equal, in either direction and through shared memory."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any

import codec_table as table
import pytest

from cjm_worker_ext.backends.codec import MAX_DEPTH, decode, encode
from cjm_worker_ext.backends.codec_adapters import ANYTHING, Allowed
from cjm_worker_ext.backends.shared_memory import SharedMemoryReader, SharedMemoryWriter, create_shared_memory
from cjm_worker_ext.config import WorkerConfig
from cjm_worker_ext.errors import NotSerializable, RefusedType
from cjm_worker_ext.stores.rows import Rows


def cases() -> list[Any]:
    found = [*table.PLAIN.items(), *table.STANDARD.items(), *table.CLASSES.items()]
    for library, make in table.LIBRARIES.items():
        try:
            __import__(library)
        except ImportError:
            continue
        found += [(f"{library}: {name}", value) for name, value in make().items()]
    try:
        found += [(f"pandas with pyarrow: {name}", value) for name, value in table.pandas_with_arrow().items()]
        found += table.models()[0].items()
    except ImportError:
        pass
    return [pytest.param(value, id=name) for name, value in found]


ALLOWED = Allowed([*table.CLASS_LIST, "codec_table"])


def through_memory(buffers: list[memoryview]) -> list[Any]:
    "Put the buffers where a worker puts them, and map them as an app does."
    fd = create_shared_memory()
    if fd is None:
        return [bytearray(buffer) for buffer in buffers]
    writer = SharedMemoryWriter(fd)
    reader = SharedMemoryReader(os.dup(fd), writer.release)
    views = [reader.view(writer.put(buffer), buffer.nbytes) for buffer in buffers]
    os.close(fd)
    return views


@pytest.mark.parametrize("value", cases())
def test_there_and_back(value):
    data, buffers = encode(value)
    assert table.same(value, decode(data, through_memory(buffers), allowed=ALLOWED))
    assert all(buffer.nbytes >= 1 << 14 for buffer in buffers)


@pytest.mark.parametrize("value", cases())
def test_through_a_store(value):
    rows = Rows("codec", WorkerConfig(allowed_types=(*table.CLASS_LIST, "codec_table")))
    how = rows.ended("j1", None, "completed", value)
    assert table.same(value, rows.value(how["result"], "the result"))


@pytest.mark.parametrize("value", cases())
def test_in_one_piece_and_in_another_container(value):
    data, buffers = encode(
        {"a": [value, {"b": (value,)}]} if value is not table.PLAIN["deep"] else value, most_buffers=0
    )
    assert buffers == []
    arrived = decode(memoryview(data), allowed=ANYTHING)
    if value is not table.PLAIN["deep"]:
        assert list(arrived) == ["a"] and table.same(arrived["a"][0], value)
        arrived = arrived["a"][1]["b"][0]
    assert table.same(value, arrived)


def test_depth_is_bounded():
    encode(table.nested(MAX_DEPTH))
    for value in (table.nested(MAX_DEPTH + 1), table.nested(100_000), [table.nested(MAX_DEPTH)] * 20):
        with pytest.raises(NotSerializable, match=f"at most {MAX_DEPTH} can be sent"):
            encode(value)


@pytest.mark.parametrize("size", [1000, 2_000_000])
def test_size_is_bounded(size):
    for value in (
        "x" * size,
        b"x" * size,
        [0.5] * size,
        {f"{i:08}": i for i in range(size // 8)},
        [["x" * (size // 10)] * 10],
    ):
        assert len(encode(value)[0]) + sum(b.nbytes for b in encode(value)[1]) >= size
        with pytest.raises(NotSerializable, match=f"{size - 1:,} are allowed; send less"):
            encode(value, max_bytes=size - 1)
        encode(value, max_bytes=10 * size + 1000)


def test_values_that_are_small_to_have_and_huge_to_send():
    row: Any = ["x" * 1000] * 1000
    bombs: list[Any] = [
        [row] * 100_000,
        [tuple(row)] * 100_000,
        [{str(i): "x" for i in range(1000)}] * 100_000,
        ["x" * 10**6] * 10**6,
    ]
    for kind in (
        list,
        tuple,
        lambda pair: pair * 5,
        lambda pair: {"a": pair[0], "b": pair[1]},
        lambda pair: {1: pair[0], 2: pair[1]},
    ):
        bomb: Any = "x"
        for _ in range(60):
            bomb = kind([bomb, bomb])
        bombs.append(bomb)
    frozen: Any = frozenset("x")
    for _ in range(45):
        frozen = frozenset({(0, frozen), (1, frozen)})
    for bomb in (*bombs, frozen):
        with pytest.raises(NotSerializable, match="are allowed"):
            encode(bomb, max_bytes=100_000_000)


def test_they_take_no_memory_before_they_are_refused():
    bomb: Any = "x"
    for _ in range(40):
        bomb = [bomb] * 10
    tracemalloc.start()
    try:
        with pytest.raises(NotSerializable, match="are allowed"):
            encode([bomb] * 9, max_bytes=10**8)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_values_that_contain_themselves():
    a: list[Any] = []
    a.append(a)
    b: dict[Any, Any] = {}
    b["again"] = [b]
    c = table.Plain(None)
    c.value = (c,)
    e = table.Plain(None)
    e.value = e
    d: list[Any] = [[] for _ in range(20)]
    d[3].append(d)
    for value in (a, b, c, d, e):
        with pytest.raises(NotSerializable, match="contains itself; send it without"):
            encode(value, max_bytes=10_000_000)


def test_what_occurs_twice_is_sent_twice():
    numpy = pytest.importorskip("numpy")
    large: Any = [numpy.arange(5000), b"x" * 2_000_000]
    for value in ([large, large], {"a": large, "b": (large, large)}, [large[0]] * 3):
        data, buffers = encode(value)
        arrived = decode(data, through_memory(buffers))
        assert table.same(arrived, value)
    twice = [1, [2]]
    first, second = decode(encode([twice, twice, *range(20)])[0])[:2]
    assert first == second == twice and first is not second and first[1] is not second[1]


def test_where_a_part_sits_is_said_on_both_sides():
    wrong = {"frames": [0, 1, 2, table.Box((1, table.Plain([open])))]}  # type: ignore[arg-type]
    with pytest.raises(NotSerializable) as caught:
        encode(wrong, what="the result of job 'j1'", root="result")
    place = "result['frames'][3].corner[1].value[0]"
    assert str(caught.value) == (
        f"the result of job 'j1' cannot be sent: {place} is a function; return its name or its result"
    )
    data = encode({"frames": [table.Box((1, table.Plain([table.Colour.RED])))]})[0]  # type: ignore[arg-type]
    with pytest.raises(RefusedType) as refused:
        decode(data, allowed=Allowed([table.Box, table.Plain]), what="the result of job 'j1'", root="result")
    assert str(refused.value).startswith(
        "the result of job 'j1' was refused: result['frames'][0].corner[1].value[0] is a codec_table.Colour, which the app"
    )


def test_classes_that_the_other_side_does_not_have():
    with pytest.raises(NotSerializable, match="of a class of codec_table, which the other side does not have"):
        encode([table.Colour.RED], refused_modules={"codec_table"})
    with pytest.raises(NotSerializable, match="of a class of codec_table"):
        encode({"p": table.Person(name="a", years=1)}, refused_modules={"codec_table"})
