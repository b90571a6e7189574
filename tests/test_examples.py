"""The example apps, as their users start them: a story is told, and the page shows it."""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name: str) -> None:
    "Start an example, tell a story, look at the page, stop it with one signal."
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "uvicorn", f"{name}:app", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True, timeout=60) as client:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    assert "Tell" in client.get("/").text
                    break
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            answer = client.post("/", data={"story": "There <was> a king"})
            assert re.search(r"<h1>Jobs</h1>", answer.text), answer.text
            assets = re.findall(r'(?:href|src)="(assets/[^"]+)"', answer.text)
            kinds = [client.get(f"/jobs/{asset}").raise_for_status().headers["content-type"] for asset in assets]
            assert [kind.partition(";")[0] for kind in kinds] == ["text/css", "text/javascript"]
            while "There &lt;was&gt; a king </pre>" not in (text := client.get("/jobs/").text):
                assert time.monotonic() < deadline, text
                time.sleep(0.1)
        began = time.monotonic()
        server.send_signal(signal.SIGINT)
        server.wait(30)
        assert time.monotonic() - began < 5
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


@pytest.mark.parametrize("name", ["starlette_app", "fasthtml_app"])
def test_example(name):
    source = EXAMPLES / f"{name}.py"
    assert len(source.read_text().splitlines()) < 60
    if name == "fasthtml_app" and not importlib.util.find_spec("fasthtml"):
        pytest.skip("FastHTML wants fastcore 2; .ci/run runs this example in an environment with the newest")
    run_example(name)


if __name__ == "__main__":  # without pytest, from .ci/with_newest.py
    run_example("fasthtml_app")
