"""Base models and tokenizers: finding, checking, loading and quantising them. safetensors only, never remote code.

A model is named as on the Hub, or by a folder shipped under examples/; both go through the same code. `fetch` is what
may use the network; everything behind it reads the disk.
"""

import shutil
from collections import OrderedDict
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tuner import hub_errors, recipe
from tuner.errors import TunerError
from tuner.runs import Run
from tuner.tasks import TASKS, TaskRow

# What a base model's folder on the Hub may hold that we need: never pickles, never code.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
KEPT = 3  # models that stay loaded for the next job
KEPT_SHARE = 0.1  # of a GPU's memory that they may take when another is loaded

_kept: OrderedDict[tuple, object] = OrderedDict()


@dataclass(frozen=True)
class Base:
    """A base model as a task needs it: its files, how it is held, and the labels of the head that it gets."""

    folder: Path
    model: recipe.Model
    task: str = "generation"
    labels: tuple[str, ...] = ()

    @property
    def row(self) -> TaskRow:
        return TASKS[self.task]


@dataclass(frozen=True)
class Shape:
    """What can be told of a model without its weights."""

    model_type: str
    parameters: int
    width: int
    layers: int
    vocabulary: int
    context: int  # tokens
    linear_layers: tuple[tuple[str, int, int], ...]  # name, inputs, outputs; heads left out
    modules: tuple[str, ...]  # names of all
    weights: tuple[str, ...]  # names of all parameters, tied ones once
    norms: tuple[str, ...]  # names of the normalisation layers
    head_parameters: int  # in what is new
    heads: tuple[str, ...]  # names of what is new in the model and has to be trained, whatever the method
    conv1d: bool  # whether its linear layers are GPT-2's, with transposed weights


def base_of(run: Run) -> Base:
    """The run's base at the revision that it was prepared with, fetched if need be. Raises TunerError."""
    model, plan = run.recipe.model, run.plan
    folder = fetch(model.model_copy(update={"revision": plan["revision"]}))
    return Base(folder, model, plan.get("task", "generation"), tuple(plan.get("labels", ())))


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
    """The model's configuration. Raises TunerError where transformers does not know it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        hint = (
            "It needs code of its own, which is not run here."
            if "remote_code" in str(error)
            else "Choose another model."
        )
        raise TunerError(f"'{name}' is of a kind that transformers does not know. {hint}") from None


def can_do(config, task: TaskRow) -> bool:
    """Whether transformers has the task for a model of this kind."""
    from transformers.models.auto import modeling_auto

    known = getattr(modeling_auto, task.mapping)
    return bool(
        set(known.values()) & set(config.architectures or []) if task.architecture else config.model_type in known
    )


def check_task(config, name: str, task: TaskRow) -> None:
    """Raises TunerError where the model can't do the task."""
    if not can_do(config, task):
        given = ", ".join(config.architectures or []) or "of no stated kind"
        raise TunerError(
            f"'{name}' is not {task.family} (it is {given}), and these rows ask for {task.title}. Choose "
            f"{task.such_as}."
        )


def _configure(base: Base):
    config = load_config(base.folder, base.model.name)
    check_task(config, base.model.name, base.row)
    if base.labels:
        config.id2label = dict(enumerate(base.labels))
        config.label2id = {label: i for i, label in enumerate(base.labels)}
    if base.row.has_labels and config.pad_token_id is None:
        # A decoder's head reads the last token that is no padding.
        config.pad_token_id = load_tokenizer(base.folder).pad_token_id
    return config


