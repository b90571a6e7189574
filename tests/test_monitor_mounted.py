"""The monitor page with several managers, and behind a proxy that strips a prefix, in headless Chromium."""

# ruff: noqa: F811  # fixtures are imported by name
import contextlib
import http.client
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_monitor_page import SECONDS, browser, expect, folder, pytestmark, serve, start, visit  # noqa: F401
from test_sse import Server

PREFIX = "/tools"


class Proxy(BaseHTTPRequestHandler):
    "Passes requests below the prefix on without it, and nothing else, as `proxy_pass http://app/;` of nginx does."

    port = 0
    paths: list[str] = []

    def forward(self):
        self.paths.append(self.path)
        if not self.path.startswith(PREFIX + "/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {**self.headers, "Connection": "close"}
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request(self.command, self.path.removeprefix(PREFIX), body or None, headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()  # HTTP/1.0: the end of the connection is the end of the answer
            while data := answer.read1():
                self.wfile.write(data)
                self.wfile.flush()

    do_GET = do_POST = forward

    def log_message(self, *args): ...


@contextlib.contextmanager
def proxy_of(port, allowed):
    "Start the proxy; at the end every request that came must have begun with `allowed`."
    paths = []
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("ProxyOfTest", (Proxy,), {"port": port, "paths": paths}))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_address[1]}{PREFIX}"
    proxy.shutdown()
    proxy.server_close()
    outside = [path for path in paths if not path.startswith(allowed)]
    assert set(outside) <= {"/favicon.ico"}, outside


@pytest.fixture
def address(tmp_path, request):
    "Of the page; behind the proxy if the parameter, the options of the server, is not None."
    options = request.param or []
    server = Server(*options, app="monitor_app:app", log=tmp_path / "server.log")
    slash = "/" if request.param == [] else ""  # only a server that knows the prefix can send the browser to the slash
    with proxy_of(server.port, PREFIX + "/jobs") as behind:
        yield (server.url if request.param is None else behind) + "/jobs" + slash
        server.stop()


def card(page, worker_type, status):
    return page.locator(f'#jobs > .job[data-worker-type="{worker_type}"][data-status="{status}"]')


def shoot(page, name):
    "Keep a picture for people to look at, if they say where."
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


ADDRESSES = [
    pytest.param(None, id="no proxy"),
    pytest.param([], id="proxy of which the server does not know"),
    pytest.param(["--root-path", PREFIX], id="proxy and root_path"),
]


@pytest.mark.parametrize("address", ADDRESSES, indirect=True)
def test_two_managers_on_one_page(address, visit, request):
    """Every address, live event, button and fetched detail works, and each job stays with its own manager."""
    page = visit(address)
    assert page.url == address.rstrip("/") + "/"
    for worker_type in ("speech", "text"):
        running = card(page, worker_type, "running")
        expect(running.locator("pre[data-field=text]")).to_contain_text("\n", timeout=SECONDS)
        expect(page.locator("#workers .worker").filter(has_text=worker_type)).to_have_count(1, timeout=SECONDS)
        expect(running.locator("[data-field=type]")).to_be_visible()
        expect(running.locator("[data-field=type]")).to_have_text(worker_type)
    expect(card(page, "speech", "pending")).to_have_count(1)
    expect(card(page, "text", "pending")).to_have_count(0)
    shoot(page, "two-managers-" + re.sub(r"\W+", "-", request.node.callspec.id))
    card(page, "text", "running").get_by_role("button", name=re.compile("^Cancel slow")).click()
    expect(card(page, "text", "cancelled")).to_have_count(1, timeout=SECONDS)
    expect(card(page, "speech", "running")).to_have_count(1)
    expect(card(page, "speech", "pending")).to_have_count(1)
    card(page, "text", "cancelled").get_by_role("button", name=re.compile("^Retry slow")).click()
    expect(card(page, "text", "running")).to_have_count(1, timeout=SECONDS)
    ended = card(page, "text", "cancelled")
    ended.locator("summary").click()
    expect(ended.locator("details")).to_contain_text("text", timeout=SECONDS)  # its type, fetched
    page.reload()
    expect(page.locator("#connection")).to_have_text("Live", timeout=SECONDS)
    expect(card(page, "text", "cancelled")).to_have_count(1)


@pytest.mark.parametrize("address", ADDRESSES[:1], indirect=True)
def test_a_job_that_ends_before_the_stream_opens(address, visit, browser):
    """The page was rendered while the job ran, and its stream begins after the job's last event."""
    other = visit(address)
    held = []
    page = browser.new_context().new_page()
    page.route("**/events", lambda route: held.append(route))  # Playwright looks at its signature
    with page.expect_request("**/events"):
        page.goto(address)
    assert card(page, "text", "running").count() == 1
    everything = (("speech", "pending"), ("speech", "running"), ("text", "running"))  # no later event may tell the page
    for count, (worker_type, status) in enumerate(everything, 1):
        card(other, worker_type, status).get_by_role("button", name=re.compile("^Cancel slow")).click()
        expect(other.locator('#jobs > .job[data-status="cancelled"]')).to_have_count(count, timeout=SECONDS)
    assert card(page, "text", "running").count() == 1  # it cannot know
    (route,) = held
    route.continue_()
    expect(page.locator('#jobs > .job[data-status="cancelled"]')).to_have_count(3, timeout=SECONDS)
    page.context.close()


def test_a_job_that_is_tried_again(tmp_path, visit):
    """Its card says so at once: pending while it waits, then running, and which attempt it is."""
    server = Server(app="monitor_retries_app:app", log=tmp_path / "server.log", MONITOR_FOLDER=str(tmp_path))
    page = visit(server.url + "/jobs")

    def of(plugin, status):
        found = page.locator(f'#jobs > .job[data-status="{status}"]')
        return found.filter(has=page.locator("h3", has_text=plugin))

    expect(of("soon", "running").locator("[data-field=when]")).to_have_text(re.compile(r"^[\d.]+ s$"), timeout=SECONDS)
    expect(of("soon", "pending").locator("[data-field=when]")).to_be_hidden()  # it is not due
    expect(of("late", "running")).to_have_count(1, timeout=SECONDS)
    (tmp_path / "late").touch()
    expect(of("late", "pending").locator("[data-field=when]")).to_have_text("attempt 2", timeout=SECONDS)
    (tmp_path / "soon").touch()
    again = re.compile(r"^[\d.]+ s, attempt 2$")
    expect(of("soon", "running").locator("[data-field=when]")).to_have_text(again, timeout=SECONDS)
    page.reload()
    expect(of("soon", "running").locator("[data-field=when]")).to_have_text(again, timeout=SECONDS)
    expect(of("late", "pending").locator("[data-field=when]")).to_have_text("attempt 2", timeout=SECONDS)
    (tmp_path / "soon.2").touch()
    expect(of("soon", "completed").locator("[data-field=when]")).to_have_text(again, timeout=SECONDS)
    server.stop()


def test_a_job_is_started_behind_a_proxy(serve, visit):
    """`cjm-worker-serve` knows of no prefix: the form's address and where it leads are relative."""
    with proxy_of(serve().port, PREFIX + "/") as behind:
        page = visit(behind + "/?secret=s3cret")
        done = page.locator('#jobs > .job[data-status="completed"]').filter(has_text="count words")
        expect(done).to_have_count(1, timeout=SECONDS)
        start(page, "count words")
        expect(done).to_have_count(2, timeout=SECONDS)
        assert page.url == behind + "/"
