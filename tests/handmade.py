"""Helpers: models described by hand, for what looks at a description and loads nothing."""

from tuner.methods.registry import METHODS, resolve
from tuner.methods.target import Target
from tuner.models.shape import Shape
from tuner.recipe import Recipe
from tuner.tasks import TASKS

# One block's linear layers with their inputs and outputs, of which no two layers have the same pair.
LLAMA = {
    "self_attn.q_proj": (48, 64),
    "self_attn.k_proj": (48, 24),
    "self_attn.v_proj": (48, 32),
    "self_attn.o_proj": (64, 48),
    "mlp.up_proj": (48, 80),
    "mlp.down_proj": (80, 48),
}
# Values other than any default.
SETTINGS = {
    "rank": 6,
    "alpha": 40,
    "dropout": 0.3,
    "target_modules": ["q_proj", "mlp.down_proj"],
    "virtual_tokens": 7,
    "bottleneck": 5,
    "layers": 2,
}


def shape(
    layers: dict[str, tuple[int, int]] = LLAMA, *, blocks: int = 3, biased: bool = False, head: bool = False, **others
) -> Shape:
    """A decoder of width 48 with such layers in each block, a norm of 48 values, and if asked a head of 98."""
    linear = [(f"model.layers.{b}.{name}", *size) for b in range(blocks) for name, size in layers.items()]
    weights = {"model.embed_tokens.weight": 320 * 48}
    for block in range(blocks):
        for name, inputs, outputs in linear[block * len(layers) : (block + 1) * len(layers)]:
            weights[f"{name}.weight"] = inputs * outputs
            if biased:
                weights[f"{name}.bias"] = outputs
        weights[f"model.layers.{block}.norm.weight"] = 48
    weights["model.norm.weight"] = 48
    if head:
        weights |= {"score.weight": 96, "score.bias": 2}
    norms = tuple(name.removesuffix(".weight") for name in weights if name.endswith("norm.weight"))
    facts = {
        "model_type": "llama",
        "parameters": sum(weights.values()),
        "width": 48,
        "layers": blocks,
        "vocabulary": 320,
        "context": 512,
        "is_bounded": True,
        "linear_layers": tuple(linear),
        "modules": ("model.embed_tokens", *(name for name, *_ in linear), *norms, *(["score"] if head else [])),
        "weights": tuple(weights),
        "weight_sizes": tuple(weights.values()),
        "norms": norms,
        "head_parameters": 98 if head else 0,
        "heads": ("score",) if head else (),
        "conv1d": False,
    }
    return Shape(**facts | others)


def chosen(name: str, **settings) -> Recipe:
    """A recipe of this method with those of the settings that it has, in a precision that it works on."""
    row = METHODS[name]
    own = {key: value for key, value in settings.items() if key in row.settings}
    return Recipe.parse({"method": {"name": name, **own}, "model": {"quantization": row.quantizations[-1]}})


def target(name: str, on: Shape | None = None, task: str = "", **settings) -> Target:
    """The method resolved against such a model, for its own first task if none is named."""
    return resolve(chosen(name, **settings), on or shape(), TASKS[task or METHODS[name].tasks[0]])
