"""What events carry: any value at all becomes JSON that every broadcaster can write, and it is never too large."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import json
import sys
import types
from collections import OrderedDict, UserDict, UserList, defaultdict, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjm_worker_ext.errors import JobCancelled
from cjm_worker_ext.jobs import chunks_to_jsonable, to_jsonable

PLAIN = {str, int, float, bool, type(None), list, dict}
FAILED = "<a value that cannot be described>"  # a last resort that nothing here needs
LIMIT = 1_500_000  # characters of JSON without escapes; a description may add a word to a value that was cut


def check(result: object) -> object:
    "A result holds nothing but plain values, is JSON and UTF-8, and is not too large."
    waiting = [result]
    while waiting:
        value = waiting.pop()
        assert type(value) in PLAIN, type(value)
        if type(value) is dict:
            assert all(type(key) is str for key in value)
            waiting += [*value.keys(), *value.values()]
        elif type(value) is list:
            waiting += value
    text = json.dumps(result, allow_nan=False, ensure_ascii=False)
    text.encode()
    assert len(text) < LIMIT
    return result


def raising(error: BaseException):
    def method(self, *args):
        raise error

    return method


EVERY = (
    "__repr__", "__str__", "__iter__", "__len__", "__getitem__", "__hash__", "__eq__", "__ne__", "__lt__", "__gt__",
    "__le__", "__ge__", "__bool__", "__int__", "__index__", "__float__", "__format__", "__getattribute__", "__sub__",
    "__neg__", "__contains__", "__reduce_ex__", "items", "keys", "values", "encode", "isascii", "bit_length", "copy",
)  # fmt: skip


class EvilType(type):
    __getattribute__ = raising(ValueError("attribute"))
    __mro__ = property(raising(ValueError("mro")))
    __name__ = property(raising(ValueError("name")))
    __instancecheck__ = __subclasscheck__ = raising(ValueError("check"))


def evil(base: type, *args: object, error: BaseException | None = None) -> object:
    "An object of a class derived from `base`, whose methods all raise, of a metaclass that does the same."
    methods = {name: raising(error or ValueError(name)) for name in EVERY}
    methods["__class__"] = property(raising(error or ValueError("class")))
    kind = type.__call__(EvilType, "Evil", (base,), methods)
    made = base.__new__(kind, *args) if base in (str, int, float, bytes, tuple, frozenset) else base.__new__(kind)
    if args and base in (list, dict, set, bytearray):
        base.__init__(made, *args)
    return made


class Liar:
    def __init__(self, claims):
        self.claims = claims

    @property
    def __class__(self):
        return self.claims


class Text(str):
    def __len__(self):
        return 0

    def __getitem__(self, key):
        return self

    def __str__(self):
        return self

    def __format__(self, spec):
        raise ValueError


class Says:
    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text

    __str__ = __repr__


class Endless(UserDict):
    def items(self):
        while True:
            yield 1, 2

    def __len__(self):
        return sys.maxsize


class Growing:
    "Its description changes the list that holds it."

    def __init__(self, home):
        self.home = home

    def __repr__(self):
        self.home.append(Growing(self.home))
        return "grown"


def growing():
    home: list[object] = []
    home.append(Growing(home))
    return home


class GrowingKey:
    home: dict[object, object]

    def __str__(self):
        self.home[object()] = 1
        return "key"


def growing_dict():
    home: dict[object, object] = {GrowingKey(): 1, 2: 3}
    GrowingKey.home = home
    return home


def cycle():
    value: dict[str, object] = {}
    value["list"] = [value, (value, [value])]
    return value


def nested(make, depth=1_000_000):
    value: object = make([])
    for _ in range(depth):
        value = make([value])
    return value


def exploding():
    "Two references to the one before, sixty times: 2**60 leaves."
    value: object = (1, 2)
    for _ in range(60):
        value = (value, value)
    return value


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


BAD = {
    "an integer of 5,000 digits": lambda: 10**5000,
    "a negative one": lambda: -(10**5000),
    "many long integers": lambda: [2**2000] * 60_000,
    "a lone surrogate": lambda: {"\ud800": "a\udfff", ("\udc00",): ["\ud83d\ude00"]},
    "numbers that JSON does not know": lambda: [float("nan"), float("inf"), -float("inf"), complex("nan")],
    "a cycle": cycle,
    "a million nested lists": lambda: nested(list),
    "nested tuples": lambda: nested(tuple, 10_000),
    "nested dicts": lambda: nested(lambda content: {"a": content}, 10_000),
    "nested keys": lambda: {nested(tuple, 100): 1},
    "shared parts": exploding,
    "keys with shared parts": lambda: {Liar(int): exploding(), "a": {frozenset({(1, 2)}): 1}},
    "a huge list": lambda: [0] * 3_000_000,
    "huge lists": lambda: [[[0] * 100_000] * 1000] * 1000,
    "a huge dict": lambda: dict.fromkeys(range(1_000_000)),
    "a huge set": lambda: set(range(1_000_000)),
    "many keys that differ late": lambda: {"x" * 300 + str(i): i for i in range(50_000)},
    "a long text": lambda: "x" * 100_000_000,
    "long keys": lambda: {"x" * 2_000_000 + str(i): 1 for i in range(10)},
    "many long texts": lambda: ["äöü" * 100_000] * 100,
    "many bytes": lambda: [b"x" * 10_000_000, bytearray(10), memoryview(b"abc")],
    "a description of 100 MB": lambda: Says("x" * 100_000_000),
    "many descriptions": lambda: [Says("x" * 1000)] * 100_000,
    "a description that is a derived text": lambda: [Says(Text("x" * 1000)), {Says(Text("key")): Text("y" * 1000)}],
    "a description that is no text": lambda: Says(7),
    "a name of a megabyte": lambda: type("N" * 1_000_000, (), {"__repr__": raising(ValueError())})(),
    "a derived name": lambda: type("N", (), {"__qualname__": Text("N" * 1000), "__repr__": raising(ValueError())})(),
    "an object that claims to be a dict": lambda: [Liar(dict), Liar(str), Liar(int), Liar(list), Liar(float)],
    "an endless mapping": lambda: Endless({1: 2}),
    "a list that grows": growing,
    "a dict that grows": growing_dict,
    "keys of any kind": lambda: {None: 1, True: 2, 1.5: 3, float("nan"): 4, (1, 2): 5, b"x": 6, Colour.RED: 7, int: 8},
    "a class": lambda: [int, evil, type, EvilType, enum.Enum],
    "mappings and lists that are none": lambda: [UserDict(a=1), UserList([1]), deque([1]), types.MappingProxyType({1: 2})],
    **{
        f"a {base.__name__} whose methods raise": lambda base=base, args=args: [evil(base, *args), {"a": evil(base, *args)}]
        for base, args in [
            (object, ()), (str, ("text",)), (int, (7,)), (float, (0.5,)), (list, ([1, 2],)), (dict, ({1: 2},)),
            (tuple, ((1, 2),)), (set, ({1},)), (frozenset, ({1},)), (bytes, (b"abc",)), (bytearray, (b"abc",)),
        ]
    },
    **{
        f"a description that raises {error.__name__}": lambda error=error: [evil(object, error=error()), 1]
        for error in (SystemExit, GeneratorExit, asyncio.CancelledError, JobCancelled, MemoryError, RecursionError)
    },
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_nothing_is_too_bad(what):
    for depth in (6, 0, 1, 2):
        assert check(to_jsonable(BAD[what](), depth)) != FAILED
    chunks = check(chunks_to_jsonable([BAD[what]()] * 5))
    assert len(chunks) == 5


def test_what_becomes_of_some():
    assert to_jsonable([evil(str, "text"), evil(int, 7), evil(float, 0.5)]) == ["text", 7, 0.5]
    assert to_jsonable([evil(list, [1]), evil(dict, {1: 2}), evil(tuple, (1,))]) == [[1], {"1": 2}, [1]]
    assert to_jsonable([evil(object), evil(bytes, b"abc")]) == ["<Evil>", "<3 bytes>"]
    assert to_jsonable([evil(object, error=SystemExit()), 1]) == ["<Evil>", 1]
    assert to_jsonable({None: 1, True: 2, 1.5: 3, (1, 2): 4, b"x": 5}) == {
        "None": 1, "True": 2, "1.5": 3, "[1, 2]": 4, "<1 bytes>": 5,
    }  # fmt: skip
    assert to_jsonable([Colour.RED, Level.LOW, decimal.Decimal("1.5")]) == ["<Colour.RED: 1>", 1, "Decimal('1.5')"]
    assert to_jsonable({datetime.date(2026, 1, 31): 1}) == {"2026-01-31": 1}
    assert to_jsonable([defaultdict(int, a=1), OrderedDict(b=2), UserDict(c=3)]) == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert to_jsonable([{1}, frozenset({2}), Text("text"), range(3)]) == [[1], [2], "text", "range(0, 3)"]


def test_descriptions_are_short_and_few():
    class Counting:
        count = 0

        def __repr__(self):
            Counting.count += 1
            return "one more"

    many = to_jsonable([Counting()] * 100_000)
    assert many[-1] == f"… and {100_000 - Counting.count:,} more" and Counting.count < 5000
    assert to_jsonable(Says(Text("x" * 1000))) == "x" * 199 + "…"
    assert to_jsonable([["x" * 100] * 50], depth=1) == [str(["x" * 100] * 2)[:199] + "…"]
    named = type("N" * 300, (list,), {})()
    assert to_jsonable([[named]], depth=1) == ["['<" + "N" * 196 + "…"]


def test_a_container_ends_where_the_room_does():
    text = "x" * 2_000_000
    cut = to_jsonable(text)
    assert cut.startswith("xxx") and cut.endswith("x… and 1,000,020 more characters")
    assert list(to_jsonable({"a": text, "b": 1, "c": 2}).items())[1:] == [("…", "and 2 more")]
    assert to_jsonable([text, 1, 2])[1:] == ["… and 2 more"]
    assert to_jsonable([[text, 1], 2])[0][1:] == ["… and 1 more"]


def test_the_end_of_the_app_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        to_jsonable([evil(object, error=KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        chunks_to_jsonable([evil(object, error=KeyboardInterrupt())])


def test_an_interpreter_that_writes_few_digits():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        check(to_jsonable([2**k for k in range(0, 5000, 7)]))
        check(to_jsonable({2**k: -(2**k) for k in range(0, 5000, 7)}))
    finally:
        sys.set_int_max_str_digits(before)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_what_json_knows_stays_as_it_is(value):
    assert to_jsonable(value, depth=50) == value
    assert chunks_to_jsonable([value, value]) == [to_jsonable(value)] * 2


LEAVES = {
    "member": lambda: Colour.RED,
    "integer": lambda: Level.LOW,
    "words": lambda: Says("x" * 300),
    "derived words": lambda: Says(Text("y")),
    "no words": lambda: Says(3),
    "dict?": lambda: Liar(dict),
    "text?": lambda: Liar(str),
    "object": lambda: evil(object),
    "text": lambda: evil(str, "s"),
    "int": lambda: evil(int, 7),
    "float": lambda: evil(float, 0.5),
}
MAKERS = {
    "list": list, "tuple": tuple, "dict": dict, "user dict": UserDict, "deque": deque,
    "evil list": lambda items: evil(list, items), "evil tuple": lambda items: evil(tuple, items),
    "evil dict": lambda pairs: evil(dict, pairs), "set": set, "frozenset": frozenset,
}  # fmt: skip


class Made(tuple):
    "What to make of what: a recipe, because pytest and hypothesis could not show the values themselves."


def make(recipe: object) -> object:
    if type(recipe) is not Made:
        return recipe
    what, *parts = recipe
    if not parts:
        return LEAVES[what]()
    if "dict" in what:
        return MAKERS[what]({key: make(value) for key, value in parts[0]})
    return MAKERS[what]([make(value) for value in parts[0]])


keys = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates()
leaves = (
    keys | st.complex_numbers() | st.text(st.characters(categories=["Cs", "Cc", "Lo"])) | st.decimals() | st.uuids()
    | st.integers(0, 20_000).map(lambda n: 1 << n) | st.sampled_from(sorted(LEAVES)).map(lambda what: Made([what]))
)  # fmt: skip
sequences = st.sampled_from(["list", "tuple", "evil list", "evil tuple", "deque"])
mappings = st.sampled_from(["dict", "evil dict", "user dict"])
recipes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(sequences, st.lists(inner)).map(Made),
        st.tuples(mappings, st.lists(st.tuples(keys | st.tuples(keys, keys), inner))).map(Made),
        st.tuples(st.sampled_from(["set", "frozenset"]), st.lists(keys)).map(Made),
    ),
    max_leaves=40,
)


@settings(max_examples=300)
@given(recipes, st.integers(0, 8))
def test_any_value_becomes_json(recipe, depth):
    assert check(to_jsonable(make(recipe), depth)) != FAILED
    chunks = check(chunks_to_jsonable(make(recipe) for _ in range(3)))
    assert len(chunks) == 3 and FAILED not in chunks