@lru_cache(maxsize=8)
def shape(base: Base) -> Shape:
    """The model's shape, from its configuration alone: no weight is read. Raises TunerError as `load_config` does."""
    import torch
    from transformers.pytorch_utils import Conv1D

    config = _configure(base)
    model = on_meta(base, config)
    text = config.get_text_config()
    output = model.get_output_embeddings()
    heads = [] if base.row.generates else _new_modules(base.folder, model)
    modules = list(model.named_modules())
    linear = [
        (name, *((m.in_features, m.out_features) if isinstance(m, torch.nn.Linear) else m.weight.shape))
        for name, m in modules
        if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not output and not name.startswith(tuple(heads))
    ]
    return Shape(
        model_type=config.model_type,
        parameters=model.num_parameters(),
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        context=_context(text),
        linear_layers=tuple(linear),
        modules=tuple(name for name, _ in modules),
        weights=tuple(name for name, _ in model.named_parameters()),
        norms=tuple(
            name for name, m in modules if "norm" in type(m).__name__.lower() and any(True for _ in m.parameters())
        ),
        heads=tuple(heads),
        head_parameters=sum(p.numel() for name in heads for p in model.get_submodule(name).parameters()),
        conv1d=any(isinstance(m, Conv1D) for _, m in modules),
    )


def _new_modules(folder: Path, model) -> list[str]:
    """What is beside the pretrained part, and BERT's pooler where the model was published without."""
    from safetensors import safe_open

    found = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    if getattr(model.base_model, "pooler", None) is not None:
        stored = [key for file in folder.glob("*.safetensors") for key in safe_open(file, "pt").keys()]  # noqa: SIM118
        if not any("pooler." in key for key in stored):
            found.append(f"{model.base_model_prefix}.pooler")
    return found


def on_meta(base: Base, config=None, dtype=None):
    """The model without storage."""
    import torch
    import transformers

    config = config or _configure(base)
    with torch.device("meta"):
        return getattr(transformers, base.row.auto_class).from_config(config, **({"dtype": dtype} if dtype else {}))


def _context(text) -> int:
    """Tokens that the model was built for; T5 has relative positions and no such number."""
    found = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2048
    # RoBERTa's first two positions stand for padding.
    return found - 2 if text.model_type in ("roberta", "xlm-roberta", "camembert") else found


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


def computing(model: recipe.Model):
    """A context in which trained parts, held in float32, compute in the base's type, as they did in training."""
    import torch

    dtype = compute_dtype(model)[0]
    return torch.autocast(device(), getattr(torch, dtype), enabled=True) if dtype != "float32" else nullcontext()


def load(base: Base, *, quantization: str | None = None):
    """The base model on the device, in evaluation mode, quantised as the recipe says unless told otherwise.

    A new head is drawn by a fixed seed, so that it is the same wherever it is drawn.
    """
    import torch
    import transformers

    dtype = getattr(torch, compute_dtype(base.model)[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = getattr(transformers, base.row.auto_class).from_pretrained(
            base.folder,
            config=_configure(base),
            dtype=dtype,
            quantization_config=_quantization(quantization or base.model.quantization, dtype, shape(base).heads),
            device_map={"": 0} if device() == "cuda" else None,
            ignore_mismatched_sizes=base.row.has_labels,  # a head for other labels than ours is drawn anew
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


def shared(base: Base, *, quantization: str | None = None):
    """The same model as `load` gives, kept for the next who asks: whoever changes it leaves it as it was found."""
    key = (
        str(base.folder),
        (base.folder / "config.json").stat().st_mtime_ns,
        base.task,
        base.labels,
        quantization or base.model.quantization,
        compute_dtype(base.model)[0],
    )
    if key not in _kept:
        while len(_kept) >= KEPT or (_kept and _is_full()):
            _kept.popitem(last=False)
        _kept[key] = load(base, quantization=quantization)
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


def _quantization(kind: str, dtype, heads: tuple[str, ...]):
    from transformers import BitsAndBytesConfig

    # A new head has to be trained, which 4-bit weights can't be.
    skipped = {"llm_int8_skip_modules": list(heads)} if heads else {}
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            **skipped,
        )
    return BitsAndBytesConfig(load_in_8bit=True, **skipped) if kind == "int8" else None


def free_disk(path: Path) -> int:
    """Bytes free where `path` lies."""
    return shutil.disk_usage(path).free
