"""What somebody can take home of a run: the files of each kind of content, for a repository or an archive."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tuner.hub import curve, gguf_file, receipt
from tuner.hub.card import base_card, card
from tuner.hub.card_data import public_recipe, without_paths
from tuner.hub.card_training import CURVE
from tuner.inference import merge_check
from tuner.methods.files import CONFIG, SECOND, WEIGHTS
from tuner.models.fetch import FILES, fetch_model
from tuner.runs import Run

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip

# Of a run's folder, beside recipe and plan. A merged model can be made again, and whose run it is stays here.
RUN_FILES = (
    "events.jsonl", "evaluation.json", "evaluation_rows.jsonl", "untuned.json", "data/heldout.jsonl",
    "data/train/*", "data/heldout/*", "checkpoints/*.safetensors", "adapter/*", f"adapter/{SECOND}/*",
    "start/*", f"start/{SECOND}/*",
)  # fmt: skip

Files = dict[str, Path | bytes]  # path in the repository or archive -> a file, or its content


@dataclass(frozen=True)
class Content:
    """One kind of what can be taken home."""

    title: str  # as it stands on the page
    help: str
    problem: Callable[[Run], str | None]  # why there is none of this run, in a sentence with what to do
    # The files, for the repository "owner/name" with the base model's name on the Hub if it differs from the recipe's.
    # What else the card is told, such as data_name, is as for `card`.
    files: Callable[..., Files]
    needs_merge: bool = False


def adapter(run: Run, repo: str, base: str | None, **told: Any) -> Files:
    """Adapter, tokenizer, card, recipe and scores."""
    files = _described(run, repo, base, **told) | _part(run, "", base)
    if (run.adapter / SECOND).is_dir():
        files |= _part(run, f"{SECOND}/", base)
    return files | {name: run.adapter / name for name in TOKENIZER if (run.adapter / name).is_file()}


def base(run: Run, adapter: str) -> Files:
    """A base model that comes with Tuner and has no repository of its own, for the repository of an `adapter`."""
    model = run.recipe.model
    folder = fetch_model(model)
    files = {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern))}
    return files | {"README.md": base_card(model.name, adapter).encode()}


def merged(run: Run, repo: str, base: str | None, **told: Any) -> Files:
    """The merged model with its tokenizer, card, recipe and scores. The run must be merged."""
    model = {path.name: path for path in sorted(run.merged.iterdir()) if path.is_file()}
    return _described(run, repo, base, kind="merged", **told) | model


def gguf(run: Run, repo: str, base: str | None, **told: Any) -> Files:
    """The merged model as one GGUF file, with a Modelfile for Ollama, card and recipe. The run must be merged."""
    return _described(run, repo, base, kind="gguf", **told) | gguf_file.files(run, gguf_name(run))


def gguf_name(run: Run) -> str:
    """The GGUF file's name without its ending."""
    return re.sub(r"[^\w.-]+", "-", run.recipe.name or "model", flags=re.ASCII).strip("-.")[:60] or "model"


def whole(run: Run, repo: str, base: str | None, **told: Any) -> Files:
    """All that is needed to look at the run elsewhere and to resume it, with no path of this machine."""
    plan = dict(run.plan)
    if plan.get("model_folder"):
        plan["model_folder"] = PurePath(plan["model_folder"]).name
    paths = sorted(path for pattern in RUN_FILES for path in run.path.glob(pattern) if path.is_file())
    files: Files = {path.relative_to(run.path).as_posix(): path for path in paths}
    return files | {"recipe.yaml": without_paths(run).to_yaml().encode(), "plan.json": as_json(plan)}


def _described(run: Run, repo: str, base: str | None, **told: Any) -> Files:
    """What every content comes with."""
    scores, drawn = run.read_json("evaluation.json"), curve.picture(run)
    files: Files = {
        "README.md": card(run, repo, base, has_curve=bool(drawn), **told).encode(),
        "recipe.yaml": public_recipe(run).to_yaml().encode(),
        receipt.NAME: as_json(receipt.receipt_of(run)),
    }
    return files | ({CURVE: drawn} if drawn else {}) | ({"evaluation.json": as_json(scores)} if scores else {})


def _part(run: Run, place: str, base: str | None) -> Files:
    """Weights and configuration of the adapter, or of the part of a hybrid in the subfolder `place`."""
    config = run.read_json(f"adapter/{place}{CONFIG}")
    config["base_model_name_or_path"] = base or run.recipe.model.name
    # The exact version that it was trained on, even if the base model changes later.
    config["revision"] = None if base else run.plan.get("revision") or run.recipe.model.revision
    return {place + CONFIG: as_json(config), place + WEIGHTS: run.adapter / place / WEIGHTS}


def as_json(value: dict) -> bytes:
    """The object as a file of its own."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _adapter_problem(run: Run) -> str | None:
    if adopted := run.plan.get("adopted"):
        return f"This adapter is on the Hub already, as {adopted['adapter']}. Take it from there."
    if (run.adapter / CONFIG).is_file() and (run.adapter / WEIGHTS).is_file():
        return None
    if any(run.adapter.glob("*.bin")):
        return f"The adapter of run {run.id} is a pickle, which nobody should have to load. Convert it to safetensors."
    return f"Run {run.id} has no adapter yet. Train it first."


def _merged_problem(run: Run) -> str | None:
    check = run.read_json("merge_check.json")
    if not check or not run.merged.is_dir():
        return _adapter_problem(run) or f"Run {run.id} is not merged yet. Merge it first."
    return merge_check.problem(check)


def _gguf_problem(run: Run) -> str | None:
    return _merged_problem(run) or gguf_file.problem(run)


def _run_problem(run: Run) -> str | None:
    if run.is_training:
        return f"Run {run.id} is in training, so its files change. Stop it, or wait until it ends."
    return "; ".join(run.damage) or None


CONTENTS = {
    "adapter": Content("Adapter", "the trained weights, to be loaded with the base model", _adapter_problem, adapter),
    "merged": Content("Merged model", "a model in 16 bits, loaded like its base", _merged_problem, merged, True),
    "gguf": Content("GGUF", "one file for llama.cpp, Ollama and LM Studio", _gguf_problem, gguf, True),
    "run": Content("Whole run", "to resume it elsewhere, rows included", _run_problem, whole),
}
