"""Answers of a base, of adapters on it, and of merged models, side by side.

All adapters share one set of base weights. Those that PEFT can tell apart row by row answer in one batch with the
base; others are put on in turn, which takes no loading of the base either. Merged models have weights of their own
and answer beside them.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from tuner.data import encode
from tuner.data.chat import render_prompt, stop_ids
from tuner.errors import TunerError
from tuner.inference.predict import predict
from tuner.methods import attach
from tuner.methods.files import CONFIG
from tuner.methods.registry import METHODS
from tuner.models.device import autocast
from tuner.models.fetch import base_of
from tuner.models.load import forget_bases, shared_base
from tuner.models.shape import Base, load_tokenizer
from tuner.runs import Run

BASE, MERGED = "base", "merged"
# How PEFT names the rows of a batch that no adapter touches.
NO_ADAPTER = "__base__"


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen."""

    temperature: float = 0.0  # 0 takes the likeliest token every time
    top_p: float = 1.0
    max_new_tokens: int = 96
    seed: int = 0


@dataclass(frozen=True)
class Carrier:
    """A model that answers for some variants; `names` are its adapters' names where one batch holds several."""

    variants: tuple[str, ...]
    enter: Callable[[], AbstractContextManager]  # -> the model, ready to answer
    names: dict[str, str] | None = None


@dataclass(frozen=True)
class Loaded:
    """What answers: carriers that share the base's weights, and the merged models, which have their own."""

    base: Base
    tokenizer: object
    on_base: list[Carrier]
    beside: list[Carrier] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        return [v for carrier in [*self.on_base, *self.beside] for v in carrier.variants]

    def carrier(self, variant: str) -> AbstractContextManager:
        """The model that answers for a variant, ready to."""
        return as_variant(next(c for c in [*self.on_base, *self.beside] if variant in c.variants), variant)


def just_trained(run: Run, base: Base, tokenizer, model) -> Loaded:
    """Base and adapter of a model that still has its adapter on."""

    @contextmanager
    def as_it_is():
        with autocast(base.model):
            yield model

    @contextmanager
    def without():
        with attach.disabled(model):
            yield model

    if METHODS[run.recipe.method.name].beside_base and base.row.generates:
        names = {BASE: NO_ADAPTER, "adapter": "default"}
        return Loaded(base, tokenizer, [Carrier(tuple(names), as_it_is, names)])
    return Loaded(base, tokenizer, [Carrier((BASE,), without), Carrier(("adapter",), as_it_is)])


def attached(runs: dict[str, Run], merged: dict[str, Path] | None = None) -> Loaded:
    """The adapters of runs on the base that they share, by variant; and merged models, folders by variant.

    Raises TunerError where a run has no adapter yet, or where their bases differ.
    """
    first = next(iter(runs.values()))
    for run in runs.values():
        if not (run.adapter / CONFIG).is_file():
            raise TunerError(f"Run {run.id} has no adapter yet. Train it first, or wait until it has finished.")
    base = base_of(first)
    if other := next((run for run in runs.values() if base_of(run) != base), None):
        raise TunerError(
            f"Runs {first.id} and {other.id} stand on different bases ({_held(first)}; {_held(other)}), so they can't "
            "be loaded side by side. Choose runs of one base model, held in the same way, with the same task."
        )
    # All loading is done here, one after the other: in two threads at once transformers leaves a model without data.
    plain = shared_base(base)
    held = {v: shared_base(replace(base, folder=f), quantization="none") for v, f in (merged or {}).items()}
    mixing = {v: r for v, r in runs.items() if METHODS[r.recipe.method.name].beside_base and base.row.generates}
    names = {BASE: NO_ADAPTER, **{v: f"run_{i}" for i, v in enumerate(mixing)}}
    mixed = Carrier(
        tuple(names), lambda: _put_on(base, plain, {names[v]: r.adapter for v, r in mixing.items()}), names
    )
    alone = [
        Carrier((v,), lambda r=r: _put_on(base, plain, {"default": r.adapter}))
        for v, r in runs.items()
        if v not in mixing
    ]
    carriers = [mixed if mixing else Carrier((BASE,), lambda: nullcontext(plain)), *alone]
    beside = [Carrier((v,), lambda model=model: nullcontext(model)) for v, model in held.items()]
    return Loaded(base, load_tokenizer(base.folder), carriers, beside)


