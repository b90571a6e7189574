"""Workers on other machines on the monitor page, in headless Chromium; the machines are agents here, with look-alike cards."""

# ruff: noqa: F811  # fixtures are imported by name
import os
import re
import urllib.request
from pathlib import Path

import pytest
from agent_process import TOKEN, AgentProcess
from test_agent_cards import cards  # noqa: F401
from test_monitor_page import SECONDS, browser, expect, pytestmark, visit  # noqa: F401
from test_sse import Server


@pytest.fixture
def agents(cards):
    "One with two cards, and one that takes no worker."
    with AgentProcess("--gpus", "all") as one, AgentProcess("--workers", "1") as other:
        yield one, other


@pytest.fixture
def server(agents, tmp_path, monkeypatch):
    monkeypatch.setenv("CJM_WORKER_AGENT_TOKEN", TOKEN)
    hosts = " ".join(agent.host for agent in agents)
    here = str(Path(__file__).parent)
    server = Server(app="monitor_nodes_app:app", log=tmp_path / "server.log", AGENTS=hosts, PYTHONPATH=here)
    yield server
    server.stop()


def test_machines_cards_and_workers_have_their_figures(agents, server, visit):
    one, other = agents
    page = visit(server.url + "/jobs/")
    lines = page.locator("#nodes > li")
    expect(lines.nth(0)).to_contain_text(f"up{one.host}2 of 2 workers; 2 of 2 cards in use; load ", timeout=SECONDS)
    expect(lines.nth(1)).to_contain_text(f"up{other.host}1 of 1 workers; load ", timeout=SECONDS)
    text = re.compile(rf"load \d+\.\d on {os.cpu_count()} processors; \d+\.\d of \d+\.\d GiB free$")
    expect(lines.nth(1)).to_have_text(text, timeout=SECONDS)
    assert 0 < lines.nth(0).locator("meter").evaluate("meter => meter.value") < 1
    gpus = [f"{one.host} GPU {n}Look <b>alike</b>, 20.0 of 80.0 GiB free" for n in (0, 1)]
    expect(page.locator("#gpus > li")).to_have_text(gpus, timeout=SECONDS)
    for device in (f"{one.host} GPU 0", f"{one.host} GPU 1", other.host):
        worker = page.locator("#workers > li").filter(has=page.locator("[data-field=device]", has_text=device))
        expect(worker.locator("[data-field=memory]")).to_have_text(re.compile(r"\d+ MB"), timeout=SECONDS)
        expect(worker.locator("[data-field=cpu]")).to_have_text(re.compile(r"\d+ %"), timeout=SECONDS)


def test_the_page_says_why_a_job_waits_and_how_a_machine_is(agents, server, visit):
    one, other = agents
    page = visit(server.url + "/jobs/")
    pending = page.locator("#jobs > [data-status=pending] [data-field=message]")
    expect(page.locator("#workers > li")).to_have_count(3, timeout=SECONDS)
    expect(page.locator("#jobs > [data-status=pending]")).to_have_count(1, timeout=SECONDS)
    expect(pending).to_be_hidden(timeout=SECONDS)  # as many workers run as the manager may have
    other.kill()
    down = page.locator("#nodes > li").nth(1)
    expect(down).to_have_text(re.compile("^down" + other.host), timeout=SECONDS)
    expect(down.locator("meter")).to_have_count(0, timeout=SECONDS)
    why = f"no machine has room: {one.host}: no card is free, 2 of 2 are in use; {other.host}: "
    expect(pending).to_contain_text(why, timeout=SECONDS)
    another = visit(server.url + "/jobs/")
    expect(another.locator("#jobs > [data-status=pending] [data-field=message]")).to_contain_text(why, timeout=SECONDS)
    urllib.request.urlopen(f"{server.url}/drain/{one.host}").read()
    expect(page.locator("#nodes > li").nth(0)).to_contain_text(f"draining{one.host}it is drained", timeout=SECONDS)
    other.start()
    expect(page.locator("#nodes > li").nth(1)).to_contain_text("up", timeout=SECONDS)
    expect(page.locator("#workers > li [data-field=device]").filter(has_text=other.host)).to_have_count(
        1, timeout=SECONDS
    )
