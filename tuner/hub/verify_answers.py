"""What a model that was exported answers to the receipt's prompts: the adapter, a merged model, a server."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tuner import recipe
from tuner.data.chat import AS_WRITTEN, render_prompt
from tuner.errors import TunerError
from tuner.hub import receipt as receipts
from tuner.hub.verify_report import Report
from tuner.inference import generate, merge_check
from tuner.inference.predict import predict
from tuner.methods import attach
from tuner.methods.files import CONFIG
from tuner.models.bounds import read_json
from tuner.models.device import autocast
from tuner.models.fetch import fetch_model
from tuner.models.load import load_base
from tuner.models.losses import first_token
from tuner.models.shape import Base, load_tokenizer
from tuner.tasks import TASKS

# Where two answers part, the logits of their tokens may differ by so much: rounding, by the type that was trained in.
CLOSE = {"float32": 0.02, "float16": 0.2, "bfloat16": 0.5}
CLOSE_QUANTIZED = 0.5


def check_prompts(report: Report, tokenizer: PreTrainedTokenizerBase, known: dict, title: str) -> None:
    """Whether the prompts are rendered and read as the tokens that training saw."""
    task, prompts = TASKS[known["task"]], [p for p in known.get("prompts") or () if p["ids"]]
    if not prompts:
        report.unchecked.append("The receipt has no prompts to compare with.")
        return
    is_dated = "strftime_now" in str(tokenizer.chat_template)
    if is_dated:
        report.unchecked.append(f"{title} writes the day into each prompt, so the rendering is not compared.")
    for number, prompt in enumerate(prompts, 1):
        text = prompt["text"]
        if task.chats and not is_dated:
            try:
                text = render_prompt(prompt["messages"], tokenizer, thinks=known["thinks"])
            except TunerError as error:
                report.differs.append(f"{title} can't render prompt {number}: {error}")
                return
        ids = receipts.read_ids(tokenizer, text, task.chats)
        if text != prompt["text"]:
            place = _first_difference(text, prompt["text"])
            report.differs.append(
                f"{title} renders prompt {number} otherwise from character {place + 1} on: "
                f"{text[place : place + 40]!r}, not {prompt['text'][place : place + 40]!r}. Use "
                "the run's chat template."
            )
            return
        if ids != prompt["ids"]:
            place = _first_difference(ids, prompt["ids"])
            report.differs.append(
                f"{title} reads prompt {number} as other tokens from token {place + 1} on: {ids[place : place + 3]}, "
                f"not {prompt['ids'][place : place + 3]}. Use the run's tokenizer files."
            )
            return
    report.same.append(f"{title}: the tokens of {len(prompts)} prompts")


def check_adapter(report: Report, folder: Path, known: dict, token: str | bool | None) -> None:
    """The adapter's answers on its base model, in the precision that it was trained in."""
    with _with_adapter(folder, known, token) as (base, model, plain):
        expected, found = known["base"].get("files"), receipts.files_of(base.folder)
        if expected:
            report.compare(
                "The base model: its weight files",
                f"The base model {base.model.name} has other weights than in training. Load the version that the "
                "adapter names." if expected != found else None,
            )  # fmt: skip
        tokenizer = load_tokenizer(folder)
        ends = known.get("ends") or ()
        _check_answers(report, "The adapter", model, tokenizer, base, known, tuple(ends))
        del plain


@contextmanager
def _with_adapter(
    folder: Path, known: dict, token: str | bool | None, quantization: str | None = None
) -> Iterator[tuple[Base, torch.nn.Module, torch.nn.Module]]:
    config, facts = read_json(folder / CONFIG, "the adapter"), known["base"]
    name, revision = config.get("base_model_name_or_path") or facts["name"], config.get("revision")
    settings = recipe.Model(name=name, revision=revision, quantization=quantization or facts["quantization"])
    beside = folder / "base"  # of a download, whose base comes with Tuner
    own_folder = beside if beside.is_dir() else facts.get("folder") and Path(facts["folder"])
    base = Base(fetch_model(settings, own_folder, token), settings, known["task"], tuple(known["labels"]))
    plain = load_base(base)
    model = attach.load(plain, {"default": folder})
    with autocast(settings):
        yield base, model, plain


