"""The receipt of an export: what `tuner verify` and `tuner reproduce` hold against what they find.

A few held-out prompts with the tokens that they are read as and the adapter's answers, how an answer ends, and hashes
of the adapter, the tokenizer, the base model's files and each row. What a run did not keep is null. No model is
run for it, so that a push takes no GPU time.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.data.chat import AS_WRITTEN
from tuner.errors import TunerError
from tuner.evaluation.results import read_rows
from tuner.hub.card_training import LIBRARIES
from tuner.hub.receipt_shape import FORMAT
from tuner.methods.files import CONFIG, WEIGHTS
from tuner.models.fetch import base_of, is_here
from tuner.models.shape import load_tokenizer
from tuner.planning.answering import answer_limit
from tuner.runs import Run
from tuner.tasks import task_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "receipt.json"
PROMPTS = 4
MOST_CHARACTERS = 4000  # of a prompt and of an answer
MOST_HASHES = 20_000  # of rows; of more rows, several share one
SAMPLES, SAMPLE = 16, 2**16  # of a file of the base model: places, and bytes at each
PLAIN = "Hello"  # a text that shows which tokens a tokenizer adds of its own
# Of an adapter's configuration, what does not change its answers.
ASIDE = {"base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode", "task_type"}


def receipt_of(run: Run) -> dict:
    """The receipt as it was written into the run for this adapter, or else as `receipt`."""
    return run.read_json(NAME) if is_current(run) else receipt(run)


def is_current(run: Run) -> bool:
    """Whether the run's receipt is written, and of the adapter that it has."""
    told = run.read_json(NAME)
    return bool(told) and told.get("adapter") == adapter_of(run.adapter)


def write_receipt(run: Run) -> None:
    """Write the receipt into the run's folder."""
    run.write_json(NAME, receipt(run))


def receipt(run: Run) -> dict:
    """The receipt of a run; parts are null where the run's folder does not have what they are made of."""
    plan, model = run.plan, run.recipe.model
    tokenizer = _known(lambda: load_tokenizer(run.adapter))
    return {
        "format": FORMAT,
        "task": task_of(plan).name,
        "labels": list(plan.get("labels", ())),
        "base": {
            "name": model.name if not plan.get("model_folder") else Path(model.name).name,
            "revision": plan.get("revision") or model.revision,
            "quantization": model.quantization,
            "dtype": plan.get("settings", {}).get("dtype"),
            "files": _known(lambda: files_of(base_of(run).folder) if is_here(run) else None),
            "stops": _known(lambda: stops_of(base_of(run).folder) if is_here(run) else None),
        },
        "adapter": adapter_of(run.adapter),
        "tokenizer": tokenizer and _known(lambda: tokenizer_of(tokenizer)),
        "thinks": plan.get("thinks"),
        "ends": plan.get("end_tokens"),
        "max_new_tokens": _known(lambda: answer_limit(run)),
        "prompts": _known(lambda: _prompts(run, tokenizer)),
        "data": {part: _known(lambda part=part: fingerprint(run.data / part)) for part in ("train", "heldout")},
        "training": _training(run),
        "versions": versions(),
    }


def _known(find: Callable[[], Any]) -> Any:
    with suppress(TunerError, OSError, ValueError, KeyError, TypeError):
        return find()
    return None


