"""Training on from an adapter that there is already: of the Hub, or of an earlier run (method.start_from).

The weights are copied into the new run, which needs nothing else of where they came from. They must be what the
recipe's own method would save on the recipe's own base; whatever else is refused with what to change.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import names, runs
from tuner.data.problems import quoted
from tuner.errors import TunerError
from tuner.methods.files import CONFIG, SECOND, WEIGHTS
from tuner.methods.registry import METHODS, resolve
from tuner.models.fetch import is_shipped
from tuner.models.shape import Base, Shape, shape_of
from tuner.models.weights import tensors_of
from tuner.planning.adapter_config import ASIDE, NAMES, PATTERNS, method_of, read_config, understood
from tuner.planning.adapter_files import fetch_adapter
from tuner.planning.memory import attach_on_meta, method_key
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TASKS
from tuner.words import count

if TYPE_CHECKING:
    from tuner.methods import attach

FOLDER = "start"  # of a run: the weights that it starts from
LAYERS = {*PATTERNS, *NAMES, "layers_to_transform"}  # what they say, the tensors' names show
# PEFT's settings -> the recipe's.
SETTINGS = {
    "r": "rank",
    "oft_block_size": "rank",
    "boft_block_size": "rank",
    "lora_alpha": "alpha",
    "alpha": "alpha",
    "num_virtual_tokens": "virtual_tokens",
    "adapter_len": "virtual_tokens",
    "adapter_layers": "layers",
}


@dataclass(frozen=True)
class Start:
    """An adapter to train on from."""

    name: str  # as the recipe has it
    folder: Path
    revision: str | None = None  # of one on the Hub
    run: Run | None = None  # that has it, if there is one

    @property
    def facts(self) -> dict[str, str | None]:
        """Where it is from, as a plan tells anybody: the id of a run would let them look at it."""
        adopted = (self.run.plan.get("adopted") if self.run else None) or {}
        adapter = adopted.get("adapter") if self.run else self.name
        return {"adapter": adapter and adapter.partition("@")[0], "revision": self.revision}


def find(recipe: Recipe, *, local: bool, token: str | bool | None) -> Start | None:
    """The adapter that the recipe starts from, downloaded if need be; None if it starts from a new one.

    Without `local`, for a visitor, a run is known by its id alone. Raises TunerError if there is none.
    """
    name = recipe.method.start_from
    if name is None:
        return None
    try:
        is_hub = "/" in name and names.fits("dataset", name.partition("@")[0]) and not (local and Path(name).is_dir())
        if not is_hub:
            return _of_run(name, runs.open_run(name, local=local))
        folder = fetch_adapter(name, token)
        return Start(name, folder, folder.name)
    except TunerError as error:
        raise TunerError(*(f"method.start_from: {problem}" for problem in error.problems)) from None


def _of_run(name: str, run: Run) -> Start:
    if run.is_training:
        raise TunerError(f"run {run.id} is in training, so its adapter changes. Stop it, or wait until it ends.")
    if run.read_json(f"adapter/{CONFIG}") is None or not (run.adapter / WEIGHTS).is_file():
        raise TunerError(f"run {run.id} has no adapter yet. Train it first.")
    return Start(name, run.adapter, run.plan.get("adopted", {}).get("revision"), run)


def check(start: Start, recipe: Recipe, base: Base, own_folder: Path | None) -> None:
    """Raise TunerError unless the recipe would train just such an adapter on just that base."""
    row = METHODS[recipe.method.name]
    if not row.continues:
        raise _refused(f"{row.title} can't be continued: its file does not hold all that it trains. Leave it out, or "
                       "choose another method.")  # fmt: skip
    config = _read(start.folder, start.name) if start.run is None else start.run.read_json(f"adapter/{CONFIG}")
    _check_base(start, config, recipe, base, own_folder)
    kind = start.run.recipe.method.name if start.run else method_of(config)
    if kind != row.name and {kind, row.name} != {"lora", "qlora"}:
        raise _refused(
            f"'{start.name}' is {METHODS[kind].title}, and this recipe trains {row.title}. Set method.name to {kind}."
        )
    shape = shape_of(base)
    if "native" not in config:
        known = understood(config, shape.modules, start.name) if start.run is None else config
        _check_settings(start.name, known, recipe, base)
    if not row.needs_storage:
        from tuner.methods import attach

        needed = attach.stored_shapes(attach_on_meta(base, method_key(recipe)))
        for place, tensors in needed.items():
            _check_tensors(start, place, tensors, recipe, shape)
    elif not start.run or start.run.recipe.method.target_modules != recipe.method.target_modules:
        raise _refused(f"{row.title} can be continued on the same layers only. Set method.target_modules as it was.")


def _refused(sentence: str) -> TunerError:
    return TunerError(f"method.start_from: {sentence}")


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_config(folder, name)
    except TunerError as error:
        raise _refused(" ".join(error.problems)) from None


def _check_base(start: Start, config: dict, recipe: Recipe, base: Base, own_folder: Path | None) -> None:
    """Raise TunerError if it was trained on another base, for another task, or for other labels."""
    model, run = recipe.model.name, start.run
    if run is None:
        if own_folder is None and config["base_model_name_or_path"] != model:
            other = config["base_model_name_or_path"]
            raise _refused(
                f"'{start.name}' was trained on {other}, and this recipe's base model is {model}. Set model.name to "
                f"{other}."
            )
        task, labels = config.get("task_type") or base.row.peft_type, base.labels
    else:
        trained_on = run.plan.get("model_folder") or run.recipe.model.name
        if trained_on != (str(own_folder) if own_folder else model):
            other = run.recipe.model.name
            raise _refused(f"run {run.id} was trained on {other}, and this recipe's base model is {model}. Set "
                           f"model.name to {other}.")  # fmt: skip
        revision = None if own_folder or is_shipped(model) else base.folder.name
        if run.plan.get("revision") != revision:
            raise _refused(
                f"run {run.id} was trained on another version of {model}. Set model.revision to "
                f"{run.plan['revision']}."
            )
        task, labels = TASKS[run.plan["task"]].peft_type, tuple(run.plan.get("labels", ()))
    if task != base.row.peft_type:
        title = next((row.title for row in TASKS.values() if row.peft_type == task), task)
        raise _refused(f"'{start.name}' was trained for {title}, and these rows are for {base.row.title}. Give rows "
                       "of that kind, or leave it out.")  # fmt: skip
    if labels != base.labels:
        raise _refused(
            f"'{start.name}' was trained on the labels {quoted(labels)}, in this order, and these rows have "
            f"{quoted(base.labels)}. Give rows with the same labels, or leave it out."
        )


def _check_settings(name: str, config: dict[str, Any], recipe: Recipe, base: Base) -> None:
    """Raise TunerError if a setting of the adapter, which its weights were trained for, is another in the recipe."""
    ours = METHODS[recipe.method.name].configs(resolve(recipe, shape_of(base), base.row))[0]
    for field in fields(ours):
        key, value = field.name, getattr(ours, field.name)
        if key in ASIDE | LAYERS or key.startswith("init_") or key.endswith("dropout"):
            continue
        made = field.default_factory() if field.default_factory is not MISSING else None
        theirs = config.get(key, made if field.default is MISSING else field.default)
        if theirs == value or (not theirs and not value):
            continue
        setting = SETTINGS.get(key)
        instead = f"Set method.{setting} to {_value(theirs)}" if setting else "Start from another, or leave it out"
        raise _refused(
            f"'{name}' was trained with {key} {_value(theirs)}, and this recipe has {_value(value)}. {instead}."
        )


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else names.shown(f"{value}")


def _check_tensors(start: Start, place: str, needed: dict, recipe: Recipe, shape: Shape) -> None:
    """Raise TunerError unless the file has just these tensors."""
    file = start.folder / place / WEIGHTS
    stored = {key: tensor.shape for key, tensor in tensors_of(file, start.name).items()} if file.is_file() else {}
    if stored == needed:
        return
    theirs, ours = (sorted(set(_layers(keys, shape))) for keys in (stored, needed))
    if theirs != ours and theirs:
        raise _refused(
            f"'{start.name}' is on the layers {', '.join(theirs)}, and this recipe trains {', '.join(ours)}. Set "
            f"method.target_modules to [{', '.join(theirs)}]."
        )
    wrong = next((key for key in needed if stored.get(key) != needed[key]), None) or next(iter(stored.keys() - needed))
    raise _refused(
        f"'{start.name}' does not fit this recipe: {names.shown(wrong)} is {_size(stored.get(wrong))} there and "
        f"{_size(needed.get(wrong))} here. Start from another adapter, or leave it out."
    )


def _layers(keys: dict, shape: Shape) -> Iterator[str]:
    """The last names of the linear layers that tensors belong to."""
    for name, _, _ in shape.linear_layers:
        if any(f".{name}." in key for key in keys):
            yield name.rpartition(".")[2]


def _size(size: tuple[int, ...] | None) -> str:
    return "missing" if size is None else " x ".join(map(str, size)) or "one number"


def describe(plan: dict, start: Start | None, heldout: list[dict]) -> None:
    """Write into the plan what a run starts from, if it is an adapter, and what that means for its scores."""
    if start is None:
        return
    plan["start"] = start.facts
    plan["warnings"] += _warnings(start, heldout)
    value = start.facts["adapter"] or "an earlier run"
    reason = "its weights are copied into this run; the scores compare with the base model, not with it"
    plan["chosen"].append({"setting": "starts from", "value": value, "reason": reason})


def _warnings(start: Start, heldout: list[dict]) -> list[str]:
    """What a person should know of the scores: held-out rows may have been trained on before."""
    source = f"'{start.name}'" if start.run is None else "the run that this one starts from"
    rows = start.run.data / "train" if start.run else None
    if rows is None or not rows.is_dir() or start.run.plan.get("start"):
        return [
            f"Which rows {source} was trained on is not known here. If held-out rows are among them, the scores will "
            "look too good."
        ]
    from datasets import load_from_disk

    seen = {hash(tuple(ids)) for ids in load_from_disk(str(rows))["input_ids"]}
    again = sum(hash(tuple(row["input_ids"])) in seen for row in heldout)
    if not again:
        return []
    return [
        f"{source[0].upper()}{source[1:]} was trained on {again:,} of {count(len(heldout), 'held-out row')}, so the "
        "scores will look too good. Hold out the same rows: give the same data, data.heldout and split seed."
    ]


def copy(start: Start, run: Run) -> str:
    """Copy the weights into the run; returns the SHA-256 of theirs. Raises TunerError if they are gone."""
    from huggingface_hub.utils.sha import sha_fileobj

    digest = hashlib.sha256()
    with run.folder(FOLDER) as target:
        for place in ("", SECOND):
            file = start.folder / place / WEIGHTS
            if file.is_file():
                (target / place).mkdir(exist_ok=True)
                shutil.copyfile(file, target / place / WEIGHTS)
                with open(target / place / WEIGHTS, "rb") as copied:
                    digest.update(sha_fileobj(copied))
    return digest.hexdigest()


def begin(run: Run, model: "attach.Adapted") -> None:
    """Put the weights that the run starts from, if there are any, into its model."""
    from tuner.methods import attach

    if (run.path / FOLDER / WEIGHTS).is_file():
        attach.begin_with(model, run.path / FOLDER)
