"""Messages as a hostile worker may write them, byte for byte."""

from __future__ import annotations

import functools
import struct
from typing import Any

from msgpack import ExtType, packb

from cjm_worker_ext.backends import codec as codec


def mark(code: int) -> ExtType:
    return ExtType(code, b"")


def memory(content: bytes) -> ExtType:
    return ExtType(codec.BUFFER, content)


def integer(value: int) -> ExtType:
    return ExtType(codec.INT, codec.bytes_of_int(value))


def marked(*values: Any) -> bytes:
    return codec.MARKED + b"".join(packb(value) for value in values)


def adapted(name: Any, *parts: Any) -> bytes:
    return marked([mark(codec.ADAPTED), name, *parts])


def array32(count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count)


def map32(count: int) -> bytes:
    return b"\xdf" + struct.pack(">I", count)


def numpy_array(dtype: Any, shape: Any, content: bytes = b"\0" * 8, order: Any = "C") -> bytes:
    return adapted("numpy.ndarray", dtype, shape, order, memory(content))


def arrow_array(kind: Any, count: Any, valid: Any = None, *buffers: bytes, inner: Any = ()) -> bytes:
    return adapted("pyarrow.Array", kind, [count, valid, [memory(b) for b in buffers], list(inner)])


@functools.cache
def refused() -> dict[str, bytes]:
    "Messages that must be refused: attacks on code, memory and time, and broken ones."
    huge = 1 << 40
    million = 1_000_000
    return {
        "empty": b"", "no message": b"\x80\x04N.", "a pickle": b"\x80\x05]q\x00.", "unknown kind": b"\3\xc0", "nothing inside": b"\0", "never used": b"\0\xc1",
        "more after it": b"\0\xc0\xc0", "timestamp": b"\0\xd6\xff\0\0\0\1", "timestamp in marks": b"\2\x91\xd6\xff\0\0\0\1", "long timestamp": b"\0\xc7\x0c\xff" + b"\0" * 12,
        "list of 2^32": codec.PLAIN + array32(2**32 - 1), "dict of 2^32": codec.PLAIN + map32(2**32 - 1), "text of 2^32": b"\0\xdb\xff\xff\xff\xff", "bytes of 2^32": b"\0\xc6\xff\xff\xff\xff",
        "ext of 2^32": b"\2\xc9\xff\xff\xff\xff\x10", "lists that announce": codec.PLAIN + array32(5 * million) * 1000 + b"\xc0" * 5 * million, "100,000 lists": codec.PLAIN + b"\x91" * 100_000 + b"\xc0",
        "100,000 dicts": codec.PLAIN + b"\x81\xa1a" * 100_000 + b"\xc0", "100,000 marks": codec.MARKED + b"\x92\xc7\x00\x01" * 100_000 + b"\xc0", "500 marks": codec.MARKED + b"\x92\xc7\x00\x01" * 500 + b"\xc0",
        "mark in a plain message": codec.PLAIN + packb([mark(codec.TUPLE)]), "mark alone": marked(mark(codec.TUPLE)), "mark in second place": marked([1, mark(codec.TUPLE)]), "mark in a dict": marked({"a": mark(codec.SET)}),
        "number as key": marked({1: 2}), "list as key": codec.PLAIN + b"\x81\x90\xc0", "unknown extension": marked(ExtType(99, b"x")), "buffer that did not come": marked(ExtType(codec.BYTES_APART, b"\0\0")),
        "buffer with a bad number": marked(ExtType(codec.BYTES_APART, b"\0")), "memory outside of an adapter": marked([memory(b"x")]), "short complex": marked(ExtType(codec.COMPLEX, b"x")),
        "bad text": b"\0\xa1\xff", "bad surrogates": marked(ExtType(codec.TEXT, b"\xff")), "set of lists": marked([mark(codec.SET), [1]]), "dict with list as key": marked([mark(codec.DICT), [1], 1]),
        "key without value": marked([mark(codec.DICT), 1]), "tuples that are none": marked([mark(codec.TUPLES), 1]), "tuples with marks": marked([mark(codec.TUPLES), [mark(codec.TUPLE)]]),
        "equal hashes": marked([mark(codec.SET), *(integer(i * (2**61 - 1)) for i in range(100_000))]), "equal hashes in a dict": marked([mark(codec.DICT), *(x for i in range(50_000) for x in (integer(i * (2**61 - 1)), 0))]),
        "equal hashes of tuples": marked([mark(codec.FROZENSET), *([mark(codec.TUPLE), integer(i * (2**61 - 1))] for i in range(50_000))]),
        "no adapter": marked([mark(codec.ADAPTED)]), "adapter with a number": adapted(5), "os.system": adapted("os.system", "true"), "builtins.eval": adapted("builtins.eval", "1"), "library with colon": adapted("numpy:load", "x"),
        "import by name": adapted("antigravity.x"), "class of the app": adapted("class.object", "codec_table", "Plain", {"value": 1}), "class of os": adapted("class.object", "os", "system", {}),
        "enum of nobody": adapted("class.enum", "signal", "Signals", ["SIGKILL"]), "namedtuple of nobody": adapted("class.namedtuple", "platform", "uname_result", {}), "an exception": adapted("class.object", "builtins", "SystemExit", {}),
        "forged dtype": adapted("numpy.ndarray", [3, "|", None, None, None, -1, -1, 63], [1], "C", memory(b"\0" * 8)), "objects": numpy_array("|O8", [1]), "objects in records": numpy_array(["fields", [["a", "|O8", 0]], 8], [1]),
        "overlapping text": numpy_array(["fields", [["a", "<U2", 1], ["a", "<U2", 0]], 8], [1]), "fields outside": numpy_array(["fields", [["a", "<f8", 4]], 8], [1]), "negative field": numpy_array(["fields", [["a", "<f8", -8]], 8], [1]),
        "deep dtype": numpy_array(eval("[" * 60 + "'<f8'" + "]" * 60), [1]), "deep sub": adapted("numpy.ndarray", deep_sub(50), [1], "C", memory(b"\0" * 8)), "many fields": numpy_array(["fields", [[f"{i}", "|u1", 0] for i in range(5000)], 8], [1]),
        "too few bytes": numpy_array("<f8", [2]), "2^40 items": numpy_array("<f8", [huge]), "2^80 items": numpy_array("<f8", [huge, huge]), "negative side": numpy_array("<f8", [-1]), "sparse": numpy_array("<f8", [0, huge], b""),
        "sparse rows": numpy_array("<f8", [huge, 0], b""), "no letters": numpy_array("<U0", [huge], b""), "100 axes": numpy_array("<f8", [1] * 100), "truth of 2": numpy_array("|b1", [8], b"\2" * 8), "letters that do not exist": numpy_array("<U2", [1], b"\xff" * 8),
        "truth in records": numpy_array(["fields", [["a", "|b1", 7]], 8], [1], b"\xff" * 8), "scalar of 2^40": adapted("numpy.generic", "<f8", huge), "masked of numbers": adapted("numpy.MaskedArray", 1, 2, 3, 4),
        "Decimal 1e999999": adapted("decimal.Decimal", "1e999999"), "long Decimal": adapted("decimal.Decimal", "1" * 100_000), "Fraction of many bits": adapted("fractions.Fraction", integer(1 << 100_000), 3), "Fraction by 0": adapted("fractions.Fraction", 1, 0),
        "year 0": adapted("datetime.date", 0, 1, 1), "month 13": adapted("datetime.datetime", 1, 13, 1, 0, 0, 0, 0, 0, None), "pickled date": adapted("datetime.date", b"\0\0\0\0"), "long delta": adapted("datetime.timedelta", huge, 0, 0),
        "zone of a file": adapted("zoneinfo.ZoneInfo", "../../etc/passwd"), "zone of a module": adapted("zoneinfo.ZoneInfo", "a.b"), "zone that is none": adapted("zoneinfo.ZoneInfo", "Europe/Nowhere"), "range step 0": adapted("builtins.range", 0, 1, 0),
        "BytesIO far away": adapted("io.BytesIO", b"", huge), "BytesIO of 2^40": adapted("io.BytesIO", huge, 0), "array of 2^40": adapted("array.array", "d", 8, huge), "long pattern": adapted("re.Pattern", "a" * 5000, 0),
        "wide patterns": adapted("re.Pattern", "[\0-\uffff]" * 200, 0), "nested pattern": adapted("re.Pattern", "(" * 1000, 0), "Path of os": adapted("pathlib.PurePath", "system", "true"), "address of a module": adapted("ipaddress", "sys", "1"),
        "factory": adapted("collections.defaultdict", "eval", {}), "Counter of 2^40": adapted("collections.Counter", huge), "UUID of 2^40": adapted("uuid.UUID", huge), "image of 2^40": adapted("PIL.Image", "L", [1 << 20, 1 << 20], memory(b""), None, None),
        "image without pixels": adapted("PIL.Image", "RGB", [0, huge], memory(b""), None, None), "image of a file": adapted("PIL.Image", "open", [1, 1], memory(b"x"), None, None),
        "arrow of 2^40": arrow_array("int64", huge, None, b"\0" * 8), "arrow nulls": arrow_array("null", huge), "arrow structs": arrow_array(["struct", []], huge), "arrow offsets": arrow_array("string", 1, None, b"\0\0\0\0\xff\xff\xff\x7f", b"a"),
        "arrow valid of 2^40": arrow_array("int64", 1, huge, b"\0" * 8), "arrow text": arrow_array("string", 1, None, b"\0\0\0\0\1\0\0\0", b"\xff"), "arrow extension": arrow_array(["extension", "arrow.py_extension_type"], 1), "arrow children": arrow_array(["struct", [["a", "int8", True, None]]], 1),
        "arrow index": arrow_array(["dictionary", "int8", "string", False], 1, inner=[[0, None, [], []], [1, None, [b"\5"], []]]), "deep arrow": arrow_array(deep_list(100), 0), "table of two lengths": adapted("pyarrow.Table", [["a", "null", True, None], ["b", "null", True, None]], None, [[[1, None, [], []]], [[2, None, [], []]]], 1),
        "RangeIndex": adapted("pandas.Index", "range", 0, huge, 1, None), "column of eval": adapted("pandas.array", ["eval", "1"]), "object of 2^40": adapted("pandas.array", ["object", huge]), "pickle": adapted("pandas.read_pickle", "x"), "frame of nothing": adapted("pandas.DataFrame", 1, 2, 3, 4),
        "frequency": adapted("pandas.Period", 1, "x" * 100), "polars type": adapted("polars.Series", ["list", "x", ["read_csv"], []]), "polars height": adapted("polars.DataFrame", [], huge), "tensor": adapted("torch.load", "x"), "app codec": adapted("app.waveform", 1),
        "a million adapters": marked([[mark(codec.ADAPTED), "datetime.date", 0, 1, 1]] * 1000),
    }  # fmt: skip


def deep_sub(levels: int) -> Any:
    part: Any = "<f8"
    for _ in range(levels):
        part = ["sub", part, [1]]
    return part


def deep_list(levels: int) -> Any:
    part: Any = "int8"
    for _ in range(levels):
        part = ["list_", ["item", part, True, None]]
    return part
