"""Bring a run from elsewhere: the zip of a whole run becomes a run of this machine, which goes on where that one was.

    run = import_run("corporate-3f2a9c01-run.zip")

A zip is a stranger's. Of what it holds, only files that a run has are unpacked, and no library reads one of them
before it was looked at: rows are read as plain numbers and written anew, an adapter's configuration is checked entry
by entry, and weights are safetensors.
"""

import json
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tuner import names, runs
from tuner.errors import TunerError, collect
from tuner.hub.contents import TOKENIZER
from tuner.methods import config_check
from tuner.methods.files import CONFIG, SECOND, WEIGHTS
from tuner.methods.registry import METHODS
from tuner.models.fetch import is_shipped
from tuner.recipe import ENDLESS
from tuner.runs import Run
from tuner.words import file_size

MOST_FILES = 10_000
SPARE = 2**28  # bytes of the disk that are left free
CHUNK = 2**20
ARROW = r"data/(?:train|heldout)/data-\d{5}-of-\d{5}\.arrow"
TEXTS = (
    r"recipe\.yaml|plan\.json|events\.jsonl|evaluation\.json|evaluation_rows\.jsonl|untuned\.json|data/heldout\.jsonl"
)
STORED = r"checkpoints/(?:step|best)-\d{8}\.safetensors"
_ADAPTER = "|".join(map(re.escape, (CONFIG, WEIGHTS, *TOKENIZER)))
START = rf"start/(?:{SECOND}/)?{re.escape(WEIGHTS)}"  # planning/start_from.py
PARTS = re.compile(rf"{TEXTS}|{ARROW}|{STORED}|{START}|adapter/(?:{SECOND}/)?(?:{_ADAPTER})", re.ASCII)
UNSAFE = re.compile(r"/|[A-Za-z]:|(?:.*/)?\.\.(?:/|$)|.*[\\\0]", re.DOTALL)
OF_A_PAGE = re.compile(rb'"event": *"(?:queued|continued|starting|waiting|withdrawn)"')
# Where a recipe has the settings that a plan chose; those of the method are under its own names.
PATHS = {
    "learning_rate": "training.learning_rate",
    "batch_size": "training.batch_size",
    "max_length": "data.max_length",
    "dtype": "model.dtype",
    "max_new_tokens": "evaluation.max_new_tokens",
}


def import_run(
    file: str | Path, path: Path | None = None, *, root: Path | None = None, most: float | None = None
) -> Run:
    """The run that the zip holds, at `path` or under a new id in `root` (default RUNS).

    `most` is how many bytes it may unpack to; by default, as many as the disk has room for.
    Raises TunerError with all problems; nothing is left of the run then.
    """
    path = Path(path or runs.new_path(root))
    if path.exists():
        raise TunerError(f"{path} exists already. Choose another folder, or leave it out.")
    with _opened(file) as archive:
        entries = _entries(archive)
        _check_size(entries, path, most)
        try:
            _unpack(archive, entries, path)
            run = Run(path)
            check(run)
            _write_rows_anew(run)
            _forget_the_page(run)
            run.append({"event": "imported"})
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    return Run(path)


