"""What can cross, as values: one table for each library, used by every test of the codec."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import io
import ipaddress
import math
import pathlib
import re
import types
import uuid
import zoneinfo
from typing import Any, NamedTuple

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    ADA = "ada"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Word(NamedTuple):
    text: str
    start: float


class Point(collections.namedtuple("Point", "x y")):
    pass


@dataclasses.dataclass
class Segment:
    words: list[Word]
    speaker: str | None = None
    colour: Colour = Colour.RED


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    corner: tuple[int, int]
    inner: Box | None = None


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.value == other.value


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self, left: Any) -> None:
        self.left = left  # and `right` stays unset

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and self.left == other.left and not hasattr(other, "right")


def nested(depth: int) -> Any:
    value: Any = "inside"
    for _ in range(depth):
        value = [value]
    return value


PLAIN = {
    "none": None, "true": True, "false": False, "zero": 0, "negative": -1, "byte": 255, "63 bits": 2**63 - 1,
    "64 bits": 2**64 - 1, "-64 bits": -(2**63), "65 bits": 2**64, "-65 bits": -(2**63) - 1, "many digits": 10**5000,
    "float": 0.1, "nan": math.nan, "inf": -math.inf, "minus zero": -0.0, "complex": complex(-0.0, math.inf),
    "text": "ä€😀", "no text": "", "nul": "a\0b", "surrogate": "a\ud800b", "long text": "x" * 2_000_000,
    "bytes": b"\0\xff", "no bytes": b"", "bytearray": bytearray(b"ab"), "large bytes": b"x" * 3_000_000,
    "large bytearray": bytearray(3_000_000), "list": [1, "a", None], "no list": [], "tuple": (1, "a"), "no tuple": (),
    "tuple of tuples": ((1,), ((2,), [3])), "list of tuples": [(i, str(i)) for i in range(50)],
    "rows": [{"id": i, "name": f"n{i}", "tags": ["a"], "at": {"x": 0.5}} for i in range(50)],
    "rows of rows": [[i, [i, [i]]] for i in range(50)], "tuples in rows": [[(i,)] for i in range(50)],
    "odd rows": [{1: 2}, *({"a": i} for i in range(20))], "empty rows": [()] * 20, "dict": {"a": 1}, "no dict": {},
    "other keys": {1: "a", None: 0, (1, 2): [3], b"k": 1, 2.5: 1, 2**70: 1, frozenset({1}): 1},
    "surrogate key": {"\udcff": 1, "a": 2**70}, "number and truth": {1: "one"}, "set": {1, "a", (2,)}, "no set": set(),
    "frozenset": frozenset({frozenset(), 1}), "bytes in a list": [b"a", b"b", bytearray(b"c")],
    "deep": nested(100), "many numbers": list(range(100_000)), "many keys": {i: -i for i in range(10_000)},
    "mark-like": [["tuple"], {"": None}], "-1": [-1] * 300, "big tuple": tuple(range(1000)),
    "tuple with large bytes": (b"x" * 2_000_000, 1),
}  # fmt: skip

STANDARD = {
    "datetime": dt.datetime(2026, 1, 2, 3, 4, 5, 6), "aware": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    "zoned": dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), "datetime.min": dt.datetime.min,
    "odd zone": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-5, seconds=1), "X")), "date": dt.date(9999, 12, 31),
    "time": dt.time(23, 59, 59, 999_999, fold=1), "time with zone": dt.time(1, tzinfo=dt.UTC),
    "timedelta": dt.timedelta(-1, 5, 7), "timedelta.max": dt.timedelta.max, "timezone": dt.timezone(dt.timedelta(minutes=90)),
    "zone": BERLIN, "decimal": decimal.Decimal("-1.20"), "decimal nan": decimal.Decimal("NaN123"),
    "decimal inf": decimal.Decimal("-Infinity"), "decimal e": decimal.Decimal("1e-9000"), "fraction": fractions.Fraction(-22, 7),
    "uuid": uuid.UUID(int=2**128 - 1), "path": pathlib.Path("a/b"), "path with surrogate": pathlib.Path("/\udcff"),
    "pure path": pathlib.PurePosixPath("/x"), "windows path": pathlib.PureWindowsPath("c:\\x"), "no path": pathlib.Path(),
    "ip 4": ipaddress.IPv4Address("10.0.0.1"), "ip 6": ipaddress.IPv6Address("fe80::1%eth0"),
    "network": ipaddress.ip_network("10.0.0.0/8"), "interface": ipaddress.ip_interface("::1/64"),
    "pattern": re.compile(r"(?P<a>\w+)[a-z]-", re.I | re.M), "bytes pattern": re.compile(b"[\0-\xff]", re.S),
    "range": range(5, 10**15, 3), "empty range": range(0), "slice": slice(None, 2**70, -1), "ellipsis": ...,
    "counter": collections.Counter("abca"), "ordered": collections.OrderedDict([(2, "b"), (1, "a")]),
    "deque": collections.deque([1, (2,)], 9), "endless deque": collections.deque(), "defaultdict": collections.defaultdict(list, a=[1]),
    "defaultdict without": collections.defaultdict(None, {1: 2}), "namespace": types.SimpleNamespace(a=1, b=[2]),
    "bytesio": io.BytesIO(b"content"), "stringio": io.StringIO("a\r\nb"), "large bytesio": io.BytesIO(b"x" * 2_000_000),
    "array": array.array("d", [0.5]), "large array": array.array("i", range(50_000)), "empty array": array.array("B"),
}  # fmt: skip

CLASSES = {
    "enum": Colour.BLUE, "int enum": Level.LOW, "str enum": Name.ADA, "flag": Access.READ, "flags": Access.READ | Access.WRITE,
    "no flag": Access(0), "namedtuple": Word("a", 0.5), "namedtuple with methods": Point(1, [2]),
    "dataclass": Segment([Word("a", 0.5)]), "frozen": Box((1, 2), Box((3, 4))), "plain": Plain({"a": (1,)}),
    "slots": Slotted(5), "in containers": {Colour.RED: [Box((1, 2))], Word("a", 1.0): {Box((0, 0))}},
}  # fmt: skip
CLASS_LIST = [Colour, Level, Name, Access, Word, Point, Segment, Box, Plain, Slotted]


def models() -> tuple[dict[str, Any], list[type]]:
    import attrs
    import pydantic

    return {
        "pydantic": Person(name="Ada", years=36, friends=[Person(name="Bo", years=1)]), "root model": Names(["a"]),
        "pydantic with extra": Open(a=1, b=dt.date(2026, 1, 1)), "attrs": Page(1, [Box((1, 2))]), "attrs frozen": Leaf("x"),
    }, [Person, Names, Open, Page, Leaf, Box, attrs.NOTHING.__class__, pydantic.BaseModel]  # fmt: skip


try:
    import attrs
    import pydantic
except ImportError:  # the tests that need them are skipped then
    pass
else:

    class Person(pydantic.BaseModel):
        name: str
        age: int = pydantic.Field(alias="years", ge=0)
        friends: list[Person] = []

    class Names(pydantic.RootModel[list[str]]):
        pass

    class Open(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        a: int

    @attrs.define
    class Page:
        number: int
        boxes: list[Box]

    @attrs.frozen
    class Leaf:
        text: str


def numpy() -> dict[str, Any]:
    import numpy as np

    record = np.dtype([("x", ">f4"), ("when", "<M8[s]", (2,)), ("inner", [("text", "<U4"), ("flag", "?")])], align=True)
    grid = np.arange(60.0).reshape(3, 4, 5)
    dtypes = "? i1 u1 <i2 >i4 i8 u8 f2 f4 f8 g c8 c16 M8[ns] M8[D] m8[25us] S5 U5 >U3".split()
    return {
        **{f"dtype {name}": np.zeros(7, name) for name in dtypes}, **{f"none of {name}": np.zeros(0, name) for name in dtypes},
        **{f"scalar {name}": np.zeros((), name)[()] for name in dtypes}, "0 axes": np.array(5), "0 axes, text": np.array("a"),
        "records": np.zeros(3, record), "record": np.ones(1, record)[0], "rows first": grid, "columns first": np.asfortranarray(grid),
        "backwards": grid[::-1], "every second": grid[:, ::2], "transposed": grid.T, "broadcast": np.broadcast_to(1.5, (3, 4)),
        "no rows": np.zeros((0, 5)), "no columns": np.zeros((5, 0), order="F"), "large": np.arange(300_000), "NaT": np.array(["NaT"], "M8[s]"),
        "large columns first": np.asfortranarray(np.random.rand(300, 200)), "read only": np.frombuffer(b"abcd", "u1"), "truth": grid > 3,
        "text": np.array(["", "ä😀"]), "masked": np.ma.array([1, 2], mask=[1, 0], fill_value=9), "not masked": np.ma.array([1.5]),
        "masked records": np.ma.zeros(2, record), "32 axes": np.zeros((1,) * 32), "array in a dict": {"a": [np.arange(3), (np.float32(1),)]},
    }  # fmt: skip


def pandas() -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    mixed = pd.DataFrame({
        "n": [1, 2, 3], "x": [0.5, None, math.inf], "text": ["a", None, "ä"], "ok": [True, False, True], "o": [{"k": [1]}, None, "x"],
        "small": np.array([1, 2, 3], "i1"), "i": pd.array([1, None, 3], "Int16"), "u": pd.array([1, 2, 3], "UInt8"),
        "f": pd.array([1.5, None, 0], "Float32"), "b": pd.array([True, None, False], "boolean"), "s": pd.array(["a", None, ""], "string[python]"),
        "c": pd.Categorical(["x", None, "y"], ["y", "x", "z"], ordered=True), "tz": pd.to_datetime(["2026-01-01", None, "2026-03-01"]).tz_localize(BERLIN),
        "ms": pd.to_datetime(["2026-01-01", None, "2026-01-02"]).as_unit("ms"), "td": pd.to_timedelta([1, None, 2], "s"),
        "p": pd.period_range("2026-01", periods=3, freq="M"), "iv": pd.interval_range(0, 3, closed="left"), "z": [1j, 2, 3],
    })  # fmt: skip
    with_attrs = pd.DataFrame({"a": [1]})
    with_attrs.attrs["source"] = {"file": "x"}
    return {
        "numbers": pd.DataFrame(np.random.rand(5, 3), columns=list("abc")), "mixed": mixed, "slice of it": mixed[1:], "none": pd.DataFrame(),
        "no rows": mixed[:0], "no columns": pd.DataFrame(index=[3, 4]), "names twice": pd.DataFrame([[1, "x", 2]], columns=["a", "a", "b"]),
        "levels": mixed.set_index(["n", "text"])[["x"]], "levels above": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_product([["a"], [1, 2]], names=["u", None])),
        "dates": pd.DataFrame({"v": range(4)}, index=pd.date_range("2026-03-28", periods=4, tz="Europe/Berlin", name="when")), "attrs": with_attrs,
        "backwards": pd.DataFrame(np.arange(6).reshape(3, 2))[::-1], "big-endian": pd.DataFrame({"a": np.arange(3, dtype=">i4")}),
        "truth": pd.DataFrame({"a": [True], "b": [False]}), "column numbers": pd.DataFrame(np.eye(3)), "large": pd.DataFrame(np.random.rand(50_000, 4)),
        "large mixed": pd.DataFrame({"a": np.arange(50_000), "b": np.random.rand(50_000), "t": "x"}), "object columns": pd.DataFrame({1: [None], (1, 2): ["x"]}),
        "series": mixed["x"], "unnamed": pd.Series([1, 2], index=["a", "b"]), "no series": pd.Series([], dtype="float64"), "text series": mixed["text"],
        "categories": mixed["c"], "period series": mixed["p"], "RangeIndex": pd.RangeIndex(0, 10, 3, name="r"), "object index": pd.Index(["a", 1, None], dtype=object),
        "DatetimeIndex": pd.date_range("2026-01-01", periods=3, freq="D"), "irregular": pd.DatetimeIndex(["2026-01-01", "2026-01-05"]),
        "TimedeltaIndex": pd.timedelta_range("1s", periods=2), "PeriodIndex": pd.period_range("2026", periods=2, freq="Y"), "IntervalIndex": pd.interval_range(0, 2),
        "CategoricalIndex": pd.CategoricalIndex(["a", "b", "a"]), "MultiIndex": pd.MultiIndex.from_tuples([("a", 1), ("b", None)], names=["k", None]),
        "float index": pd.Index([0.5, math.nan]), "Timestamp": pd.Timestamp("2026-01-01 12:00", tz="Europe/Berlin"), "Timestamp s": pd.Timestamp("2026-01-01").as_unit("s"),
        "Timedelta": pd.Timedelta("1D 3ns"), "Period": pd.Period("2026-01", "M"), "Interval": pd.Interval(0.5, 1.5, "both"), "Categorical": pd.Categorical(["a", None]),
        "extension array": pd.array([1, None], "Int64"), "datetime array": pd.array(pd.to_datetime(["2026-01-01"])),
    }  # fmt: skip


def pandas_with_arrow() -> dict[str, Any]:
    import pandas as pd
    import pyarrow as pa

    return {
        "arrow column": pd.DataFrame({"a": pd.array([1, None], "int64[pyarrow]"), "l": pd.array([[1], None], pd.ArrowDtype(pa.list_(pa.int8())))}),
        "arrow text": pd.Series(["a", None], dtype="string[pyarrow]"), "str": pd.Series(["a", None], dtype="str"),
        "arrow series": pd.Series([1.5], dtype="float[pyarrow]"), "arrow index": pd.Index([1, 2], dtype="int8[pyarrow]"),
    }  # fmt: skip


def pyarrow() -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    arrays = {
        "int": pa.array([1, None, 3]), "float": pa.array([0.5, math.nan]), "truth": pa.array([True, None, False] * 30), "text": pa.array(["a", None, "ä" * 9]),
        "large text": pa.array(["x", ""], pa.large_string()), "binary": pa.array([b"", b"\0"]), "fixed": pa.array([b"ab", None], pa.binary(2)), "null": pa.nulls(4),
        "list": pa.array([[1], None, [], [2, None]]), "large list": pa.array([["a"]], pa.large_list(pa.string())), "fixed list": pa.array([[1, 2], None], pa.list_(pa.int8(), 2)),
        "struct": pa.array([{"a": 1, "b": ["x"]}, None]), "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())), "half": pa.array(np.array([1, 2], "f2")),
        "dictionary": pa.array(["x", None, "y", "x"]).dictionary_encode(), "decimal": pa.array([decimal.Decimal("1.10")]), "date": pa.array([dt.date(2026, 1, 1)]),
        "timestamp": pa.array([dt.datetime(2026, 1, 1, tzinfo=BERLIN)]), "time": pa.array([dt.time(1)]), "duration": pa.array([dt.timedelta(1)]),
        "lists of structs": pa.array([[{"a": [1]}], None]), "dictionary in list": pa.array([["x"], ["y"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    }  # fmt: skip
    table = pa.table(dict(list(arrays.items())[:1]) | {"t": pa.array(["a", "b", None])}).replace_schema_metadata(
        {"k": "v"}
    )
    return {
        **arrays, **{f"slice of {name}": value[1:] for name, value in arrays.items()}, **{f"none of {name}": value[:0] for name, value in arrays.items()},
        **{f"middle of {name}": pa.concat_arrays([value] * 7)[5:-1] for name, value in arrays.items()}, "table": table, "no rows": table[:0],
        "no columns": table.select([]), "names twice": pa.table([pa.array([1]), pa.array([2])], ["a", "a"]), "chunks": pa.concat_tables([table, table[1:]]),
        "batch": table.to_batches()[0], "chunked": pa.chunked_array([[1], [2, 3]]), "no chunks": pa.chunked_array([], pa.int8()), "schema": table.schema,
        "scalar": pa.scalar(5, pa.int8()), "null scalar": pa.scalar(None, pa.string()), "large": pa.table({"x": range(100_000)}),
    }  # fmt: skip


def polars() -> dict[str, Any]:
    import polars as pl

    frame = pl.DataFrame({
        "n": [1, None], "x": [0.5, math.inf], "t": ["a", None], "b": [True, None], "d": [dt.date(2026, 1, 1), None], "time": [dt.time(1), None],
        "when": pl.Series([dt.datetime(2026, 1, 1), None], dtype=pl.Datetime("ns", "Europe/Berlin")), "td": [dt.timedelta(1), None], "bin": [b"x", None],
        "u": pl.Series([1, 2], dtype=pl.UInt8), "l": [[1, 2], None], "a": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int8, 2)), "s": [{"a": 1}, None],
        "c": pl.Series(["u", "v"], dtype=pl.Categorical), "e": pl.Series(["u", None], dtype=pl.Enum(["u", "w"])), "null": [None, None],
        "dec": pl.Series([decimal.Decimal("1.10"), None]),
    })  # fmt: skip
    return {
        "frame": frame, "no rows": frame[:0], "second row": frame[1:], "none": pl.DataFrame(), "large": pl.DataFrame({"x": range(100_000)}),
        **{f"series {series.name}": series for series in frame.get_columns()}, "unnamed": pl.Series([1, 2]), "no series": pl.Series("x", [], dtype=pl.String),
    }  # fmt: skip


def pillow() -> dict[str, Any]:
    from PIL import Image

    image = Image.linear_gradient("L").resize((9, 5))
    modes = "1 L LA RGB RGBA CMYK YCbCr HSV I F I;16 P".split()
    see_through = image.convert("RGBA").quantize(7)
    see_through.info["transparency"] = 3
    return {
        **{f"mode {mode}": image.convert(mode) for mode in modes}, "no pixels": Image.new("RGB", (0, 4)), "quantized": image.convert("RGB").quantize(7),
        "transparent": see_through, "large": Image.new("RGB", (640, 480), "red"),
    }  # fmt: skip


LIBRARIES = {"numpy": numpy, "pandas": pandas, "pyarrow": pyarrow, "polars": polars, "PIL": pillow}


def same(a: Any, b: Any) -> bool:
    "Whether two values are equal in type and content, all the way down."
    if type(a) is not type(b):
        return False
    root = type(a).__module__.partition(".")[0]
    if root == "numpy":
        import numpy as np

        masks = (
            np.array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b)) if isinstance(a, np.ma.MaskedArray) else True
        )
        content = a.tobytes() == b.tobytes()
        if a.dtype in (np.longdouble, np.clongdouble):  # padded, and what the padding holds is chance
            content = repr(a) == repr(b)
        return a.dtype == b.dtype and np.shape(a) == np.shape(b) and content and masks
    if root == "pandas":
        return same_in_pandas(a, b)
    if root == "polars":
        return bool(a.equals(b, null_equal=True)) and getattr(a, "schema", None) == getattr(b, "schema", None)
    if root == "pyarrow":
        return same_in_arrow(a, b)
    if isinstance(a, Plain):
        return same(a.value, b.value)
    if isinstance(a, io.BytesIO | io.StringIO):
        return a.getvalue() == b.getvalue() and a.tell() == b.tell()
    if isinstance(a, dict):
        keys = len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
        return keys and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if type(a) in (list, tuple) or isinstance(a, collections.deque):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if type(a) in (float, complex, decimal.Decimal, dt.datetime, dt.time):
        return repr(a) == repr(b)
    return bool(a == b)


def same_in_pandas(a: Any, b: Any) -> bool:
    import pandas as pd

    kinds = [
        (pd.DataFrame, "frame"),
        (pd.Series, "series"),
        (pd.Index, "index"),
        (pd.api.extensions.ExtensionArray, "extension_array"),
    ]
    for kind, name in kinds:
        if isinstance(a, kind):
            getattr(pd.testing, f"assert_{name}_equal")(a, b)
            return getattr(a, "attrs", None) == getattr(b, "attrs", None)
    return repr(a) == repr(b) and a == b


def same_in_arrow(a: Any, b: Any) -> bool:
    if hasattr(a, "validate"):
        b.validate(full=True)
    pieces = getattr(a, "num_chunks", None) == getattr(b, "num_chunks", None) and getattr(a, "num_rows", 0) == getattr(
        b, "num_rows", 0
    )
    schema = getattr(a, "schema", None)
    if schema is not None and not schema.equals(b.schema, check_metadata=True):
        return False
    # nan is not equal to itself, and its text is
    return pieces and (a.equals(b) or str(a) == str(b)) and getattr(a, "type", None) == getattr(b, "type", None)
