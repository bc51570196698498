"""Adapters of the Hub as runs: a folder that answers like one of a training, beside its base and others on that.

    run = adopt("owner/name")    # a run with the status "adopted", which can't be trained or merged

The adapter's tensors are compared with its base's before anything is loaded.
"""

import json
import shutil
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import names, runs
from tuner.errors import TunerError
from tuner.methods.files import CONFIG, WEIGHTS
from tuner.methods.registry import METHODS
from tuner.models.bounds import check_size, read_json
from tuner.models.fetch import fetch_model, is_shipped
from tuner.models.quantized import origin_of
from tuner.models.shape import Base, check_task, load_config, on_meta, shape_of
from tuner.models.weights import Stored, tensors_of
from tuner.planning.adapter_config import as_recipe, method_of, read_config, understood
from tuner.planning.adapter_files import RECEIPT, TEMPLATES, fetch_adapter
from tuner.planning.base_check import check_base
from tuner.planning.heads import has_own_head
from tuner.recipe import Recipe
from tuner.run_files import content
from tuner.runs import Run
from tuner.tasks import TASKS, TaskRow
from tuner.words import said_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "base_model.model."
TEMPLATE, TOKENIZER = TEMPLATES
NUMBERS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
MOST_LABELS = 10_000


def fetch(name: str, quantization: str, token: str | bool | None, most: float | None = None) -> tuple[Path, Path]:
    """The folders of the adapter owner/name[@revision] and of its base, downloaded if need be.

    `token` and `most` are as for `fetch_model`. Raises TunerError.
    """
    folder = fetch_adapter(name, token)
    recipe = as_recipe(read_config(folder, name), name, quantization)
    return folder, fetch_model(recipe.model, None, token, most)


