"""Before a run: check the recipe, choose what it leaves open, and write the run folder. No GPU needed.

`check` reports the problems of model, method and rows together; `prepare` writes all that training needs, so that
nothing is downloaded, parsed or tokenized in a GPU window.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tuner import metrics, models_cleanup, runs, runs_cleanup
from tuner.data import encode, formats, parse, sources
from tuner.data.chat import render_prompt, stop_ids
from tuner.data.recognize import recognize
from tuner.data.split import Split, split_rows
from tuner.data.tokens import Tokenized, check_ids
from tuner.errors import TunerError
from tuner.methods.registry import METHODS, resolve
from tuner.models.device import compute_dtype
from tuner.models.fetch import check_size, fetch_model, find_folder, is_shipped
from tuner.models.shape import Base, Shape, can_do, check_task, load_config, load_tokenizer, shape_of
from tuner.models.weights import check_fit, stored_sizes
from tuner.models_cleanup import free_disk
from tuner.planning import forecast
from tuner.planning.memory import count_trainable, method_key
from tuner.planning.method_check import method_problems, unknown_method
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TASKS, task_for
from tuner.words import count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_LENGTH = 1024  # tokens
DEFAULT_BATCH = 16  # rows
FEW_STEPS = 60  # fewer teach little


@dataclass
class Checked:
    """A recipe that can run: its base, its tokenized rows and the plan."""

    recipe: Recipe
    base: Base
    plan: dict
    format: formats.Format
    tokenizer: object
    train: Tokenized
    heldout: Tokenized
    heldout_rows: list[dict]


class Rows(NamedTuple):
    """The rows of a recipe: as they were read, how they are understood, and how they are split."""

    table: parse.Table
    format: formats.Format
    split: Split


def check(
    recipe: Recipe,
    table: parse.Table | None = None,
    base: Path | None = None,
    *,
    local: bool = True,
    token: str | bool | None = None,
) -> Checked:
    """Check the recipe against its model and its rows: `table`, or those that its source names.

    Relative paths start from the folder `base`. Without `local`, for a visitor, no path is followed at all, and the
    Hub is asked with the visitor's `token` or with none, never with this machine's.
    Raises TunerError with all problems.
    """
    token = token or (None if local else False)
    own_folder = find_folder(recipe.model.name, base) if local else None
    model, rows = _resolve(recipe, table, base, local, own_folder, token)
    shape, tokenizer = shape_of(model), load_tokenizer(model.folder)
    chosen = choose(recipe, shape, len(rows.split.train))
    settings = {name: value for name, (value, _) in chosen.items()}
    arguments = tokenizer, settings["max_length"], recipe.training.loss_on, model.labels
    train, heldout = (encode.tokenize(model.task, part, *arguments) for part in (rows.split.train, rows.split.heldout))
    if shape.is_bounded:
        train = replace(train, room=_room(recipe, shape, settings))
    trainable = count_trainable(model, method_key(recipe))
    estimate = fit(recipe, model, settings, train, len(heldout.rows), trainable)
    if settings["batch_size"] != chosen["batch_size"][0]:
        chosen["batch_size"] = settings["batch_size"], "as many as fit in the device's memory"
    plan = _plan(recipe, model, rows, train, len(heldout.rows), settings)
    plan |= {"trainable_parameters": trainable, "forecast": estimate}
    if own_folder:
        plan |= {"revision": None, "model_folder": str(own_folder)}
    plan["chosen"] = [
        *({"setting": name, "value": value, "reason": reason} for name, (value, reason) in chosen.items()),
        {"setting": "format", "value": rows.format.name, "reason": rows.format.reason},
        {"setting": "task", "value": model.row.title, "reason": _why_task(recipe, rows.format, model)},
        {"setting": "held-out rows", "value": len(rows.split.heldout), "reason": rows.split.reason},
    ]
    problems: list[str] = []
    with collect(problems):
        _check_vocabulary(model, shape, tokenizer, [*train.rows, *heldout.rows])
    with collect(problems):
        forecast.check_memory(estimate, recipe, settings["batch_size"])
    with collect(problems):
        forecast.check_budget(estimate, recipe)
    with collect(problems):
        _check_disk(plan, runs.RUNS, local)
    if not local:
        with collect(problems):
            forecast.check_limits(estimate, train.total_tokens)
    if problems:
        raise TunerError(*problems)
    return Checked(recipe, model, plan, rows.format, tokenizer, train, heldout, rows.split.heldout)


def prepare(
    recipe: Recipe,
    table: parse.Table | None = None,
    base: Path | None = None,
    *,
    local: bool = True,
    token: str | bool | None = None,
    root: Path | None = None,
    path: Path | None = None,
) -> Run:
    """Write a run folder, ready to train: at `path`, or a new one under `root`; the rest is as for `check`.

    Raises TunerError with all problems, before anything is written.
    """
    from datasets import Dataset

    checked = check(recipe, table, base, local=local, token=token)
    run = runs.create(recipe, root, path)
    for name, rows in (("train", checked.train.rows), ("heldout", checked.heldout.rows)):
        Dataset.from_list(rows).save_to_disk(str(run.data / name))
    plan, prompts = checked.plan, list(filter(None, map(encode.heldout_prompt, checked.heldout_rows)))
    if checked.base.row.chats:  # now: a template is a program, and what trains has no limits on seconds and memory
        plan = {**plan, "stop_ids": stop_ids(checked.tokenizer)}
        for row in prompts[: recipe.evaluation.rows]:
            row["text"] = render_prompt(row["messages"], checked.tokenizer)
    run.write_text("data/heldout.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompts))
    run.write_json("plan.json", plan)
    return run


def _resolve(
    recipe: Recipe,
    table: parse.Table | None,
    base: Path | None,
    local: bool,
    own_folder: Path | None,
    token: str | bool | None,
) -> tuple[Base, Rows]:
    """The base for its task, and the rows. Raises TunerError with all problems of model, method and rows."""
    problems = unknown_method(recipe) + metrics.unknown(recipe.evaluation.metrics)
    config = rows = model = None
    most = None if local else forecast.MAX_PARAMETERS
    with collect(problems):
        folder = fetch_model(recipe.model, own_folder, token, most)
        config = load_config(folder, recipe.model.name)
    with collect(problems):
        table = table or sources.read(recipe.data, base, local=local, token=token)
        rows = _rows(recipe, table)
    with collect(problems):
        if config and rows:
            model = _base(recipe, folder, config, rows.format, rows.split)
        elif config:  # without rows the task is the one that the model was made for, if that is known
            row = TASKS[task_for(recipe.task, "", bool(config.is_encoder_decoder))]
            model = None if row.has_labels or not can_do(config, row) else Base(folder, recipe.model, row.name)
    with collect(problems):
        if model:
            if most:
                check_size(recipe.model.name, shape_of(model).parameters, most)
            if not hasattr(config, "quantization_config"):  # which packs several numbers into one
                check_fit(shape_of(model).base_weights, stored_sizes(folder, recipe.model.name), recipe.model.name)
    if model:
        problems += metrics.unfit(recipe.evaluation.metrics, model.row)
    if model and recipe.method.name in METHODS:
        problems += method_problems(recipe, model)
    if problems:
        raise TunerError(*problems)
    return model, rows


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Add the problems of a TunerError raised within, so that all can be shown together."""
    try:
        yield
    except TunerError as error:
        problems.extend(error.problems)


