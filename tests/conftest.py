"""Shared by all tests: no network, one folder for runs, and small real runs on the shipped model."""

import gc
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Set before anything is imported that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = f"{10**9}"  # as in app.py
os.environ["TUNER_RUNS"] = tempfile.mkdtemp(prefix="tuner-runs-")
# A folder without certificates: nothing here speaks TLS, and each HTTP client would read all that are trusted.
os.environ["SSL_CERT_DIR"] = os.environ["TUNER_RUNS"]
os.environ["TRACKIO_DIR"] = f"{os.environ['TUNER_RUNS']}/trackio"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

import fresh  # so that all processes of this test run share its server
import pytest
from hub_double import hub, no_waiting  # noqa: F401
from pretend_cards import pretend  # noqa: F401  a fixture
from tiny import tiny_office

from tuner import limited, limited_process, runs
from tuner.planning import forecast, pace, proposals
from tuner.planning.probe import Look
from tuner.recipe import Recipe
from tuner.runs import Run

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "training.batch_size": 4,
    "data.max_rows": 16,
    "method.rank": 4,
    "evaluation.rows": 4,
    "evaluation.max_new_tokens": 8,
    "evaluation.few_shot": 0,  # answers with examples in the prompt would take longer than all others
    "evaluation.loss_every": 0,  # a held-out loss takes as long as two steps
    "budget.steps": 6,
}
# A few large steps, after which every answer and score of the adapter differs from the base model's.
LEARNS = {
    "training.learning_rate": 0.02,
    "training.warmup_steps": 0,
    "budget.steps": 8,
    "evaluation.max_new_tokens": 16,
    "evaluation.rows": 12,  # fewer get no verdict
}

# For a test that holds seconds of the wall. Another program that takes the processors just then makes it miss them
# once; a fault misses them each time.
timed = pytest.mark.flaky(reruns=2, only_rerun="AssertionError")

# Started first, so that no slow file is left for the end: those of `make test`, then those of `make rehearsal`.
SLOW = ["test_train", "test_ui", "test_browser", "test_methods", "test_rehearsal", "test_matrix", "test_cuda_branches"]
SLOW += ["test_estimate"]
SLOW += ["test_readme", "test_visitors", "test_few_shot", "test_cards_of_gpus", "test_experiment_runs", "test_visit"]
SLOW += ["test_other_sites", "test_extending", "test_gpu_benchmark", "test_load", "test_examples", "test_planted"]
SLOW += ["test_extremes", "test_spoiled"]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Look for no garbage until all is imported: that makes little, and each look would walk over all modules.

    Several processes would all wait for the server of `fresh` in their first file, so it starts while they import.
    """
    gc.disable()
    if session.config.getoption("numprocesses", 0) and not hasattr(session.config, "workerinput"):
        fresh.start_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


def pytest_collection_finish() -> None:
    """Take what was imported out of later garbage collections: each training runs some, of up to 0.3 s."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def freeze_what_stays() -> Iterator[None]:
    """Take out what the tests of a file leave behind as well, such as libraries' caches and pages."""
    yield
    gc.collect()
    gc.freeze()


def small_recipe(**settings: Any) -> Recipe:
    """The shipped task in a few seconds; settings are dotted, with "__" instead of the dot."""
    return Recipe.load("corporate").with_settings(SMALL | {k.replace("__", "."): v for k, v in settings.items()})


def mostly_long(cases: Iterable[Any], *quick: Any) -> list:
    """Cases for parametrize, a tuple for several parameters: `quick` in `make test`, the rest in `make rehearsal`."""
    cases = list(cases)
    assert all(case in cases for case in quick)
    return [
        case if case in quick else pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.long)
        for case in cases
    ]


def keep_only(monkeypatch: pytest.MonkeyPatch, table: dict, names: Iterable[str]) -> None:
    """Take other rows out of a table, for a test of sentences that name them all; further rows may be added."""
    for name in table.keys() - set(names):
        monkeypatch.delitem(table, name)


def plain(html: str) -> str:
    """The text of an HTML fragment."""
    return unescape(re.sub(r"<[^>]+>", " ", html))


def in_order(text: str, *parts: str) -> bool:
    """Whether the text contains the parts in this order, none of them inside a word or a number."""
    return re.search(".*".join(rf"(?<![\w.]){re.escape(part)}" for part in parts), text, re.DOTALL) is not None


@pytest.fixture(autouse=True)
def steady_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates of seconds depend neither on how fast earlier tests trained nor on how busy the machine is."""
    (runs.RUNS / pace.PACES).unlink(missing_ok=True)
    monkeypatch.setattr(pace, "cpu_look", lambda *measured: Look(3e10, 1e-5))


@pytest.fixture(autouse=True)
def shipped_models_stand_for_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests train the shipped models on rows of their own, and read other warnings than that of demonstrations."""
    monkeypatch.setattr(proposals, "warnings", lambda *arguments: [])


@contextmanager
def without_estimates() -> Iterator[None]:
    """Plans without an estimate of memory, which would take a third of a short run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "_memory", lambda *arguments: None)
        yield


@pytest.fixture
def no_estimates() -> Iterator[None]:
    """The same for one test."""
    with without_estimates():
        yield


@pytest.fixture(autouse=True)
def jobs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor's jobs are done in this process, so that tests can change what they use."""

    def stream(
        job: str, *arguments: Any, limits: limited.Limits, asker: limited.Asker = limited.NOBODY
    ) -> Iterator[Any]:
        answers: list[dict] = []
        request = json.loads(json.dumps({"job": job, "arguments": arguments}))
        limited_process.perform(request, lambda answer: answers.append(json.loads(json.dumps(answer))))
        for answer in answers:
            if "value" not in answer:
                raise limited.error_of(answer, limits, limited.SECONDS)
            yield answer["value"]

    monkeypatch.setattr(limited, "stream", stream)


@pytest.fixture(params=["counted", pytest.param("worked", marks=pytest.mark.long)])
def time_to_train(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time as training sees it, however busy the machine is: a fifth of a second a step; or what this process works,
    which a step takes more or less of."""
    from tuner.models import losses
    from tuner.training import clock, upkeep, window

    steps, mean_loss, monotonic = [], losses.mean_loss, time.process_time
    if request.param == "counted":

        def step(*arguments):
            steps.append(1)
            return mean_loss(*arguments)

        def monotonic() -> float:
            return len(steps) / 5

        monkeypatch.setattr(losses, "mean_loss", step)
    for module in (clock, upkeep, window):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small finished run that clearly helped. Tests only read it."""
    from tuner.planning import plan
    from tuner.training.window import train

    run = plan.prepare(small_recipe().with_settings(LEARNS), path=tmp_path_factory.mktemp("finished") / "run")
    list(train(run))
    return run


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped model in small, for tests of how a run goes on, which any base shows: model__name=small_base."""
    return str(tiny_office(tmp_path_factory.mktemp("small") / "tiny-office"))
