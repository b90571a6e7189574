#!/usr/bin/env python3
"""In an environment with the wheel and no extra: the core works, each integration and each command names its extra."""

import asyncio
import importlib
import re
import subprocess
import sys

integrations = {"registry": "registry", "resources": "resources", "sse": "sse", "monitor": "monitor"}
integrations |= {"channel_redis": "redis", "channel_postgres": "postgres", "metrics": "metrics", "tracing": "metrics"}
modules = {**{f"integrations.{name}": extra for name, extra in integrations.items()}, "stores.postgres": "postgres"}
without = ("broadcasters", "health", "metrics_state", "tracing_worker", "channel_sqlite")  # They need no extra
commands = {"demo": "demo", "check": "demo", "plugins": "demo,registry", "serve": "monitor"}


def double(x):
    return 2 * x


async def core():
    from cjm_worker_ext import BaseJobManager

    async with BaseJobManager("check", "check", plugins={"double": double}) as manager:
        job = await manager.start_job("double", x=21)
        job = await manager.wait(job.id, timeout=60)
        assert (job.status, job.result) == ("completed", 42), job


def main():
    for name, extra in modules.items():
        try:
            importlib.import_module(f"cjm_worker_ext.{name}")
        except ImportError as e:
            assert f"pip install 'cjm-worker-ext[{extra}]'" in str(e), f"{name}: {e}"
        else:
            raise AssertionError(f"{name} can be imported without its extra: is its dependency installed?")
    for name in without:
        importlib.import_module(f"cjm_worker_ext.integrations.{name}")
    for name, extra in commands.items():
        code = f"import sys; from cjm_worker_ext.commands.terminal import {name}; sys.exit({name}())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        line = rf"the command cjm-worker-{name} needs \w+: pip install 'cjm-worker-ext\[{extra}\]'\n"
        assert done.returncode == 2 and re.fullmatch(line, done.stderr), f"cjm-worker-{name}: {done.stderr}"
    try:
        importlib.import_module("cjm_worker_ext.backends.ray").RayBackend()
    except ImportError as e:
        assert "pip install 'cjm-worker-ext[ray]'" in str(e), e
    else:
        raise AssertionError("RayBackend works without its extra: is Ray installed?")
    asyncio.run(core())


if __name__ == "__main__":
    sys.exit(main())