@contextmanager
def as_variant(carrier: Carrier, variant: str) -> Iterator[torch.nn.Module]:
    """The carrier's model as it answers for one of its variants."""
    with carrier.enter() as model:
        if not carrier.names:
            yield model
        elif carrier.names[variant] == NO_ADAPTER:
            with attach.disabled(model):
                yield model
        else:
            model.set_adapter(carrier.names[variant])
            yield model


def _held(run: Run) -> str:
    return f"{run.recipe.model.name}, {run.recipe.model.quantization}, {base_of(run).row.title}"


@contextmanager
def _put_on(base: Base, plain, folders: dict[str, Path]) -> Iterator[torch.nn.Module]:
    """The base with the adapters on, for a while; it is left as it was found."""
    try:
        model = attach.load(plain, folders)
    except Exception:
        forget_bases()  # the base may be left half changed
        raise
    try:
        with autocast(base.model):
            yield model
    finally:
        attach.detach(model)


def stream(
    loaded: Loaded, conversations: dict[str, list[dict]], sampling: Sampling, stop: threading.Event | None = None
) -> Iterator[dict[str, str]]:
    """Answer each variant's conversation; yields the texts so far, by variant, whenever one has grown."""
    stop = stop or threading.Event()
    answers: queue.SimpleQueue = queue.SimpleQueue()
    # What shares the base's weights takes turns; each merged model has a thread of its own.
    lanes = [
        lane for lane in (loaded.on_base, *([carrier] for carrier in loaded.beside)) if _asked(lane, conversations)
    ]
    threads = [
        threading.Thread(target=_answer, args=(loaded, lane, conversations, sampling, stop, answers)) for lane in lanes
    ]
    for thread in threads:
        thread.start()
    texts, running = dict.fromkeys(conversations, ""), len(threads)
    try:
        while running:
            part = answers.get()
            if isinstance(part, Exception):
                raise part
            running -= part is None
            if part:
                texts.update(part)
                yield dict(texts)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _asked(lane: list[Carrier], conversations: dict) -> list[str]:
    return [v for carrier in lane for v in carrier.variants if v in conversations]


def _answer(loaded: Loaded, lane: list[Carrier], conversations: dict, sampling: Sampling, stop, answers) -> None:
    try:
        for carrier in lane:
            variants = _asked([carrier], conversations)
            if not variants or stop.is_set():
                continue
            streamer = Streamer(loaded.tokenizer, lambda texts, vs=variants: answers.put(dict(zip(vs, texts))))
            asked = [conversations[v] for v in variants]
            texts = answer(loaded, carrier, variants, asked, sampling, streamer=streamer, stop=stop)
            answers.put(dict(zip(variants, texts)))
    except Exception as error:
        answers.put(error)
    finally:
        answers.put(None)


def answer(
    loaded: Loaded, carrier: Carrier, variants: list[str], conversations: list, sampling: Sampling, *, streamer=None,
    stop=None,
) -> list[str]:  # fmt: skip
    """The answers of a carrier to conversations, one for each of `variants`."""
    with carrier.enter() as model:
        if not loaded.base.row.generates:
            texts = [encode.source(messages[-1:]) for messages in conversations]
            return predict(model, loaded.tokenizer, loaded.base, texts)
        prompts = [_prompt(loaded, messages) for messages in conversations]
        names = [carrier.names[v] for v in variants] if carrier.names else None
        return generate(model, loaded.tokenizer, prompts, sampling, adapter_names=names, streamer=streamer, stop=stop)


