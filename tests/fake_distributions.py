"""Distributions as an installer leaves them on the disk: metadata, entry points, files. No build, no network."""

from __future__ import annotations

from pathlib import Path

MANIFEST = """
[plugins.speech.{name}]
description = "Transcribes speech"
requires_protocol = "{protocol}"

[plugins.speech.{name}.config_schema]
required = ["api_key"]
properties.model = {{ enum = ["tiny", "base"], default = "tiny" }}
properties.api_key = {{ type = "string", writeOnly = true }}
"""


def install(
    site: Path,
    name: str,
    entry_points: str,  # The text of `entry_points.txt`
    files: dict[str, str] | None = None,
    version: str = "1.0",
    metadata: str | None = None,  # None: as it should be
) -> Path:  # The dist-info directory
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    if metadata is None:
        metadata = (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: About {name}\n\n# Readme\nName: no\n"
        )
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(entry_points)
    for file, text in (files or {}).items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
    return info


def install_speech_plugin(site: Path, name: str, protocol: str = "1.0", init: str = "") -> Path:
    "A distribution with one plugin of category speech, `<name> = <name>:Plugin`, and a manifest in the package `<name>`."
    entry_points = f"""
[cjm_worker_ext.plugins.speech]
{name} = {name}:Plugin
[cjm_worker_ext.manifest]
manifest = {name}:worker_plugins.toml
"""
    files = {
        f"{name}/__init__.py": init or "raise RuntimeError('imported')\n",
        f"{name}/worker_plugins.toml": MANIFEST.format(name=name, protocol=protocol),
    }
    return install(site, name, entry_points, files)
