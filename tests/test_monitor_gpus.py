"""The graphics cards on the monitor page, in headless Chromium; the cards are look-alikes."""

# ruff: noqa: F811  # fixtures are imported by name
import pytest
from test_monitor_page import SECONDS, browser, expect, pytestmark, visit  # noqa: F401
from test_sse import Server


@pytest.fixture
def fails(tmp_path, monkeypatch):
    "The second card fails while this file is there."
    monkeypatch.setenv("CARD_FAILS", str(tmp_path / "fails"))
    return tmp_path / "fails"


def test_each_card_has_a_figure_and_each_worker_a_card(fails, visit, tmp_path):
    server = Server(app="monitor_gpus_app:app", log=tmp_path / "server.log")
    try:
        page = visit(server.url + "/jobs/")
        lines = page.locator("#gpus > li")
        expect(lines).to_have_text(
            [f"GPU {n}Look <b>alike</b>, 20.0 of 80.0 GiB free" for n in (0, 1)], timeout=SECONDS
        )
        assert [line.locator("meter").evaluate("meter => meter.value") for line in lines.all()] == [0.75, 0.75]
        for label in ("GPU 0", "GPU 1"):
            device = page.locator("#workers [data-field=device]").filter(has_text=label)
            expect(device).to_have_count(1, timeout=SECONDS)
        fails.touch()
        expect(lines).to_have_text(
            ["GPU 0Look <b>alike</b>, 60.0 of 80.0 GiB free", "GPU 1Look <b>alike</b>, memory unknown"],
            timeout=SECONDS,
        )
        assert lines.nth(0).locator("meter").evaluate("meter => meter.value") == 0.25
        expect(lines.nth(1).locator("meter")).to_have_count(0)
        fails.unlink()
        expect(lines.nth(1).locator("meter")).to_have_count(1, timeout=SECONDS)
    finally:
        server.stop()
