"""Train what was pushed once more, from its recipe, and tell whether the same adapter comes out.

    for event in reproduce("me/my-adapter", path=Path("again")): ...

The rows are compared with the receipt's hashes before anything is trained, and the weights by tensor afterwards.
"""

from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

from tuner import runs
from tuner.errors import TunerError
from tuner.hub import receipt as receipts
from tuner.hub.verify import open_export
from tuner.methods.files import SECOND, WEIGHTS
from tuner.planning import plan
from tuner.recipe import EXAMPLES, Recipe
from tuner.runs import Run
from tuner.words import count

SHOWN = 5  # differences that are named


def reproduce(
    name: str,
    *,
    revision: str | None = None,
    data: Path | None = None,
    anyway: bool = False,
    path: Path | None = None,
    token: str | bool | None = None,
) -> Iterator[dict]:
    """Prepare and train the run again; yields {"event": "compared", "what", "differs"} and training's own events.

    `data` is the file of rows, if the run's was somebody's own. What "differs" is a list of sentences. Raises
    TunerError if it can't be trained here, or if rows differ, unless `anyway`.
    """
    folder, known = open_export(name, revision, token)
    if (folder.parent / "recipe.yaml").is_file() and folder.name == "adapter":  # a run's own folder
        recipe_file = folder.parent / "recipe.yaml"
    else:
        recipe_file = folder / "recipe.yaml"
    if not recipe_file.is_file():
        raise TunerError(f"'{name}' has no recipe.yaml, so it can't be trained again. Push its run again.")
    recipe = Recipe.from_yaml(recipe_file.read_text(encoding="utf-8", errors="replace"), "recipe.yaml")
    yield _compared("versions", _versions(known))
    run = plan.prepare(_as_trained(recipe, known, data), base=EXAMPLES, path=path, token=token)
    differing = _settings(run, known)
    yield _compared("settings", differing)
    rows = [sentence for part in ("train", "heldout") for sentence in _rows(run, known, part)]
    yield _compared("rows", rows)
    if rows and not anyway:
        raise TunerError(
            *rows, "So it would be another adapter. Give the rows that it was trained on (--data), or add --anyway."
        )
    from tuner.training.window import train

    yield from train(run)
    again = runs.Run(run.path)
    yield _compared("machine", _machine(again, known))
    yield _compared("adapter", _weights(again.adapter, folder, known))


def _compared(what: str, differs: list[str]) -> dict:
    return {"event": "compared", "what": what, "differs": differs}


def _as_trained(recipe: Recipe, known: dict, data: Path | None) -> Recipe:
    """The recipe with what is fixed by the receipt: the base model's version, and the steps that the clock allowed."""
    settings, steps = {}, known["training"].get("steps")
    if known["base"]["revision"]:
        settings["model.revision"] = known["base"]["revision"]
    if recipe.budget.seconds is not None and steps:
        settings |= {"budget.seconds": None, "budget.steps": steps}
    if data is not None:
        settings["data.source"] = str(data.resolve())
    return recipe.with_settings(settings)


def _versions(known: dict) -> list[str]:
    here = receipts.versions()
    return [
        f"{name} is {here.get(name, 'missing')} here and was {version}."
        for name, version in known["versions"].items()
        if here.get(name) != version
    ]


def _settings(run: Run, known: dict) -> list[str]:
    """What was chosen otherwise on this machine."""
    before, now = known["training"].get("settings") or {}, run.plan["settings"]
    return [
        f"{key} is {now.get(key)} here and was {value}: set it in the recipe." for key, value in before.items()
        if now.get(key) != value
    ]  # fmt: skip


def _rows(run: Run, known: dict, part: str) -> list[str]:
    """Which rows are changed, missing or new, in sentences."""
    expected, title = (known.get("data") or {}).get(part), {"train": "Training", "heldout": "Held-out"}[part]
    if not expected:
        return [f"The receipt has no hashes of the {title.lower()} rows, so they can't be compared."]
    found = receipts.fingerprint(run.data / part)
    if found["sha256"] == expected["sha256"]:
        return []
    each, said = expected["each"], []
    if found["each"] != each:
        return [f"{title} rows: there are {found['rows']:,} here and were {expected['rows']:,}."]
    matched = SequenceMatcher(None, expected["hashes"], found["hashes"], autojunk=False).get_opcodes()
    for kind, i, j, a, b in islice((code for code in matched if code[0] != "equal"), SHOWN + 1):
        if len(said) == SHOWN:
            said.append("Further rows differ.")
        elif kind == "delete":
            said.append(f"{title} {_span(i, j, each)} of the pushed run missing here.")
        else:
            verb = "differ from the pushed run's" if kind == "replace" else "not in the pushed run"
            said.append(f"{title} {_span(a, b, each)} {verb}{_shown(run, part, a * each)}.")
    return said or [f"{title} rows differ."]


def _span(first: int, end: int, each: int) -> str:
    low, high = first * each + 1, end * each
    return f"row {low}" if low == high else f"rows {low} to {high}"


def _shown(run: Run, part: str, number: int) -> str:
    """The beginning of a row as text."""
    from datasets import load_from_disk

    from tuner.models.fetch import base_of
    from tuner.models.shape import load_tokenizer

    tokenizer = load_tokenizer(base_of(run).folder)
    ids = load_from_disk(str(run.data / part))[number]["input_ids"]
    return f": {tokenizer.decode(ids[:60], skip_special_tokens=True)[:120]!r}"


def _machine(run: Run, known: dict) -> list[str]:
    """What differs between the machines, so that other roundings are to be expected."""
    before, now = known["training"], receipts.receipt(run)["training"]
    return [
        f"{key.replace('_', ' ')}: {now[key]} here, {before[key]} there. Sums may be rounded otherwise."
        for key in ("device", "threads", "micro_batch", "steps")
        if before.get(key) is not None and now[key] != before[key]
    ]


def _weights(adapter: Path, original: Path, known: dict) -> list[str]:
    """The tensors that differ from those of the receipt, the first ones by how much."""
    from safetensors import safe_open

    said, found = [], receipts.adapter_of(adapter)
    for name, expected in known["adapter"].items():
        if name not in (WEIGHTS, f"{SECOND}/{WEIGHTS}") or not expected:
            continue
        tensors = found.get(name) or {}
        changed = [tensor for tensor in expected if tensors.get(tensor) != expected[tensor]]
        if not changed and tensors.keys() == expected.keys():
            continue
        said.append(f"{name}: {len(changed)} of {count(len(expected), 'tensor')} differ.")
        if not (original / name).is_file():
            continue  # a merged model's repository has the hashes only
        with safe_open(adapter / name, "pt") as one, safe_open(original / name, "pt") as other:
            shared = {*one.keys()} & {*other.keys()}
            for tensor in [tensor for tensor in changed if tensor in shared][:SHOWN]:
                a, b = one.get_tensor(tensor).float(), other.get_tensor(tensor).float()
                how = f"by at most {float((a - b).abs().max()):.2g}" if a.shape == b.shape else "in shape"
                said.append(f"{tensor} differs {how}.")
    return said
