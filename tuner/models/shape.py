"""What can be told of a base model without reading its weights: its task, sizes and layers."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tuner import recipe
from tuner.errors import TunerError
from tuner.tasks import TASKS, TaskRow


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
    weight_sizes: tuple[int, ...]  # parameters in each of them
    norms: tuple[str, ...]  # names of the normalisation layers
    head_parameters: int  # in what is new
    heads: tuple[str, ...]  # names of what is new in the model and has to be trained, whatever the method
    conv1d: bool  # whether its linear layers are GPT-2's, with transposed weights


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
def shape_of(base: Base) -> Shape:
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
        weight_sizes=tuple(p.numel() for _, p in model.named_parameters()),
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
