"""Makes two more tiny base models from random weights, and the rows of their tasks.

    python -m examples.make_readers                    all of it
    python -m examples.make_readers --rows             only the rows, in a second
    python -m examples.make_readers --only reader      one base: reader or summarizer

tiny-summarizer/ is a T5 for support.jsonl; tiny-reader/ is a DistilBERT for reviews.jsonl and entities.jsonl. Both are
made of text of the same small worlds, drawn from other random numbers, without any label or summary of that text. On
one CPU core the first took five minutes; the second was last made on fewer texts, in four.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from examples import entities, reviews, support
from tuner.data.tokens import IGNORE_INDEX

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).resolve().parent
SEED = 7
ROWS = {"support": 600, "reviews": 1200, "entities": 600}
PAD, END, UNKNOWN, START, MASK = "<pad>", "</s>", "<unk>", "<s>", "<mask>"
SENTINELS = [f"<extra_id_{place}>" for place in range(20)]

SUMMARIZER_TASKS, READER_TEXTS = 24_000, 60_000
SUMMARIZER_RATE, READER_RATE = 2e-3, 2e-3
SUMMARIZER_BATCH, READER_BATCH = 1200, 1200  # tokens, padding included


def write_rows() -> None:
    """Write the three tasks' rows."""
    for name, module in {"support": support, "reviews": reviews, "entities": entities}.items():
        rows = module.rows(SEED, ROWS[name])
        fresh = HERE / f"{name}.jsonl.new"
        fresh.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        fresh.replace(HERE / f"{name}.jsonl")


