"""What a hostile worker may send in place of a value: refused with the reason, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import messages
import pytest

from cjm_worker_ext.backends import codec
from cjm_worker_ext.backends.codec import decode, encode
from cjm_worker_ext.backends.codec_adapters import Allowed
from cjm_worker_ext.errors import RefusedType

HERE = str(Path(__file__).parent)


@pytest.mark.parametrize("name", messages.refused())
def test_it_is_refused(name):
    with pytest.raises(RefusedType, match="^the result was refused: "):
        decode(messages.refused()[name], what="the result", root="result")


def test_the_forged_dtype_names_its_reason():
    "Its state once reached any object of the app: a pickle set what `numpy.dtype` has as fields, and code ran."
    for name, reason in [("forged dtype", "has a dtype that is none"), ("objects", "has a dtype '|O8', which is none")]:
        with pytest.raises(RefusedType) as caught:
            decode(messages.refused()[name])
        assert reason in str(caught.value)


def test_all_of_them_take_no_memory_and_import_nothing_that_they_name():
    program = textwrap.dedent("""
        import resource, sys
        import messages
        from cjm_worker_ext.backends.codec import decode
        from cjm_worker_ext.errors import RefusedType
        attacks = messages.refused()
        for library in ("numpy", "pandas", "pyarrow", "polars", "PIL.Image"):
            try:
                __import__(library)
            except ImportError:
                pass
        decode(messages.adapted("datetime.date", 1, 1, 1))
        before, known = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, set(sys.modules)
        for name, message in attacks.items():
            try:
                decode(message)
            except RefusedType as e:
                assert "MemoryError" not in str(e), name
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < 100_000, f"{name}: {grown:,} KiB"
        brought = set(sys.modules) - known
        assert not [m for m in brought if m.split(".")[0] in ("antigravity", "signal", "platform", "codec_table")], brought
        print("done")
    """)
    # The time that a test has is the limit: an attack on time would take hours.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=HERE)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("name", ["list of 2^32", "dict of 2^32", "lists that announce", "100,000 lists"])
def test_what_announces_more_than_it_brings_is_refused_before_anything_is_made(name, monkeypatch):
    def make(*args, **options):
        raise ValueError("it was made")

    monkeypatch.setattr(codec, "unpackb", make)
    message = messages.refused()[name]
    message += b"\xc0" * max(0, codec.SMALL_MESSAGE - len(message) + 1)  # small ones cannot do harm
    with pytest.raises(RefusedType) as caught:
        decode(message)
    assert "it was made" not in str(caught.value)


def test_a_long_message_is_read_in_pieces(monkeypatch):
    "Each of them is a call of Python code, in which other threads get their turn."
    read, sizes = codec.Pieces.read, []

    def noted(self, size):
        sizes.append(len(piece := read(self, size)))
        return piece

    monkeypatch.setattr(codec.Pieces, "read", noted)
    for value in (["text"] * 200_000, [(i, "text") for i in range(50_000)], [{1: 2}] * 50_000, "x" * 5_000_000):
        sizes.clear()
        data = encode(value)[0]
        assert decode(data) == value
        assert max(sizes) <= codec.PIECE and sum(sizes) == 2 * (len(data) - 1)  # it is looked through first


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8])
def test_buffers_that_do_not_fit(size):
    numpy = pytest.importorskip("numpy")
    data, (buffer,) = encode(numpy.arange(5000))
    with pytest.raises(RefusedType, match="has not the bytes that 5000 items"):
        decode(data, [bytearray(size)])
    with pytest.raises(RefusedType):
        decode(data, [])
    with pytest.raises(RefusedType):
        decode(data, [5])
    assert decode(data, [bytearray(buffer), bytearray(5)]).sum() == numpy.arange(5000).sum()


def test_attributes_reach_no_code_of_a_class():
    calls: list[str] = []

    class Guarded:
        __slots__ = ("kept", "__dict__")

        def __init__(self):
            calls.append("init")

        def __setattr__(self, name, value):
            calls.append(name)

        @property
        def watched(self):
            return 1

        @watched.setter
        def watched(self, value):
            calls.append("watched")

        def method(self):
            return "method"

    Guarded.__qualname__ = "Guarded"
    allowed = Allowed([Guarded])
    attributes = {"kept": 1, "watched": 2, "__class__": 3, "method": 4, "__dict__": {"a": 1}, "__init__": 5, "x": 6}
    made = decode(messages.adapted("class.object", Guarded.__module__, "Guarded", attributes), allowed=allowed)
    assert calls == [] and type(made) is Guarded and (made.kept, made.watched, made.x) == (1, 1, 6)
    assert not hasattr(Guarded, "x") and callable(Guarded.method)
    for parts in ([1, 2, {}], [Guarded.__module__, "Guarded", 5], [Guarded.__module__, "Guarded", {"a": 1}, 2]):
        with pytest.raises(RefusedType):
            decode(messages.adapted("class.object", *parts), allowed=allowed)
    for adapter in ("class.enum", "class.namedtuple", "class.pydantic"):
        with pytest.raises(RefusedType):
            decode(messages.adapted(adapter, Guarded.__module__, "Guarded", {}, []), allowed=allowed)


class WithState:
    def __setstate__(self, state):
        raise AssertionError("the class's own code has run")


def test_a_class_that_is_not_only_attributes_is_refused():
    with pytest.raises(RefusedType, match="is sent as attributes, which is not all that a WithState has"):
        message = messages.adapted("class.object", __name__, "WithState", {"a": 1})
        decode(message, allowed=Allowed([WithState]))
    for kind in (dict, list, int, type, Exception, subprocess.Popen, type(open(__file__))):  # noqa: SIM115
        with pytest.raises(RefusedType):
            decode(messages.adapted("class.object", kind.__module__, kind.__qualname__, 5), allowed=Allowed([kind]))
