"""Who may use the monitor page and `cjm-worker-serve`: forged hosts, other sites and other machines, over real HTTP."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlencode

import psutil
import pytest
from test_sse import Server

PATHS = ("/", "/state", "/events", "/job", "/history", "/assets/monitor-js")
FORWARDED = (
    {"X-Forwarded-For": "203.0.113.7"},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-Host": "localhost"},
    {"Forwarded": "for=127.0.0.1;host=localhost"},
    {"X-Real-IP": "127.0.0.1"},
    {"Via": "1.1 proxy"},
)


class Site:
    "One mounted page of a server, asked with any headers."

    def __init__(self, port, mount, **always):
        self.port, self.mount, self.always = port, mount, always

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def ask(self, path, body=None, headers=None):
        "The status and the beginning of the text; no header comes by itself, so also `Host` can be forged."
        with contextlib.closing(self.connect()) as connection:
            connection.putrequest("GET" if body is None else "POST", self.mount + path, skip_host=True)
            given = {"Host": f"localhost:{self.port}", **self.always, **(headers or {})}
            if body is not None:
                given |= {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(body))}
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read1(1 << 20).decode()

    def jobs(self, **headers):
        status, text = self.ask("/state", headers=headers)
        assert status == 200, text
        return json.loads(text)["jobs"]

    def post(self, action="cancel", token=None, **headers):
        text = self.ask("/")[1]
        (job, *_) = self.jobs()
        token = token or re.search(r'name="token" value="([^"]+)"', text)[1]
        fields = {"worker_type": "text", "job_id": job["job_id"], "token": token}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask(f"/{action}", urlencode(fields).encode(), {"Accept": "application/json", **names})


class SiteOfSocket(Site):
    "The same over a Unix socket, as behind a proxy."

    def connect(self):
        connection = super().connect()
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.port)
        return connection


@pytest.fixture
def server(tmp_path, request):
    server = Server(*getattr(request, "param", ()), app="monitor_open_app:app", log=tmp_path / "server.log")
    yield server
    server.stop()


def test_a_foreign_host_name_gets_nothing(server):
    """DNS rebinding: the browser thinks that the page belongs to the other site, so the site could read it."""
    site = Site(server.port, "/jobs")
    for host in ("evil.example", f"evil.example:{server.port}", "localhost.evil.example", "localhost@evil.example", ""):
        for path in PATHS:
            assert (host, path, site.ask(path, headers={"Host": host})[0]) == (host, path, 403)
        status, text = site.post(Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin")
        assert (host, status) == (host, 403), text
    for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]", "192.0.2.1"):
        assert (host, site.ask("/", headers={"Host": host})[0]) == (host, 200)
    assert site.jobs()[0]["status"] in ("pending", "running")


def test_an_open_event_stream_gives_a_foreign_host_name_nothing(server):
    """The same for a stream of the app: events hold ids, progress and messages of all users."""
    stream = Site(server.port, "/events")
    assert server.log.read_text().count("ANYBODY WHO REACHES THESE EVENTS SEES ALL JOBS") == 0
    for host in ("evil.example", f"evil.example:{server.port}", "localhost.evil.example", ""):
        status, text = stream.ask("", headers={"Host": host})
        assert (host, status) == (host, 403) and "allowed_hosts" in text, text
    for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]", "192.0.2.1"):
        assert (host, stream.ask("", headers={"Host": host})[0]) == (host, 200)
    assert stream.ask("", headers=FORWARDED[0])[0] == stream.ask("", headers=FORWARDED[2])[0] == 200
    log = server.log.read_text()
    assert log.count("ANYBODY WHO REACHES THESE EVENTS SEES ALL JOBS") == log.count("add it to allowed_hosts") == 1


def test_the_stream_of_a_page_with_a_login_answers_to_the_names_of_that_page(server):
    page = Site(server.port, "/login", Cookie="session=secret-of-ann")
    asked = {host: page.ask("/events", headers={"Host": host})[0] for host in ("jobs.example", "evil.example")}
    assert asked == {"jobs.example": 200, "evil.example": 403}, "the broadcaster itself is open, and its page is not"


def test_another_site_changes_nothing(server):
    """Cross-site request forgery: the browser of somebody on this machine, sent by another site."""
    ours = f"http://localhost:{server.port}"
    for site in (Site(server.port, "/jobs"), Site(server.port, "/login", Cookie="session=secret-of-ann")):
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": f"http://localhost:{server.port + 1}"},
            {"Origin": f"http://localhost.evil.example:{server.port}"},
            {"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site"},
            {"Origin": ours, "Sec_Fetch_Site": "same-site"},
            {"token": "guess", "Origin": ours},
        ):
            assert (headers, site.post(**headers)[0]) == (headers, 403)
    open_page = Site(server.port, "/jobs")
    assert open_page.post(Origin="http://evil.example", Sec_Fetch_Site="same-origin")[0] == 403  # no browser says this
    assert open_page.post(Host="192.0.2.1")[0] == 403
    assert open_page.jobs()[0]["status"] in ("pending", "running")
    assert open_page.post(Origin=ours, Sec_Fetch_Site="same-origin")[0] == 204
    assert open_page.jobs()[0]["status"] == "cancelled"


@pytest.mark.parametrize("server", [[], ["--no-proxy-headers"], ["--forwarded-allow-ips", "*"]], indirect=True)
def test_other_machines_may_only_read_a_page_without_a_login(server):
    """uvicorn reads forwarded headers or does not, and trusts them or does not: they never make a client local."""
    site = Site(server.port, "/jobs")
    assert site.jobs()[0]["can_cancel"]
    assert server.log.read_text().count("ANYBODY WHO REACHES THIS PAGE SEES ALL JOBS") == 0
    for headers in FORWARDED:
        assert not site.jobs(**headers)[0]["can_cancel"]
        assert "Read only" in site.ask("/", headers=headers)[1]
        for action in ("cancel", "retry"):
            status, text = site.post(action, **headers)
            assert (headers, status, "has no authorize" in text) == (headers, 403, True)
    assert server.log.read_text().count("ANYBODY WHO REACHES THIS PAGE SEES ALL JOBS") == 1
    assert site.jobs()[0]["status"] in ("pending", "running")
    login = Site(server.port, "/login", Cookie="session=secret-of-ann")
    assert login.post(**FORWARDED[0], Host="jobs.example", Origin="https://jobs.example")[0] == 204


def accepts(path):
    "Whether somebody listens there; a server makes the file a moment before."
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


def test_who_comes_through_a_unix_socket_is_no_one_from_here(tmp_path):
    path = str(tmp_path / "s")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "uvicorn", "monitor_open_app:app", "--uds", path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not accepts(path):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        site = SiteOfSocket(path, "/jobs", Host="localhost")
        assert not site.jobs()[0]["can_cancel"]
        assert site.post()[0] == 403
        assert SiteOfSocket(path, "/login", Host="localhost", Cookie="session=secret-of-ann").post()[0] == 204
    finally:
        process.terminate()
        process.wait(120)


def test_a_page_with_a_login_answers_to_the_names_of_the_app(server):
    site = Site(server.port, "/login", Cookie="session=secret-of-ann")
    for host, status in {"jobs.example": 200, "a.lan.example:1": 200, "localhost": 200, "lan.example": 403}.items():
        assert (host, site.ask("/", headers={"Host": host})[0]) == (host, status)
    assert site.ask("/", headers={"Host": "jobs.example", "Cookie": "session=guess"})[0] == 403


# ------------------------------------------------------------------------------------------------ cjm-worker-serve
@contextlib.contextmanager
def served(folder, *options, **environment):
    script = str(Path(__file__).with_name("serve_command.py"))
    process = subprocess.Popen(
        [sys.executable, script, "--port", "0", "--folder", str(folder), "--workers", "1", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": str(folder), **environment},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=120)


def test_the_command_listens_on_loopback_and_answers_to_no_foreign_name(tmp_path):
    with served(tmp_path, "--allow-host", "box.example", CJM_WORKER_SERVE_SECRET="s3cret") as process:
        port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
        listening = [c.laddr for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]
        site = Site(port, "", Cookie=f"cjm-worker-serve-{port}=s3cret")
        token = re.search(r'name="token" value="([^"]+)"', site.ask("/")[1])[1]

        def start(**headers):
            fields = urlencode({"plugin": "slow", "token": token}).encode()
            return site.ask("/start", fields, {name.replace("_", "-"): value for name, value in headers.items()})[0]

        for host, status in {"evil.example": 403, "box.example": 200, "localhost": 200, "127.0.0.1": 200}.items():
            assert (host, site.ask("/", headers={"Host": host})[0]) == (host, status)
        before = len(site.jobs())
        assert start(Host="evil.example", Origin="http://evil.example", Sec_Fetch_Site="same-origin") == 403
        assert start(Origin="http://evil.example") == 403
        assert start(Sec_Fetch_Site="cross-site") == 403
        assert start(Cookie="") == 403
        assert len(site.jobs()) == before
        assert start(Origin=f"http://localhost:{port}", Sec_Fetch_Site="same-origin") == 303
        assert start(Host="box.example", Origin="http://box.example") == 303
        assert len(site.jobs()) == before + 2


def test_the_command_takes_no_short_secret_where_others_can_connect(tmp_path):
    with served(tmp_path, "--host", "0.0.0.0", CJM_WORKER_SERVE_SECRET="s3cret") as process:
        out, err = process.communicate(timeout=120)
    assert (out, process.returncode) == ("", 2)
    assert "6 characters are too few where other machines can connect" in err and "Traceback" not in err


# ------------------------------------------------------------------------------------------------ a real browser
class Foreign(BaseHTTPRequestHandler):
    "A page of another site, which posts a form to the monitor at once."

    target = ""

    def do_GET(self):
        page = f"<form method=post action='{self.target}'><input name=token value=x></form>"
        body = (page + "<script>document.forms[0].submit()</script>").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args): ...


def test_a_browser_on_another_site(server):
    """Chromium believes that evil.example leads to this machine, as after DNS rebinding."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("chromium is not installed")
    target = f"http://127.0.0.1:{server.port}/jobs/cancel"
    foreign = ThreadingHTTPServer(("127.0.0.1", 0), type("ForeignOfTest", (Foreign,), {"target": target}))
    Thread(target=foreign.serve_forever, daemon=True).start()
    try:
        with playwright.sync_playwright() as play:
            options = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
            browser = play.chromium.launch(executable_path=chromium, args=options)
            page = browser.new_page()
            answer = page.goto(f"http://evil.example:{server.port}/jobs/", timeout=60_000)
            assert (answer.status, "does not answer to this name" in page.content()) == (403, True)
            with page.expect_response(target, timeout=60_000) as refused:
                page.goto(f"http://evil.example:{foreign.server_address[1]}/", timeout=60_000)
            assert refused.value.status == 403
            assert page.goto(f"http://localhost:{server.port}/jobs/", timeout=60_000).status == 200
            browser.close()
    finally:
        foreign.shutdown()
        foreign.server_close()