def check_merged(
    report: Report, folder: Path, known: dict, adapter: Path | None = None, token: str | bool | None = None
) -> None:
    """A merged model: its precision, its end tokens, its answers, and its logits against those of the adapter."""
    config = read_json(folder / "config.json", "the merged model")
    if config.get("quantization_config"):
        report.differs.append(
            "The merged model is quantized, which changes what was learned: merge into the 16-bit base model, then "
            "quantize if you must, and check it again."
        )
        return
    stops, expected = receipts.stops_of(folder), known["base"].get("stops")
    if expected is not None:
        report.compare(
            "The merged model: its end tokens",
            f"The merged model's generation_config.json ends answers at the tokens {stops} where the base model's had "
            f"{expected}: answers may never end. Set eos_token_id back." if stops != expected else None,
        )  # fmt: skip
    settings = recipe.Model(name=str(folder), quantization="none")
    base = Base(folder, settings, known["task"], tuple(known["labels"]))
    model, tokenizer = load_base(base), load_tokenizer(folder)
    if adapter is None or not TASKS[known["task"]].generates:
        _check_answers(report, "The merged model", model, tokenizer, base, known, tuple(stops))
        return
    prompts = [prompt for prompt in known["prompts"] or () if prompt["ids"]]
    ids = [(p["ids"], tokenizer(p["answer"] or "", **AS_WRITTEN)["input_ids"]) for p in prompts]
    if not ids:
        report.leave_open("The receipt has no prompts to compare the merged model on.")
        return
    merged = torch.cat([_logits(model, *pair) for pair in ids])
    with _with_adapter(adapter, known, token, "none") as (_, adapted, _plain):
        with_adapter = torch.cat([_logits(adapted, *pair) for pair in ids])
        with attach.disabled(adapted):
            without = torch.cat([_logits(adapted, *pair) for pair in ids])
    effect = merge_check.distance(with_adapter, without)
    precision = torch.finfo(next(model.parameters()).dtype).eps
    stored = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.get("dtype"))
    precision = torch.finfo(stored).eps if stored else precision
    error, allowed = merge_check.distance(merged, with_adapter), merge_check.tolerance(effect, with_adapter, precision)
    problem = (
        f"The merged model's logits differ from the adapter's by {error:.2g} where rounding explains {allowed:.2g}: "
        "it was merged into a quantized base model, or from another adapter. Merge the run again."
    )
    # An error that is no number is no less than what is allowed.
    report.compare("The merged model: its logits are the adapter's", None if error <= allowed else problem)
    _check_answers(report, "The merged model", model, tokenizer, base, known, tuple(stops))


@torch.inference_mode()
def _logits(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The logits from the prompt's last token on, one row for each token that follows."""
    device = next(model.parameters()).device
    read = prompt if model.config.is_encoder_decoder else prompt + answer
    inputs = {"input_ids": torch.tensor([read], device=device)}
    if model.config.is_encoder_decoder:
        start = first_token(model, model.config.eos_token_id)
        inputs["decoder_input_ids"] = torch.tensor([[start, *answer]], device=device)
    return model(**inputs).logits[0, -len(answer) - 1 :].float().cpu()


def _check_answers(
    report: Report,
    title: str,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    base: Base,
    known: dict,
    ends: tuple[int, ...],
) -> None:
    prompts = [p for p in known.get("prompts") or () if p["answer"] is not None]
    if not prompts:
        report.leave_open(f"{title}: the receipt has no answers to compare with.")
        return
    texts = [prompt["text"] for prompt in prompts]
    if not base.row.generates:
        found = predict(model, tokenizer, base, texts)
        wrong = [n for n, (a, p) in enumerate(zip(found, prompts)) if a != p["answer"]]
        first = wrong[0] if wrong else 0
        problem = f"{title} answers prompt {first + 1} with {found[first]!r}, not {prompts[first]['answer']!r}. {_WHY}"
        report.compare(f"{title}: {len(found)} answers", problem if wrong else None)
        return
    sampling = generate.Sampling(max_new_tokens=known["max_new_tokens"], ends=ends)
    answers = generate.generate(model, tokenizer, texts, sampling)
    close = CLOSE_QUANTIZED if known["base"]["quantization"] != "none" else CLOSE.get(known["base"]["dtype"], 0.02)
    for number, (prompt, answer) in enumerate(zip(prompts, answers), 1):
        if prompt["ended"] and answer.is_cut:
            report.differs.append(
                f"{title} does not end its answer to prompt {number}, which ended in training. Check the end token in "
                "generation_config.json and tokenizer_config.json."
            )
            return
        if problem := _parts(model, tokenizer, prompt, answer.text, close, ends):
            report.differs.append(f"{title} answers prompt {number} otherwise: {problem} {_WHY}")
            return
    report.same.append(f"{title}: {len(answers)} answers")


def _first_difference(one: Sequence, other: Sequence) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


_WHY = "Check that weights, base model and precision are the run's."


def _parts(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: dict,
    text: str,
    close: float,
    ends: tuple[int, ...],
) -> str | None:
    """Where an answer parts from the recorded one, unless the two tokens are about as likely there."""
    expected = prompt["answer"]
    if text == expected:
        return None
    ids, other = (tokenizer(part, **AS_WRITTEN)["input_ids"] for part in (text, expected))
    place = _first_difference(ids, other)
    logits = _logits(model, prompt["ids"], other[:place])[-1]
    end = max({*ends, tokenizer.eos_token_id} - {None}, key=lambda end: float(logits[end]))
    token = other[place] if place < len(other) else end
    said = ids[place] if place < len(ids) else end
    gap = float(logits.max() - logits[token])
    if gap <= close and float(logits[token] - logits[said]) > close:
        return (
            f"at token {place + 1} it is not the likeliest token that is said, but {tokenizer.decode([said])!r}: the "
            "settings in generation_config.json choose otherwise."
        )
    if gap <= close:
        return None
    return (
        f"from token {place + 1} on it says {tokenizer.decode(ids[place : place + 8])!r}, not "
        f"{tokenizer.decode(other[place : place + 8])!r}, whose logit is {gap:.2f} lower."
    )
