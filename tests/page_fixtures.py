"""Fixtures for tests of the page's functions: a visitor's runs, and models that answer at once.

pytest_plugins = ["page_fixtures"]  # in a module of tests
"""

from pathlib import Path

import pytest
from visitors_runs import Gpu, copied

from tuner import gpu, runs
from tuner.runs import Run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def mine(root: Path) -> Run:
    """A finished run of 300 steps, which helped."""
    return copied("mine")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """What answers and merges."""
    models = Gpu()
    monkeypatch.setattr(gpu, "chat", models.chat)
    monkeypatch.setattr(gpu, "merge", models.merge)
    monkeypatch.setattr(gpu, "import_core", models.import_core)
    return models
