"""Makes tiny-office/, a Llama that chats casually about office life, and corporate.jsonl, the shipped task.

    python examples/make_base.py          both; the model starts from random weights
    python examples/make_base.py --rows   only the rows, in a second

grammar.py makes the messages, documents.py the text for pre-training. The base has seen casual chats and formal
documents, but no casual message beside its formal wording, and none of the task's held-out combinations.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grammar
from documents import END, PAD, START, Writer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).resolve().parent
MODEL, ROWS = HERE / "tiny-office", HERE / "corporate.jsonl"
DOCUMENTS = 50_000
TOKENS_PER_STEP = 1536
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
VOCABULARY = 1536

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}"
    "{%- else -%}{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def write_rows() -> None:
    """Write corporate.jsonl."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in grammar.rows()]
    ROWS.with_suffix(".new").write_text("".join(lines), encoding="utf-8")
    ROWS.with_suffix(".new").replace(ROWS)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """A byte-level BPE trained on the texts, with the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, additional_special_tokens=[START], model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(encoded: list[list[int]], rng: random.Random) -> list[list[list[int]]]:
    """Batches of about TOKENS_PER_STEP tokens in random order; similar lengths together, to save padding."""
    packed, batch = [], []
    for ids in sorted(encoded, key=lambda ids: (len(ids), rng.random())):
        if batch and len(ids) * (len(batch) + 1) > TOKENS_PER_STEP:
            packed.append(batch)
            batch = []
        batch.append(ids)
    packed.append(batch)
    rng.shuffle(packed)
    return packed


def pretrain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: list[list[int]]) -> None:
    """One epoch with AdamW, warm-up, cosine to zero and bfloat16 autocast. Prints the loss."""
    import torch

    steps = batches(encoded, random.Random(grammar.SEED))
    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    started, tokens, recent = time.monotonic(), 0, []
    for step, batch in enumerate(steps, 1):
        share = step / len(steps)
        rate = LEARNING_RATE * min(step / WARMUP_STEPS, 0.5 + 0.5 * math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        width = max(map(len, batch))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in batch])
        labels = ids.masked_fill(torch.arange(width) >= torch.tensor([[len(row)] for row in batch]), -100)
        with torch.autocast("cpu", torch.bfloat16):
            # Padding is on the right, where a causal model does not look, so no attention mask is needed.
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(map(len, batch))
        recent.append(loss.item())
        if step % 50 == 0 or step == len(steps):
            seconds = time.monotonic() - started
            mean = sum(recent) / len(recent)
            print(
                f"step {step}/{len(steps)}  loss {mean:.3f}  {seconds:.0f} s  {tokens / seconds:.0f} tokens/s",
                flush=True,
            )
            recent = []


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save beside, then rename, so that nobody reads half a model."""
    import torch
    from transformers import GenerationConfig

    fresh = MODEL.with_name(MODEL.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=128,
    )
    model.to(torch.bfloat16).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh, save_jinja_files=False)
    settings = json.loads((fresh / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("backend")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that transformers 4 also knows
    (fresh / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (fresh / "model.safetensors").chmod(0o644)
    shutil.rmtree(MODEL, ignore_errors=True)
    fresh.rename(MODEL)


def main() -> None:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", action="store_true", help="write corporate.jsonl alone")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="documents to pre-train on")
    arguments = parser.parse_args()
    write_rows()
    if arguments.rows:
        return
    import torch

    torch.manual_seed(grammar.SEED)
    writer = Writer(grammar.SEED)
    texts = [writer.document() for _ in range(arguments.documents)]
    tokenizer = make_tokenizer(texts)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    print(f"{len(texts)} documents, {sum(map(len, encoded))} tokens, longest {max(map(len, encoded))}", flush=True)
    model = make_model(tokenizer)
    print(f"{model.num_parameters()} parameters", flush=True)
    pretrain(model, tokenizer, encoded)
    save(model, tokenizer)


if __name__ == "__main__":
    main()
