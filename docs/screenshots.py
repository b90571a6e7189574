#!/usr/bin/env python3
"""Make the pictures of pages again: `python docs/screenshots.py`, with Chromium and the extra `examples` installed."""

import json
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root / "tests")]
import test_examples as example_test  # noqa: E402
import test_monitor_page as page_test  # noqa: E402
from playwright.sync_api import expect, sync_playwright  # noqa: E402

SIZES = {"monitor": (1000, 900, "light"), "monitor_dark": (1000, 900, "dark"), "monitor_phone": (390, 844, "light")}


def draw_scan(path):
    "Draw the scan of the tutorial, with the tutorial's own code."
    cells = json.loads((root / "nbs" / "tutorials" / "real_model.ipynb").read_text(encoding="utf-8"))["cells"]
    drawing = next(source for c in cells if (source := "".join(c["source"])).startswith("def draw("))
    names = {}
    exec(f"from PIL import Image, ImageDraw, ImageFont\n{drawing}", names)
    names["page"].save(path)


def scan_app(browser, folder):
    "The app of the tutorial in the middle of a page."
    draw_scan(scan := Path(folder) / "scan.png")
    with example_test.served("scan_app") as address:
        page = browser.new_page(viewport={"width": 640, "height": 420})
        page.goto(address)
        page.locator("input").set_input_files(scan)
        page.wait_for_function("document.querySelector('pre').textContent.split('\\n').length > 3")
        page.screenshot(path=root / "nbs" / "images" / "scan_app.png")
        page.get_by_text(", done").wait_for()
        page.close()


def main():
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        for n in range(20):
            (Path(folder) / f"{n}.txt").write_text("to yield or not to yield\n" * 50)
        args = [f"--{option}" for option in page_test.OPTIONS.split()]
        browser = playwright.chromium.launch(executable_path=page_test.CHROMIUM, args=args)
        server = page_test.Serve(folder)
        for name, (width, height, scheme) in SIZES.items():
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            page.goto(server.url)
            expect(page_test.card(page, "crash", "failed")).to_be_visible(timeout=30_000)
            page.wait_for_timeout(6000)  # for the charts to have a shape
            page.screenshot(path=root / "nbs" / "images" / f"{name}.png")
            context.close()
        server.kill()
        scan_app(browser, folder)
        browser.close()


if __name__ == "__main__":
    main()
