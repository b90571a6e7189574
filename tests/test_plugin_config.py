"""Configuration files under bad conditions: killed savers, full disks, hostile ids and links, savers at the same time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjm_worker_ext.integrations.registry_config import (
    ConfigConflict,
    ConfigFile,
    ConfigNotSaved,
    config_stem,
    parse,
    render,
)
from cjm_worker_ext.integrations.registry_schema import MASK, ConfigSchema, PluginConfigError

SCHEMA: dict[str, Any] = {
    "properties": {
        "api_key": {"type": "string", "writeOnly": True},
        "beams": {"type": "integer", "default": 5},
        "filler": {"type": "string"},
    }
}


WORDS = [
    "$schema", "$id", "$ref", "$defs", "$anchor", "$dynamicRef", "type", "properties", "patternProperties", "items",
    "additionalProperties", "unevaluatedProperties", "required", "enum", "const", "default", "format", "pattern",
    "minimum", "multipleOf", "uniqueItems", "allOf", "anyOf", "not", "if", "then", "dependencies", "dependentSchemas",
    "writeOnly", "a", "definitions", "contains", "prefixItems", "minItems",
]  # fmt: skip


def run(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    "Start Python with a text as its program, and pipes to it."
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


# --- a crash ---------------------------------------------------------------------------------------------------------

STOPS_AT = """
import os, sys
from cjm_worker_ext.integrations import registry_config
point, directory = sys.argv[1:]
def stop(*args, **kwargs):
    print("there", flush=True)
    sys.stdin.read()  # until the kill
