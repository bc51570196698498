"""In Chromium, all ways out and in with a sign-in, and with a typed token: no trace of the token is left anywhere."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import browser
import psutil
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from served import serve
from test_other_sites import HOME, sign_in, space, visitor  # noqa: F401

GRADIO = Path("/tmp/gradio")  # where Gradio keeps uploads and what components show


class Watch:
    """Looks for a token in the arguments and the environment of a process and of all that it starts, all the time."""

    def __init__(self, pid: int, token: str):
        self.process, self.token, self.found, self.looks = psutil.Process(pid), token, set(), 0

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        """Look until the end of the block."""
        ended = threading.Event()
        looking = threading.Thread(target=self._look_until, args=(ended,))
        looking.start()
        try:
            yield self
        finally:
            ended.set()
            looking.join()

    def _look_until(self, ended: threading.Event) -> None:
        while not ended.wait(0.02):
            self.looks += 1
            with suppress(psutil.Error):
                for process in [self.process, *self.process.children(recursive=True)]:
                    with suppress(psutil.Error):
                        told = " ".join([*process.cmdline(), *process.environ().values()])
                        if self.token in told:
                            self.found.add(process.name())


def files_with(token: str, *folders: Path) -> list[Path]:
    """The files that hold the token, in plain or as JSON would escape it."""
    found = []
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        with suppress(OSError):
            found += [file] if token.encode() in file.read_bytes() else []
    return found


def listen(page: Page, token: str) -> list[str]:
    """The addresses of what the page was told, in pages, answers and events, that held the token."""
    told: list[str] = []

    def look(response) -> None:
        with suppress(Exception):  # a stream's body can't be had, or the page was left
            if token in response.text() or token in response.url:
                told.append(response.url)

    page.on("response", look)
    page.on("console", lambda message: told.append(message.text) if token in message.text else None)
    return told


def take_home(page: Page, repository: str) -> None:
    """Push both, download adapter and run: by clicking."""
    page.get_by_label("Repository").fill(repository)
    page.locator("#push-what").get_by_text("Both").click()
    page.locator("#push").click()
    expect(page.locator("#pushed a")).to_be_visible(timeout=180_000)
    page.get_by_text("Download", exact=True).first.click()
    for what in ("adapter", "run"):
        with page.expect_download() as begun:
            page.locator(f"#download-{what}").click()
        assert begun.value.path().stat().st_size > 10_000


def check(watch: Watch, told: list[str], log: Path, *folders: Path) -> None:
    assert watch.looks > 20
    assert not watch.found
    assert not told
    assert watch.token not in log.read_text()
    assert not files_with(watch.token, *folders, GRADIO)


@pytest.mark.long
def test_a_signed_in_visitors_token_stays_nowhere(space, visitor):  # noqa: F811
    page = visitor.new_page()
    told = listen(page, space.alice)
    with Watch(space.url.pid, space.alice).watching() as watch:
        page.goto(HOME)
        sign_in(page)
        page.get_by_role("tab", name="My runs").click()
        page.locator('#runs [data-run="example"]').click()
        page.get_by_role("button", name="Push to the Hub").click()
        take_home(page, "office")
        page.get_by_role("tab", name="Playground").click()
        page.locator("#adapter input, #adapter textarea").fill("alice/office")
        page.locator("#add-adapter").click()
        expect(page.locator("#adapter input, #adapter textarea")).to_have_value("", timeout=180_000)
    assert {"alice/office", "alice/office-base", "alice/office-merged"} <= {name for _, name in space.hub.repos}
    assert space.hub.repo("alice/office").private
    check(watch, told, space.url.log, space.runs.parent)


@pytest.mark.long
def test_a_typed_token_stays_nowhere(hub, tmp_path):
    token = hub.user("alice")
    environment = hub.env(tmp_path / "home") | {"TUNER_RUNS": "runs"}
    with serve(tmp_path / "runs", **environment) as url, sync_playwright() as playwright:
        page = playwright.chromium.launch(**browser.launch_options()).new_page()
        told = listen(page, token)
        with Watch(url.pid, token).watching() as watch:
            page.goto(url)
            page.get_by_role("tab", name="My runs").click()
            page.locator('#runs [data-run="example"]').click()
            page.get_by_role("button", name="Push to the Hub").click()
            page.get_by_label("Hub token with write access").fill(token)
            take_home(page, "office")
            assert page.get_by_label("Hub token with write access").input_value() == ""
        assert hub.repo("alice/office").private
        check(watch, told, url.log, tmp_path)
