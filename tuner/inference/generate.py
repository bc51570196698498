"""Answers of the loaded variants to conversations: streamed side by side, or one batch at a time."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from tuner.data import encode
from tuner.data.chat import decoded, render_prompt, stop_ids
from tuner.data.tokens import strangers_code
from tuner.errors import panics_as_errors
from tuner.inference.predict import predict
from tuner.inference.prompts import in_batches, padded, read_prompts
from tuner.inference.variants import ActiveModel, LoadedVariants
from tuner.methods.soft_prompts import that_writes, with_vectors
from tuner.models.ends import end_tokens
from tuner.models.losses import first_token

# Of an answer that is shown while it grows: to write so many takes up to 30 ms, in which the app does nothing else.
MAX_CHARACTERS = 100_000


class Stop(Protocol):
    """An object like threading.Event; once it is set, the answers end."""

    def is_set(self) -> bool:
        """Whether to stop."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0  # 0 for greedy decoding
    top_p: float = 1.0
    max_new_tokens: int = 96
    seed: int = 0
    ends: tuple[int, ...] = ()  # the tokens that end an answer; none if the chat template is to tell


@dataclass(frozen=True)
class Answer:
    """What a model answers to a prompt."""

    text: str
    is_cut: bool = False  # still being written when it reached the most tokens that it may have
    lost: int = 0  # tokens of the prompt that were cut off
    read: int = field(default=0, compare=False)  # tokens of the prompt
    written: int = field(default=0, compare=False)  # tokens of the answer, with the one that ends it


def stream(
    loaded: LoadedVariants,
    conversations: dict[str, list[dict] | str],
    sampling: Sampling,
    stop: threading.Event | None = None,
) -> Iterator[dict[str, str]]:
    """Answer each variant's conversation, which may be rendered already; yields the texts so far, by variant, whenever
    one has grown."""
    stop = stop or threading.Event()
    results: queue.SimpleQueue = queue.SimpleQueue()
    # Variants that share the base's weights take turns; each merged model answers in a thread of its own.
    groups = [loaded.sharing_base, *([active] for active in loaded.merged)]
    threads = [
        threading.Thread(target=_answer_group, args=(loaded, group, conversations, sampling, stop, results))
        for group in groups
        if any(variant in conversations for active in group for variant in active.variants)
    ]
    for thread in threads:
        thread.start()
    texts, running = dict.fromkeys(conversations, ""), len(threads)
    try:
        while running:
            result = results.get()
            if isinstance(result, Exception):
                raise result
            running -= result is None
            if result:
                texts.update(result)
                yield dict(texts)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _answer_group(
    loaded: LoadedVariants,
    group: list[ActiveModel],
    conversations: dict[str, list[dict] | str],
    sampling: Sampling,
    stop: threading.Event,
    results: queue.SimpleQueue,
) -> None:
    """Put texts by variant into `results` as they grow, then None; an exception if one is raised."""
    try:
        with panics_as_errors():
            for active in group:
                variants = [variant for variant in active.variants if variant in conversations]
                if not variants or stop.is_set():
                    continue
                streamer = Streamer(loaded.tokenizer, lambda texts, vs=variants: results.put(dict(zip(vs, texts))))
                prompts = [conversations[variant] for variant in variants]
                answers = answer(loaded, active, variants, prompts, sampling, streamer=streamer, stop=stop)
                results.put({variant: a.text for variant, a in zip(variants, answers)})
    except Exception as error:
        results.put(error)
    finally:
        results.put(None)


def answer(
    loaded: LoadedVariants,
    active: ActiveModel,
    variants: list[str],
    conversations: list[list[dict] | str],
    sampling: Sampling,
    *,
    longest: int | None = None,
    streamer: "Streamer | None" = None,
    stop: Stop | None = None,
) -> list[Answer]:
    """The answers of an active model to conversations, each as the variant in the same place of `variants`.

    With `longest`, prompts are cut to so many tokens, and to what leaves room for the answer; without it, those that
    leave no room at all are refused.
    """
    base, tokenizer = loaded.base, loaded.tokenizer
    with active.activate() as model:
        if not base.row.generates:
            texts = [encode.source(messages[-1:]) for messages in conversations]
            return [Answer(text) for text in predict(model, tokenizer, base, texts, longest)]
        prompts = [_prompt(loaded, *given) for given in zip(variants, conversations)]
        names = [active.adapter_names[v] for v in variants] if active.adapter_names else None
        sampling = sampling if sampling.ends else replace(sampling, ends=_ends(loaded, variants))
        others = {"adapter_names": names, "longest": longest, "streamer": streamer, "stop": stop}
        return generate(model, tokenizer, prompts, sampling, **others)


def _ends(loaded: LoadedVariants, variants: list[str]) -> tuple[int, ...]:
    """The tokens that end an answer of any of these, which share a batch."""
    tokenizers = {id(tokenizer): tokenizer for tokenizer in map(loaded.tokenizer_for, variants)}.values()
    return tuple(dict.fromkeys(token for tokenizer in tokenizers for token in end_tokens(loaded.base, tokenizer)))