def _prompt(loaded: Loaded, messages: list[dict]) -> str:
    if loaded.base.row.chats:
        return render_prompt(messages, loaded.tokenizer)
    return encode.source(messages)


@torch.inference_mode()
def generate(
    model, tokenizer, prompts: list[str], sampling: Sampling, *, adapter_names=None, streamer=None, stop=None
):
    """The answers to rendered prompts, as one left-padded batch; `adapter_names` says by row which adapter answers."""
    encoded = model.config.is_encoder_decoder
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # A template has written a causal model's special tokens; an encoder's are the tokenizer's to put.
    batch = tokenizer(
        prompts,
        return_tensors="pt",
        padding=True,
        padding_side="right" if encoded else "left",
        add_special_tokens=encoded,
        return_token_type_ids=False,
        # As in training; a causal model's prompt is the visitor's to shorten.
        **({"truncation": True, "max_length": context} if encoded and context else {}),
    )
    batch = batch.to(next(model.parameters()).device)
    taken = 0 if encoded else batch["input_ids"].shape[1] + _virtual_tokens(model)
    room = sampling.max_new_tokens if context is None else context - taken
    if room < 1:
        raise TunerError(f"The conversation fills the model's context of {context} tokens. Start a new one.")
    config = GenerationConfig(
        max_new_tokens=min(room, sampling.max_new_tokens),
        num_beams=1,  # models bring settings of their own, such as BART's four beams
        do_sample=False,  # the noise that makes it sampling is ours, see Noise
        eos_token_id=[tokenizer.eos_token_id] if encoded else stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        disable_compile=True,  # ZeroGPU has no torch.compile
        **({"decoder_start_token_id": model.config.decoder_start_token_id} if encoded else {}),
    )
    extra = {"adapter_names": adapter_names} if adapter_names else {}
    criteria = StoppingCriteriaList([_Stop(stop)] if stop else [])
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        generation_config=config,
        logits_processor=LogitsProcessorList([GumbelSampler(sampling)] if sampling.temperature > 0 else []),
        stopping_criteria=criteria,
        streamer=streamer,
        **extra,
    )
    written = out[:, 1:] if encoded else out[:, batch["input_ids"].shape[1] :]
    return [text.strip() if encoded else text for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


def _virtual_tokens(model) -> int:
    """Places of the context that a soft prompt takes."""
    config = getattr(model, "active_peft_config", None)
    return getattr(config, "num_virtual_tokens", None) or 0


class GumbelSampler(LogitsProcessor):
    """Samples by the Gumbel-max trick (https://arxiv.org/abs/1411.0030), each row with a random stream of its own.

    So a seed gives a variant the same answer whatever else runs in its batch or beside it, and greedy search does the
    rest.
    """

    def __init__(self, sampling: Sampling):
        self.warpers = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        self.seed, self.streams = sampling.seed, None

    def __call__(self, input_ids, scores):
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        if self.streams is None:
            self.streams = [torch.Generator().manual_seed(self.seed) for _ in scores]
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=s, dtype=torch.float64) for s in self.streams])
        return scores - (-uniform.log()).log().to(scores)


class _Stop(StoppingCriteria):
    def __init__(self, stop: threading.Event):
        self.stop = stop

    def __call__(self, input_ids, scores, **kwargs) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device)


class Streamer:
    """Receives each step's tokens from `generate` and hands on the texts so far, a text a row."""

    def __init__(self, tokenizer, show):
        self.tokenizer, self.show, self.tokens = tokenizer, show, None

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:  # the prompt comes first
            self.tokens = [[] for _ in value]
            return
        for row, token in zip(self.tokens, value.flatten().tolist()):
            row.append(token)
        # A character of several tokens decodes to U+FFFD until it is whole.
        self.show([self.tokenizer.decode(row, skip_special_tokens=True).rstrip("\ufffd") for row in self.tokens])

    def end(self) -> None:
        pass
