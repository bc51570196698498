"""Before a run: everything that can be checked, chosen and counted without a GPU, and the run folder that comes of it.

`check` collects the problems of model, data and method together; `prepare` writes what training needs, so that nothing
is downloaded, parsed or tokenised while a GPU is held.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuner import metrics, runs
from tuner.data import encode, formats, parse, sources
from tuner.data.recognise import recognise
from tuner.data.split import Split, split_rows
from tuner.data.tokens import Tokenised
from tuner.errors import TunerError
from tuner.methods import spec
from tuner.methods.peft_configs import is_named
from tuner.methods.registry import METHODS, resolve
from tuner.models.device import compute_dtype
from tuner.models.fetch import fetch_model, find_folder, free_disk, is_shipped
from tuner.models.shape import Base, Shape, can_do, check_task, load_config, load_tokenizer, shape_of
from tuner.planning import forecast
from tuner.planning.memory import count_trainable, method_key
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TASKS, task_for

USUAL_LENGTH = 1024  # tokens
USUAL_BATCH = 16  # rows
FEW_STEPS = 60  # below this a run teaches little


@dataclass
class Checked:
    """What a recipe comes to."""

    recipe: Recipe
    base: Base
    plan: dict
    format: formats.Format
    tokenizer: object
    train: Tokenised
    heldout: Tokenised
    heldout_rows: list[dict]


def check(
    recipe: Recipe, table: parse.Table | None = None, base: Path | None = None, *, local: bool = True
) -> Checked:
    """Check the recipe against its model and its rows: `table`, or what its source names.

    `base` is the folder that relative paths start from; without `local`, for a visitor, no path is followed at all.
    Raises TunerError with all problems.
    """
    problems: list[str] = []
    own_folder = find_folder(recipe.model.name, base) if local else None
    folder = _attempt(problems, lambda: fetch_model(recipe.model, own_folder))
    config = folder and _attempt(problems, lambda: load_config(folder, recipe.model.name))
    if recipe.method.name not in METHODS:
        problems.append(f"method.name: there is no method '{recipe.method.name}'. There are: {', '.join(METHODS)}.")
    problems += metrics.unknown(recipe.evaluation.metrics)
    read = _attempt(problems, lambda: _rows(recipe, table, base, local))
    if config and not read:
        problems += _of_the_method_alone(recipe, folder, config)
    if problems and not (config and read):
        raise TunerError(*problems)
    table, format, split = read
    stands = _attempt(problems, lambda: _base(recipe, folder, config, format, split))
    shape = stands and _attempt(problems, lambda: shape_of(stands))
    if stands:
        problems += metrics.unfit(recipe.evaluation.metrics, stands.row)
    if shape and recipe.method.name in METHODS:
        row = METHODS[recipe.method.name]
        problems += spec.problems(row, recipe, resolve(recipe, shape, stands.row))
        _attempt(problems, lambda: _check_targets(recipe, shape))
        _attempt(problems, lambda: _check_size(recipe, shape, local))
    if problems:
        raise TunerError(*problems)

    tokenizer = load_tokenizer(folder)
    chosen = _choose(recipe, shape, len(split.train))
    settings = {c["setting"]: c["value"] for c in chosen}
    told = tokenizer, settings["max_length"], recipe.training.loss_on, stands.labels
    train, heldout = (encode.tokenise(stands.task, rows, *told) for rows in (split.train, split.heldout))
    trainable = count_trainable(stands, method_key(recipe))

    def foresee() -> dict:
        return forecast.forecast(recipe, stands, settings, train, len(heldout.rows), trainable)

    foreseen = foresee()
    fitting = forecast.rows_that_fit(foreseen, settings["batch_size"])
    if recipe.training.batch_size == "auto" and 0 < fitting < settings["batch_size"]:
        settings["batch_size"] = fitting
        batch = next(c for c in chosen if c["setting"] == "batch_size")
        batch |= {"value": fitting, "reason": "as many as the device's memory holds"}
        foreseen = foresee()
    _attempt(problems, lambda: forecast.check_memory(foreseen, recipe, settings["batch_size"]))
    _attempt(problems, lambda: forecast.check_budget(foreseen, recipe))
    if not local:
        _attempt(problems, lambda: forecast.check_limits(foreseen, train.total_tokens))
    plan = _plan(recipe, folder, shape, table, split, train, heldout, settings)
    plan |= {"trainable_parameters": trainable, "forecast": foreseen}
    plan |= {"task": stands.task, "labels": list(stands.labels)}
    if own_folder:
        plan |= {"revision": None, "model_folder": str(own_folder)}
    plan["chosen"] = [
        *chosen,
        {"setting": "format", "value": format.name, "reason": format.reason},
        {"setting": "task", "value": stands.row.title, "reason": _why_task(recipe, format, stands)},
        {"setting": "held-out rows", "value": len(split.heldout), "reason": split.reason},
    ]
    _attempt(problems, lambda: _check_disk(plan, runs.RUNS))
    if problems:
        raise TunerError(*problems)
    return Checked(recipe, stands, plan, format, tokenizer, train, heldout, split.heldout)


def prepare(
    recipe: Recipe,
    table: parse.Table | None = None,
    base: Path | None = None,
    *,
    local: bool = True,
    root: Path | None = None,
    path: Path | None = None,
) -> Run:
    """A run folder, ready to train: at `path`, or a new one under `root`.

    Raises TunerError with all problems, having written nothing.
    """
    from datasets import Dataset

    checked = check(recipe, table, base, local=local)
    run = runs.create(recipe, root, path)
    for name, rows in (("train", checked.train.rows), ("heldout", checked.heldout.rows)):
        Dataset.from_list(rows).save_to_disk(str(run.data / name))
    heldout = filter(None, map(encode.heldout_prompt, checked.heldout_rows))
    run.write_text("data/heldout.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in heldout))
    run.write_json("plan.json", checked.plan)
    return run


def _of_the_method_alone(recipe: Recipe, folder: Path, config) -> list[str]:
    """What is wrong with the method on this model, where the rows can't tell the task."""
    row = TASKS[task_for(recipe.task, "", bool(config.is_encoder_decoder))]
    problems: list[str] = []
    if recipe.method.name not in METHODS or row.has_labels or not can_do(config, row):
        return problems
    shape = shape_of(Base(folder, recipe.model, row.name))
    problems += spec.problems(METHODS[recipe.method.name], recipe, resolve(recipe, shape, row))
    _attempt(problems, lambda: _check_targets(recipe, shape))
    return problems