@contextmanager
def _opened(file: str | Path) -> Iterator[zipfile.ZipFile]:
    """The zip. Raises TunerError if it is none, or turns out to be damaged."""
    name = Path(file).name
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise TunerError(f"There is no file '{file}'. Give the zip of a run.") from None
    except (zipfile.BadZipFile, EOFError, zipfile.zlib.error, UnicodeDecodeError) as error:
        raise TunerError(
            f"'{name}' is no zip, or a damaged one ({error}). Download the run again: choose Whole run, or use "
            "tuner download RUN --what run."
        ) from None
    except (RuntimeError, NotImplementedError):  # zipfile's words for an encrypted one, or a rare compression
        raise TunerError(
            f"'{name}' is encrypted, or compressed in a way that can't be read. Zip it plainly."
        ) from None


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files that a run has, by their paths in it. Raises TunerError if this can't be a run's zip."""
    listed = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(listed) > MOST_FILES:
        raise TunerError(f"The zip holds {len(listed):,} files. A run has at most {MOST_FILES:,}: choose a run's zip.")
    for entry in listed:
        # orig_filename, because zipfile itself drops what follows a NUL.
        if UNSAFE.match(entry.orig_filename) or stat.S_ISLNK(entry.external_attr >> 16):
            raise TunerError(
                f"The zip has the file {entry.orig_filename[:100]!r}, which would lie outside of the run's folder. "
                "It was not made by Tuner: nothing was unpacked."
            )
    # Its folder, if it is in one: people zip a folder again, or its content.
    top = min(
        (e.filename.removesuffix("recipe.yaml") for e in listed if _is_recipe(e.filename)), key=len, default=None
    )
    held = [(e.filename.removeprefix(top), e) for e in listed if e.filename.startswith(top)] if top is not None else []
    found = dict(part for part in held if PARTS.fullmatch(part[0]))
    if not {"recipe.yaml", "plan.json"} <= found.keys():
        raise TunerError(
            "This is not the zip of a whole run: it has no recipe.yaml with a plan.json beside it. On the page it is "
            "made by Download, Whole run; in a terminal, by tuner download RUN --what run."
        )
    if len(found) < sum(bool(PARTS.fullmatch(name)) for name, _ in held):
        raise TunerError("The zip holds a file twice under the same name. It was not made by Tuner.")
    return found


def _is_recipe(name: str) -> bool:
    return name == "recipe.yaml" or name.endswith("/recipe.yaml")


def _check_size(entries: dict[str, zipfile.ZipInfo], path: Path, most: float | None) -> None:
    """Raise TunerError if the files would be too large, as they say of themselves; more of one is never unpacked."""
    size = sum(entry.file_size for entry in entries.values())
    room = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free - SPARE
    if most is not None and size > most:
        raise TunerError(
            f"The run takes {file_size(size)}, and this page accepts at most {file_size(int(most))}. Import it in a "
            "terminal: tuner import FILE."
        )
    if size > room:
        raise TunerError(
            f"The run takes {file_size(size)}, and {file_size(max(0, room))} of the disk are free. Delete old runs "
            "first."
        )


def _unpack(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], path: Path) -> None:
    # The recipe first: what is left if this is killed can be seen among the runs, and deleted.
    for name in sorted(entries, key=lambda name: (name != "recipe.yaml", name)):
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entries[name]) as packed, open(target, "xb") as file:
            _copy(packed, file, entries[name].file_size)


def _copy(packed: IO[bytes], file: IO[bytes], size: int) -> None:
    while chunk := packed.read(CHUNK):
        size -= len(chunk)
        if size < 0:
            raise zipfile.BadZipFile("a file is larger than it says")
        file.write(chunk)


def check(run: Run) -> None:
    """Raise TunerError with all that keeps an unpacked run from being used here."""
    problems: list[str] = []
    for look in (_check_texts, _check_recipe, _check_plan, _check_adapter, _check_weights):
        with collect(problems):
            look(run)
    if problems:
        raise TunerError(*dict.fromkeys(_without_id(run, problem) for problem in problems))


def _without_id(run: Run, problem: str) -> str:
    return problem.replace(f"Run {run.id}: its", "The run's").replace(f"Run {run.id}", "The run")


def _check_texts(run: Run) -> None:
    if problems := run.damage:
        raise TunerError(*problems)
    run.heldout()
    run.read_json("untuned.json")


def _check_recipe(run: Run) -> None:
    recipe = run.recipe
    names.check(model=recipe.model.name, revision=recipe.model.revision)
    if recipe.method.name not in METHODS:
        raise TunerError(f"method.name: '{recipe.method.name[:40]}' is no method of this version. Update Tuner.")
    if run.plan.get("model_folder") or not (is_shipped(recipe.model.name) or "/" in recipe.model.name):
        raise TunerError(
            f"The run's base model, '{recipe.model.name[:100]}', was a folder on the machine where it was trained, so "
            "it can't go on here. Push that model to the Hub, and train with its name there."
        )


def _check_plan(run: Run) -> None:
    plan, recipe = run.plan, run.recipe
    recipe.with_settings({PATHS.get(name, f"method.{name}"): value for name, value in plan["settings"].items()})
    if (plan.get("steps") or 0) > ENDLESS or not (plan["revision"] or is_shipped(recipe.model.name)):
        raise TunerError("The run's plan.json is incomplete, or was changed. Train its recipe again in a new run.")
    if plan["revision"]:
        names.check(revision=plan["revision"])


def _check_adapter(run: Run) -> None:
    for place in ("adapter", f"adapter/{SECOND}"):
        saved = run.read_json(f"{place}/{CONFIG}")
        if saved is not None and (problem := config_check.problem(saved)):
            raise TunerError(f"The run's adapter can't be used. {problem}")


def _check_weights(run: Run) -> None:
    from safetensors import SafetensorError, safe_open

    for file in sorted(run.path.rglob("*.safetensors")):
        try:
            with safe_open(file, "pt") as stored:
                facts = json.loads((stored.metadata() or {}).get("counters", "{}"))
        except (SafetensorError, OSError, ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            raise TunerError(f"The run's {file.relative_to(run.path)} is damaged. Download the run again.")


def _write_rows_anew(run: Run) -> None:
    """Write the tokenized rows again from their numbers, in place of files that only look like Arrow's."""
    from datasets import Dataset
    from pyarrow import ArrowException, ipc, memory_map

    for name in ("train", "heldout"):
        folder = run.data / name
        rows: list[dict] = []
        try:
            for file in sorted(folder.glob("*.arrow")):
                with memory_map(str(file)) as source, ipc.open_stream(source) as stream:
                    rows += stream.read_all().to_pylist()
        except (ArrowException, OSError, ValueError) as error:
            raise TunerError(f"The run's rows ({name}) can't be read: {type(error).__name__}.") from None
        if not all(map(_is_row, rows)):
            raise TunerError(f"The run's rows ({name}) are not as Tuner writes them.")
        shutil.rmtree(folder, ignore_errors=True)
        if rows:
            Dataset.from_list(rows).save_to_disk(str(folder))


def _forget_the_page(run: Run) -> None:
    """Drop what a page noted of the run's turns: here it has none, and goes on only when it is resumed."""
    partial = run.path / "events.part"
    with suppress(FileNotFoundError), open(run.log.path, "rb") as old, open(partial, "wb") as new:
        new.writelines(line for line in old if not OF_A_PAGE.search(line))
        partial.replace(run.log.path)


def _is_row(row: dict) -> bool:
    """Whether it is a tokenized row, as encode.py makes it: lists of numbers under names."""
    return {"input_ids", "labels"} <= row.keys() and all(
        isinstance(values, list) and all(isinstance(value, int | float) for value in values) for values in row.values()
    )