def stop_in_the_middle(descriptor, mode):
    file = open(descriptor, mode)
    class Half:
        def __enter__(self): return self
        def __exit__(self, *args): pass
        def write(self, data):
            file.write(data[: len(data) // 2])
            file.flush()
            stop()
    return Half()
if point == "write":
    real = open
    registry_config.open = lambda f, mode, **more: stop_in_the_middle(f, mode) if mode == "wb" else real(f, mode, **more)
else:
    setattr(os, point, stop)
registry_config.ConfigFile(directory, "p").save({"beams": 2, "filler": "x" * 100_000})
"""


@pytest.mark.parametrize("point", ["write", "fsync", "replace"])
def test_a_saver_killed_anywhere_leaves_the_old_file(point: str, tmp_path: Path) -> None:
    file = ConfigFile(tmp_path, "p")
    file.save({"beams": 1})
    with run(STOPS_AT, point, tmp_path) as child:
        assert child.stdout is not None and child.stdout.readline() == "there\n"
        left = [path.name for path in tmp_path.glob(".p.toml.*.tmp")]
        child.send_signal(signal.SIGKILL)
    assert len(left) == 1, "it was killed in the middle"
    assert file.load() == {"beams": 1}
    file.save({"beams": 3})  # the lock went with its holder, and what was left is swept up
    assert file.load() == {"beams": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "p.toml"]


# --- a full disk -----------------------------------------------------------------------------------------------------

FILE_TOO_LARGE = """
import resource, sys
from cjm_worker_ext.integrations.registry_config import ConfigFile, ConfigNotSaved
file = ConfigFile(sys.argv[1], "p")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    file.save({"filler": "x" * 5000})
except ConfigNotSaved as e:
    print(e)
"""


def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path, "p")
    file.save({"beams": 1})
    said, _ = run(FILE_TOO_LARGE, tmp_path).communicate(timeout=120)
    assert re.search("plugin 'p': not saved in .*File too large; the old file is unchanged", said), said
    assert file.load() == {"beams": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "p.toml"]


def test_a_full_file_system_leaves_the_old_file(tmp_path: Path) -> None:
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if sys.platform != "linux" or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        file = ConfigFile(tmp_path, "p")
        file.save({"beams": 1})
        with pytest.raises(ConfigNotSaved, match="No space left on device"):
            file.save({"filler": "x" * 200_000})
        assert file.load() == {"beams": 1}
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "p.toml"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- savers at the same time -----------------------------------------------------------------------------------------

SAVES = """
import sys
from cjm_worker_ext.integrations.registry_schema import ConfigSchema, MASK
from cjm_worker_ext.integrations.registry_config import ConfigFile
who, directory, schema = sys.argv[1], sys.argv[2], eval(sys.argv[3])
file = ConfigFile(directory, "p", ConfigSchema(schema))
print("ready", flush=True)
sys.stdin.readline()
for number in range(150):
    key = f"{who}-{number}" if who == "keys" else MASK
    file.save({"api_key": key, "beams": number, "filler": who * 200 + "."})
    if who == "keys":
        assert file.load()["api_key"] == key, "the other one put an old secret back"
"""


def test_two_savers_lose_nothing_and_no_reader_sees_a_half(tmp_path: Path) -> None:
    "One sets new secrets, the other keeps what is stored: the first one's secret must never be undone."
    file = ConfigFile(tmp_path, "p", ConfigSchema(SCHEMA))
    file.save({"api_key": "first", "filler": "."})
    savers = [run(SAVES, who, tmp_path, SCHEMA) for who in ("keys", "numbers")]
    for saver in savers:
        assert saver.stdout is not None and saver.stdout.readline() == "ready\n"
    for saver in savers:
        assert saver.stdin is not None
        saver.stdin.write("\n")
        saver.stdin.flush()
    while any(saver.poll() is None for saver in savers):
        assert file.load()["filler"].endswith("."), "half a file"
    assert [saver.wait() for saver in savers] == [0, 0]
    assert file.load()["api_key"] == "keys-149"
    for saver in savers:
        saver.communicate()


def test_threads_take_turns_as_well(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path, "p")
    errors: list[BaseException] = []

    def save(who: int) -> None:
        try:
            for number in range(20):
                file.save({"who": who, "number": number})
                file.load()
        except BaseException as e:  # noqa: BLE001  # whatever it is, the test shall see it
            errors.append(e)

    threads = [threading.Thread(target=save, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == [] and file.load()["number"] == 19


# --- what an unchanged file costs ------------------------------------------------------------------------------------


def test_an_unchanged_file_costs_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ConfigFile(tmp_path, "p", ConfigSchema(SCHEMA))
    file.save({"beams": 1})
    monkeypatch.setattr("cjm_worker_ext.integrations.registry_config.SETTLED_NS", -(10**18))  # as if it were old
    file.load()
    looks: list[object] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: looks.append(args) or real(*args, **kwargs))
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: pytest.fail("opened"))
    monkeypatch.setattr(ConfigSchema, "problems", lambda *args: pytest.fail("checked"))
    assert file.load() == {"beams": 1}
    assert len(looks) == 2


# --- hostile ids, links and files ------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_different_ids_have_different_files_inside(one: str, other: str) -> None:
    for plugin_id in (one, other):
        path = ConfigFile("/configs", plugin_id).path
        assert path.parent == Path("/configs") and re.fullmatch(r"[a-z0-9][a-z0-9._+~-]{0,104}", path.name)
    assert (config_stem(one).casefold() == config_stem(other).casefold()) == (one == other)


@given(st.text(alphabet="aA.:+~-/\\\0 %é", max_size=6), st.text(alphabet="aA.:+~-/\\\0 %é", max_size=6))
def test_similar_ids_have_different_files(one: str, other: str) -> None:
    assert (config_stem(one) == config_stem(other)) == (one == other)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside.toml"
    outside.write_text("beams = 7\n")
    outside.chmod(0o640)
    directory = tmp_path / "configs"
    directory.mkdir()
    (directory / "p.toml").symlink_to(Path("..") / "outside.toml")
    file = ConfigFile(directory, "p")
    assert file.load() == {"beams": 7}  # mounted configuration is made of links
    file.save({"beams": 8})
    assert (outside.read_text(), file.load(), file.path.is_symlink()) == ("beams = 8\n", {"beams": 8}, True)
    assert outside.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "outside.toml"]
    outside.unlink()
    file.save({"beams": 9})  # a link to nothing makes the file
    assert outside.read_text() == "beams = 9\n" and file.path.is_symlink()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can act as several users")
def test_owner_and_access_of_a_file_are_kept_and_a_planted_link_is_refused(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path, "p")
    file.save({"beams": 1})
    os.chown(file.path, 4711, 815)
    file.path.chmod(0o640)
    file.save({"beams": 2})
    now = file.path.stat()
    assert (now.st_uid, now.st_gid, now.st_mode & 0o777, file.load()) == (4711, 815, 0o640, {"beams": 2})

    (victim := tmp_path / "victim").write_text("ours")
    (tmp_path / "planted.toml").symlink_to(victim)
    os.lchown(tmp_path / "planted.toml", 4711, 815)
    with pytest.raises(ConfigNotSaved, match="is a link of user 4711 to a file of another user"):
        ConfigFile(tmp_path, "planted").save({"beams": 3})
    assert victim.read_text() == "ours"

    with tempfile.TemporaryDirectory() as directory:  # pytest's own folders are closed to other users
        os.chmod(directory, 0o777)
        (theirs := Path(directory, "p.toml")).write_text("beams = 1\n")
        theirs.chmod(0o666)
        said, _ = run(SAVE_AS_NOBODY, directory, tmp_path / "own").communicate(timeout=120)
        assert "belongs to user 0 and group 0, which this process cannot keep" in said, said
        assert theirs.read_text() == "beams = 1\n" and theirs.stat().st_uid == 0


SAVE_AS_NOBODY = """
import os, sys
from cjm_worker_ext.integrations.registry_config import ConfigFile, ConfigNotSaved
for beams in (1, 2):  # imports what a save needs, as nobody may not read our Python
    ConfigFile(sys.argv[2], "p").save({"beams": beams})
file = ConfigFile(sys.argv[1], "p")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    file.save({"beams": 2})
except ConfigNotSaved as e:
    print(e)
"""


def test_a_bind_mounted_file_names_the_remedy(tmp_path: Path) -> None:
    (source := tmp_path / "source.toml").write_text("beams = 1\n")
    (target := tmp_path / "p.toml").touch()
    if sys.platform != "linux" or subprocess.run(["mount", "--bind", source, target], capture_output=True).returncode:
        pytest.skip("bind mounts are not allowed here")
    try:
        with pytest.raises(ConfigNotSaved, match="is mounted by itself .* mount its folder instead"):
            ConfigFile(tmp_path, "p").save({"beams": 2})
        assert source.read_text() == "beams = 1\n"
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "p.toml", "source.toml"]
    finally:
        subprocess.run(["umount", target], check=True)


def test_a_planted_lock_is_not_followed(tmp_path: Path) -> None:
    file = ConfigFile(directory := tmp_path / "configs", "p")
    file.save({"beams": 8})
    (directory / ".lock").unlink()
    (directory / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(ConfigNotSaved):
        file.save({"beams": 9})
    assert not (tmp_path / "made").exists() and file.load() == {"beams": 8}


def test_what_is_not_a_file_is_a_problem_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    probe = os.open(os.devnull, os.O_RDONLY)
    for plugin_id in ("pipe", "folder", "loop"):
        with pytest.raises(PluginConfigError, match=f"'{plugin_id}'"):
            ConfigFile(tmp_path, plugin_id).load()
    os.close(probe)
    assert os.open(os.devnull, os.O_RDONLY) == probe, "a descriptor was left open"
    os.close(probe)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigNotSaved, match="Permission denied"):
        ConfigFile(tmp_path, "p").save({})


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "configs").touch()
    assert ConfigFile(tmp_path / "configs", "p").load() == {}
    with pytest.raises(ConfigNotSaved, match="File exists"):
        ConfigFile(tmp_path / "configs", "p").save({})


# --- two people, one form --------------------------------------------------------------------------------------------


def test_of_two_forms_only_the_first_is_saved(tmp_path: Path) -> None:
    "Whichever way the file was changed in between: by another form, by an editor, by removing it."
    file = ConfigFile(tmp_path, "p", ConfigSchema(SCHEMA))
    file.save({"beams": 1})
    changes: list[Any] = [
        lambda: file.save({"beams": 2}),
        lambda: file.path.write_text("beams = 3\n"),
        lambda: file.path.unlink(),
        lambda: (tmp_path / "p.json").write_text("{}"),
    ]
    for change in changes:
        version = file.version()
        assert file.version() == version
        change()
        with pytest.raises(ConfigConflict, match="'p'.*: was changed meanwhile"):
            file.save({"beams": 9}, version)
        assert file.load()["beams"] != 9
    file.save({"beams": 4}, file.version())
    assert file.load() == {"beams": 4}


# --- hostile schemas -------------------------------------------------------------------------------------------------
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(["", "a", "#", "#/$defs/a", "http://[", "^(a|a)*$", "object", "integer", "date"]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(WORDS), v, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(json_values, st.dictionaries(st.sampled_from(["a", "aaaa", "b"]), json_values, max_size=3))
def test_whatever_a_schema_holds_it_is_refused_or_works(schema: Any, config: dict[str, Any]) -> None:
    try:
        checker = ConfigSchema(schema)
    except PluginConfigError:
        return
    assert isinstance(checker.problems(config), list)
    for method in (checker.masked, checker.with_defaults, checker.adapted, lambda c: checker.with_kept_secrets(c, c)):
        with contextlib.suppress(PluginConfigError):
            assert isinstance(method(config), dict)


# --- schemas and values that nobody thought of -----------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    plain | texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=10
)
configs = st.dictionaries(texts, values, max_size=4)


@given(configs, configs)
def test_what_is_written_reads_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert parse(render(new, ".json", b""), ".json") == new
    try:
        before = render(old, ".toml")
        after = render(new, ".toml", before)
    except ValueError:
        assert "None" in repr(old) + repr(new) or any("\r" in repr(v) or "\\x" in repr(v) for v in (old, new))
    else:
        assert parse(after, ".toml") == new


SECRET = "secret-value"
secret_schema = ConfigSchema(
    {
        "$defs": {"node": {"properties": {"key": {"writeOnly": True}, "sub": {"$ref": "#/$defs/node"}}}},
        "allOf": [{"$ref": "#/$defs/node"}],
        "properties": {
            "many": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "integer"}]}},
            "by_name": {"additionalProperties": {"format": "password", "type": "string"}},
        },
    }
)
leaf = st.sampled_from([SECRET, SECRET + "2", 7, [SECRET], {"a": SECRET}])
node = st.recursive(
    st.fixed_dictionaries({}, optional={"key": leaf}),
    lambda sub: st.fixed_dictionaries({}, optional={"key": leaf, "sub": sub}),
    max_leaves=4,
)
secret_configs = st.fixed_dictionaries(
    {},
    optional={
        "key": leaf,
        "sub": node,
        "many": st.lists(node | st.integers(0, 3), max_size=4) | st.just(7),
        "by_name": st.dictionaries(st.sampled_from("abc"), leaf) | st.just([1]),
    },
)


@given(secret_configs)
def test_masks_hide_every_secret_and_give_it_back(config: dict[str, Any]) -> None:
    masked = secret_schema.masked(config)
    assert SECRET not in repr(masked)
    assert SECRET not in repr(secret_schema.problems(config))
    assert secret_schema.with_kept_secrets(masked, config) == config
    if MASK in repr(masked):
        with pytest.raises(PluginConfigError):
            secret_schema.with_kept_secrets(masked, {})
