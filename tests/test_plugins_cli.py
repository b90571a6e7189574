"""The command `cjm-worker-plugins`, started as its console script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_distributions import install, install_speech_plugin

SCRIPT = """import sys
from cjm_worker_ext.commands.terminal import plugins
if __name__ == "__main__":
    sys.exit(plugins())
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "cjm-worker-plugins").write_text(SCRIPT)
    site = tmp_path / "site"
    install_speech_plugin(site, "acme")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "acme+speech+acme.toml").write_text('api_key = "hunter2"\n')
    return site


def command(site: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "120",
        **variables,
    }
    script = [sys.executable, str(site.parent / "cjm-worker-plugins"), *arguments]
    return subprocess.run(script, capture_output=True, text=True, env=env, timeout=120)


def test_all_plugins_are_ready(site: Path) -> None:
    done = command(site, "--config", str(site.parent / "configs"), "--category", "speech")
    assert (done.returncode, done.stderr) == (0, "")
    for expected in ("acme:speech:acme", "ready", 'model = "tiny"', 'api_key = "********"'):
        assert expected in done.stdout, done.stdout
    assert "hunter2" not in done.stdout and "\x1b" not in done.stdout


def test_json(site: Path) -> None:
    done = command(site, "--config", str(site.parent / "configs"), "--plugin", "acme", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"], len(document["plugins"])) == (0, True, 1)
    plugin = document["plugins"][0]
    assert plugin["config"] == {"api_key": "********", "model": "tiny"}
    assert plugin["config_path"] == str(site.parent / "configs" / "acme+speech+acme.toml")
    assert (plugin["state"], plugin["target"], plugin["version"]) == ("ready", "acme:Plugin", "1.0")


def test_a_plugin_that_cannot_be_used_is_status_one(site: Path) -> None:
    install_speech_plugin(site, "tomorrow", protocol="9.0")
    install(site, "evil", "[cjm_worker_ext.plugins.speech]\n[red]e\x1b[2Jvil = x\n")
    done = command(site, "--category", "speech")
    assert done.returncode == 1
    for expected in (
        "not configured",
        "'api_key' is a required property",
        "incompatible",
        "needs version 9.0",
        "\\x1b[2J",
    ):
        assert expected in done.stdout, done.stdout
    assert "\x1b" not in done.stdout
    assert json.loads(command(site, "--json", "--category", "speech").stdout)["ok"] is False


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config", "/no/such/directory"], "not a folder"),
        (["--plugin", "nobody"], "plugin 'nobody': not installed"),
        (["--plugin", "twice"], "plugin 'twice' could be 'one:speech:twice' and 'two:speech:twice'"),
        (["--no-such-option"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_listed_is_status_two(site: Path, arguments: list[str], complaint: str) -> None:
    for name in ("one", "two"):
        install(site, name, "[cjm_worker_ext.plugins.speech]\ntwice = m:A\n")
    done = command(site, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr.splitlines()[-1]


def test_an_output_without_unicode(site: Path) -> None:
    done = command(site, "--category", "speech", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["rich", "jsonschema", "tomlkit"])
def test_a_missing_extra_is_one_line_and_status_two(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from cjm_worker_ext.commands.terminal import plugins; "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit(plugins())"], capture_output=True, text=True)
    install = "pip install 'cjm-worker-ext[demo,registry]'"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"the command cjm-worker-plugins needs {missing}: {install}\n"
