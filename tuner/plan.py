"""Before a run: everything that can be checked, chosen and counted without a GPU, and the run folder that comes of it.

`check` collects the problems of model, data and method together; `prepare` writes what training needs, so that nothing
is downloaded, parsed or tokenised while a GPU is held.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuner import data, forecast, formats, models, parse, runs, tables
from tuner.errors import TunerError
from tuner.methods import METHODS
from tuner.recipe import Recipe
from tuner.runs import Run

USUAL_LENGTH = 1024  # tokens
USUAL_BATCH = 16  # rows
FEW_STEPS = 60  # below this a run teaches little


@dataclass
class Checked:
    """What a recipe comes to."""

    recipe: Recipe
    plan: dict
    format: formats.Format
    tokenizer: object
    train: data.Tokenised
    heldout: data.Tokenised
    heldout_rows: list[dict]


def check(
    recipe: Recipe, table: parse.Table | None = None, base: Path | None = None, *, local: bool = True
) -> Checked:
    """Check the recipe against its model and its rows: `table`, or what its source names.

    `base` is the folder that relative paths start from; without `local`, for a visitor, no path is followed at all.
    Raises TunerError with all problems.
    """
    problems: list[str] = []
    folder, shape = _attempt(problems, lambda: _model(recipe, local)) or (None, None)
    if recipe.method.name not in METHODS:
        problems.append(f"method.name: there is no method '{recipe.method.name}'. There are: {', '.join(METHODS)}.")
    elif shape:
        _attempt(problems, lambda: target_layers(recipe, shape))
    read = _attempt(problems, lambda: _rows(recipe, table, base, local))
    if problems:
        raise TunerError(*problems)

    table, format, split = read
    tokenizer = models.load_tokenizer(folder)
    chosen = _choose(recipe, shape, len(split.train))
    settings = {c["setting"]: c["value"] for c in chosen}
    loss_on = recipe.training.loss_on
    train = data.tokenise(split.train, tokenizer, settings["max_length"], loss_on)
    heldout = data.tokenise(split.heldout, tokenizer, settings["max_length"], loss_on)
    trainable = METHODS[recipe.method.name].parameters(recipe, target_layers(recipe, shape))

    def foresee() -> dict:
        return forecast.forecast(recipe, folder, shape, settings, train, len(heldout.rows), trainable)

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
    plan["chosen"] = [
        *chosen,
        {"setting": "format", "value": format.name, "reason": format.reason},
        {"setting": "held-out rows", "value": len(split.heldout), "reason": split.reason},
    ]
    _attempt(problems, lambda: _check_disk(plan, runs.RUNS))
    if problems:
        raise TunerError(*problems)
    return Checked(recipe, plan, format, tokenizer, train, heldout, [r for r in split.heldout if "messages" in r])


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
    heldout = [
        {"messages": r["messages"][:-1], "reference": r["messages"][-1]["content"]} for r in checked.heldout_rows
    ]
    run.write_text("data/heldout.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in heldout))
    run.write_json("plan.json", checked.plan)
    return run


def target_layers(recipe: Recipe, shape: models.Shape) -> list[tuple[int, int]]:
    """Inputs and outputs of every layer that gets an adapter. Raises TunerError for a name that fits none."""
    targets = recipe.method.target_modules
    if targets == "all-linear":
        return [(a, b) for _, a, b in shape.linear_layers]
    missing = [t for t in targets if not any(_is_named(name, t) for name, _, _ in shape.linear_layers)]
    if missing or not targets:
        there = sorted({name.rpartition(".")[2] for name, _, _ in shape.linear_layers})
        raise TunerError(
            f"method.target_modules: {recipe.model.name} has no layer {parse.quoted(missing) or '(none given)'}. "
            f"It has {', '.join(there)}; or take all-linear."
        )
    return [(a, b) for name, a, b in shape.linear_layers if any(_is_named(name, t) for t in targets)]


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _attempt(problems: list[str], step: Callable):
    try:
        return step()
    except TunerError as error:
        problems.extend(error.problems)


def _model(recipe: Recipe, local: bool) -> tuple[Path, models.Shape]:
    folder = models.fetch(recipe.model)
    shape = models.shape(folder, recipe.model.name)
    if not local and shape.parameters > forecast.MAX_PARAMETERS:
        raise TunerError(
            f"{recipe.model.name} has {shape.parameters / 1e9:.1f} billion parameters; this page takes "
            f"{forecast.MAX_PARAMETERS / 1e9:g} billion. Choose a smaller one, or run Tuner on a machine of yours."
        )
    return folder, shape


def _rows(recipe: Recipe, table, base, local) -> tuple[parse.Table, formats.Format, data.Split]:
    table = table or tables.read(recipe.data, base, local=local)
    format = formats.recognise(table, recipe.data)
    rows = formats.normalise(table, format, recipe.data.system)
    return table, format, data.split(rows, table.splits, recipe.data, recipe.seed)


def _choose(recipe: Recipe, shape: models.Shape, rows: int) -> list[dict]:
    """Every setting that was left to us, with the value taken and why; settings that were given, as given."""
    method, row = recipe.method, METHODS[recipe.method.name]
    dtype, why = models.compute_dtype(recipe.model)
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
        "alpha": (method.alpha, 2 * method.rank, "twice the rank"),
    }
    chosen = [
        {
            "setting": name,
            "value": value if given == "auto" else given,
            "reason": why if given == "auto" else "as asked",
        }
        for name, (given, value, why) in usual.items()
    ]
    targets = method.target_modules
    return [
        *chosen,
        {"setting": "dtype", "value": dtype, "reason": why},
        {
            "setting": "target_modules",
            "value": targets if targets == "all-linear" else list(targets),
            "reason": "adapters on every linear layer learn best" if targets == "all-linear" else "as asked",
        },
    ]


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
        "revision": None if models.is_shipped(recipe.model.name) else folder.name,
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
    if models.free_disk(root) < needed:
        raise TunerError(
            f"This run needs about {needed / 2**20:.0f} MB on disk; {models.free_disk(root) / 2**20:.0f} MB are free. "
            "Delete old runs, or choose another folder with TUNER_RUNS."
        )
