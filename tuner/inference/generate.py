"""Answers of the loaded variants to conversations: streamed side by side, or one batch at a time."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from tuner.data.chat import render_prompt, stop_ids
from tuner.data.tokens import check_ids, strangers_code
from tuner.errors import TunerError, panics_as_errors
from tuner.inference.predict import predict
from tuner.inference.variants import ActiveModel, LoadedVariants

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
                texts = answer(loaded, active, variants, prompts, sampling, streamer=streamer, stop=stop)
                results.put(dict(zip(variants, texts)))
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
    streamer: "Streamer | None" = None,
    stop: Stop | None = None,
) -> list[str]:
    """The answers of an active model to conversations, each as the variant in the same place of `variants`."""
    with active.activate() as model:
        if not loaded.base.row.generates:
            texts = [encode.source(messages[-1:]) for messages in conversations]
            return predict(model, loaded.tokenizer, loaded.base, texts)
        prompts = [_prompt(loaded, messages) for messages in conversations]
        names = [active.adapter_names[v] for v in variants] if active.adapter_names else None
        return generate(model, loaded.tokenizer, prompts, sampling, adapter_names=names, streamer=streamer, stop=stop)


def _prompt(loaded: LoadedVariants, messages: list[dict] | str) -> str:
    if isinstance(messages, str):
        return messages
    if loaded.base.row.chats:
        return render_prompt(messages, loaded.tokenizer)
    return encode.source(messages)


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    sampling: Sampling,
    *,
    adapter_names: list[str] | None = None,
    streamer: "Streamer | None" = None,
    stop: Stop | None = None,
) -> list[str]:
    """The answers to rendered prompts, generated in one batch; `adapter_names` selects the adapter for each row."""
    encoded = model.config.is_encoder_decoder
    context, virtual = getattr(model.config.get_text_config(), "max_position_embeddings", None), _virtual_tokens(model)
    # A causal model's special tokens are in the chat template; an encoder's are added by the tokenizer.
    batch = tokenizer(
        prompts,
        return_tensors="pt",
        padding=True,
        padding_side="right" if encoded else "left",
        add_special_tokens=encoded,
        return_token_type_ids=False,
        # As in training. A causal model's prompt is not cut: an error says that it is too long.
        **({"truncation": True, "max_length": context - virtual} if encoded and context else {}),
    )
    check_ids(batch["input_ids"].tolist(), model.config.get_text_config().vocab_size, tokenizer)
    batch = batch.to(next(model.parameters()).device)
    used = 0 if encoded else batch["input_ids"].shape[1] + virtual
    room = sampling.max_new_tokens if context is None else context - used
    if room < 1:
        raise TunerError(f"This conversation fills the model's context of {context} tokens. Start a new one.")
    config = GenerationConfig(
        max_new_tokens=min(room, sampling.max_new_tokens),
        num_beams=1,  # some models set their own, such as BART's four beams
        do_sample=False,  # GumbelSampler adds the noise that makes greedy search sample
        eos_token_id=[tokenizer.eos_token_id] if encoded else list(sampling.ends) or stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        disable_compile=True,  # torch.compile does not work on ZeroGPU
        **({"decoder_start_token_id": model.config.decoder_start_token_id} if encoded else {}),
    )
    extra = {"adapter_names": adapter_names} if adapter_names else {}
    criteria = StoppingCriteriaList([_Stop(stop)] if stop else [])
    if streamer:
        criteria.append(_Full(streamer))
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        generation_config=config,
        logits_processor=LogitsProcessorList([GumbelSampler(sampling)] if sampling.temperature > 0 else []),
        stopping_criteria=criteria,
        streamer=streamer,
        **extra,
    )
    generated = out[:, 1:] if encoded else out[:, batch["input_ids"].shape[1] :]
    return [text.strip() if encoded else text for text in _texts(tokenizer, generated.tolist())]


def _texts(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """The rows' texts. Of a character of several tokens nothing is shown until it is whole, nor if it is cut off."""
    with strangers_code("The base model's tokenizer can't write this answer"):
        return [text.rstrip("\ufffd") for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _virtual_tokens(model: nn.Module) -> int:
    """Positions of the context that a soft prompt uses."""
    config = getattr(model, "active_peft_config", None)
    return getattr(config, "num_virtual_tokens", None) or 0


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
        full = [len(text) >= MAX_CHARACTERS for text in self.streamer.texts]
        return torch.tensor(full, device=input_ids.device)


class Streamer(_Shared):
    """Receives each step's tokens from transformers and calls `show` with the texts so far, one for each row."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[list[str]], None]):
        self.tokenizer, self.show, self.tokens = tokenizer, show, None
        self.texts: list[str] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompts' tokens at the first call, then one token for each row."""
        if self.tokens is None:  # the prompt comes first
            self.tokens, self.texts = [[] for _ in value], [""] * len(value)
            return
        for row, token in zip(self.tokens, value.flatten().tolist()):
            row.append(token)
        self.texts = _texts(self.tokenizer, self.tokens)
        self.show(self.texts)

    def end(self) -> None:
        """Required by transformers; nothing is held back."""
