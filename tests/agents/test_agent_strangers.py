"""Those whom an agent refuses: they are told why, the log says it once, and the agent goes on."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys

import pytest
from agent_process import TOKEN, AgentProcess
from backend_scenes import ended, maker
from harness import run, until, until_now
from remote_scenes import a_loop_that_stands_still_costs_no_worker, manager_on

from cjm_worker_ext import WorkerConfig
from cjm_worker_ext.backends import agent_protocol
from cjm_worker_ext.backends.hosts import HostsBackend


def manager_of(*hosts, token=TOKEN, config=None, **options):
    return maker(HostsBackend(list(hosts), token=token, **options))("add", config=config)


async def works(*hosts, **options):
    async with manager_of(*hosts, **options) as manager:
        assert (await ended(manager, "add", a=1)).result == 2


async def refused(*hosts, **options) -> str:
    "Why no job runs."
    async with manager_of(*hosts, **options) as manager:
        job = await ended(manager, "add", a=1)
        assert (job.status, job.error_type) == ("failed", "WorkersExhausted"), job
        return job.error


@pytest.mark.parametrize(("agents", "managers", "why"), [
    (TOKEN, "wrong", "the token is missing or wrong"),
    (TOKEN, "", "the token is missing or wrong"),
    ("", TOKEN, "the agent has no token; start it with one"),
])  # fmt: skip
def test_a_wrong_token(agents, managers, why):
    with AgentProcess(token=agents) as agent:
        for _ in range(2):
            assert why in run(refused(agent.host, token=managers))
        run(works(agent.host, token=agents))
        assert agent.stop().count(why) == 1


def test_another_python_or_release(monkeypatch):
    with AgentProcess() as agent:
        own = agent_protocol.own_versions()
        for name, words in [
            ("python", "the manager has Python 2.7, the agent has"),
            ("package", "has cjm-worker-ext 2.7"),
        ]:
            monkeypatch.setattr(agent_protocol, "own_versions", lambda name=name: own | {name: "2.7"})
            assert words in run(refused(agent.host))
        monkeypatch.undo()
        run(works(agent.host))


def test_an_interpreter_that_is_not_there():
    with AgentProcess() as agent:
        why = run(refused(agent.host, config=WorkerConfig(python="/no/such/python")))
        assert f"{agent.host}: cannot start /no/such/python" in why, why


def test_the_token_is_not_in_the_environment_of_workers():
    async def scene(host):
        async with maker(HostsBackend([host], token=TOKEN))(get="os:getenv") as manager:
            assert (await ended(manager, "get", key="CJM_WORKER_AGENT_TOKEN")).result is None

    with AgentProcess() as agent:
        run(scene(agent.host))


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01" + os.urandom(300), b"{}\n", b"[" * 20_000]
)
def test_bytes_of_a_port_scanner(data):
    with AgentProcess() as agent:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", agent.port), 20) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                try:
                    while sock.recv(1 << 16):
                        pass
                except ConnectionResetError:
                    pass
        run(works(agent.host))
        assert agent.stop().count("refused a connection: ") <= 2


def test_a_thousand_half_open_connections():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with AgentProcess() as agent:
        socks = [socket.create_connection(("127.0.0.1", agent.port), 20) for _ in range(1000)]
        try:
            run(works(agent.host))
            held = f"/proc/{agent.process.pid}/fd"
            until_now(lambda: len(os.listdir(held)) < 200, what="the end of the oldest connections")
        finally:
            for sock in socks:
                sock.close()
        run(works(agent.host))
        log = agent.stop()
        assert log.count("too many connections that do not say who they are") == 1, log


def test_a_connection_that_says_nothing_is_closed():
    from cjm_worker_ext.backends.agent import Agent, listen_on

    async def scene():
        listener = listen_on("127.0.0.1", 0)
        serving = asyncio.create_task(Agent("secret", handshake_seconds=0.1).serve(listener))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert b'"agent"' in await reader.readline()
        assert await reader.read() == b""
        writer.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    run(scene())


@pytest.mark.parametrize(("token", "why"), [("", "there is no token"), ("hello", "5 characters are too few")])
def test_without_a_token_it_listens_on_this_machine_only(token, why):
    command = [
        sys.executable,
        "-c",
        "import sys; from cjm_worker_ext.commands.terminal import agent; sys.exit(agent())",
    ]
    env = {**os.environ, "CJM_WORKER_AGENT_TOKEN": token}
    options = {"env": env, "capture_output": True, "text": True, "timeout": 60, "check": False}
    done = subprocess.run([*command, "--listen", "0.0.0.0:0"], **options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("cjm-worker-agent: ") and why in done.stderr
    with AgentProcess(token=token) as agent:
        run(works(agent.host, token=token))
        assert agent.stop().count("WARNING: ") == 1


# ---------------------------------------------------------------- TLS
@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    "Two authorities, and a certificate of the first for 127.0.0.1."
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=120)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ours", "theirs"):
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip  # Python 3.13 asks for it
    for name in ("agent", "manager"):
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-CA", "ours.pem",
                "-CAkey", "ours.key", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE")  # fmt: skip
    return folder


def client_tls(authority):
    return ssl.create_default_context(cafile=str(authority))


def test_tls(certificates):
    options = ["--tls-certificate", str(certificates / "agent.pem"), "--tls-key", str(certificates / "agent.key")]
    with AgentProcess(*options) as agent:
        ours = client_tls(certificates / "ours.pem")
        run(works(agent.host, tls=ours))
        run(large(agent.host, ours))
        why = run(refused(agent.host, tls=client_tls(certificates / "theirs.pem")))
        assert "TLS: " in why and "certificate" in why, why
        run(works(agent.host, tls=ours))
        why = run(refused(agent.host))  # which ends at once, and not with `start_timeout_seconds`
        assert "the agent wants TLS; give the backend `tls`" in why, why
        assert agent.stop().count("a manager without TLS, and this agent wants TLS") == 1
    with AgentProcess() as agent:
        why = run(refused(agent.host, tls=ours))
        assert "TLS: " in why and "the agent has no TLS: start it with --tls-certificate" in why, why


def test_tls_goes_on_while_the_loop_of_the_app_stands_still(certificates, tmp_path):
    options = ["--tls-certificate", str(certificates / "agent.pem"), "--tls-key", str(certificates / "agent.key")]
    times = {"ping_seconds": 0.1, "lease_seconds": 1.0, "lost_seconds": 1.6}
    with AgentProcess(*options) as agent:
        backend = HostsBackend([agent.host], token=TOKEN, tls=client_tls(certificates / "ours.pem"), **times)
        run(a_loop_that_stands_still_costs_no_worker(manager_on(backend), tmp_path))


async def large(host, tls):
    "Results that are larger than any buffer, and a cancel while one is on its way."
    async with maker(HostsBackend([host], token=TOKEN, tls=tls))("array", "endless") as manager:
        made = (await ended(manager, "array", n=1_000_000)).result
        assert made["array"][-1] == 999_999
        job = await manager.start_job("endless")
        async for n in manager.stream(job.id):
            if n == 1000:
                break
        assert await manager.cancel_job(job.id)


def test_managers_may_need_a_certificate_too(certificates):
    options = [f"--tls-{name}={certificates / file}" for name, file in (
        ("certificate", "agent.pem"), ("key", "agent.key"), ("clients", "ours.pem"))]  # fmt: skip
    with AgentProcess(*options) as agent:
        authority = certificates / "ours.pem"
        mine = client_tls(authority)
        mine.load_cert_chain(certificates / "manager.pem", certificates / "manager.key")
        run(works(agent.host, tls=mine))
        run(waits_for_a_certificate(agent.host, client_tls(authority)))
        run(works(agent.host, tls=mine))


async def waits_for_a_certificate(host, tls):
    "The agent ends the connection without a word that the manager could see."
    backend = HostsBackend([host], token=TOKEN, tls=tls)
    async with maker(backend)("add") as manager:
        job = await manager.start_job("add", a=1)
        await until(lambda: "certificate" in backend.nodes()[0].why, what="the reason")
        assert job.status == "pending"
