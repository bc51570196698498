"""The merged model as a GGUF file, for llama.cpp, Ollama, LM Studio and all that read it.

The `gguf` package has llama.cpp's writer and its names of tensors, but not its conversion, which no registry has. So
it is done here for families whose answers were compared with llama.cpp's own, and for all others it is said how
llama.cpp does it.
"""

import math
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tuner import runs_cleanup
from tuner.data.chat import render_prompt, stop_ids
from tuner.errors import TunerError
from tuner.hub import gguf_tokenizer
from tuner.hub.card_use import CONVERTER
from tuner.hub.modelfile import modelfile, take_apart
from tuner.models.shape import load_tokenizer
from tuner.models.weights import read_tensors, stored_tensors
from tuner.models_cleanup import free_disk
from tuner.runs import Run
from tuner.tasks import task_of
from tuner.words import gigabytes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFWriter

ELSEWHERE = (
    "Download the merged model and convert it with llama.cpp's own script, `python convert_hf_to_gguf.py FOLDER "
    f"--outfile model.gguf`; or push it to the Hub and convert it at {CONVERTER}."
)


class Family(NamedTuple):
    """How llama.cpp has a family: its name there, and whether each head's halves of q and k are interleaved."""

    architecture: str
    interleaved: bool = False


# transformers' model_type -> the family. Each is compared with llama.cpp itself in tests/test_gguf.py.
FAMILIES = {
    "llama": Family("LLAMA", interleaved=True),
    "mistral": Family("LLAMA", interleaved=True),
    "qwen2": Family("QWEN2"),
    "qwen3": Family("QWEN3"),
}
MOST_CONTEXT = 8192  # tokens that Ollama is to make room for, in memory; whoever needs more can say so
ROPES = ("default", "llama3")


def problem(run: Run) -> str | None:
    """Why the merged run can't be written as GGUF here, and what to do; None if it can."""
    if not task_of(run.plan).chats:
        return "GGUF is for models that write answers one token after another. Download adapter or merged model."
    config = run.read_json("merged/config.json") or {}
    kind = config.get("model_type")
    if kind not in FAMILIES:
        return f"Tuner does not write models of the kind {kind} as GGUF. {ELSEWHERE}"
    if (activation := config.get("hidden_act", "silu")) != "silu":
        return f"Tuner does not write models with the activation {activation} as GGUF. {ELSEWHERE}"
    rope = _rope(config).get("rope_type", "default")
    if rope not in ROPES:
        return f"Tuner does not write models with {rope} positions as GGUF. {ELSEWHERE}"
    if not gguf_tokenizer.cutting(run.read_json("merged/tokenizer.json") or {}):
        return f"Tuner does not know how llama.cpp calls this model's tokenizer. {ELSEWHERE}"
    return None


def files(run: Run, name: str) -> dict[str, Path]:
    """The merged run's GGUF file and Ollama's Modelfile, by their names; they are written if they are not there yet.

    Raises TunerError as `write`, and if the disk has no room.
    """
    folder = run.merged / "gguf"
    if not folder.is_dir():
        needed = sum(file.stat().st_size for file in run.merged.glob("*.safetensors"))
        if free_disk(run.path) < needed + runs_cleanup.SPARE:
            raise TunerError(
                f"The GGUF file needs {gigabytes(needed)} of disk space, and {gigabytes(free_disk(run.path))} are "
                "free. Delete old runs, then try again."
            )
        # Under another name until it is whole; two may write it at once, and the second is as good as the first.
        partial = run.merged / f".gguf-{secrets.token_hex(4)}"
        partial.mkdir()
        try:
            write(run, partial / "model.gguf", name)
            (partial / "Modelfile").write_text(_modelfile(run, f"{name}.gguf"), encoding="utf-8")
            with suppress(OSError):
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return {f"{name}.gguf": folder / "model.gguf", "Modelfile": folder / "Modelfile"}


def _modelfile(run: Run, file: str) -> str:
    tokenizer, thinks = load_tokenizer(run.merged), run.plan.get("thinks")
    begin = gguf_tokenizer.added_begin(tokenizer, thinks)
    pieces = take_apart(lambda messages: render_prompt(messages, tokenizer, thinks=thinks), begin)
    ends = tokenizer.convert_ids_to_tokens(run.plan.get("end_tokens") or stop_ids(tokenizer))
    context = min(MOST_CONTEXT, _context(run.read_json("merged/config.json")))
    return modelfile(file, pieces, ends, context)


