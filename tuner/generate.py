"""Text from base, adapter and merged model.

Base and adapter share one set of weights and answer in one batch; the merged model has weights of its own and answers
beside them.
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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

from tuner import data, models
from tuner.errors import TunerError
from tuner.runs import Run

# How PEFT names the rows of a batch that no adapter touches, and those that ours does.
ADAPTER_NAMES = {"base": "__base__", "adapter": "default"}
VARIANTS = ("base", "adapter", "merged")


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen."""

    temperature: float = 0.0  # 0 takes the likeliest token every time
    top_p: float = 1.0
    max_new_tokens: int = 96
    seed: int = 0


@dataclass
class Loaded:
    """A run's models on the device: base with adapter, and the merged one where there is one."""

    tokenizer: object
    model: torch.nn.Module
    merged: torch.nn.Module | None = None

    def holder(self, variant: str) -> torch.nn.Module:
        return self.merged if variant == "merged" else self.model


@contextmanager
def attached(run: Run) -> Iterator[Loaded]:
    """The run's adapter on its base, and its merged model if it was merged; the base is left as it was found.

    Raises TunerError before anything was learned.
    """
    from peft import PeftModel

    if not (run.adapter / "adapter_config.json").is_file():
        raise TunerError(f"Run {run.id} has no adapter yet. Train it first, or wait until it has finished.")
    model = run.recipe.model
    folder = models.fetch(model.model_copy(update={"revision": run.plan["revision"]}))
    merged = models.shared(run.merged, model, quantization="none") if run.merged.is_dir() else None
    try:
        adapted = PeftModel.from_pretrained(models.shared(folder, model), run.adapter).eval()
    except Exception:
        models.forget()  # the base may be left half changed
        raise
    try:
        yield Loaded(models.load_tokenizer(folder), adapted, merged)
    finally:
        adapted.unload()


def stream(
    loaded: Loaded, conversations: dict[str, list[dict]], sampling: Sampling, stop: threading.Event | None = None
) -> Iterator[dict[str, str]]:
    """Answer each variant's conversation; yields the texts so far, by variant, whenever one has grown."""
    stop = stop or threading.Event()
    answers: queue.SimpleQueue = queue.SimpleQueue()
    together = [v for v in conversations if v != "merged"]
    groups = [g for g in (together, [v for v in conversations if v == "merged"]) if g]
    threads = [
        threading.Thread(target=_answer, args=(loaded, {v: conversations[v] for v in g}, sampling, stop, answers))
        for g in groups
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


def _answer(loaded: Loaded, conversations: dict, sampling: Sampling, stop: threading.Event, answers) -> None:
    variants = list(conversations)
    try:
        model = loaded.holder(variants[0])
        prompts = [data.render_prompt(conversations[v], loaded.tokenizer) for v in variants]
        streamer = Streamer(loaded.tokenizer, lambda texts: answers.put(dict(zip(variants, texts))))
        names = None if variants == ["merged"] else [ADAPTER_NAMES[v] for v in variants]
        generate(model, loaded.tokenizer, prompts, sampling, adapter_names=names, streamer=streamer, stop=stop)
    except Exception as error:
        answers.put(error)
    finally:
        answers.put(None)


@torch.inference_mode()
def generate(
    model, tokenizer, prompts: list[str], sampling: Sampling, *, adapter_names=None, streamer=None, stop=None
):
    """The answers to rendered prompts, as one left-padded batch; `adapter_names` says by row which adapter answers."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    batch = batch.to(next(model.parameters()).device)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = sampling.max_new_tokens if context is None else context - batch["input_ids"].shape[1]
    if room < 1:
        raise TunerError(f"The conversation fills the model's context of {context} tokens. Start a new one.")
    config = GenerationConfig(
        max_new_tokens=min(room, sampling.max_new_tokens),
        do_sample=False,  # the noise that makes it sampling is ours, see Noise
        eos_token_id=data.stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        disable_compile=True,  # ZeroGPU has no torch.compile
    )
    extra = {"adapter_names": adapter_names} if adapter_names else {}
    criteria = StoppingCriteriaList([_Stop(stop)] if stop else [])
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        generation_config=config,
        logits_processor=LogitsProcessorList([Noise(sampling)] if sampling.temperature > 0 else []),
        stopping_criteria=criteria,
        streamer=streamer,
        **extra,
    )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


class Noise(LogitsProcessor):
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
