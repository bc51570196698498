"""Names that are paths, and worse: refused in a sentence wherever one would reach the Hub's client."""

import os
import sys
import time
from pathlib import Path

import pytest
from conftest import small_recipe
from huggingface_hub import constants
from huggingface_hub.utils import HFValidationError, validate_repo_id

from tuner import gpu, names
from tuner.data import sources
from tuner.errors import TunerError
from tuner.models import fetch
from tuner.planning import plan
from tuner.recipe import Data, Model
from tuner.ui import actions

COMMIT = "0123456789" * 4
HOSTILE = ["/dev/zero", "/etc/passwd", "..", "../..", "a/../b", "a\0b", "main\n", "\ud800", "m" * 7_000, "", " ", "~"]
HOSTILE += [
    "a//b",
    "-x",
    "file:///etc/passwd",
    "hf://datasets/a/b",
    "C:\\x",
    "a*",
    "a?b",
    "*/*",
    "a|b",
    "train[:10%]",
    "é",
]
REVISIONS = [name for name in HOSTILE if name != "\ud800"]  # which a recipe refuses itself
REVISIONS += ["{uploads}/rows.csv", "a.lock", "refs/heads/", "v1."]
opened: list[str] | None = None  # what Python opens while it is a list


def _note(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(_note)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that could be a cached version of the model owner/model, if a revision were a path; an upload of it."""
    cache, uploads = tmp_path / "cache", tmp_path / "uploads"
    (cache / "models--owner--model" / "refs").mkdir(parents=True)
    (cache / "models--owner--model" / "snapshots" / COMMIT).mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    uploads.mkdir()
    (uploads / "rows.csv").write_text(COMMIT)
    os.mkfifo(uploads / "fifo")
    gpu.import_core()  # which takes seconds
    return uploads


def refusals(revision: str) -> list[str]:
    """What every place says of such a revision, a branch of a model that is in the cache."""
    model, said = Model(name="owner/model", revision=revision), []
    recipe = small_recipe(model__name=model.name, model__revision=revision)
    assert actions.is_local(recipe)  # so that checking the recipe tells what is wrong
    for ask in (
        lambda: actions.check(recipe),
        lambda: plan.check(recipe),
        lambda: fetch.fetch_model(model),
        lambda: fetch.fetch_model(model, token=False),
        lambda: fetch.fetch_model(model, token="hf_any"),
    ):
        with pytest.raises(TunerError) as caught:
            ask()
        said += caught.value.problems
    return said


@pytest.mark.parametrize(
    "revision", [*(r for r in HOSTILE if r != "\ud800"), "{uploads}/rows.csv", "a.lock", "refs/heads/", "v1."]
)
def test_a_revision_that_is_a_path_or_worse_is_refused_with_nothing_opened(cached, revision):
    global opened
    before, opened = time.process_time(), []
    try:
        said = refusals(revision := revision.format(uploads=cached))
        assert not [path for path in opened if str(cached) in path or "models--owner" in path or path == revision]
    finally:
        opened = None
    assert time.process_time() - before < 5
    assert len(set(said)) == 1
    assert "is no branch, tag or commit" in said[0]
    assert said[0].isprintable()
    assert len(said[0]) < 300


def test_a_named_pipe_does_not_hang_the_page(cached):
    assert "is no branch, tag or commit" in refusals(str(cached / "fifo"))[0]


@pytest.mark.parametrize("name", [n for n in HOSTILE if n], ids=ascii)
def test_no_hostile_name_reaches_the_hub(name, cached, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    for key in ("config", "split", "heldout_split", "source"):
        data = Data.model_construct(**({"source": "owner/rows"} | {key: name}))  # whatever the recipe refuses itself
        with pytest.raises(TunerError, match="can't be a") as caught:
            sources.read_hub(data, False)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
    with pytest.raises(TunerError, match="can't be read here"):
        sources.read(Data.model_construct(source=name), local=False)
    with pytest.raises(TunerError, match=r"can't be a model's name"):
        fetch.fetch_model(Model.model_construct(name=name, revision=None), token=False)
    assert "can't be a repository's name" in names.problems(repository=name)[0]
    assert not hub.seen


def test_names_of_the_hub_are_those_that_its_own_client_takes():
    def is_valid(name: str) -> bool:
        try:
            validate_repo_id(name)
        except HFValidationError:
            return False
        return True

    parts = ["", "a", "b-", "-b", "c.", ".c", "d--e", "d..e", "_f", "g_", "x.git", "m" * 96, "m" * 97, "é", "1"]
    for name in [*parts, *(f"{owner}/{part}" for owner in parts for part in parts), "a/b/c", "a/b\n"]:
        assert names.fits("model", name) == is_valid(name), name
        assert names.fits("dataset", name) == (is_valid(name) and "/" in name), name
        assert names.fits("repository", name) == (is_valid(name) and is_valid(name + names.MERGED_SUFFIX)), name


def test_names_that_people_use_fit():
    for kind, used in {
        "model": ("gpt2", "Qwen/Qwen3-0.6B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "01-ai/Yi-1.5-9B"),
        "revision": ("main", "v1.0", "refs/pr/1", "refs/heads/a-b", "feature/x+y", COMMIT),
        "dataset": ("rajpurkar/squad", "HuggingFaceH4/ultrachat_200k"),
        "config": ("default", "20231101.en", "CC-MAIN-2013-20", "de-en", "all (clean)", "plain_text"),
        "split": ("train", "train_sft", "validation.clean", "train-00"),
        "heldout_split": ("test", "test_gen"),
        "repository": ("my-adapter", "me/my.adapter_1"),
        "branch": ("v2", "version-2", "try/smaller.rank"),
    }.items():
        assert not [name for name in used if not names.fits(kind, name)], kind
    assert len(names.NAMES) == 8


def test_in_a_terminal_a_folder_is_still_a_model(tmp_path, monkeypatch):
    (tmp_path / "my-model").symlink_to(fetch.fetch_model(Model(name="tiny-office")))
    monkeypatch.chdir(tmp_path)
    for name in ("my-model", "./my-model", str(tmp_path / "my-model")):
        assert plan.check(small_recipe(model__name=name)).plan["steps"]
