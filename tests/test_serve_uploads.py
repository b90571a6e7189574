"""What `cjm-worker-serve` stores, what it leaves behind, and for whom it answers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

addresses: dict[subprocess.Popen, str] = {}


@pytest.fixture
def start(tmp_path):
    "Starts the command; returns it and its folder for uploads."
    servers = []
    (tmp_path / "texts").mkdir()

    def start():
        before = set(tmp_path.glob("cjm-worker-serve-*"))
        script = str(Path(__file__).with_name("serve_command.py"))
        process = subprocess.Popen(
            [sys.executable, script, "--port", "0", "--folder", str(tmp_path / "texts"), "--workers", "1"],
            stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        servers.append(process)
        addresses[process] = process.stdout.readline().split()[0]
        (folder,) = set(tmp_path.glob("cjm-worker-serve-*")) - before
        return process, folder

    yield start
    for process in servers:
        process.kill()
        process.wait(120)
        process.stdout.close()


def test_a_killed_server_leaves_nothing_for_long(start):
    """The next server removes what it left; no server removes what another one uses."""
    living, in_use = start()
    killed, left = start()
    (left / "upload.txt").write_text("text")
    killed.kill()
    killed.wait(120)
    assert left.exists()
    last, own = start()
    assert not left.exists() and in_use.exists()
    for process in (last, living):
        process.send_signal(signal.SIGINT)
        process.wait(120)
    assert not own.exists() and not in_use.exists()


def test_without_the_secret_nothing_is_answered(start):
    """Not even another user of this machine, who can connect to the port, gets anything; each server has its own secret."""
    (one, _), (two, _) = start(), start()
    plain = addresses[one].partition("?")[0]
    with httpx.Client(timeout=120) as stranger:
        for path in (
            "",
            "state",
            "events",
            "job?worker_type=demo&job_id=x",
            "assets/monitor-js",
            "?secret=",
            "?secret=x",
        ):
            assert (path, stranger.get(plain + path).status_code) == (path, 403)
        assert stranger.post(plain + "start", data={"plugin": "search", "path": "/etc"}).status_code == 403
        wrong = plain + "?" + addresses[two].partition("?")[2]
        assert stranger.get(wrong).status_code == 403
    with httpx.Client(timeout=120, follow_redirects=True) as owner:
        page = owner.get(addresses[one])
        assert (page.status_code, str(page.url)) == (200, plain)
        assert owner.get(plain + "state").status_code == 200
    command = Path(f"/proc/{one.pid}/cmdline").read_bytes()
    assert addresses[one].partition("secret=")[2].encode() not in command


@pytest.mark.parametrize("origin", ["", "http://evil.example", "http://["])
@pytest.mark.parametrize("tells_its_length", [True, False])
def test_an_upload_is_refused_before_it_is_stored(start, tmp_path, origin, tells_its_length):
    server, folder = start()
    start_of_form = b'--x\r\nContent-Disposition: form-data; name="text"; filename="a.txt"\r\n\r\n'
    size = 128 << 20

    def body():
        yield start_of_form
        for _ in range(size >> 20):
            yield bytes(1 << 20)
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"} | ({"origin": origin} if origin else {})
    if tells_its_length:
        headers["content-length"] = str(len(start_of_form) + size + 9)
    with httpx.Client(timeout=120, follow_redirects=True) as client:
        client.get(addresses[server])
        before = psutil.Process(server.pid).memory_info().rss
        try:
            answer = client.post(addresses[server].partition("?")[0] + "start", content=body(), headers=headers)
            assert answer.status_code == (403 if origin else 413)
        except httpx.TransportError:  # the server has closed the connection while the client still sends
            pass
        assert client.get(addresses[server]).status_code == 200
    assert list(folder.iterdir()) == []
    assert psutil.Process(server.pid).memory_info().rss - before < size // 2, "the server has kept what it refused"
