"""What an import costs, in modules and not in seconds: a count is the same on every machine."""

import subprocess
import sys

import pytest
from package_tree import layers, root

HEAVY = {"fastcore", "httpx", "jsonschema", "numpy", "psutil", "ray", "rich", "starlette", "tomlkit", "uvicorn"}
HEAVY |= {"opentelemetry", "prometheus_client"}


def loaded_by(statement: str) -> set[str]:
    "Run `statement` in a fresh interpreter, and name the modules that it brings."
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_protocols_load_typing_and_nothing_else():
    extra = loaded_by("import cjm_worker_ext.extensions.protocols") - loaded_by("import typing")
    assert extra == {"cjm_worker_ext", "cjm_worker_ext.extensions", "cjm_worker_ext.extensions.protocols"}


tree = layers.Tree(root)
core = [layer for layer in tree.layers if not {"integrations", "commands"} & {*layer["modules"]}]


@pytest.mark.parametrize("layer", core, ids=lambda layer: ",".join(layer["modules"]))
def test_the_core_loads_no_dependency_of_an_extra(layer):
    modules = [f"cjm_worker_ext.{module.name}" for module in tree.modules() if tree.layers[module.layer] is layer]
    brought = {name.partition(".")[0] for name in loaded_by(f"import {', '.join(modules)}")}
    assert not brought & HEAVY


def test_a_worker_imports_little():
    brought = loaded_by("import cjm_worker_ext.backends.worker_main; cjm_worker_ext.backends.codec.load_msgpack()")
    assert not {"asyncio", "multiprocessing", "concurrent.futures", "cloudpickle", "cjm_worker_ext.manager"} & brought
    assert not {"threading", "typing", "dataclasses"} & brought
    assert not {name.partition(".")[0] for name in brought} & HEAVY
    assert len(brought) < 50, sorted(brought)


UNUSED = {"stores", "extensions", "engine.durable_jobs", "engine.chunk_log", "engine.job_groups", "backends.cards"}
UNUSED |= {
    "backends.agent",
    "backends.hosts",
    "blocking",
    "integrations",
    "engine.stall_watch",
    "backends.worker_async",
    "policies",
    "reports",
    "drain",
    "hooks",
}


def test_an_app_imports_no_part_that_it_may_never_use():
    brought = loaded_by("import asyncio, cjm_worker_ext.manager") - loaded_by("import asyncio")
    assert not {"queue", "datetime", "msgpack", "multiprocessing", "cloudpickle"} & brought
    ours = {name.removeprefix("cjm_worker_ext.") for name in brought if name.startswith("cjm_worker_ext.")}
    assert not UNUSED & ours
    assert len(brought) < 40, sorted(brought)


def test_the_import_of_an_app_compiles_few_texts():
    hook = "lambda event, facts: event == 'compile' and str(facts[1])[:1] == '<' and compiled.append(facts)"
    code = f"import asyncio, sys; compiled = []; sys.addaudithook({hook}); import cjm_worker_ext.manager; print(len(compiled))"
    compiled = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0 < int(compiled) < 45, compiled  # for dataclasses and named tuples; a module is no such text


def test_the_package_offers_its_names_without_loading_them():
    brought = loaded_by("import cjm_worker_ext; dir(cjm_worker_ext)")
    assert {name for name in brought if name.startswith("cjm_worker_ext")} == {"cjm_worker_ext"}


def test_what_needs_no_extra_loads_none_and_a_worker_loads_opentelemetry_with_the_first_trace():
    modules = ("broadcasters", "health", "metrics_state", "tracing_worker")
    brought = loaded_by(f"import {', '.join(f'cjm_worker_ext.integrations.{name}' for name in modules)}")
    assert not {name.partition(".")[0] for name in brought} & HEAVY
    brought = loaded_by("import cjm_worker_ext.integrations.tracing_worker")
    assert not {"asyncio", "typing", "cjm_worker_ext.manager"} & brought