def _base(recipe: Recipe, folder: Path, config, format: formats.Format, split: Split) -> Base:
    """The base with its task and labels. Raises TunerError if rows or model don't fit the task."""
    row = TASKS[task_for(recipe.task, format.row.becomes, bool(config.is_encoder_decoder))]
    if format.row.becomes not in row.learns_from:
        raise TunerError(
            f"task: {row.title} learns from {' or '.join(row.learns_from)}, but these rows are {format.row.becomes} "
            f"(data.format {format.name}). Leave task out, or map the columns by hand (data.format, data.columns)."
        )
    check_task(config, recipe.model.name, row)
    return Base(folder, recipe.model, row.name, encode.labels_of(row.name, [*split.train, *split.heldout]))


def _why_task(recipe: Recipe, format: formats.Format, base: Base) -> str:
    if recipe.task != "auto":
        return "as given"
    labels = f", with the labels {', '.join(base.labels[:8])}{' ...' if len(base.labels) > 8 else ''}"
    return f"inferred from the rows ({format.name}) and the model{labels if base.labels else ''}"


def _rows(recipe: Recipe, table: parse.Table) -> Rows:
    format = recognize(table, recipe.data)
    rows = formats.normalize(table, format, recipe.data.system)
    return Rows(table, format, split_rows(rows, table.splits, recipe.data, recipe.seed))


