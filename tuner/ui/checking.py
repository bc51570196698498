"""What a visitor enters, read and checked: in processes of their own, since a stranger's input may stop one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tuner import gpu, limited, runs
from tuner.errors import TunerError
from tuner.limited import Asker, Limits
from tuner.models import device as devices
from tuner.models.fetch import is_at_hand, is_shipped
from tuner.planning import pace
from tuner.planning.probe import Look
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.ui.visitor import ANYBODY, Visitor

JOBS = "tuner.planning.jobs"  # in processes of their own, since a visitor's input may stop one
LIMITS = {
    "settings": Limits("Reading this recipe", "Write it plainly: each setting by its name, with a value.", 20),
    "columns": Limits("Reading these rows", "Give fewer or shorter rows."),
    "fetch": Limits("Downloading this base model", "Try again later, or choose a smaller one.", 3600, "downloads"),
    "fetch_adopted": Limits("Downloading this adapter and its base", "Try again later.", 3600, "downloads"),
    "adopt_adapter": Limits("Reading this adapter", "Choose another one."),
    "check": Limits("Checking this recipe", "Give fewer or shorter rows, or choose another base model."),
    "read_prompts": Limits("Reading this conversation", "Write less, or choose a run on another base model.", 20),
}
NOBODYS_LOOK = [1e10, 1e-5]  # before there are workers who could look; nobody sees these plans
_fetched: dict[tuple, str] = {}  # base models that were downloaded since the app has started -> their folders


class Entered(NamedTuple):
    """Rows as a visitor entered them, not read yet."""

    files: list[str] | None = None  # the paths of the uploads
    pasted: str | None = None


def entered(file: str | None, pasted: str | None) -> Entered | None:
    """The uploaded or pasted rows; None if the recipe names their source."""
    return Entered(file and [file], None if file else pasted) if file or (pasted and pasted.strip()) else None


def warm_up() -> None:
    """Start the processes that read what visitors enter, then import here what the first chat needs."""
    limited.start(f"{JOBS}:warm_up", lambda: (devices.describe() | {"look": NOBODYS_LOOK},))
    _job("settings", "{}")
    gpu.import_core()


def read_recipe(text: str, visitor: Visitor = ANYBODY) -> Recipe:
    """The recipe in YAML. Raises TunerError with all problems."""
    return Recipe.parse(_job("settings", text, visitor=visitor))


def columns(
    rows: Entered | None, example: str = "", data: dict | None = None, visitor: Visitor = ANYBODY
) -> list[str]:
    """The columns of the rows as settings of `data` have them read, or of an included example. Raises TunerError."""
    return _job("columns", rows or Entered(), example, data or {}, visitor=visitor)


def is_local(requested: Recipe) -> bool:
    """Whether base model and rows are here for any visitor, so that nothing need be downloaded."""
    return "/" not in requested.data.title and _starts_here(requested) and is_at_hand(requested.model)


def check(requested: Recipe, rows: Entered | None = None, visitor: Visitor = ANYBODY) -> dict:
    """The plan of a visitor's recipe: no path is followed. Raises TunerError with all problems."""
    return _job("check", *_planned(requested, rows, visitor), visitor=visitor)


def preview(requested: Recipe, rows: Entered | None = None, visitor: Visitor = ANYBODY) -> dict:
    """What the model will see: rows in pieces, the histogram of lengths, and what is cut off. Raises TunerError."""
    return _job("preview", *_planned(requested, rows, visitor), visitor=visitor)


def survey(requested: Recipe, rows: Entered | None = None, visitor: Visitor = ANYBODY) -> Iterator[dict]:
    """What each method would cost, as it becomes known: see `method_costs`. Raises TunerError."""
    given = _planned(requested, rows, visitor)
    yield from limited.stream(f"{JOBS}:survey", *given, limits=LIMITS["check"], asker=_asker(visitor))


def write_run(
    requested: Recipe, rows: Entered | None = None, visitor: Visitor = ANYBODY, path: Path | None = None
) -> Run:
    """A new run, ready to train. Raises TunerError with all problems; nothing is left of it then."""
    path = path or runs.new_path()
    try:
        _job("prepare", *_planned(requested, rows, visitor), str(path), visitor=visitor)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return Run(path)


def write_adopted(name: str, quantization: str, visitor: Visitor = ANYBODY) -> Run:
    """A new run that answers with an adapter of the Hub. Raises TunerError; nothing is left of it then."""
    path, token = runs.new_path(), visitor.token or False
    try:
        _job("fetch_adopted", name, quantization, token, visitor=visitor)
        _job("adopt_adapter", name, quantization, token, str(path), visitor=visitor)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return Run(path)


def fetch_base(run: Run, visitor: Visitor = ANYBODY) -> None:
    """Download the run's base model, exactly as it was when the run was prepared. Raises TunerError."""
    pinned = run.recipe.with_settings({"model.revision": run.plan["revision"]})
    _job("fetch", pinned.model_dump(), visitor.token or False, visitor=visitor)


def read_prompts(
    run: Run, conversations: list[list[dict]], adapters: list[Run | None], visitor: Visitor = ANYBODY
) -> dict | None:
    """What the run's base reads of these conversations: see the job. Raises TunerError if it can't read them."""
    path, *paths = (each and str(each.path.absolute()) for each in (run, *adapters))
    return _job("read_prompts", path, conversations, visitor.token or False, paths, visitor=visitor)


def _job(name: str, *arguments: Any, visitor: Visitor = ANYBODY) -> Any:
    """What a job returns. Raises TunerError."""
    limits = LIMITS.get(name, LIMITS["check"])
    return limited.run(f"{JOBS}:{name}", *arguments, limits=limits, asker=_asker(visitor))


def _asker(visitor: Visitor) -> Asker:
    return Asker(visitor.session, visitor.address)


def _planned(requested: Recipe, rows: Entered | None, visitor: Visitor) -> tuple:
    """The arguments of a job that plans. What has to be downloaded for it is here by then."""
    settings, token = requested.model_dump(), visitor.token or False
    if not (is_shipped(requested.model.name) and _starts_here(requested)) and not _is_fetched(requested):
        with suppress(TunerError):  # which the job tells with all other problems
            _fetched[_named(requested)] = _job("fetch", settings, token, visitor=visitor)
    return device(), settings, rows or Entered(), token


def _named(requested: Recipe) -> tuple[str | None, ...]:
    """What of the Hub a recipe needs beside rows."""
    return requested.model.name, requested.model.revision, requested.method.start_from


def _starts_here(requested: Recipe) -> bool:
    """Whether the recipe starts from no adapter of the Hub."""
    return "/" not in (requested.method.start_from or "")


def _is_fetched(requested: Recipe) -> bool:
    """Whether that was downloaded since the app has started, and the model has not made room for another one."""
    folder = _fetched.get(_named(requested))
    return folder is not None and os.path.isfile(os.path.join(folder, "config.json"))


def device() -> dict:
    """What a job with limits has to know of this app's device, which it must not touch."""
    facts = devices.describe()
    if facts["device_type"] == "cpu":
        facts["look"] = list(pace.cpu_look(lambda: Look(*_job("look"))))
    return facts