def adopt(
    name: str,
    quantization: str = "none",
    *,
    token: str | bool | None = None,
    most: float | None = None,
    path: Path | None = None,
) -> Run:
    """A run that answers with the adapter owner/name[@revision], at `path` or under RUNS.

    Its base is loaded in the precision `quantization`, or in the one that it was published in. `token` and `most` are
    as for `fetch_model`. Raises TunerError if it can't be used; nothing is left of it then.
    """
    folder, base_folder = fetch(name, quantization, token, most)
    config = read_config(folder, name)
    recipe = as_recipe(config, name, quantization)
    stored = tensors_of(folder / WEIGHTS, name)
    base = _base(recipe, base_folder, folder, config, stored, name)
    check_base(base, most)
    settings = understood(config, shape_of(base).modules, name)
    _check_fit(settings, base, stored, name)
    recipe = recipe.with_settings({"model.revision": None, "model.quantization": base.model.quantization})
    run = runs.create(recipe, path=path)
    try:
        with run.folder("adapter") as target:
            written = settings | {"base_model_name_or_path": base.model.name, "inference_mode": True}
            (target / CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
            shutil.copyfile(folder / WEIGHTS, target / WEIGHTS)
            if template := _template(folder, name):
                (target / TEMPLATE).write_text(template, encoding="utf-8")
        run.write_json("plan.json", _plan(base, name, folder))
        run.append({"event": "adopted", "adapter": name, "revision": folder.name})
    except BaseException:
        runs.remove(run.path)
        raise
    return run


def tokenizer_for(run: Run, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """The base's tokenizer, with the chat template that an adapter of the Hub came with."""
    template = content(run.adapter / TEMPLATE) if "adopted" in run.plan else None
    if template is None:
        return tokenizer
    own = copy(tokenizer)
    own.chat_template = template
    return own


def _template(folder: Path, name: str) -> str | None:
    """The chat template among the adapter's files, if there is one. Raises TunerError if it is too large."""
    check_size(folder / TEMPLATE, name)
    if template := content(folder / TEMPLATE):
        return template
    if not (folder / TOKENIZER).is_file():
        return None
    given = read_json(folder / TOKENIZER, name).get("chat_template")
    if isinstance(given, list):  # several by name
        named = (one for one in given if isinstance(one, dict) and one.get("name") == "default")
        given = next(named, {}).get("template")
    return given if isinstance(given, str) and given else None


def _plan(base: Base, name: str, folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {} if has_own_head(base) else {"baseline": None}
    if base.stored:
        facts["origin"] = origin_of(base.folder)
    return facts | {
        "format": runs.FORMAT,
        "task": base.task,
        "labels": list(base.labels),
        "settings": {},
        "revision": None if is_shipped(base.model.name) else base.folder.name,
        "model_parameters": shape_of(base).parameters,
        "adopted": {"adapter": name, "revision": folder.name},
    }


def _base(recipe: Recipe, folder: Path, adapter: Path, config: dict, stored: dict[str, Stored], name: str) -> Base:
    """The adapter's base, for its task. Raises TunerError if it can't do that."""
    found = load_config(folder, recipe.model.name)
    row = _task(config.get("task_type"), bool(found.is_encoder_decoder))
    check_task(found, recipe.model.name, row)
    labels = _labels(stored, adapter, found.id2label or {}, name) if row.has_labels else ()
    plain = Base(folder, recipe.model.model_copy(update={"revision": None}), row.name, labels)
    if not plain.stored:
        return plain
    return Base(folder, plain.model.model_copy(update={"quantization": plain.stored}), row.name, labels)


def _task(peft_type: str | None, is_encoder_decoder: bool) -> TaskRow:
    fitting = [row for row in TASKS.values() if row.peft_type == peft_type]
    return (fitting or [row for row in TASKS.values() if row.encoder_decoder == is_encoder_decoder])[0]


def _labels(stored: dict[str, Stored], adapter: Path, named: dict[int, str], name: str) -> tuple[str, ...]:
    """A label for each output of the adapter's head: from its receipt, else the base's own names, else numbers."""
    trained = (tensor for key, tensor in stored.items() if ".lora_" not in key and key.endswith(".weight"))
    outputs = min((tensor.shape[0] for tensor in trained if len(tensor.shape) == 2), default=0)
    if not 2 <= outputs <= MOST_LABELS:
        raise TunerError(
            f"'{name}' can't be used: it has no head that gives labels. Ask its author to save it with "
            "modules_to_save, or choose another adapter."
        )
    known = read_json(adapter / RECEIPT, name).get("labels") if (adapter / RECEIPT).is_file() else None
    told = [names.shown(label) for label in known if isinstance(label, str)] if isinstance(known, list) else []
    own = [f"{label}" for _, label in sorted(named.items())]
    numbered = [f"LABEL_{number}" for number in range(outputs)]
    return tuple(next(labels for labels in (told, own, numbered) if len(labels) == outputs))


def _check_fit(settings: dict[str, Any], base: Base, stored: dict[str, Stored], name: str) -> None:
    """Raise TunerError unless the tensors are just those that PEFT would put on the base."""
    model, title = base.model.name, METHODS[method_of(settings)].title
    try:
        needed = _needed(settings, base)
    except Exception as error:  # PEFT raises whatever fits
        reason = " ".join(said_by(error).split())[:200].rstrip(". ") or type(error).__name__
        raise TunerError(
            f"'{name}' can't be attached to {model}: PEFT says: {reason}. Choose another adapter."
        ) from error
    advice = "Ask its author which base model it belongs to, or choose another adapter."
    for key, shape in needed.items():
        if key not in stored:
            raise TunerError(f"'{name}' does not fit {model}: it has no {title} weights for {_layer(key)}. {advice}")
        if (found := stored[key].shape) != shape:
            raise TunerError(
                f"'{name}' does not fit {model}: it was trained on a model of another size. Its {_layer(key)} is "
                f"{_size(found)}, and {model}, of width {shape_of(base).width}, needs {_size(shape)}. {advice}"
            )
    if others := [key for key in stored if key not in needed]:
        raise TunerError(
            f"'{name}' can't be used on {model}: it has weights that no {title} adapter on it has, such as "
            f"{_layer(others[0])}. Adapters that replace the base's own weights are not supported here. {advice}"
        )
    if odd := [tensor.dtype for tensor in stored.values() if tensor.dtype not in NUMBERS]:
        raise TunerError(f"'{name}' can't be used: its weights are stored as {odd[0]}. Choose another adapter.")


def _needed(settings: dict[str, Any], base: Base) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors that PEFT saves of such an adapter on the base; nothing is allocated."""
    import torch
    from peft import PeftConfig

    from tuner.methods import attach

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        config = PeftConfig.from_peft_type(**settings | {"inference_mode": True})
        return attach.stored_shapes(attach.attach(on_meta(base), [config]))[""]


def _layer(key: str) -> str:
    return names.shown(key.removeprefix(PREFIX))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