def _prompt(loaded: LoadedVariants, variant: str, messages: list[dict] | str) -> str:
    if isinstance(messages, str):
        return messages
    if loaded.base.row.chats:
        return render_prompt(messages, loaded.tokenizer_for(variant), thinks=loaded.prompted_to_think(variant))
    return encode.source(messages)


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    sampling: Sampling,
    *,
    adapter_names: list[str] | None = None,
    longest: int | None = None,
    streamer: "Streamer | None" = None,
    stop: Stop | None = None,
) -> list[Answer]:
    """The answers to rendered prompts; `adapter_names` selects the adapter for each, and `longest` is as for `answer`.

    Prompts share a batch as long as each can write as many tokens as if it were alone.
    """
    read = read_prompts(model, tokenizer, prompts, longest, sampling.max_new_tokens)
    answers: dict[int, Answer] = {}
    for limit, rows in in_batches(model, read, sampling.max_new_tokens):
        if streamer:
            streamer.begin(rows, len(prompts))
        extra = {"adapter_names": [adapter_names[row] for row in rows]} if adapter_names else {}
        limited = replace(sampling, max_new_tokens=limit)
        written = _write(model, tokenizer, [read[row].ids for row in rows], limited, streamer, stop, extra)
        answers |= {
            row: Answer(text, is_cut, read[row].lost, len(read[row].ids), number)
            for row, (text, is_cut, number) in zip(rows, written, strict=True)
        }
    return [answers[row] for row in range(len(prompts))]


def _write(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: Sampling,
    streamer: "Streamer | None",
    stop: Stop | None,
    extra: dict,
) -> list[tuple[str, bool, int]]:
    """The answers to a batch of prompts, whether each was still being written at its last token, and its tokens."""
    encoded = model.config.is_encoder_decoder
    ends = list(sampling.ends) or (stop_ids(tokenizer) if not encoded else [tokenizer.eos_token_id])
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        num_beams=1,  # some models set their own, such as BART's four beams
        do_sample=False,  # GumbelSampler adds the noise that makes greedy search sample
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        disable_compile=True,  # torch.compile does not work on ZeroGPU
        **({"decoder_start_token_id": first_token(model, ends[0])} if encoded else {"min_length": 0}),
    )
    criteria = StoppingCriteriaList([_Stop(stop)] if stop else [])
    if streamer:
        criteria.append(_Full(streamer))
    ids, mask = padded(prompts, tokenizer.pad_token_id if encoded else None, next(model.parameters()).device)
    writer, inputs = that_writes(model), {"input_ids": ids, "attention_mask": mask}
    if not encoded:
        writer, inputs = with_vectors(writer, ids, mask)
    out = writer.generate(
        **inputs,
        generation_config=config,
        logits_processor=LogitsProcessorList([GumbelSampler(sampling)] if sampling.temperature > 0 else []),
        stopping_criteria=criteria,
        streamer=streamer,
        **extra,
    )
    generated = out[:, 1 if encoded else ids.shape[1] :].tolist()
    texts = [text.strip() if encoded else text for text in _texts(tokenizer, generated)]
    # Some models, such as BART, are made to end with an end token where they have no room for another.
    forced = getattr(getattr(model, "generation_config", None), "forced_eos_token_id", None) is not None
    most = sampling.max_new_tokens
    is_cut = [len(row) == most and not set(ends) & set(row[: most - forced]) for row in generated]
    lengths = [next((i for i, token in enumerate(row, 1) if token in ends), len(row)) for row in generated]
    return list(zip(texts, is_cut, lengths, strict=True))


def _texts(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """The rows' texts. Of a character of several tokens nothing is shown until it is whole, nor if it is cut off."""
    with strangers_code("The base model's tokenizer can't write this answer"):
        return [text.rstrip("\ufffd") for text in decoded(rows, tokenizer)]


class _Shared:
    """PEFT copies the arguments of `generate` for encoder-decoders with a soft prompt; these stay the caller's."""

    def __deepcopy__(self, memo: dict) -> "_Shared":
        return self


class GumbelSampler(_Shared, LogitsProcessor):
    """Adds Gumbel noise to the warped logits, so that their maximum is a sample (https://arxiv.org/abs/1411.0030).

    Each row has a random stream of its own: a seed gives the same answer whatever else is in the batch.
    """

    def __init__(self, sampling: Sampling):
        self.warpers = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        self.seed, self.streams = sampling.seed, None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        if self.streams is None:
            self.streams = [torch.Generator().manual_seed(self.seed) for _ in scores]
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=s, dtype=torch.float64) for s in self.streams])
        return scores - (-uniform.log()).log().to(scores)


class _Stop(_Shared, StoppingCriteria):
    """Ends all answers of a batch once `stop` is set."""

    def __init__(self, stop: Stop):
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device)


class _Full(_Shared, StoppingCriteria):
    """Ends the answers that have become too long to be written anew at each step."""

    def __init__(self, streamer: "Streamer"):
        self.streamer = streamer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        full = [len(self.streamer.texts[row]) >= MAX_CHARACTERS for row in self.streamer.rows]
        return torch.tensor(full, device=input_ids.device)


class Streamer(_Shared):
    """Receives each step's tokens from transformers and calls `show` with the texts so far, one for each prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[list[str]], None]):
        self.tokenizer, self.show = tokenizer, show
        self.texts: list[str] = []

    def begin(self, rows: list[int], prompts: int) -> None:
        """Expect the answers to some of so many prompts: those with the numbers `rows`."""
        self.rows, self.tokens = rows, None
        self.texts = self.texts or [""] * prompts

    def put(self, value: torch.Tensor) -> None:
        """Take the prompts' tokens at the first call, then one token for each row."""
        if self.tokens is None:  # the prompt comes first
            self.tokens = [[] for _ in self.rows]
            return
        for row, token in zip(self.tokens, value.flatten().tolist()):
            row.append(token)
        grown = dict(zip(self.rows, _texts(self.tokenizer, self.tokens)))
        self.texts = [grown.get(number, text) for number, text in enumerate(self.texts)]
        self.show(self.texts)

    def end(self) -> None:
        """Required by transformers; nothing is held back."""