def versions() -> dict[str, str]:
    """The versions of the libraries that decide what a training computes."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def adapter_of(folder: Path) -> dict[str, dict]:
    """By file of an adapter: its configuration, or a hash of each tensor."""
    found: dict[str, dict] = {}
    for path in sorted(folder.rglob(CONFIG)):
        found[path.relative_to(folder).as_posix()] = _known(lambda path=path: _config(path))
    for path in sorted(folder.rglob(WEIGHTS)):
        found[path.relative_to(folder).as_posix()] = _known(lambda path=path: tensors(path))
    return found


def _config(path: Path) -> dict:
    config = json.loads(path.read_text(encoding="utf-8"))
    return {key: _sorted(value) for key, value in config.items() if key not in ASIDE}


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def tensors(path: Path) -> dict[str, str]:
    """A hash of each tensor of a safetensors file, its type and shape included, by name."""
    found = {}
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > 100 * 2**20:
            raise ValueError("no safetensors file")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            digest = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
            while begin < end and (part := file.read(min(2**20, end - begin))):
                digest.update(part)
                begin += len(part)
            found[name] = digest.hexdigest()[:16]
    return found


def files_of(folder: Path) -> dict[str, str]:
    """A hash of each of a model's weight files from samples: whole ones would take minutes."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            for number in range(SAMPLES):
                file.seek(number * max(0, size - SAMPLE) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
        found[path.name] = digest.hexdigest()[:16]
    return found


def stops_of(folder: Path) -> list[int]:
    """The tokens at which a model's own files end an answer; `generate` reads the first file that has some."""
    for name in ("generation_config.json", "config.json"):
        with suppress(FileNotFoundError):
            value = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            if value is not None:
                return sorted(value if isinstance(value, list) else [value])
    return []


def tokenizer_of(tokenizer: "PreTrainedTokenizerBase") -> dict:
    """What decides how a tokenizer reads and renders."""
    template = tokenizer.chat_template or ""
    return {
        "vocabulary": _hash(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))),
        "tokens": len(tokenizer),
        "added": dict(sorted(tokenizer.get_added_vocab().items())),
        "template": _hash(template) if template else None,
        "eos": tokenizer.eos_token,
        "bos": tokenizer.bos_token,
        "plain": tokenizer(PLAIN)["input_ids"],
    }


def read_ids(tokenizer: "PreTrainedTokenizerBase", text: str, chats: bool) -> list[int]:
    """The tokens of a prompt, which a chat's template has already rendered."""
    return tokenizer(text, **(AS_WRITTEN if chats else {}))["input_ids"]


def _prompts(run: Run, tokenizer: "PreTrainedTokenizerBase | None") -> list[dict] | None:
    """The first held-out prompts that are short enough, with the adapter's answers as far as they were kept."""
    rows, answered, task = run.heldout(), read_rows(run) or [], task_of(run.plan)
    found = []
    for number, row in enumerate(rows or ()):
        answer = answered[number]["adapter"] if number < len(answered) else None
        text = row.get("text") or "\n".join(message["content"] for message in row["messages"])
        if "tools" in row or row.get("cut") or len(text) > MOST_CHARACTERS or len(answer or "") > MOST_CHARACTERS:
            continue
        entry = {"messages": row["messages"], "text": text, "ids": None, "answer": answer, "ended": None}
        if tokenizer is not None:
            entry["ids"] = read_ids(tokenizer, text, task.chats)
            if answer is not None and task.generates:
                # An answer that fills its limit was cut, or may have been: its own tokens were not kept.
                entry["ended"] = len(tokenizer(answer, **AS_WRITTEN)["input_ids"]) < answer_limit(run) - 1
        found.append(entry)
        if len(found) == PROMPTS:
            break
    return found or None


def fingerprint(folder: Path) -> dict:
    """The hash of a run's tokenized rows, and short ones of each row, or of so many together, to tell which differ."""
    from datasets import load_from_disk

    rows = load_from_disk(str(folder))
    each = -(-max(1, len(rows)) // MOST_HASHES)
    hashes = [_hash(row) for row in rows]
    parts = [hashes[i : i + each] for i in range(0, len(hashes), each)]
    short = [part[0][:8] if each == 1 else _hash(part)[:8] for part in parts]
    return {"sha256": _hash(hashes), "rows": len(rows), "each": each, "hashes": short}


def _training(run: Run) -> dict:
    """What decides the weights beside the recipe, as the events tell."""
    starts = [event for event in run.events() if event["event"] in ("start", "micro_batch", "end")]
    newest = {event["event"]: event for event in starts}
    start, end = newest.get("start", {}), newest.get("end", {})
    return {
        "settings": run.plan.get("settings"),
        "device": start.get("device"),
        "threads": start.get("threads"),
        "windows": sum(event["event"] == "start" for event in starts),
        "micro_batch": newest.get("micro_batch", {}).get("rows"),
        "steps": end.get("step"),
    }


def _hash(value: Iterable | str | dict) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
