"""The FastHTML app of the page "Guard mounted apps": strangers are sent to the login page, everywhere."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

page = Path(__file__).parent.parent / "nbs" / "howto" / "guard_mounted_apps.ipynb"


def program() -> str:
    "The Python block of the page that uses FastHTML."
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S) if "fasthtml" in b]
    return block


def test_the_fasthtml_app_of_the_page():
    pytest.importorskip(
        "fasthtml", reason="FastHTML wants fastcore 2; .ci/run runs this in an environment with the newest"
    )
    space: dict = {}
    exec(compile(program(), "guard_mounted_apps", "exec"), space)
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
