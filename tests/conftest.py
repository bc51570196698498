"""Shared by all tests: no network, one place for runs, and small real runs on the shipped model."""

import gc
import os
import re
import sys
import tempfile
from html import unescape
from pathlib import Path

# Before anything reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["TUNER_RUNS"] = tempfile.mkdtemp(prefix="tuner-runs-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

import pytest
from hub_double import hub  # noqa: F401  a fixture

from tuner.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "training.batch_size": 4,
    "data.max_rows": 16,
    "method.rank": 4,
    "evaluation.rows": 4,
    "evaluation.max_new_tokens": 8,
    "budget.steps": 6,
}
# A few bold steps, after which no answer and no score of the adapter is the base's.
LEARNS = {
    "training.learning_rate": 0.02,
    "training.warmup_steps": 0,
    "budget.steps": 8,
    "evaluation.max_new_tokens": 16,
}

# Timing-sensitive, or with many processes: `make test` runs these alone and the others two at a time.
ALONE = {"test_rehearsal", "test_visitors"}
# Begun first, so that neither of two processes is left with a slow file at the end.
SLOW = ["test_readme", "test_train", "test_browser", "test_ui", "test_matrix", "test_examples", "test_estimate"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what has to run alone, and put the slow files first."""
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker("alone")
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


def pytest_collection_finish() -> None:
    """Keep what was imported out of every later garbage collection; each training asks for one."""
    gc.collect()
    gc.freeze()


def small_recipe(**settings) -> Recipe:
    """The shipped task in a few seconds; settings are dotted, with "__" for the dot."""
    return Recipe.load("corporate").with_settings(SMALL | {k.replace("__", "."): v for k, v in settings.items()})


def plain(html: str) -> str:
    """The text of HTML."""
    return unescape(re.sub(r"<[^>]+>", " ", html))


def in_order(text: str, *parts: str) -> bool:
    """Whether the parts stand in the text one behind the other, none of them in the middle of a word or a number."""
    return re.search(".*".join(rf"(?<![\w.]){re.escape(part)}" for part in parts), text, re.DOTALL) is not None


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """One small run that visibly helped, trained to its end; tests only read it."""
    from tuner.planning import plan
    from tuner.training.window import train

    run = plan.prepare(small_recipe().with_settings(LEARNS), path=tmp_path_factory.mktemp("finished") / "run")
    list(train(run))
    return run
