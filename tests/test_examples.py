"""The examples, as their users start them: in a terminal, and in a browser."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@contextlib.contextmanager
def served(name, **environment):
    "Start an example, wait until its page is there, give its address and its process, and stop it with one signal."
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "uvicorn", f"{name}:app", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path, **environment}, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/", timeout=120).raise_for_status()
                break
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)
        server.wait(120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(120)


def run_stories(name: str) -> None:
    "Tell a story, and look at the monitor."
    deadline = time.monotonic() + 120
    with served(name) as address, httpx.Client(base_url=address, follow_redirects=True, timeout=120) as client:
        assert "Tell" in client.get("/").text
        answer = client.post("/", data={"story": "There <was> a king"})
        assert re.search(r"<h1>Jobs</h1>", answer.text), answer.text
        assets = re.findall(r'(?:href|src)="(assets/[^"]+)"', answer.text)
        kinds = [client.get(f"/jobs/{asset}").raise_for_status().headers["content-type"] for asset in assets]
        assert [kind.partition(";")[0] for kind in kinds] == ["text/css", "text/javascript"]
        while "There &lt;was&gt; a king </pre>" not in (text := client.get("/jobs/").text):
            assert time.monotonic() < deadline, text
            time.sleep(0.1)


def run_tokens() -> None:
    "Ask the parrot, without a browser; then stop it in the middle."
    with served("fasthtml_tokens") as address, httpx.Client(base_url=address, timeout=120) as client:
        assert "Tell me a story" in client.get("/").text
        job = client.post("/ask", data={"prompt": "a <b> c"}).json()["job"]
        lines = client.get(f"/tokens/{job}").text.split("\n\n")
        tokens = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert "".join(tokens) == "As you said: a <b> c " and lines[-2] == 'event: end\ndata: "completed"', lines
        job = client.post("/ask", data={"prompt": "word " * 10_000}).json()["job"]
        with client.stream("GET", f"/tokens/{job}") as answer:
            received = answer.iter_lines()
            next(received)
            assert client.post(f"/stop/{job}").json() == {"stopped": True}
            assert list(received)[-3:-1] == ["event: end", 'data: "cancelled"']


FASTHTML = pytest.mark.skipif(
    not importlib.util.find_spec("fasthtml"),
    reason="FastHTML wants fastcore 2; .ci/run runs this example in an environment with the newest",
)


@pytest.mark.parametrize("name", ["starlette_app", pytest.param("fasthtml_app", marks=FASTHTML)])
def test_stories(name):
    run_stories(name)


@FASTHTML
def test_tokens():
    run_tokens()


def test_every_example_is_short():
    for example in EXAMPLES.glob("*.py"):
        assert len(example.read_text(encoding="utf-8").splitlines()) < 80, example


def test_the_page_on_uploads_shows_the_example_as_it_is():
    page = EXAMPLES.parent / "nbs" / "howto" / "upload_fastapi.ipynb"
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    end = next(n for n, source in enumerate(sources) if source.startswith("## A button"))  # the page goes on from here
    shown = [source for cell, source in zip(cells[:end], sources, strict=False) if cell["cell_type"] == "code"]
    example = (EXAMPLES / "fastapi_upload.py").read_text(encoding="utf-8")
    assert [source for source in shown if source not in example] == []
    assert sum(len(source) for source in shown) > 0.9 * len(example)


def test_many_files(tmp_path):
    for n in range(199):
        (tmp_path / f"{n:03}.txt").write_text("to be or not to be\n" * n)
    (tmp_path / "no_text.bin").write_bytes(b"\xff\xfe")
    command = [sys.executable, EXAMPLES / "many_files.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (1, ""), done
    lines = done.stdout.splitlines()
    assert "100%" in lines[0], lines
    assert lines[1] == f"{6 * sum(range(199)):,} words in 199 files"
    assert lines[2].startswith(f"{tmp_path}/no_text.bin: UnicodeDecodeError: ") and len(lines) == 3


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("chromium is not installed")
    options = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[f"--{o}" for o in options.split()])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    context = browser.new_context()
    context.route("**/*", lambda route: route.continue_() if "//127.0.0.1" in route.request.url else route.abort())
    page = context.new_page()
    page.set_default_timeout(120_000)
    yield page
    context.close()


def test_an_upload_in_a_browser(page, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("to be or not to be\n" * 200_000)
    (copies := tmp_path / "copies").mkdir()
    with served("fastapi_upload", TMPDIR=str(copies)) as address:
        page.goto(address)
        shares = page.evaluate_handle("""() => {
          const seen = [], bar = document.querySelector("progress");
          new MutationObserver(() => seen.push(bar.value)).observe(bar, {attributes: true});
          return seen;
        }""")
        page.locator("input").set_input_files(text)
        page.locator("button").click()
        page.get_by_text("1,200,000 words, done").wait_for()
        shares = shares.json_value()
        assert page.locator("progress").evaluate("bar => bar.value") == shares[-1] == 1, shares
        assert all(0 <= share <= 1 for share in shares)
    assert list(copies.iterdir()) == []


@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="onnxruntime has no wheel for this Python")
def test_a_scan_in_a_browser(page, tmp_path):
    image = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageDraw"), pytest.importorskip("PIL.ImageFont")
    scan = image[0].new("L", (700, 120), "white")
    image[1].Draw(scan).text((40, 30), "The ship is due on Friday", font=image[2].load_default(44), fill="black")
    scan.save(tmp_path / "scan.png")
    with served("scan_app") as address:
        page.goto(address)
        page.locator("input").set_input_files(tmp_path / "scan.png")
        page.get_by_text(re.compile("line .*, done")).wait_for()  # the model may take the line for two
        assert "ship" in page.locator("pre").text_content()
        stranger = httpx.get(f"{address}/events")
        assert stranger.status_code == 403, "without the cookie of a page there are no events"


def test_the_tutorial_shows_the_example_as_it_is():
    page = EXAMPLES.parent / "nbs" / "tutorials" / "real_model.ipynb"
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    shown = "\n\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    app = (EXAMPLES / "scan_app.py").read_text(encoding="utf-8").replace('"scan_plugin:ReadText"', "ReadText")
    parts = app[app.index("def user_of") :].split("\n\n\n")
    plugin = (EXAMPLES / "scan_plugin.py").read_text(encoding="utf-8")
    assert [part for part in [*parts, plugin[plugin.index("class ReadText") :]] if part.strip() not in shown] == []


@FASTHTML
def test_tokens_in_a_browser(page):
    with served("fasthtml_tokens") as address:
        page.goto(address)
        page.locator("input").fill("a <b> story")
        page.locator("#ask button").click()
        page.get_by_text("As you said: a <b> story (completed)").wait_for()
        page.locator("input").fill("word " * 10_000)
        page.locator("#ask button").click()
        page.get_by_text("As you said: word word").wait_for()
        page.locator("#stop").click()
        page.get_by_text("word (cancelled)").wait_for()


if __name__ == "__main__":  # without pytest's own environment, from .ci/with_newest.py
    run_stories("fasthtml_app")
    run_tokens()
