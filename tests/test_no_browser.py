"""Without a Chromium the tests of the page are reported as not run, loudly and last; in CI that is a failure."""

import os
import subprocess

import fresh
import pytest
from conftest import ROOT

TEST = "tests/test_browser.py::test_dark_and_a_phones_width"


@pytest.fixture
def without_chromium(tmp_path) -> dict[str, str]:
    """An environment in which neither the system nor Playwright has a browser, and nothing can install one."""
    return {**os.environ, "PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path), "CI": ""}


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_make_test_ends_with_one_loud_line_and_fails_in_ci_alone(without_chromium, ci, status):
    command = [fresh.PYTHON, "tests/browser.py", "--check"]
    env = without_chromium | {"CI": ci}
    check = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert check.returncode == status, check.stderr
    (line,) = check.stdout.splitlines()
    assert line.startswith("!!! NOT RUN: the tests of the page in a browser")
    assert "apt install chromium" in line


@pytest.mark.parametrize(("ci", "outcome", "status"), [("", "1 skipped", 0), ("true", "1 error", 1)])
def test_a_test_of_the_page_does_not_run(without_chromium, ci, outcome, status):
    command = [fresh.PYTHON, "-m", "pytest", "-p", "no:cacheprovider", TEST]
    env = without_chromium | {"CI": ci}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == status, result.stdout
    assert outcome in result.stdout