def _check_targets(recipe: Recipe, shape: Shape) -> None:
    """Raises TunerError for a target that no layer is named after."""
    targets = recipe.method.target_modules
    if isinstance(targets, str):
        return
    missing = [t for t in targets if not any(is_named(name, t) for name, _, _ in shape.linear_layers)]
    if missing or not targets:
        there = sorted({name.rpartition(".")[2] for name, _, _ in shape.linear_layers})
        raise TunerError(
            f"method.target_modules: {recipe.model.name} has no layer {parse.quoted(missing) or '(none given)'}. "
            f"It has {', '.join(there)}; or take all-linear."
        )


def _base(recipe: Recipe, folder: Path, config, format: formats.Format, split: Split) -> Base:
    """The base with its task and its labels. Raises TunerError where rows and task, or model and task, don't fit."""
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
        return "as asked"
    labels = f", with the labels {', '.join(base.labels[:8])}{' ...' if len(base.labels) > 8 else ''}"
    return f"inferred from the rows ({format.name}) and the kind of model{labels if base.labels else ''}"


def _attempt(problems: list[str], step: Callable):
    try:
        return step()
    except TunerError as error:
        problems.extend(error.problems)


def _check_size(recipe: Recipe, shape: Shape, local: bool) -> None:
    if not local and shape.parameters > forecast.MAX_PARAMETERS:
        raise TunerError(
            f"{recipe.model.name} has {shape.parameters / 1e9:.1f} billion parameters; this page takes "
            f"{forecast.MAX_PARAMETERS / 1e9:g} billion. Choose a smaller one, or run Tuner on a machine of yours."
        )


