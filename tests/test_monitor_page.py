"""The monitor page as people use it: `cjm-worker-serve` and headless Chromium."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
OPTIONS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
SECONDS = 30_000  # milliseconds that the page may take for anything


class Serve:
    "The command, as a process of its own."

    def __init__(self, folder, port=0, log=None):
        script = Path(__file__).with_name("serve_command.py")
        command = [sys.executable, script, "--port", str(port), "--folder", str(folder), "--workers", "2"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log or subprocess.DEVNULL, text=True, start_new_session=True,
            env={**os.environ, "CJM_WORKER_SERVE_SECRET": "s3cret"},  # a page stays open when the server restarts
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # under nohup it would be ignored
        )  # fmt: skip
        line = self.process.stdout.readline()
        self.port = int(re.search(r"127\.0\.0\.1:(\d+)", line)[1])
        self.url = line.split()[0]  # with the secret
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)

    def workers(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(120)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for n in range(20):
        (folder / f"{n}.txt").write_text("to yield or not to yield\n" * 50)
    return folder


@pytest.fixture
def serve(folder):
    servers = []

    def start(port=0):
        servers.append(Serve(folder, port))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{o}" for o in OPTIONS.split()])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    "Open a page; at the end of the test nothing may have broken the policy or failed in its script."
    contexts, complaints = [], []

    def listen(message):
        if message.type == "error" and "ERR_" not in message.text:  # a server that is down is no mistake of the page
            complaints.append(message.text)

    def open_page(url, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("console", listen)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.goto(url)
        expect(page.locator("#connection")).to_have_text("Live", timeout=SECONDS)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def card(page, plugin, status=None):
    found = page.locator("#jobs > .job").filter(has=page.locator("h3", has_text=re.compile(f"^{plugin}$")))
    return found.and_(page.locator(f'[data-status="{status}"]')) if status else found


def start(page, plugin, **fields):
    page.get_by_label("Plugin").select_option(plugin)
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Start", exact=True).click()


def test_jobs_live(serve, visit):
    page = visit(serve().url)
    slow = card(page, "slow", "running")
    expect(slow.locator("pre[data-field=text]")).to_contain_text("\n", timeout=SECONDS)
    before = slow.locator("progress").get_attribute("value")
    page.wait_for_function(
        "before => document.querySelector('#jobs progress:not([hidden])').value > before", arg=float(before or 0)
    )
    expect(card(page, "count words", "completed")).to_be_visible(timeout=SECONDS)
    expect(card(page, "count words").locator("pre[data-field=text]")).to_contain_text(
        "words in 1,000 lines of 20 files"
    )
    expect(card(page, "search", "completed").locator("pre[data-field=text]")).to_contain_text("to yield or not")
    expect(page.locator("#workers .worker[data-status=running] [data-field=memory]").first).to_contain_text(
        "MB", timeout=SECONDS
    )
    page.wait_for_function("() => document.querySelector('#workers polyline').points.length > 1", timeout=SECONDS)


def test_a_crash_is_explained(serve, visit):
    page = visit(serve().url)
    crash = card(page, "crash", "failed")
    expect(crash.locator("[data-field=error]")).to_contain_text("killed by SIGKILL", timeout=SECONDS)
    crash.get_by_role("button", name=re.compile("^Retry crash")).click()
    expect(card(page, "crash", "failed")).to_have_count(2, timeout=SECONDS)
    start(page, "count words", Folder_or_file="/nowhere/<b>x</b>")
    failed = card(page, "count words", "failed")
    expect(failed.locator("[data-field=error]")).to_contain_text("no text at '/nowhere/<b>x</b>'", timeout=SECONDS)
    assert page.locator("#jobs b").count() == 0
    failed.locator("summary").click()
    expect(failed.locator("[data-part=traceback] pre")).to_contain_text("in texts_at", timeout=SECONDS)
    done = card(page, "count words", "completed")
    done.locator("summary").click()
    expect(done.locator("[data-part=output] pre")).to_contain_text("20 text files at", timeout=SECONDS)


def test_cancel_reload_and_two_tabs(serve, visit):
    url = serve().url
    page, other = visit(url), visit(url)
    expect(card(other, "slow", "running")).to_be_visible(timeout=SECONDS)
    page.get_by_role("button", name=re.compile("^Cancel slow")).click()
    for tab in (page, other):
        expect(card(tab, "slow", "cancelled")).to_be_visible(timeout=SECONDS)
    kept = card(page, "slow", "cancelled").locator("pre[data-field=text]").text_content()
    page.reload()
    assert card(page, "slow", "cancelled").locator("pre[data-field=text]").text_content().startswith(kept[:20])
    expect(page.locator("#connection")).to_have_text("Live", timeout=SECONDS)


def test_upload(serve, visit):
    page = visit(serve().url)
    page.get_by_label("or a text from here").set_input_files(
        {"name": "a.txt", "mimeType": "text/plain", "buffer": b"a\n<i>needle</i>\n"}
    )
    start(page, "search", Search_for="needle")
    found = card(page, "search").filter(has_text="2: <i>needle</i>")
    expect(found).to_be_visible(timeout=SECONDS)


def test_a_restart_of_the_server(serve, visit):
    server = serve()
    page = visit(server.url)
    old = page.locator("#jobs > .job").first.get_attribute("data-job")
    server.kill()
    expect(page.locator("#connection")).to_contain_text("Disconnected", timeout=SECONDS)
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    serve(server.port)
    expect(page.locator("#connection")).to_have_text("Live", timeout=SECONDS)
    expect(page.locator(f'[data-job="{old}"]')).to_have_count(0, timeout=SECONDS)
    page.get_by_role("button", name=re.compile("^Cancel slow")).click()  # with the new server's token
    expect(card(page, "slow", "cancelled")).to_be_visible(timeout=SECONDS)


def test_keyboard(serve, visit):
    page = visit(serve().url)
    page.get_by_role("button", name=re.compile("^Cancel slow")).focus()
    page.keyboard.press("Enter")
    expect(card(page, "slow", "cancelled")).to_be_visible(timeout=SECONDS)
    assert page.evaluate("document.activeElement.closest('.job').dataset.status") == "cancelled", "the focus is lost"
    expect(card(page, "slow").get_by_role("button", name=re.compile("^Retry"))).to_be_visible(timeout=SECONDS)
    page.keyboard.press("Tab")  # to the retry button, then to the details
    assert page.evaluate("document.activeElement.textContent") == "Retry"
    while page.evaluate("document.activeElement.tagName") != "SUMMARY":
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(card(page, "slow").locator("details")).to_have_attribute("open", "")


@pytest.mark.parametrize("dark", [False, True])
def test_phone(serve, visit, dark):
    page = visit(serve().url, viewport={"width": 360, "height": 740}, color_scheme="dark" if dark else "light")
    expect(card(page, "crash", "failed")).to_be_visible(timeout=SECONDS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    red, *_ = map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert (red < 60) is dark


def test_the_policy_stops_what_is_inline(serve, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto(serve().url)
    with page.expect_console_message(lambda m: "Content Security Policy" in m.text):
        page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.bad = 1'}))")
    assert page.evaluate("window.bad") is None
    context.close()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_end_of_the_command(serve, visit, kind):
    server = serve()
    page = visit(server.url)
    expect(card(page, "slow", "running")).to_be_visible(timeout=SECONDS)
    workers = server.workers()
    assert workers
    server.process.send_signal(kind)
    server.process.wait(120)  # an open stream would keep it for ever
    gone, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive


HIDE = """hidden => {
  Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });
  Object.defineProperty(document, 'visibilityState', { configurable: true, get: () => (hidden ? 'hidden' : 'visible') });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def test_more_tabs_than_a_browser_has_connections(serve, browser):
    """Browsers open six connections to a server of HTTP/1.1. A hidden tab keeps none, and is up to date when it is seen again."""
    url = serve().url
    context = browser.new_context()
    context.set_default_timeout(SECONDS)
    try:
        tabs = []
        for _ in range(8):
            tabs.append(tab := context.new_page())
            tab.goto(url)
            expect(tab.locator("#connection")).to_have_text("Live", timeout=SECONDS)
            tab.evaluate(HIDE, True)
        first, last = tabs[0], tabs[-1]
        last.evaluate(HIDE, False)
        expect(last.locator("#connection")).to_have_text("Live", timeout=SECONDS)
        last.get_by_role("button", name=re.compile("^Cancel slow")).click()
        expect(card(last, "slow", "cancelled")).to_be_visible(timeout=SECONDS)
        first.evaluate(HIDE, False)
        expect(first.locator("#connection")).to_have_text("Live", timeout=SECONDS)
        expect(card(first, "slow", "cancelled")).to_be_visible(timeout=SECONDS)
        retry = first.get_by_role("button", name=re.compile("^Retry slow"))
        expect(retry).to_be_enabled()
        retry.click()  # and from here on it is live again
        expect(card(first, "slow", "running")).to_be_visible(timeout=SECONDS)
    finally:
        context.close()


def test_a_tab_that_opens_in_the_background_waits(serve, browser):
    "It opens its stream when it is first seen."
    server = serve()
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
    try:
        page = context.new_page()
        streams = []
        page.on("request", lambda request: streams.append(request.url) if request.url.endswith("/events") else None)
        page.goto(server.url)
        page.wait_for_load_state("load")
        page.wait_for_function("document.querySelectorAll('#jobs > .job').length > 0")
        page.evaluate("() => new Promise((done) => setTimeout(done, 0))")
        assert streams == []
        page.evaluate(HIDE, False)
        expect(page.locator("#connection")).to_have_text("Live", timeout=SECONDS)
        assert len(streams) == 1
    finally:
        context.close()
