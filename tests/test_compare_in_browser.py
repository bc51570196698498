"""Comparisons in a real Chromium: within a visitor's quota on ZeroGPU, across a kill of the app, search and seeds."""

import os
import re
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import ROOT
from playwright.sync_api import Browser, Page, expect
from served import Served, serve
from stage import Stage

from tuner.runs import Run

pytest_plugins = ["browser"]
pytestmark = pytest.mark.long

PATIENCE = 90_000  # milliseconds that a busy machine may take for one step
ALL_RUNS = 4 * PATIENCE
VISITOR = "a.eyJ1IjoxfQ.c"  # ZeroGPU's token, which the Hub's proxy sends with each request of a visitor
ON_STAGE = (str(ROOT / "tests/on_stage.py"),)
SECONDS = 8  # of training for each run
QUICK = {"Batch size": "4", "Max new tokens": "8", "Examples in the prompt": "1"}
ROWS = "prompt,completion\n" + "".join(f"what is number {n}?,it is {n}\n" for n in range(40))

expect.set_options(timeout=PATIENCE)


@contextmanager
def visited(chromium: Browser, url: Served, **headers: str) -> Iterator[Page]:
    """The page as somebody sees it who has filled in a small task."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, extra_http_headers=headers)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Paste rows").check()
    page.locator("#pasted textarea").fill(ROWS)
    page.locator("#pasted textarea").blur()
    expect(page.locator("#card")).to_contain_text("40 rows")
    page.get_by_role("button", name="More settings").click()
    for label, value in QUICK.items():
        page.locator("label", has_text=label).locator("input, textarea").first.fill(value)
    yield page
    context.close()


def start(page: Page, kind: str, number: int) -> None:
    """Compare two methods, or so many trials or seeds."""
    page.get_by_role("tab", name="Compare").click()
    card = page.locator("#compare-card")
    page.get_by_label(kind).check()
    expect(card).to_contain_text("of training in all")
    if kind != "Several methods":
        page.locator("#compare-number input").fill(str(number))
        expect(card).to_contain_text(f"{number} runs, ")
    page.locator("#compare-seconds input").fill(str(SECONDS))
    expect(card).to_contain_text(f"{number} runs, {number * SECONDS} s of training in all")
    page.locator("#compare-start").click()
    expect(page.locator("#compare-card [data-phase=running]")).to_be_visible()


def finished(page: Page, number: int, *, one_line: bool) -> None:
    """Wait for the table in which so many runs are finished; seeds share a line."""
    expect(page.locator("#compare-card [data-phase=done]")).to_be_visible(timeout=ALL_RUNS)
    lines = page.locator("#compare-results tbody tr", has_text="finished")
    expect(lines).to_have_count(1 if one_line else number)
    expect(lines.get_by_role("link")).to_have_count(number)
    expect(page.locator("#compare-results svg.t-plot")).to_be_visible()


def starts(runs: Path) -> dict[str, int]:
    """How often each run of the folder began its training."""
    folders = {
        path.parent.name: Run(path.parent) for path in runs.glob("*/plan.json") if path.parent.name != "example"
    }
    return {name: [event["event"] for event in run.events()].count("start") for name, run in folders.items()}


def is_free(port: int) -> bool:
    """Whether nothing listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("kind", "number"), [("Several methods", 2), ("A search for settings", 6), ("Several seeds", 4)]
)
def test_on_zerogpu_a_comparison_ends_within_the_visitors_quota(chromium, tmp_path, kind, number):
    with (
        Stage(quota={VISITOR: 180}) as stage,
        serve(tmp_path / "runs", ON_STAGE, **stage.environment) as url,
        visited(chromium, url, **{"X-IP-Token": VISITOR}) as page,
    ):
        start(page, kind, number)
        finished(page, number, one_line=kind == "Several seeds")
        assert {(window.token, window.how) for window in stage.windows} == {(VISITOR, "released")}
        assert stage.quota[VISITOR] > 0
        print(f"{kind}: {180 - stage.quota[VISITOR]:.1f} of 180 s in {len(stage.windows)} windows")
        assert set(starts(tmp_path / "runs").values()) == {1}


def test_on_zerogpu_a_comparison_whose_quota_is_spent_says_so_and_goes_on_when_it_is_back(chromium, tmp_path):
    with (
        Stage(quota={VISITOR: 180}) as stage,
        serve(tmp_path / "runs", ON_STAGE, **stage.environment) as url,
        visited(chromium, url, **{"X-IP-Token": VISITOR}) as page,
    ):
        start(page, "Several seeds", 2)
        stage.wait_until(lambda: stage.windows)
        stage.quota = {VISITOR: 3}  # the second run's window is refused
        card = page.locator("#compare-card")
        expect(card.locator("[data-phase=paused]")).to_be_visible(timeout=ALL_RUNS)
        expect(card).to_contain_text("1 of 2 runs is over.")
        expect(card).to_contain_text("The full quota is back in 5 h 32 min.")
        expect(page.locator("#compare-results")).to_contain_text("1 of 2 finished")
        page.screenshot(path=tmp_path / "spent.png", full_page=True)
        stage.quota = None
        page.locator("#compare-resume").click()
        finished(page, 2, one_line=True)
        assert set(starts(tmp_path / "runs").values()) == {1}


def test_a_comparison_goes_on_after_the_app_was_killed(chromium, tmp_path):
    runs, number = tmp_path / "runs", 3
    with serve(runs) as url, visited(chromium, url) as page:
        start(page, "Several seeds", number)
        card = page.locator("#compare-card")
        expect(card).to_contain_text(re.compile("1 of 3 runs is over"), timeout=ALL_RUNS)
        expect(card.locator("[data-phase=running]")).to_be_visible()
        done = [name for name in starts(runs) if Run(runs / name).last_event()["event"] == "end"]
        deadline = time.monotonic() + 30
        handle = os.pidfd_open(url.pid)
        os.kill(url.pid, signal.SIGKILL)
        assert select.select([handle], [], [], 30)[0]
        os.close(handle)
        port = urlsplit(url).port
        while not is_free(port):  # the kernel closes what the dead had open a moment later
            assert time.monotonic() < deadline
        with serve(runs, port=port):
            page.reload()
            expect(card).to_contain_text(re.compile("[12] of 3 runs (is|are) over"))
            if page.locator("#compare-resume").is_visible():
                page.locator("#compare-resume").click()
            finished(page, number, one_line=True)
            made = starts(runs)
            assert len(made) == number
            assert [made[name] for name in done] == [1] * len(done)
