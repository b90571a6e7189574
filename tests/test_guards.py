"""The FastHTML apps of two pages: strangers are sent to the login page everywhere, and a refusal has its status."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

from cjm_worker_ext import BaseJobManager

NEWEST = "FastHTML wants fastcore 2; .ci/run runs this in an environment with the newest"
pages = Path(__file__).parent.parent / "nbs" / "howto"


def cells_of(page: str) -> list:
    return json.loads((pages / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]


def program(page: str) -> str:
    "The Python block of the page that uses FastHTML."
    cells = cells_of(page)
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S) if "fasthtml" in b]
    return block


def test_the_fasthtml_app_of_the_page():
    pytest.importorskip("fasthtml", reason=NEWEST)
    space: dict = {}
    exec(compile(program("guard_mounted_apps"), "guard_mounted_apps", "exec"), space)
    paths = ("/", "/jobs/", "/jobs/state", "/jobs/events", "/jobs/assets/monitor-js", "/events/")

    async def main():
        transport = httpx.ASGITransport(space["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in paths:
                answer = await client.get(path)
                assert (path, answer.status_code, answer.headers["location"]) == (path, 303, "/login")
            await client.get("/login")
            for path in paths[:3]:
                assert (path, (await client.get(path)).status_code) == (path, 200)

    asyncio.run(main())


def test_fasthtml_answers_a_refusal_with_its_status(tmp_path, monkeypatch):
    pytest.importorskip("fasthtml", reason=NEWEST)
    monkeypatch.chdir(tmp_path)  # FastHTML writes the key of its sessions there
    table = next("".join(c["source"]) for c in cells_of("refusals_as_statuses") if c["cell_type"] == "code")
    space: dict = {"manager": BaseJobManager("text")}
    exec(compile(f"{table}\n{program('refusals_as_statuses')}", "refusals_as_statuses", "exec"), space)

    async def main():
        transport = httpx.ASGITransport(space["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get("/jobs/j1")
            assert answer.status_code == 404 and answer.json()["error"].startswith("job 'j1': not known")

    asyncio.run(main())
