"""What somebody can take home of a run: the files of each kind of content, for a repository or an archive."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuner.hub import receipt
from tuner.hub.card import base_card, card, public_recipe
from tuner.inference import merge_check
from tuner.methods.files import CONFIG, SECOND, WEIGHTS
from tuner.models.fetch import FILES, fetch_model
from tuner.runs import Run

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip

Files = dict[str, Path | bytes]  # path in the repository or archive -> a file, or its content


@dataclass(frozen=True)
class Content:
    """One kind of what can be taken home."""

    title: str  # as it stands on the page
    problem: Callable[[Run], str | None]  # why there is none of this run, in a sentence with what to do
    # The files, for the repository "owner/name" with the base model's name on the Hub if it differs from the recipe's.
    files: Callable[[Run, str, str | None], Files]


def adapter(run: Run, repo: str, base: str | None) -> Files:
    """Adapter, tokenizer, card, recipe and scores."""
    files = _described(run, repo, base) | _part(run, "", base)
    if (run.adapter / SECOND).is_dir():
        files |= _part(run, f"{SECOND}/", base)
    return files | {name: run.adapter / name for name in TOKENIZER if (run.adapter / name).is_file()}


def base(run: Run, adapter: str) -> Files:
    """A base model that comes with Tuner and has no repository of its own, for the repository of an `adapter`."""
    model = run.recipe.model
    folder = fetch_model(model)
    files = {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern))}
    return files | {"README.md": base_card(model.name, adapter).encode()}


def merged(run: Run, repo: str, base: str | None) -> Files:
    """The merged model with its tokenizer, card, recipe and scores. The run must be merged."""
    model = {path.name: path for path in sorted(run.merged.iterdir()) if path.is_file()}
    return _described(run, repo, base) | model


def _described(run: Run, repo: str, base: str | None) -> Files:
    """What every content comes with."""
    scores = run.read_json("evaluation.json")
    files: Files = {
        "README.md": card(run, repo, base).encode(),
        "recipe.yaml": public_recipe(run.recipe).to_yaml().encode(),
        receipt.NAME: as_json(receipt.receipt(run)),
    }
    return files | ({"evaluation.json": as_json(scores)} if scores else {})


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
    if (run.adapter / CONFIG).is_file() and (run.adapter / WEIGHTS).is_file():
        return None
    if any(run.adapter.glob("*.bin")):
        return f"The adapter of run {run.id} is a pickle, which is never pushed. Convert it to safetensors."
    return f"Run {run.id} has no adapter yet. Train it first, then push."


def _merged_problem(run: Run) -> str | None:
    check = run.read_json("merge_check.json")
    if not check or not run.merged.is_dir():
        return _adapter_problem(run) or f"Run {run.id} is not merged yet. Merge it first."
    return merge_check.problem(check)


CONTENTS = {
    "adapter": Content("Adapter", _adapter_problem, adapter),
    "merged": Content("Merged model", _merged_problem, merged),
}