def make_tokenizer(
    texts: list[str], specials: list[str], single: str, pair: str, vocabulary: int, **names: str | list[str]
) -> PreTrainedTokenizerBase:
    """A byte-level BPE of the text's own words; digits stand alone, and a word is the same at the start of a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Prepend(" ")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, bpe.token_to_id(token)) for token in (START, END) if token in single],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=512,
        **names,
    )


def batches(encoded: list, size: Callable, limit: int, rng: random.Random) -> list[list]:
    """Batches of about `limit` tokens in random order; similar sizes together, to save padding."""
    packed, batch = [], []
    for example in sorted(encoded, key=lambda example: (size(example), rng.random())):
        if batch and size(example) * (len(batch) + 1) > limit:
            packed.append(batch)
            batch = []
        batch.append(example)
    packed.append(batch)
    rng.shuffle(packed)
    return packed


def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    """The rows as one tensor, filled up on the right."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def pretrain(model: PreTrainedModel, steps: list[Callable[[], dict]], rate: float, warmup: int = 200) -> None:
    """One epoch with AdamW, warm-up, cosine to zero and bfloat16 autocast. Prints the loss."""
    import torch

    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    started, recent = time.monotonic(), []
    for step, batch in enumerate(steps, 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(step / warmup, 0.5 + 0.5 * math.cos(math.pi * step / len(steps)))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch()).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step % 100 == 0 or step == len(steps):
            mean, seconds = sum(recent) / len(recent), time.monotonic() - started
            print(f"step {step}/{len(steps)}  loss {mean:.3f}  {seconds:.0f} s", flush=True)
            recent = []


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save beside, then rename, so that nobody reads half a model."""
    import torch

    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    settings = json.loads((fresh / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that transformers 4 also knows
    (fresh / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (fresh / "model.safetensors").chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def without_spans(ids: list[int], sentinels: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
    """A sixth of the tokens taken out in short spans, each replaced by a sentinel; and the spans."""
    kept, taken, place, used = [], [], 0, 0
    while place < len(ids):
        if used < len(sentinels) and rng.random() < 0.06:
            length = rng.choice([1, 2, 3, 4, 5])
            kept.append(sentinels[used])
            taken += [sentinels[used], *ids[place : place + length]]
            used, place = used + 1, place + length
        else:
            kept.append(ids[place])
            place += 1
    return kept, taken


def make_summarizer(count: int) -> None:
    """Pre-train tiny-summarizer on that many exercises."""
    import torch
    from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

    torch.manual_seed(SEED)
    rng = random.Random(f"summarizer {SEED}")
    tasks = [support.task(rng) for _ in range(count)]
    specials = [PAD, END, UNKNOWN, *SENTINELS]
    texts = [text for task in tasks[:8000] for text in task]
    tokenizer = make_tokenizer(
        texts,
        specials,
        f"$A {END}",
        f"$A {END} $B {END}",
        2048,
        eos_token=END,
        additional_special_tokens=SENTINELS,
    )
    sentinels, end = tokenizer.convert_tokens_to_ids(SENTINELS), tokenizer.eos_token_id
    read = tokenizer([task[0] for task in tasks], add_special_tokens=False)["input_ids"]
    targets = tokenizer([task[1] for task in tasks], add_special_tokens=False)["input_ids"]
    pairs = [(ids, target) if target else without_spans(ids, sentinels, rng) for ids, target in zip(read, targets)]
    pairs = [([*ids, end], [*target, end]) for ids, target in pairs]
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=192,
        d_kv=32,
        d_ff=576,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=6,
        feed_forward_proj="relu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end,
    )
    model = T5ForConditionalGeneration(config)
    print(f"{len(pairs)} tasks, {len(tokenizer)} tokens, {model.num_parameters()} parameters", flush=True)

    def ready(batch):
        ids, labels = padded([pair[0] for pair in batch], 0), padded([pair[1] for pair in batch], IGNORE_INDEX)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    steps = batches(pairs, lambda pair: len(pair[0]) + len(pair[1]), SUMMARIZER_BATCH, rng)
    pretrain(model, [lambda batch=batch: ready(batch) for batch in steps], SUMMARIZER_RATE)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=end, max_new_tokens=96
    )
    save(model, tokenizer, HERE / "tiny-summarizer")


def masked(ids: list[int], stops: set[int], mask: int, vocabulary: range, rng: random.Random) -> tuple[list, list]:
    """A fifth of the tokens hidden, or the whole last sentence; and what they were."""
    ends = [place for place, token in enumerate(ids) if token in stops]
    whole = range(ends[-2] + 1, ends[-1]) if len(ends) > 1 and rng.random() < 0.3 else ()
    chosen = [place for place in range(1, len(ids) - 1) if place in whole or rng.random() < (0.05 if whole else 0.2)]
    chosen = chosen or [rng.randrange(1, len(ids) - 1)]
    labels = [IGNORE_INDEX] * len(ids)
    for place in chosen:
        labels[place] = ids[place]
    ids = list(ids)
    for place in chosen:
        kind = rng.random()
        ids[place] = mask if kind < 0.8 else rng.choice(vocabulary) if kind < 0.9 else ids[place]
    return ids, labels


def make_reader(count: int) -> None:
    """Pre-train tiny-reader on that many texts."""
    import torch
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    torch.manual_seed(SEED)
    rng = random.Random(f"reader {SEED}")
    shipped = {row["text"] for row in reviews.rows(SEED, ROWS["reviews"])}
    shipped |= {" ".join(row["tokens"]) for row in entities.rows(SEED, ROWS["entities"])}
    texts = [(reviews if place % 2 else entities).text(rng) for place in range(count)]
    texts = [text for text in texts if text not in shipped]
    specials = [PAD, START, END, UNKNOWN, MASK]
    tokenizer = make_tokenizer(
        texts[:10000],
        specials,
        f"{START} $A {END}",
        f"{START} $A {END} $B {END}",
        1280,
        bos_token=START,
        eos_token=END,
        cls_token=START,
        sep_token=END,
        mask_token=MASK,
    )
    encoded = tokenizer(texts)["input_ids"]
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=192,
        hidden_dim=512,
        n_layers=4,
        n_heads=6,
        max_position_embeddings=512,
        dropout=0.0,
        attention_dropout=0.0,
        qa_dropout=0.0,
        seq_classif_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = DistilBertForMaskedLM(config)
    print(f"{len(encoded)} texts, {len(tokenizer)} tokens, {model.num_parameters()} parameters", flush=True)
    vocabulary = range(len(specials), len(tokenizer))
    stops = {tokenizer(text)["input_ids"][-2] for text in ("x.", "x .")}

    def ready(batch):
        pairs = [masked(ids, stops, tokenizer.mask_token_id, vocabulary, rng) for ids in batch]
        ids, labels = padded([pair[0] for pair in pairs], 0), padded([pair[1] for pair in pairs], IGNORE_INDEX)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    steps = batches(encoded, len, READER_BATCH, rng)
    pretrain(model, [lambda batch=batch: ready(batch) for batch in steps], READER_RATE)
    save(model, tokenizer, HERE / "tiny-reader")


def main() -> None:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", action="store_true", help="write the rows alone")
    parser.add_argument("--only", choices=["reader", "summarizer"], help="make one base")
    arguments = parser.parse_args()
    write_rows()
    if arguments.rows:
        return
    if arguments.only != "reader":
        make_summarizer(SUMMARIZER_TASKS)
    if arguments.only != "summarizer":
        make_reader(READER_TEXTS)


if __name__ == "__main__":
    main()
