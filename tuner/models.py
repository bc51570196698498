"""Base models and tokenizers: finding, checking, loading and quantising them. safetensors only, never remote code.

A model is named as on the Hub, or by a folder shipped under examples/; both go through the same code. `fetch` is what
may use the network; everything behind it reads the disk.
"""

import shutil
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tuner import hub_errors, recipe
from tuner.errors import TunerError
from tuner.tasks import TASKS

# What a base model's folder on the Hub may hold that we need: never pickles, never code.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
KEPT = 3  # models that stay loaded for the next job
KEPT_SHARE = 0.1  # of a GPU's memory that they may take when another is loaded

_kept: OrderedDict[tuple, object] = OrderedDict()


@dataclass(frozen=True)
class Shape:
    """What can be told of a model without its weights."""

    parameters: int
    width: int
    layers: int
    vocabulary: int
    context: int  # tokens
    linear_layers: tuple[tuple[str, int, int], ...]  # name, inputs, outputs; the head left out


def is_shipped(name: str) -> bool:
    return Path(name).name == name and (recipe.EXAMPLES / name / "config.json").is_file()


def fetch(model: recipe.Model) -> Path:
    """The folder that holds the model, downloaded if need be. Raises TunerError."""
    if is_shipped(model.name):
        return recipe.EXAMPLES / model.name
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    hub_errors.limit_waiting()
    wanted = {"revision": model.revision, "allow_patterns": FILES}
    try:
        if model.revision:
            with suppress(LocalEntryNotFoundError):  # then it is downloaded
                return Path(snapshot_download(model.name, **wanted, local_files_only=True))
        folder = Path(snapshot_download(model.name, **wanted))
    except HFValidationError:
        raise TunerError(f"'{model.name}' can't be a model's name. Give one as on the Hub: owner/name.") from None
    except Exception as error:
        raise hub_errors.explain(error, f"the model '{model.name}'") or error from error
    if not (folder / "config.json").is_file():
        raise TunerError(f"'{model.name}' on the Hub holds no model (no config.json). Is it a dataset or an adapter?")
    if not any(folder.glob("*.safetensors")):
        raise TunerError(f"'{model.name}' has no safetensors weights. Choose a model, or a revision, that has them.")
    return folder


def load_config(folder: Path, name: str):
    """The model's configuration. Raises TunerError where it is not a model that this task can train."""
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        hint = (
            "It needs code of its own, which is not run here."
            if "remote_code" in str(error)
            else "Choose another model."
        )
        raise TunerError(f"'{name}' is of a kind that transformers does not know. {hint}") from None
    fitting = set(getattr(modeling_auto, TASKS["generation"].architectures).values())
    given = config.architectures or []
    if not fitting & set(given):
        raise TunerError(
            f"'{name}' is not a causal language model (it is {', '.join(given) or 'of no stated kind'}). "
            "Choose one that continues text, such as Qwen/Qwen3-0.6B."
        )
    return config


@lru_cache(maxsize=8)
def shape(folder: Path, name: str) -> Shape:
    """The model's shape, from its configuration alone: no weight is read. Raises TunerError as `load_config` does."""
    import torch
    import transformers

    config = load_config(folder, name)
    with torch.device("meta"):
        model = getattr(transformers, TASKS["generation"].auto_class).from_config(config)
    linear = torch.nn.Linear, transformers.pytorch_utils.Conv1D
    head = model.get_output_embeddings()
    return Shape(
        parameters=model.num_parameters(),
        width=config.get_text_config().hidden_size,
        layers=config.get_text_config().num_hidden_layers,
        vocabulary=config.get_text_config().vocab_size,
        context=getattr(config.get_text_config(), "max_position_embeddings", 2048),
        linear_layers=tuple(
            (name, *((m.in_features, m.out_features) if isinstance(m, linear[0]) else m.weight.shape))
            for name, m in model.named_modules()
            if isinstance(m, linear) and m is not head
        ),
    )


def load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(model: recipe.Model) -> tuple[str, str]:
    """What the arithmetic runs in, and why."""
    import torch

    if model.dtype != "auto":
        return model.dtype, "as asked"
    if device() == "cpu":
        return "float32", "a CPU is exact and fast enough in it"
    if torch.cuda.is_bf16_supported():
        return "bfloat16", "the GPU has it, and it does not overflow"
    return "float16", "the GPU has no bfloat16"


def load(folder: Path, model: recipe.Model, *, quantization: str | None = None):
    """The base model on the device, in evaluation mode, quantised as the recipe says unless told otherwise."""
    import torch
    import transformers

    quantization = quantization or model.quantization
    dtype = getattr(torch, compute_dtype(model)[0])
    loaded = getattr(transformers, TASKS["generation"].auto_class).from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=_quantization(quantization, dtype),
        device_map={"": 0} if device() == "cuda" else None,
        use_safetensors=True,
        trust_remote_code=False,
    )
    for module in loaded.modules():
        # On CPUs with AVX512-bf16 bitsandbytes repacks 4-bit weights in place at the first evaluation and rounds them
        # to
        # bfloat16 on the way: an evaluation would then change the training that follows.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return loaded.eval()


def shared(folder: Path, model: recipe.Model, *, quantization: str | None = None):
    """The same model as `load` gives, kept for the next who asks: whoever changes it leaves it as it was found."""
    key = (
        str(folder),
        (folder / "config.json").stat().st_mtime_ns,
        quantization or model.quantization,
        compute_dtype(model)[0],
    )
    if key not in _kept:
        while len(_kept) >= KEPT or (_kept and _is_full()):
            _kept.popitem(last=False)
        _kept[key] = load(folder, model, quantization=quantization)
    _kept.move_to_end(key)
    return _kept[key]


def forget() -> None:
    """Drop the kept models, because one may have been left changed or the device is full."""
    _kept.clear()


def _is_full() -> bool:
    """Whether the kept models take so much of a GPU that a run that was promised its memory might not get it."""
    if device() == "cpu":
        return False
    import torch

    held = sum(model.get_memory_footprint() for model in _kept.values())
    return held > KEPT_SHARE * torch.cuda.get_device_properties(0).total_memory


def _quantization(kind: str, dtype):
    from transformers import BitsAndBytesConfig

    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return BitsAndBytesConfig(load_in_8bit=True) if kind == "int8" else None


def free_disk(path: Path) -> int:
    """Bytes free where `path` lies."""
    return shutil.disk_usage(path).free