def write(run: Run, path: Path, name: str) -> None:
    """Write the merged run as one GGUF file, in the type that its weights are stored in, one tensor at a time.

    Raises TunerError if it can't be written so that llama.cpp answers as the run does.
    """
    from gguf import MODEL_ARCH, GGUFWriter

    if found := problem(run):
        raise TunerError(found)
    config = run.read_json("merged/config.json")
    family = FAMILIES[config["model_type"]]
    stored = stored_tensors(run.merged, name)
    architecture = getattr(MODEL_ARCH, family.architecture)
    writer = GGUFWriter(path, architecture.name.lower())
    _write_shape(writer, config, name)
    embedding = next(tensor.shape for key, tensor in stored.items() if key.endswith("embed_tokens.weight"))
    gguf_tokenizer.write(writer, run, embedding[0])
    names = {key: _name(architecture, config, key) for key in stored}
    for key, tensor in _tensors(run, names, config, family):
        writer.add_tensor_info(names.get(key, key), tensor.shape, tensor.dtype, tensor.nbytes, _kind(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in _tensors(run, names, config, family):
        writer.write_tensor_data(tensor)
    writer.close()


def _name(architecture: int, config: dict, key: str) -> str:
    from gguf import get_tensor_name_map

    found = get_tensor_name_map(architecture, config["num_hidden_layers"]).get_name(
        key, try_suffixes=(".weight", ".bias")
    )
    if not found:
        raise TunerError(f"GGUF has no name for the model's '{key}'. {ELSEWHERE}")
    return found


def _tensors(run: Run, names: dict[str, str], config: dict, family: Family) -> Iterator[tuple[str, "np.ndarray"]]:
    """The tensors as they are written: matrices as they are stored, vectors and what is derived in float32."""
    import torch

    heads = config["num_attention_heads"]
    turned = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads} if family.interleaved else {}
    for key in names:
        (tensor,) = read_tensors(run.merged, run.id, [key]).values()
        if part := next((part for part in turned if f".{part}." in key), None):
            tensor = _interleaved(tensor, turned[part])
        tensor = tensor.float() if tensor.ndim == 1 else tensor
        is_brain = tensor.dtype == torch.bfloat16  # which NumPy does not have
        yield key, (tensor.contiguous().view(torch.uint8) if is_brain else tensor.contiguous()).numpy()
    if _rope(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)


def _kind(tensor: "np.ndarray") -> int | None:
    import numpy as np
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType.BF16 if tensor.dtype == np.uint8 else None


def _interleaved(tensor: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows of q or k as the first Llama had them: pairs that are turned together stand side by side."""
    size = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, size, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _write_shape(writer: "GGUFWriter", config: dict, name: str) -> None:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(name)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    # As the run was scored: always the likeliest token.
    writer.add_sampling_temp(0.0)


def _context(config: dict) -> int:
    """Tokens up to which llama.cpp answers as the run: it has no sliding windows for these families."""
    slides = config.get("use_sliding_window", config["model_type"] == "mistral")
    window = config.get("sliding_window") if slides else None
    return min(config["max_position_embeddings"], window or math.inf)


def _rope(config: dict) -> dict:
    """How positions are written, in the form of transformers 5; earlier ones had it in two places."""
    old = config.get("rope_scaling") or {}
    return {"rope_theta": config.get("rope_theta", 10_000.0), **old, **(config.get("rope_parameters") or {})}


def _llama3_factors(config: dict) -> "np.ndarray":
    """By what each frequency is divided: Llama 3.1's rule, as transformers' modeling_rope_utils has it."""
    import numpy as np

    rope = _rope(config)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for index in range(0, head, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (index / head)
        share = (rope["original_max_position_embeddings"] / wave - low) / (high - low)
        share = min(1.0, max(0.0, share))
        factors.append(1 / ((1 - share) / factor + share))
    return np.array(factors, dtype=np.float32)
