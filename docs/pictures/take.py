"""Takes the README's picture: the shipped finished run, as the page shows it. Needs a Chromium.

python docs/pictures/take.py
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import browser  # noqa: E402
from served import serve  # noqa: E402

with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "runs") as url, sync_playwright() as playwright:
    chromium = playwright.chromium.launch(**browser.launch_options())
    page = chromium.new_page(viewport={"width": 1280, "height": 860})
    page.goto(f"{url}?run=example")
    page.wait_for_selector("#card .t-verdict")
    page.screenshot(path=Path(__file__).with_name("finished.png"))
    chromium.close()
