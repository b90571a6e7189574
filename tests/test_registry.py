"""Installed plugins are found without importing them, in whatever state they are."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import logging
import os
import subprocess
import sys
import traceback
import zipfile
from pathlib import Path

import pytest
from fake_distributions import install, install_speech_plugin

from cjm_worker_ext.errors import WorkerExtError
from cjm_worker_ext.extensions.protocols import PluginRegistryProtocol
from cjm_worker_ext.integrations.registry import EntryPointPluginRegistry, PluginRefused, PluginState
from cjm_worker_ext.integrations.registry_schema import MASK, PluginConfigError

BREAKAGES = [
    ("[cjm_worker_ext.plugins.speech]\n{n} = {n}\n", "write it as 'module:attribute'"),
    ("[cjm_worker_ext.plugins.speech]\n{n} {n}:Plugin\n", "write it as 'module:attribute'"),
    (
        "[cjm_worker_ext.plugins.speech]\n{n} = {n}:P\n[cjm_worker_ext.manifest]\nm = {n}:gone.toml\n",
        "no file 'gone.toml'",
    ),
    ("[cjm_worker_ext.plugins.speech]\n{n} = {n}:P\n[cjm_worker_ext.manifest]\nm = {n}:bad.toml\n", "Invalid"),
]


@pytest.fixture
def two_hundred(tmp_path: Path) -> Path:
    "200 plugins of as many distributions, 40 of them broken; importing any of them would leave a file `imported`."
    site = tmp_path / "site"
    marker = f"open({str(tmp_path / 'imported')!r}, 'w')\n"
    for number in range(160):
        install_speech_plugin(site, f"plug{number:03}", init=marker)
    for number in range(160, 200):
        name = f"plug{number:03}"
        files = {f"{name}/__init__.py": marker, f"{name}/bad.toml": "plugins = "}
        install(site, name, BREAKAGES[number % 4][0].format(n=name), files)
    return site


def test_two_hundred_plugins_are_listed_and_none_is_imported(two_hundred: Path) -> None:
    # A fresh interpreter: what it has imported, and how many files it opened, does not depend on the machine's speed.
    code = """