def choose(recipe: Recipe, shape: Shape, rows: int) -> dict[str, tuple]:
    """Every setting with its value and the reason for it: a default, or "as given"; for so many training rows.

    Raises TunerError if the model can't read rows as long as the recipe allows.
    """
    row, given = METHODS[recipe.method.name], recipe.method.model_dump()
    settings = resolve(recipe, shape, None).settings
    batch = min(DEFAULT_BATCH, max(1, rows // 4))
    few = f"there are only {rows} rows" if rows > 1 else "there is only 1 row"
    length, why_length = _choose_length(recipe, shape, settings)
    dtype, why_dtype = compute_dtype(recipe.model)
    defaults = {
        "learning_rate": (recipe.training.learning_rate, row.learning_rate(shape.width), row.learning_rate_reason),
        "batch_size": (
            recipe.training.batch_size,
            batch,
            few if batch < DEFAULT_BATCH else "small batches suit adapters in short runs",
        ),
        "max_length": (recipe.data.max_length, length, why_length),
        **{name: (given[name], value, f"{row.title}'s default") for name, value in settings.items()},
    }
    chosen = {
        name: (value, reason) if value_given == "auto" else (value_given, "as given")
        for name, (value_given, value, reason) in defaults.items()
    }
    return chosen | {"dtype": (dtype, why_dtype)}


def _choose_length(recipe: Recipe, shape: Shape, settings: dict) -> tuple[int, str]:
    """The longest row in tokens, and why. Raises TunerError if the model can't read as many as the recipe gives."""
    given, room = recipe.data.max_length, _room(recipe, shape, settings)
    is_prompted = room < shape.context
    if shape.is_bounded and given != "auto" and given > room:
        beside = f" next to {settings['virtual_tokens']} virtual tokens" if is_prompted else ""
        raise TunerError(
            f"data.max_length: {given:,} tokens do not fit the model's context of {shape.context:,}{beside}. Set it "
            f"to at most {room:,}, or leave it out."
        )
    if room > DEFAULT_LENGTH:
        return DEFAULT_LENGTH, "long enough for most rows, and affordable"
    return room, "the model's context, less the virtual tokens" if is_prompted else "the model's context"


def _room(recipe: Recipe, shape: Shape, settings: dict) -> int:
    """Tokens of the context that are left for a row."""
    is_prompted = METHODS[recipe.method.name].kind == "soft prompt"
    return shape.context - (settings["virtual_tokens"] if is_prompted else 0)


def fit(recipe: Recipe, model: Base, settings: dict, train: Tokenized, heldout: int, trainable: int) -> dict:
    """The forecast. A batch size left on auto is lowered in `settings` until it fits, to one row if nothing does."""
    estimate = forecast.estimate_run(recipe, model, settings, train, heldout, trainable)
    fitting = max(1, forecast.rows_that_fit(estimate, settings["batch_size"]))
    if recipe.training.batch_size != "auto" or fitting == settings["batch_size"]:
        return estimate
    settings["batch_size"] = fitting
    return forecast.estimate_run(recipe, model, settings, train, heldout, trainable)


def _plan(recipe: Recipe, model: Base, rows: Rows, train: Tokenized, heldout: int, settings: dict) -> dict:
    number, batch, budget = len(train.rows), settings["batch_size"], recipe.budget
    per_epoch = -(-number // batch)
    steps = budget.steps or (max(1, round(budget.epochs * per_epoch)) if budget.epochs else None)
    warnings = [*rows.table.notes, *rows.split.warnings, *([train.warning] if train.warning else [])]
    if steps and steps < FEW_STEPS:
        warnings.append(
            f"{count(number, 'row')} in batches of {batch} make{'s' * (number == 1)} {count(per_epoch, 'step')} "
            f"per epoch, and this run has {count(steps, 'step')}. That teaches little: give more rows, more steps, "
            "or smaller batches."
        )
    return {
        "format": runs.FORMAT,
        "task": model.task,
        "labels": list(model.labels),
        "rows": number,
        "heldout_rows": heldout,
        "tokens": train.total_tokens,
        "trained_tokens": train.trained_tokens,
        "steps_per_epoch": per_epoch,
        "steps": steps,
        "epochs": None if steps is None else round(steps / per_epoch, 2),
        "seconds": budget.seconds,
        "model_parameters": shape_of(model).parameters,
        "truncated_rows": train.truncated,
        "settings": settings,
        "revision": None if is_shipped(recipe.model.name) else model.folder.name,
        "warnings": warnings,
    }


def _check_vocabulary(model: Base, shape: Shape, tokenizer: "PreTrainedTokenizerBase", rows: list[dict]) -> None:
    """Raise TunerError if the model has no embedding for a token of the rows, of the answers or of the padding."""
    read = [[tokenizer.pad_token_id or 0], *(row["input_ids"] for row in rows)]
    check_ids(read + ([row["labels"] for row in rows] if model.row.generates else []), shape.vocabulary, tokenizer)


def _check_disk(plan: dict, root: Path, local: bool) -> None:
    """Raise TunerError if the disk has no room for the run; for a visitor's, base models make room."""
    needed = runs_cleanup.bytes_to_train(plan) + runs_cleanup.SPARE
    if not local:
        models_cleanup.make_room(root, needed, runs_cleanup.bases)
    if free_disk(root) < needed:
        raise TunerError(
            f"This run needs about {needed / 2**20:.0f} MB of disk space, and {free_disk(root) / 2**20:.0f} MB are "
            "free. Delete old runs, or set TUNER_RUNS to a folder on another disk."
        )
