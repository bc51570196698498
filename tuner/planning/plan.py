"""Before a run: check the recipe, choose what it leaves open, and write the run folder. No GPU needed.

`check` reports the problems of model, method and rows together; `prepare` writes all that training needs, so that
nothing is downloaded, parsed or tokenized in a GPU window.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tuner import metrics, models_cleanup, runs, runs_cleanup
from tuner.data import encode, formats, guess, sources, tags
from tuner.data.baseline import in_words, most_frequent
from tuner.data.chat import mostly_think
from tuner.data.chat_templates import changed_template
from tuner.data.recognize import recognize
from tuner.data.split import Split, split_rows
from tuner.data.table import Table
from tuner.data.tokens import Tokenized
from tuner.errors import TunerError, collect
from tuner.methods.registry import METHODS
from tuner.models.fetch import fetch_model, find_folder, is_shipped
from tuner.models.quantized import origin_of
from tuner.models.shape import Base, can_do, check_task, load_config, load_tokenizer, shape_of
from tuner.models_cleanup import free_disk
from tuner.planning import budget, few_shot, forecast, proposals, start_from
from tuner.planning.answering import choose_answering
from tuner.planning.base_check import check_base, check_vocabulary
from tuner.planning.choices import choose, fit, room_for_rows
from tuner.planning.heads import has_own_head, in_heads_order
from tuner.planning.heldout import heldout_prompts, prompt_tokens
from tuner.planning.memory import count_trainable, method_key
from tuner.planning.method_check import method_problems, unknown_method
from tuner.planning.scoring import Prompts, too_few_seconds
from tuner.planning.trackers import tracking_choice, tracking_problems
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TASKS, TEXT, task_for
from tuner.words import count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    split: Split
    examples: few_shot.Choice | None
    start: start_from.Start | None


class Rows(NamedTuple):
    """The rows of a recipe: as they were read, how they are understood, and how they are split."""

    table: Table
    format: formats.Format
    split: Split


def check(
    recipe: Recipe,
    table: Table | None = None,
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
    model, rows, start = _resolve(recipe, table, base, local, own_folder, token)
    shape, tokenizer = shape_of(model), load_tokenizer(model.folder)
    chosen = choose(recipe, shape, len(rows.split.train))
    settings = {name: value for name, (value, _) in chosen.items()}
    arguments = tokenizer, settings["max_length"], recipe.training.loss_on, model.labels
    train, heldout = (encode.tokenize(model.task, part, *arguments) for part in (rows.split.train, rows.split.heldout))
    if model.row.generates:
        answering = choose_answering(recipe, model, rows.split.heldout, tokenizer, settings["max_length"])
        chosen["max_new_tokens"] = answering.max_new_tokens, answering.reason
        settings["max_new_tokens"] = answering.max_new_tokens
    if shape.is_bounded:
        train = replace(train, room=room_for_rows(recipe, shape, settings))
    trainable = count_trainable(model, method_key(recipe))
    prompter = few_shot.Prompter(recipe, model, settings, tokenizer)
    examples = few_shot.choose(prompter, rows.split.train, rows.split.heldout)
    prompts, held = Prompts(prompt_tokens(model, heldout.rows), examples.tokens if examples else 0.0), heldout.parts
    estimate = fit(recipe, model, settings, train, len(held), trainable, prompts)
    if settings["batch_size"] != chosen["batch_size"][0]:
        chosen["batch_size"] = settings["batch_size"], "as many as fit in the device's memory"
    steps = budget.choose_steps(recipe.budget, len(train.rows), settings["batch_size"])
    lengths = len(heldout.rows), sum(held[: recipe.evaluation.rows])
    measuring, measured = budget.choose_measuring(recipe, steps.number, settings["batch_size"], *lengths)
    plan = _plan(recipe, model, rows, train, len(held), settings, estimate)
    plan |= {"trainable_parameters": trainable, "forecast": estimate, "measuring": measuring._asdict()}
    plan["warnings"] += too_few_seconds(recipe, len(held), estimate, prompts.examples > 0)
    plan["warnings"] += proposals.warnings(
        recipe, model, rows.split.train, train.total_tokens, estimate["available"], table is not None
    )
    if max(held) > 1:
        plan["heldout_parts"] = held
    if model.row.generates:
        plan["end_tokens"] = answering.ends
    plan |= _base_facts(model, tokenizer, rows.split.train) | ({"prompting": examples.facts} if examples else {})
    if own_folder:
        plan |= {"revision": None, "model_folder": str(own_folder)}
    shown = {"examples in the prompt": (examples.examples, examples.reason)} if examples else {}
    chosen |= shown | ({"steps": steps} if steps.number else {}) | measured
    plan["chosen"] = _choices(recipe, model, rows, plan, chosen)
    start_from.describe(plan, start, heldout.rows)
    checked = Checked(recipe, model, plan, rows.format, tokenizer, train, heldout, rows.split, examples, start)
    _check_room(checked, local)
    return checked


def _choices(recipe: Recipe, model: Base, rows: Rows, plan: dict, chosen: dict[str, tuple]) -> list[dict]:
    """All that was chosen or found out, each with the reason for it."""
    return [
        *({"setting": name, "value": value, "reason": reason} for name, (value, reason) in chosen.items()),
        {"setting": "format", "value": rows.format.name, "reason": rows.format.reason},
        {"setting": "task", "value": model.row.title, "reason": _why_task(recipe, rows.format, model)},
        {"setting": "held-out rows", "value": len(rows.split.heldout), "reason": rows.split.reason},
        *([compared] if (compared := _compared(plan)) else []),
        *tracking_choice(recipe),
    ]


def _base_facts(model: Base, tokenizer: "PreTrainedTokenizerBase", rows: list[dict]) -> dict:
    """What the plan says of a base that chats, has a new head or is stored in few bits; `rows` are trained on."""
    facts: dict = {}
    if model.row.chats:
        facts["thinks"] = mostly_think(rows)
        if template := changed_template(tokenizer):
            facts["chat_template"] = template
    if not has_own_head(model):
        facts["baseline"] = most_frequent(model.task, rows)
    if model.stored:
        facts["origin"] = origin_of(model.folder)
    return facts


def _check_room(checked: Checked, local: bool) -> None:
    """Raise TunerError with all problems if vocabulary, memory, budget, disk or a visitor's limits are too small."""
    recipe, plan, estimate, problems = checked.recipe, checked.plan, checked.plan["forecast"], []
    with collect(problems):
        rows = [*checked.train.rows, *checked.heldout.rows]
        check_vocabulary(checked.base, shape_of(checked.base), checked.tokenizer, rows)
    with collect(problems):
        forecast.check_memory(estimate, recipe, plan["settings"]["batch_size"])
    with collect(problems):
        forecast.check_budget(estimate, recipe)
    with collect(problems):
        _check_disk(plan, runs.RUNS, local)
    if not local:
        with collect(problems):
            forecast.check_limits(estimate, checked.train.total_tokens)
    if problems:
        raise TunerError(*problems)


