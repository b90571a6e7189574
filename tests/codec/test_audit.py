"""What a worker's bytes can make the app call: every callable on the reading side, found in the source and listed here."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import cjm_worker_ext.backends as backends

FOLDER = Path(backends.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.glob("codec*.py")}
# Of these, only what they are called with matters, and that is data.
HARMLESS = {
    "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "float", "frozenset", "getattr", "hasattr", "hash", "int", "isinstance",
    "issubclass", "iter", "len", "list", "map", "max", "memoryview", "min", "next", "range", "repr", "reversed", "set", "slice", "sorted", "str", "sum",
    "super", "tuple", "type", "vars", "zip", "bytearray", "bytes", "Unfit", "NotAtOnce", "RefusedType",
}  # fmt: skip
METHODS_OF_DATA = {
    "add", "append", "cast", "copy", "decode", "encode", "extend", "from_bytes", "from_iterable", "get", "isascii", "isdigit", "isalnum", "items", "keys",
    "join", "lstrip", "partition", "pop", "popitem", "removesuffix", "replace", "startswith", "endswith", "sum", "unpack", "update", "values", "bit_length",
}  # fmt: skip


def functions() -> dict[tuple[str, str], ast.AST]:
    "Every function and method of the codec, by module and name."
    found: dict[tuple[str, str], ast.AST] = {}
    for module, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                found[module, node.name] = node
            elif isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, ast.FunctionDef):
                        found[module, f"{node.name}.{item.name}"] = item
    return found


def imported_from(module: str) -> dict[str, str]:
    "Names that a module takes from another one of the codec."
    found = {}
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cjm_worker_ext.backends.codec"):
            found.update({alias.name: node.module.rpartition(".")[2] for alias in node.names})
    return found


def reached() -> set[str]:
    "Follow every name from where bytes come in; what is not a function of the codec is a callable of somebody else's."
    known = functions()
    # Adapters are found by name, so all functions that they read with are a beginning.
    waiting = [key for key in known if key[1].startswith(("_decode_", "Decoder."))]
    waiting += [("codec", "decode"), ("codec_errors", "decode_exception"), ("codec_tables", "_MAKERS")]
    waiting += [
        ("codec_tables", name) for name in ("_numpy", "_objects", "_make_string", "_make_arrow", "_make_category")
    ]
    waiting += [("codec_tables", name) for name in ("_make_zoned", "_make_period", "_make_interval", "_make_masked")]
    seen: set[tuple[str, str]] = set()
    calls: set[str] = set()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen or (module, name) not in known:
            continue
        seen.add((module, name))
        taken, owner = imported_from(module), name.partition(".")[0]
        for node in ast.walk(known[module, name]):
            if isinstance(node, ast.Name):  # called, or handed to somebody who calls it
                waiting += [(module, node.id), (taken.get(node.id, ""), node.id)]
                waiting += [(m, f"{node.id}.__init__") for m in (module, taken.get(node.id, ""))]
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", owner)
            ):
                waiting.append((module, f"{owner}.{node.attr}"))
            if isinstance(node, ast.Call):
                callee = ast.unparse(node.func)
                own = any((m, n) in known for m, n in [(module, callee), (taken.get(callee, ""), callee)])
                method = callee.rpartition(".")[2] if "." in callee else ""
                mine = callee.startswith(("self.", "reader.")) and (module, f"{owner}.{method}") in known
                if not (own or mine or callee in HARMLESS or method in METHODS_OF_DATA):
                    calls.add(f"{module}: {callee}")
    return calls


EXPECTED = {
    "codec_adapters: abs",
    "codec_adapters: import_module",
    "codec_adapters: super().__init__",
    "codec_arrays: Image.frombytes",
    "codec_arrays: Image.new",
    "codec_arrays: _decode_dtype(dtype).type",
    "codec_arrays: flat.max",
    "codec_arrays: flat.view",
    "codec_arrays: flat.view(dtype).reshape",
    "codec_arrays: letters.max",
    "codec_arrays: made.putpalette",
    "codec_arrays: made.reshape",
    "codec_arrays: np.ascontiguousarray",
    "codec_arrays: np.ascontiguousarray(array).view",
    "codec_arrays: np.ascontiguousarray(array).view('u1').max",
    "codec_arrays: np.dtype",
    "codec_arrays: np.empty",
    "codec_arrays: np.frombuffer",
    "codec_arrays: np.ma.MaskedArray",
    "codec_arrays: np.ma.make_mask_descr",
    "codec_arrays: torch.empty",
    "codec_arrays: torch.frombuffer",
    "codec_arrow: batch.validate",
    "codec_arrow: getattr(pa, part)",
    "codec_arrow: getattr(pa, word)",
    "codec_arrow: is_type.is_boolean",
    "codec_arrow: is_type.is_decimal",
    "codec_arrow: is_type.is_dictionary",
    "codec_arrow: is_type.is_fixed_size_binary",
    "codec_arrow: is_type.is_fixed_size_list",
    "codec_arrow: is_type.is_large_list",
    "codec_arrow: is_type.is_list",
    "codec_arrow: is_type.is_map",
    "codec_arrow: is_type.is_null",
    "codec_arrow: is_type.is_primitive",
    "codec_arrow: is_type.is_struct",
    "codec_arrow: made.validate",
    "codec_arrow: pa.Array.from_buffers",
    "codec_arrow: pa.DictionaryArray.from_arrays",
    "codec_arrow: pa.RecordBatch.from_arrays",
    "codec_arrow: pa.Table.from_arrays",
    "codec_arrow: pa.array",
    "codec_arrow: pa.binary",
    "codec_arrow: pa.chunked_array",
    "codec_arrow: pa.dictionary",
    "codec_arrow: pa.field",
    "codec_arrow: pa.list_",
    "codec_arrow: pa.map_",
    "codec_arrow: pa.null",
    "codec_arrow: pa.nulls",
    "codec_arrow: pa.py_buffer",
    "codec_arrow: pa.schema",
    "codec_arrow: pa.struct",
    "codec_arrow: pa.table",
    "codec_arrow: pa.table([pa.nulls(count)], schema=schema.append(pa.field('x', pa.null()))).select",
    "codec_arrow: pa.timestamp",
    "codec_arrow: table.validate",
    "codec_classes: found",
    "codec_classes: found.model_validate",
    "codec_classes: made.__pydantic_fields_set__.intersection_update",
    "codec_classes: new",
    "codec_classes: object.__new__",
    "codec_classes: reader.allowed.find",
    "codec_classes: slots[attribute].__set__",
    "codec_errors: Exception",
    "codec_errors: allowed.find",
    "codec_errors: base.__init__",
    "codec_errors: base.__new__",
    "codec_errors: made.add_note",
    "codec_standard: abs",
    "codec_standard: collections.Counter",
    "codec_standard: collections.OrderedDict",
    "codec_standard: collections.defaultdict",
    "codec_standard: datetime.date",
    "codec_standard: datetime.datetime",
    "codec_standard: datetime.time",
    "codec_standard: datetime.timedelta",
    "codec_standard: datetime.timezone",
    "codec_standard: decimal.Decimal",
    "codec_standard: deque",
    "codec_standard: fractions.Fraction",
    "codec_standard: getattr(ipaddress, kind)",
    "codec_standard: io.BytesIO",
    "codec_standard: io.StringIO",
    "codec_standard: kind",
    "codec_standard: kinds[kind]",
    "codec_standard: made.frombytes",
    "codec_standard: made.seek",
    "codec_standard: re.compile",
    "codec_standard: shown.count",
    "codec_standard: types.SimpleNamespace",
    "codec_standard: uuid.UUID",
    "codec_standard: value.adjusted",
    "codec_standard: zoneinfo.ZoneInfo",
    "codec_tables: _MAKERS[kind]",
    "codec_tables: getattr(pd.arrays, _MASKED[values.dtype.kind])",
    "codec_tables: made.tz_localize",
    "codec_tables: made.tz_localize('UTC').tz_convert",
    "codec_tables: make",
    "codec_tables: np.fromiter",
    "codec_tables: np.zeros",
    "codec_tables: numbers.max",
    "codec_tables: numbers.min",
    "codec_tables: pd.Categorical.from_codes",
    "codec_tables: pd.DataFrame",
    "codec_tables: pd.DatetimeIndex",
    "codec_tables: pd.DatetimeIndex(_numpy(instants, 'M'), tz='UTC').tz_convert",
    "codec_tables: pd.Index",
    "codec_tables: pd.Interval",
    "codec_tables: pd.MultiIndex",
    "codec_tables: pd.Period",
    "codec_tables: pd.PeriodIndex.from_ordinals",
    "codec_tables: pd.RangeIndex",
    "codec_tables: pd.Series",
    "codec_tables: pd.StringDtype",
    "codec_tables: pd.Timedelta",
    "codec_tables: pd.Timestamp",
    "codec_tables: pd.array",
    "codec_tables: pd.arrays.ArrowExtensionArray",
    "codec_tables: pd.arrays.IntervalArray.from_arrays",
    "codec_tables: pd.arrays.NumpyExtensionArray",
    "codec_tables: pl.DataFrame",
    "codec_tables: pl.Datetime",
    "codec_tables: pl.Duration",
    "codec_tables: pl.Enum",
    "codec_tables: pl.Series",
    "codec_tables: pl.from_arrow",
    "codec_tables: series.dtype.base_type",
    "codec_tables: series.null_count",
    "codec_tables: series.to_physical",
    "codec: Counter",
    "codec: Decoder",
    "codec: Pieces",
    "codec: Pieces(body).unpacker",
    "codec: Unpacker",
    "codec: e.sentence",
    "codec: dict.fromkeys",
    "codec: islice",
    "codec: looked.unpacker",
    "codec: looked.unpacker().skip",
    "codec: make",
    "codec: read",  # of a message that begins as one of which an array was made: the numbers of the next one
    "codec: step",
    "codec: type_of",
    "codec: unpackb",
    "codec: unpacker.feed",
    "codec: unpacker.skip",
    "codec: unpacker.tell",
}


def test_the_list_of_callables_does_not_grow():
    found = reached()
    assert sorted(found - EXPECTED) == [], "a worker's bytes reach something new; is it safe with any argument?"
    assert sorted(EXPECTED - found) == [], "no longer reached; take it out of the list"


def test_nothing_that_runs_code_is_among_them():
    dangerous = {"eval", "exec", "compile", "open", "__import__", "input", "breakpoint", "import_module"} & set(
        dir(builtins)
    )
    for call in reached():
        name = call.partition(": ")[2]
        assert name not in dangerous and not name.startswith(("pickle", "marshal", "os.", "subprocess")), call


def test_libraries_are_imported_by_names_of_this_source_only():
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("library", "import_module", "__import__"):
                (argument,) = node.args
                where = f"{module}:{node.lineno}"
                fixed = isinstance(argument, ast.Constant)
                # `_family` takes it from its table, `_in_module` from what the app named, `library` is the import itself
                assert fixed or ast.unparse(argument) in ("module", "name") and module == "codec_adapters", where
