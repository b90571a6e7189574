"""A library is imported when one of its objects crosses, and an app that lacks it is told what to install."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import messages
import pytest

from cjm_worker_ext.backends.codec import decode, encode
from cjm_worker_ext.errors import RefusedType

LIBRARIES = {"numpy", "pandas", "pyarrow", "polars", "torch", "PIL", "pydantic", "attrs", "attr"}


def run(program: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_values_and_the_standard_library_import_no_other():
    brought = run("""
        import sys
        import codec_table
        from cjm_worker_ext.backends.codec_adapters import Allowed
        libraries = {"numpy", "pandas", "pyarrow", "polars", "torch", "PIL"} & set(sys.modules)
        from cjm_worker_ext.backends.codec_errors import decode_exception, encode_exception
        from cjm_worker_ext.backends.codec import decode, encode
        for value in (*codec_table.PLAIN.values(), *codec_table.STANDARD.values(), *codec_table.CLASSES.values()):
            data, buffers = encode(value)
            decode(data, [bytearray(buffer) for buffer in buffers], allowed=Allowed(["codec_table"]))
        decode_exception(encode_exception(ValueError(1))["exception"])
        print(*sorted({"numpy", "pandas", "pyarrow", "polars", "torch", "PIL"} & set(sys.modules)))
    """).split()
    assert brought == []


def test_small_messages_import_no_adapters():
    brought = run("""
        import sys
        before = set(sys.modules)
        from cjm_worker_ext.backends.codec import decode, encode
        decode(encode({"a": [1, (2, 3)], "b": {4: b"5"}})[0])
        print(*set(sys.modules) - before)
    """).split()
    assert {name for name in brought if ".codec" in name} == {
        "cjm_worker_ext.backends.codec_adapters", "cjm_worker_ext.backends.codec",
    }  # fmt: skip
    heavy = {"asyncio", "decimal", "enum", "importlib.metadata", "inspect", "pickle", "re", "typing"}
    assert not heavy & set(brought) and len(brought) < 40, brought


MESSAGES = {
    "numpy": messages.numpy_array("<f8", [1]),
    "pyarrow": messages.arrow_array("int8", 0),
    "pandas": messages.adapted("pandas.Index", "range", 0, 1, 1, None),
    "polars": messages.adapted("polars.DataFrame", [], 0),
    "torch": messages.adapted("torch.Tensor", "int8", [1], messages.memory(b"\0")),
    "pillow": messages.adapted("PIL.Image", "L", [1, 1], messages.memory(b"\0"), None, None),
}


@pytest.mark.parametrize("library", MESSAGES)
def test_an_app_that_lacks_it_is_told(library, monkeypatch):
    module = {"pillow": "PIL.Image"}.get(library, library)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(RefusedType, match=f"and the app lacks {library}; pip install {library}, where the app runs"):
        decode(MESSAGES[library])


def test_text_of_pandas_without_pyarrow(monkeypatch):
    pandas = pytest.importorskip("pandas")
    data, buffers = encode(pandas.Series(["a", None], dtype=pandas.StringDtype("python")))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert decode(data, buffers).tolist()[0] == "a"


def test_polars_without_pyarrow(monkeypatch):
    polars = pytest.importorskip("polars")
    import datetime

    from cjm_worker_ext.backends import codec_tables

    monkeypatch.setattr(codec_tables, "_has_arrow", lambda: False)
    frame = polars.DataFrame({
        "n": [1, None], "x": [0.5, None], "t": ["a", None], "when": [datetime.datetime(2026, 1, 1), None], "td": [datetime.timedelta(1), None],
        "z": polars.Series([datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), None]),
    })  # fmt: skip
    arrived = decode(encode(frame)[0])
    assert arrived.equals(frame, null_equal=True) and arrived.schema == frame.schema
    with pytest.raises(
        Exception, match=r"value\['l'\] is a column of List\(Int64\), for which polars needs pyarrow; pip"
    ):
        encode(polars.DataFrame({"l": [[1]]}))