def _rows(recipe: Recipe, table, base, local) -> tuple[parse.Table, formats.Format, Split]:
    table = table or sources.read(recipe.data, base, local=local)
    format = recognise(table, recipe.data)
    rows = formats.normalise(table, format, recipe.data.system)
    return table, format, split_rows(rows, table.splits, recipe.data, recipe.seed)


def _choose(recipe: Recipe, shape: Shape, rows: int) -> list[dict]:
    """Every setting that was left to us, with the value taken and why; settings that were given, as given."""
    row, defaults = METHODS[recipe.method.name], recipe.method.model_dump()
    dtype, why = compute_dtype(recipe.model)
    batch = min(USUAL_BATCH, max(1, rows // 4))
    usual = {
        "learning_rate": (recipe.training.learning_rate, row.learning_rate(shape.width), row.learning_rate_reason),
        "batch_size": (
            recipe.training.batch_size,
            batch,
            "small batches suit adapters in short runs" if batch == USUAL_BATCH else f"there are only {rows} rows",
        ),
        "max_length": (
            recipe.data.max_length,
            min(USUAL_LENGTH, shape.context),
            "the model's context" if shape.context <= USUAL_LENGTH else "long enough for most rows, and affordable",
        ),
    }
    settings = resolve(recipe, shape, None).settings
    usual |= {name: (defaults[name], value, f"{row.title}'s usual") for name, value in settings.items()}
    chosen = [
        {
            "setting": name,
            "value": value if given == "auto" else given,
            "reason": why if given == "auto" else "as asked",
        }
        for name, (given, value, why) in usual.items()
    ]
    return [*chosen, {"setting": "dtype", "value": dtype, "reason": why}]


def _plan(recipe, folder, shape, table, split, train, heldout, settings) -> dict:
    rows, batch = len(train.rows), settings["batch_size"]
    per_epoch = -(-rows // batch)
    budget = recipe.budget
    steps = budget.steps or (max(1, round(budget.epochs * per_epoch)) if budget.epochs else None)
    plan = {
        "format": runs.FORMAT,
        "rows": rows,
        "heldout_rows": len(heldout.rows),
        "tokens": train.total_tokens,
        "trained_tokens": train.trained_tokens,
        "steps_per_epoch": per_epoch,
        "steps": steps,
        "epochs": None if steps is None else round(steps / per_epoch, 2),
        "seconds": budget.seconds,
        "model_parameters": shape.parameters,
        "truncated_rows": train.truncated,
        "settings": settings,
        "revision": None if is_shipped(recipe.model.name) else folder.name,
        "warnings": [*table.notes, *split.warnings, *([train.warning] if train.warning else [])],
    }
    if steps and steps < FEW_STEPS:
        said = f"{rows} rows at {batch} a step are {per_epoch} steps an epoch, so this run is {steps} steps. "
        plan["warnings"].append(said + "That teaches little: give more rows, more steps, or smaller batches.")
    return plan


def _check_disk(plan: dict, root: Path) -> None:
    # Adapter, and twice a checkpoint of weights and two moments in float32; the rows as int64 pairs.
    needed = plan["trainable_parameters"] * 4 * (1 + 2 * 3) + plan["tokens"] * 16 + 50 * 2**20
    while not root.exists():
        root = root.resolve().parent
    if free_disk(root) < needed:
        raise TunerError(
            f"This run needs about {needed / 2**20:.0f} MB on disk; {free_disk(root) / 2**20:.0f} MB are free. "
            "Delete old runs, or choose another folder with TUNER_RUNS."
        )
