"""Base models of Qwen3's published shapes with random weights, and rows of random words: what gpu.py trains on.

Speed and memory depend on the shapes, not on the values, so nothing has to be downloaded.
"""

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

VOCABULARY = 151_936
SHARD = 4 * 2**30  # bytes
SPREAD = 0.02  # standard deviation of the weights, as in Qwen3's own initialization
# As in the config.json of Qwen/Qwen3-*. The last two are the first with fewer layers, for what depends on the kinds of
# layers and not on their number; one of them as a Llama.
SHAPES = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8-layers": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 16},
    "8-llama": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 16},
}
LLAMAS = ("8-llama",)
UNTIED = ("8B",)
SHARED = {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1024}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYLLABLES = [consonant + vowel for consonant in "bdfklmnprst" for vowel in "aeiou"]
WORDS = [a + b for a, b in zip(SYLLABLES, SYLLABLES[7:] + SYLLABLES[:7])]  # a token each, with and without its space


def config_of(size: str, rehearsal: bool = False) -> "PretrainedConfig":
    """The configuration of a size; in a rehearsal that of a tiny model that ties its weights as this size does."""
    from transformers import LlamaConfig, Qwen3Config

    family, kind = ("Llama", LlamaConfig) if size in LLAMAS else ("Qwen3", Qwen3Config)
    shape = {"vocab_size": VOCABULARY, **SHARED, **SHAPES[size], **(TINY if rehearsal else {})}
    return kind(
        **shape,
        architectures=[f"{family}ForCausalLM"],
        tie_word_embeddings=size not in UNTIED,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        dtype="bfloat16",
    )


def weights_of(config: "PretrainedConfig") -> dict[str, "torch.Tensor"]:
    """The parameters by name, tied ones once, without storage."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return dict(AutoModelForCausalLM.from_config(config).named_parameters())


def tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE with a ChatML template, in which each of WORDS is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"],
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f"{word}\n user {word}\n assistant" for word in WORDS], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = CHATML
    return made


def make_base(size: str, scratch: Path, rehearsal: bool = False) -> Path:
    """The folder of a base model of this size under `scratch`, written if it is not there yet."""
    import torch

    folder = scratch / ("tiny-bases" if rehearsal else "bases") / size
    if folder.is_dir():
        return folder
    partial = folder.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = config_of(size, rehearsal)
    config.save_pretrained(partial)
    tokenizer().save_pretrained(partial)
    _write_weights(weights_of(config), partial)
    torch.cuda.empty_cache()
    partial.rename(folder)
    return folder


def _write_weights(weights: dict[str, "torch.Tensor"], folder: Path) -> None:
    """Random weights in bfloat16, drawn on the device and written shard by shard."""
    import torch
    from safetensors.torch import save_file

    from tuner.models.device import device_type

    torch.manual_seed(0)
    index, total = {}, 0
    for number, names in enumerate(_shards(weights)):
        file, shard = f"model-{number:05d}.safetensors", {}
        for name in names:
            values = torch.ones(weights[name].shape, dtype=torch.bfloat16, device=device_type())
            shard[name] = (values if "norm" in name else values.normal_(0, SPREAD)).cpu()
            total += values.nbytes
        save_file(shard, folder / file, {"format": "pt"})
        index |= dict.fromkeys(shard, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def _shards(weights: dict[str, "torch.Tensor"]) -> Iterator[list[str]]:
    names, size = [], 0
    for name, weight in weights.items():
        if names and size + 2 * weight.numel() > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * weight.numel()
    yield names


def write_rows(file: Path, rows: int, heldout: int, shortest: int, longest: int) -> Path:
    """Write rows of `shortest` to `longest` tokens, template included; half of their words are the completion's."""
    made, draw = tokenizer(), random.Random(0)
    messages = [{"role": "user", "content": WORDS[0]}, {"role": "assistant", "content": WORDS[1]}]
    # A row's last line break is no token of it: nothing has to be answered after the end mark.
    template = len(made(made.apply_chat_template(messages, tokenize=False).rstrip("\n"))["input_ids"]) - 2
    with open(file, "w", encoding="utf-8") as lines:
        for number in range(rows + heldout):
            words = draw.choices(WORDS, k=max(2, draw.randint(shortest, longest) - template))
            half = math.ceil(len(words) / 2)
            row = {"prompt": " ".join(words[:half]), "completion": " ".join(words[half:])}
            row["split"] = "train" if number < rows else "validation"
            print(json.dumps(row), file=lines)
    return file