import sys
from collections import Counter
import cjm_worker_ext.integrations.registry as r
opened = Counter()
sys.addaudithook(lambda event, args: opened.update([event]) if event == "open" and isinstance(args[0], str) else None)
registry = r.EntryPointPluginRegistry(path=[sys.argv[1]])
plugins = registry.get_plugins_by_category("speech")
cost = opened["open"]
print(len(plugins), sum(bool(p.fault) for p in plugins), cost, sum(m.startswith("plug0") for m in sys.modules))
opened.clear()
registry.get_plugins_by_category("speech")
registry.get_plugin("plug007")
print(opened["open"])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(two_hundred)])}
    done = subprocess.run([sys.executable, "-c", code, str(two_hundred)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    count, faults, opened, imported = map(int, first.split())
    assert (count, faults, imported) == (200, 40, 0)
    assert opened <= 200 * 4, "entry points, metadata twice, and a manifest for each"
    assert int(second) == 0, "asked again, it opens nothing"
    assert not (two_hundred.parent / "imported").exists()


def test_each_broken_plugin_says_why(two_hundred: Path) -> None:
    plugins = EntryPointPluginRegistry(path=[str(two_hundred)]).get_plugins()
    for plugin, number in ((p, int(p.distribution.removeprefix("plug"))) for p in plugins):
        if number >= 160:
            assert BREAKAGES[number % 4][1] in plugin.reason, plugin
            assert plugin.state is PluginState.BROKEN and not plugin.is_configured
        else:
            assert (plugin.state, plugin.reason) == ("not configured", "'api_key' is a required property")


def test_one_bad_line_stops_the_standard_library_and_not_us(two_hundred: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017  # which one differs between Python versions
        for dist in importlib.metadata.distributions(path=[str(two_hundred)]):
            list(dist.entry_points)
            [(point.name, point.module, point.attr) for point in dist.entry_points]
    assert len(EntryPointPluginRegistry(path=[str(two_hundred)]).get_plugins()) == 200


def test_a_version_mismatch_is_refused_before_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_speech_plugin(tmp_path, "tomorrow", protocol="2.1", init=f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    registry = EntryPointPluginRegistry()
    plugin = registry.get_plugin("tomorrow")
    assert plugin is not None and plugin.state is PluginState.INCOMPATIBLE
    with pytest.raises(PluginRefused, match=r"'tomorrow:speech:tomorrow'.* needs version 2\.1 .* this is 1\.0"):
        registry.load_plugin_config("tomorrow")
    assert not (tmp_path / "imported").exists() and "tomorrow" not in sys.modules
    assert EntryPointPluginRegistry(protocol_version="2.3").get_plugin("tomorrow").state is PluginState.NOT_CONFIGURED


def test_editable_installs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The metadata is in site-packages and the package elsewhere: on the path (.pth), or known to a finder only."
    for name, source in (("by_path", "src1"), ("by_finder", "src2")):
        install_speech_plugin(tmp_path / "site", name)
        (tmp_path / source).mkdir()
        (tmp_path / "site" / name).rename(tmp_path / source / name)

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "by_finder":
                return importlib.machinery.PathFinder.find_spec(name, [str(tmp_path / "src2")])

    monkeypatch.syspath_prepend(tmp_path / "src1")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    plugins = EntryPointPluginRegistry(path=[str(tmp_path / "site")]).get_plugins()
    assert [(plugin.name, plugin.fault, plugin.description) for plugin in plugins] == [
        ("by_finder", "", "Transcribes speech"),
        ("by_path", "", "Transcribes speech"),
    ]
    assert not {"by_path", "by_finder"} & set(sys.modules)


def test_a_subpackage_may_hold_the_manifest_and_is_not_imported(tmp_path: Path) -> None:
    entry_points = "[cjm_worker_ext.plugins.c]\na = deep.er:A\n[cjm_worker_ext.manifest]\nm = deep.er.est:m.json\n"
    files = {"deep/er/est/m.json": '{"plugins": {"c": {"a": {"description": "found"}}}}', "deep/__init__.py": "1 / 0"}
    install(tmp_path, "deep", entry_points, files)
    assert EntryPointPluginRegistry(path=[str(tmp_path)]).get_plugin("a").description == "found"


def test_hostile_names_and_metadata(tmp_path: Path) -> None:
    lines = "\n".join(
        f"{name} = m:A" for name in ("../../x", "a:b", "/etc/passwd", "語", "x" * 5000, "a%3Ab", "a\x1b[2J")
    )
    install(tmp_path, "hostile", f"[cjm_worker_ext.plugins.c]\n{lines}\n[cjm_worker_ext.plugins.]\nempty = m:A\n")
    install(tmp_path, "nameless", "[cjm_worker_ext.plugins.c]\nx = m:A\n", metadata="")
    directory = tmp_path / "parent" / "configs"
    registry = EntryPointPluginRegistry(directory, path=[str(tmp_path)])
    plugins = registry.get_plugins()
    assert len({plugin.get_unique_id() for plugin in plugins}) == len(plugins) == 9
    for plugin in plugins:
        assert registry.get_plugin(plugin.get_unique_id()) is plugin
        registry.save_plugin_config(plugin.get_unique_id(), {"id": plugin.get_unique_id()})
    assert [plugin.reason for plugin in plugins if plugin.name == "x"][0].startswith("its distribution has no METADATA")
    assert len(list(directory.glob("*.toml"))) == 9
    assert [path.name for path in directory.parent.iterdir()] == ["configs"]


def test_ids_that_differ_in_case_alone_have_different_files(tmp_path: Path) -> None:
    registry = EntryPointPluginRegistry(tmp_path, path=[])
    for name in ("whisper", "Whisper", "WHISPER"):
        registry.register(name, len, category="c")
        registry.save_plugin_config(f"c:{name}", {"name": name})
    assert len({path.name.casefold() for path in tmp_path.glob("*.toml")}) == 3
    assert [registry.load_plugin_config(f"c:{name}") for name in ("whisper", "Whisper")] == [
        {"name": "whisper"},
        {"name": "Whisper"},
    ]


@pytest.mark.parametrize(
    "schema", [{"$schema": 5}, {"$schema": ["x"]}, {"$id": "http://["}, {"$id": 5}, 5, {"type": 5}]
)
def test_a_broken_schema_never_takes_the_list_down(tmp_path: Path, schema: object) -> None:
    install_speech_plugin(tmp_path, "good")
    registry = EntryPointPluginRegistry(path=[str(tmp_path)])
    registry.register("bad", len, category="speech", config_schema=schema)  # type: ignore[arg-type]
    states = {plugin.name: (plugin.state, bool(plugin.reason)) for plugin in registry.get_plugins()}
    assert states == {"bad": (PluginState.BROKEN, True), "good": (PluginState.NOT_CONFIGURED, True)}
    for ask in (registry.load_plugin_config, registry.masked_plugin_config, registry.config_version):
        with pytest.raises(PluginRefused, match="'speech:bad' cannot be used"):
            ask("bad")


def test_no_secret_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    install_speech_plugin(tmp_path, "acme")
    registry: EntryPointPluginRegistry = EntryPointPluginRegistry(tmp_path / "configs", path=[str(tmp_path)])
    assert isinstance(registry, PluginRegistryProtocol)
    registry.save_plugin_config("acme", {"api_key": "hunter2"})
    said = [
        repr(registry.get_plugins()),
        repr(registry.masked_plugin_config("acme")),
        registry.get_plugin("acme").reason,
    ]
    assert registry.masked_plugin_config("acme") == {"api_key": MASK, "model": "tiny"}

    def fail(config: dict[object, object]) -> None:
        with pytest.raises(WorkerExtError) as caught:
            registry.save_plugin_config("acme", config)  # type: ignore[arg-type]
        said.extend(traceback.format_exception(caught.value))

    for config in (
        {"api_key": "hunter2", "model": "huge"},
        {"api_key": ["hunter2"]},
        {"api_key": "hunter2", "extra": object()},
        {"api_key": "hunter2", "extra": [None]},
        {"api_key": "hunter2\ud800"},
    ):
        fail(config)
    path = registry.config_path("acme")
    for text in ("api_key = hunter2", 'api_key = ["hunter2"]', 'api_key = "hunter2"\napi_key = "hunter2"'):
        path.write_text(text)
        with pytest.raises(PluginConfigError) as caught:
            registry.load_plugin_config("acme")
        said.extend(traceback.format_exception(caught.value))
        said.append(registry.get_plugin("acme").reason)
    captured = capfd.readouterr()
    everything = "\n".join([*said, caplog.text, captured.out, captured.err])
    assert "hunter2" not in everything


@pytest.mark.parametrize("missing", ["jsonschema", "tomlkit"])
@pytest.mark.parametrize("module", ["registry", "registry_schema", "registry_config"])
def test_without_the_extra_the_import_says_which(module: str, missing: str) -> None:
    if (module, missing) == ("registry_schema", "tomlkit"):
        pytest.skip("registry_schema does not need tomlkit")
    code = f"import sys; sys.modules[{missing!r}] = None; import cjm_worker_ext.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"needs {missing}: pip install 'cjm-worker-ext[registry]'" in done.stderr, done.stderr


def test_a_package_in_a_zip_names_the_zip(tmp_path: Path) -> None:
    "Its plugins are listed, and its manifest cannot be read: the reason is not that the file is missing."
    install_speech_plugin(tmp_path / "site", "zipped")
    archive = tmp_path / "plugins.zip"
    with zipfile.ZipFile(archive, "w") as zip_file:
        for path in (tmp_path / "site").rglob("*"):
            zip_file.write(path, path.relative_to(tmp_path / "site"))
    registry = EntryPointPluginRegistry(path=[str(archive)])
    (plugin,) = registry.get_plugins()
    assert (plugin.name, plugin.state) == ("zipped", PluginState.BROKEN)
    assert f"package 'zipped' is inside the archive {archive}; install it unpacked" in plugin.reason


def test_what_pip_has_left_behind_is_no_package(tmp_path: Path) -> None:
    "pip renames the folders that it is about to remove, and leaves them when it is interrupted."
    info = install(tmp_path, "acme", "[cjm_worker_ext.plugins.speech]\nold = acme:Old\n", version="0.9")
    info.rename(info.with_name("~cme-0.9.dist-info"))
    assert EntryPointPluginRegistry(path=[str(tmp_path)]).get_plugins() == []
    install(tmp_path, "acme", "[cjm_worker_ext.plugins.speech]\nnew = acme:New\n", version="1.0")
    assert [plugin.name for plugin in EntryPointPluginRegistry(path=[str(tmp_path)]).get_plugins()] == ["new"]
