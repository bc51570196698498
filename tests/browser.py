"""A Chromium for the tests of the page: the system's own, or else Playwright's.

python tests/browser.py          installs one if there is none
python tests/browser.py --check  warns if there is none; in CI it fails
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --no-first-run"
MISSING = "there is no Chromium. Install one (Debian: apt install chromium) and run the tests again."
COMMANDS = (
    "apt-get update -qq",
    "apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core",
)


def executable() -> str | None:
    """The path of a Chromium that starts, or None."""
    return next((path for path in _candidates() if _starts(path)), None)


def launch_options() -> dict:
    """What Playwright's `launch` needs. Only where there is an executable."""
    return {"executable_path": executable(), "args": SWITCHES.split()}


def in_ci() -> bool:
    """Whether these tests have to run."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def fetch() -> None:
    """Install a Chromium where there is none: Debian's package where that is allowed, else Playwright's own."""
    if executable():
        return
    print("Installing Chromium for the tests of the page (about 200 MB, a minute) ...", flush=True)
    if os.geteuid() == 0 and shutil.which("apt-get"):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in COMMANDS:
            subprocess.run(command.split(), env=env, stdout=subprocess.DEVNULL, check=False)
    if not executable():
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        install = subprocess.run(command, capture_output=True, text=True)
        if install.returncode:
            print(f"That failed: {next(iter(install.stderr.splitlines()), 'playwright install chromium')}")


def check() -> int:
    """Say loudly that there is no browser, if so; returns the exit status."""
    if executable():
        return 0
    print(f"!!! NOT RUN: the tests of the page in a browser (tests/test_browser.py), because {MISSING} !!!")
    return int(in_ci())


def _candidates() -> Iterator[str]:
    yield from filter(None, map(shutil.which, NAMES))
    with sync_playwright() as playwright:
        yield playwright.chromium.executable_path


def _starts(path: str) -> bool:
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests of a module: pytest_plugins = ["browser"]."""
    if not executable():
        (pytest.fail if in_ci() else pytest.skip)(MISSING)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(**launch_options())
        yield chromium
        chromium.close()


if __name__ == "__main__":
    sys.exit(check() if "--check" in sys.argv else fetch())
