"""The history of a store on the monitor page, and its notices about a store or a channel that is away, in headless Chromium."""

# ruff: noqa: F811  # fixtures are imported by name
import re

import pytest
from test_monitor_mounted import shoot
from test_monitor_page import SECONDS, browser, expect, pytestmark, visit  # noqa: F401
from test_sse import Server


@pytest.fixture
def server(tmp_path):
    server = Server(app="monitor_history_app:app", log=tmp_path / "server.log", MONITOR_FOLDER=str(tmp_path))
    yield server
    server.stop()


def ask(page, **fields):
    for label, value in fields.items():
        field = page.get_by_label(re.compile(f"^{label}"))
        (field.select_option if label == "State" else field.fill)(value)
    page.get_by_role("button", name="Show").click()


def test_old_jobs_come_in_parts_with_a_filter_and_run_again(server, visit):
    page = visit(server.url + "/jobs/")
    assert page.locator("#jobs > .job").count() == 0
    page.get_by_role("link", name="History").click()
    jobs = page.locator("#jobs > .job")
    seen = []
    for count in (50, 50, 20):
        expect(jobs).to_have_count(count, timeout=SECONDS)
        seen += jobs.evaluate_all("jobs => jobs.map(job => job.dataset.job)")
        if count == 50:
            shoot(page, f"history-{len(seen)}")
            page.get_by_role("link", name="Older jobs").click()
            page.wait_for_function(
                "first => document.querySelector('#jobs > .job').dataset.job !== first", arg=seen[-50]
            )
    assert len(set(seen)) == 120
    expect(page.get_by_role("link", name="Older jobs")).to_have_count(0)
    page.get_by_role("link", name="Newest jobs").click()
    ask(page, State="failed", Plugin="echo")
    expect(jobs).to_have_count(20, timeout=SECONDS)
    assert page.get_by_label("State").input_value() == "failed"
    assert page.locator("#jobs i, #jobs b").count() == 0
    ask(page, **{"Text in it": "OLD 99"})
    expect(jobs).to_have_count(1, timeout=SECONDS)
    expect(jobs.locator(".error")).to_have_text("ValueError: <i>bad</i> line 99")
    jobs.get_by_role("link", name="echo").click()
    expect(page.locator("pre")).to_contain_text("line 7, in <module>", timeout=SECONDS)
    shoot(page, "history-one")
    page.get_by_role("button", name=re.compile("^Retry echo")).click()
    page.wait_for_url(server.url + "/jobs/")  # it is a live job now
    card = page.locator('#jobs > .job[data-status="completed"]')
    expect(card).to_have_count(1, timeout=SECONDS)
    page.go_back()
    page.go_back()
    ask(page, State="completed", Plugin="echo", **{"Text in it": "old 99"})
    expect(jobs).to_have_count(1, timeout=SECONDS)  # with the same parameters
    ask(page, State="", To="2020-01-01")
    expect(page.locator("#no-jobs")).to_have_text("No such jobs.", timeout=SECONDS)


def test_a_phone_has_room_for_it(server, visit):
    page = visit(server.url + "/jobs/", viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.get_by_role("link", name="History").click()
    expect(page.locator("#jobs > .job")).to_have_count(50, timeout=SECONDS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shoot(page, "history-phone")


def test_the_page_says_when_the_channel_is_away_and_shows_jobs_nevertheless(server, visit, tmp_path):
    page = visit(server.url + "/jobs/")
    late = page.locator("#late")
    expect(late).to_be_hidden()
    (tmp_path / "channel away").touch()
    expect(late).to_be_visible(timeout=SECONDS)
    expect(page.locator("#connection")).to_have_text("Live")
    other = visit(server.url + "/jobs/")  # one that comes later hears of it too
    expect(other.locator("#late")).to_be_visible(timeout=SECONDS)
    other.get_by_role("link", name="History").click()
    other.locator('#jobs > .job[data-status="failed"]').filter(has_text="echo").first.get_by_role("button").click()
    other.wait_for_url(server.url + "/jobs/")
    expect(page.locator('#jobs > .job[data-status="completed"]')).to_have_count(1, timeout=SECONDS)  # no event tells it
    expect(late).to_be_visible()
    shoot(page, "late")
    (tmp_path / "channel away").unlink()
    for tab in (page, other):
        expect(tab.locator("#late")).to_be_hidden(timeout=SECONDS)


def test_the_page_says_when_the_store_is_away(server, visit, browser, tmp_path):
    page = visit(server.url + "/jobs/")
    (tmp_path / "store away").touch()
    refused = browser.new_page()  # its console shows the refusal
    refused.goto(server.url + "/jobs/history")
    refused.locator('#jobs > .job[data-status="failed"]').filter(has_text="echo").first.get_by_role("button").click()
    expect(refused.locator("body")).to_contain_text("free some space on its disk", timeout=SECONDS)
    refused.close()
    expect(page.locator("#trouble")).to_contain_text("The job store of text does not work", timeout=SECONDS)
    shoot(page, "trouble")
    (tmp_path / "store away").unlink()
    expect(page.locator("#trouble")).to_be_hidden(timeout=SECONDS)