def prepare(
    recipe: Recipe,
    table: Table | None = None,
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
    settings, lengths = checked.plan["settings"], checked.heldout.lengths
    prompts = heldout_prompts(recipe, checked.base, checked.split.heldout, lengths, settings, checked.tokenizer)
    if checked.examples:
        prompter = few_shot.Prompter(recipe, checked.base, settings, checked.tokenizer)
        checked.plan["prompting"] = few_shot.add_examples(prompter, checked.split, prompts, checked.examples)
    if checked.start:
        checked.plan["start"]["sha256"] = start_from.copy(checked.start, run)
    run.write_text("data/heldout.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompts))
    run.write_json("plan.json", checked.plan)
    return run


def _resolve(
    recipe: Recipe,
    table: Table | None,
    base: Path | None,
    local: bool,
    own_folder: Path | None,
    token: str | bool | None,
) -> tuple[Base, Rows, start_from.Start | None]:
    """The base for its task, the rows, and the adapter to train on from if one is named.

    Raises TunerError with all problems of model, method and rows.
    """
    problems = unknown_method(recipe) + metrics.unknown(recipe.evaluation.metrics)
    problems += tracking_problems(recipe, local=local)
    config = rows = model = start = None
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
            check_base(model, most)
    if model:
        problems += metrics.unfit(recipe.evaluation.metrics, model.row)
    if model and recipe.method.name in METHODS:
        problems += method_problems(recipe, model)
    with collect(problems):
        if model and not problems and (start := start_from.find(recipe, local=local, token=token)):
            start_from.check(start, recipe, model, own_folder)
    if problems:
        raise TunerError(*problems)
    return model, rows, start


def _base(recipe: Recipe, folder: Path, config, format: formats.Format, split: Split) -> Base:
    """The base with its task and labels. Raises TunerError if rows or model don't fit the task."""
    row = TASKS[task_for(recipe.task, format.row.becomes, bool(config.is_encoder_decoder))]
    if format.row.becomes not in row.learns_from:
        raise TunerError(
            f"task: {row.title} learns from {' or '.join(row.learns_from)}, but these rows are {format.row.becomes} "
            f"(data.format {format.name}). Leave task out, or map the columns by hand (data.format, data.columns)."
        )
    check_task(config, recipe.model.name, row)
    labels = encode.labels_of(row.name, [*split.train, *split.heldout])
    return Base(folder, recipe.model, row.name, in_heads_order(labels, config.id2label or {}))


def _why_task(recipe: Recipe, format: formats.Format, base: Base) -> str:
    if recipe.task != "auto":
        return "as given"
    labels = f", with the labels {', '.join(base.labels[:8])}{' ...' if len(base.labels) > 8 else ''}"
    return f"inferred from the rows ({format.name}) and the model{labels if base.labels else ''}"


def _compared(plan: dict) -> dict | None:
    """What the adapter is compared with, if not with the base model's answers."""
    if "baseline" not in plan:
        return None
    reason = "the base model's head is new and untrained, so this is the best answer that knows nothing"
    return {"setting": "compared with", "value": in_words(plan["baseline"]), "reason": reason}


def _rows(recipe: Recipe, table: Table) -> Rows:
    format = recognize(table, recipe.data)
    read = formats.normalize(table, format, recipe.data)
    split = split_rows(read.rows, read.splits, recipe.data, recipe.seed)
    notes = (*table.notes, *read.notes, *guess.unlearned_labels(table, format, recipe.data))
    return Rows(replace(table, notes=notes), format, split)


def _plan(
    recipe: Recipe, model: Base, rows: Rows, train: Tokenized, heldout: int, settings: dict, estimate: dict
) -> dict:
    number, batch = len(train.rows), settings["batch_size"]
    per_epoch, steps = -(-number // batch), budget.choose_steps(recipe.budget, number, batch).number
    warnings = [
        *rows.table.notes,
        *tags.warnings(model.task, model.labels),
        *rows.split.warnings,
        *([train.warning] if train.warning else []),
        *budget.warnings_of(recipe.budget, number, batch, estimate["steps"]),
    ]
    if rows.format.row.becomes != TEXT and (scored := estimate["scored"]) < metrics.FEWEST_ROWS:
        warnings.append(
            f"Only {count(scored, 'held-out row')} will be scored, too few to tell whether it helped. Give more rows, "
            f"or score at least {metrics.FEWEST_ROWS} (data.heldout, evaluation.rows)."
        )
    return {
        "format": runs.FORMAT,
        "task": model.task,
        "labels": list(model.labels),
        "rows": number,
        "heldout_rows": heldout,
        "repeated_rows": rows.split.repeated,
        "scored_rows": estimate["scored"],
        "tokens": train.total_tokens,
        "trained_tokens": train.trained_tokens,
        "steps_per_epoch": per_epoch,
        "steps": steps,
        "epochs": None if steps is None else round(steps / per_epoch, 2),
        "seconds": recipe.budget.seconds,
        "model_parameters": shape_of(model).parameters,
        "truncated_rows": train.truncated,
        "settings": settings,
        "revision": None if is_shipped(recipe.model.name) else model.folder.name,
        "data": {"origin": rows.table.origin, "revision": rows.table.revision},
        "warnings": warnings,
    }


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
