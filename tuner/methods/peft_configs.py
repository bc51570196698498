"""What methods put on a base: PEFT's configurations and ours, made for the base at hand. No torch until then."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tuner.tasks import TaskRow

# The layers that a method looks for by what they do, with the names that families of models give them; of several that
# a layer's name ends with, the longest counts.
ROLES = {
    "query": ("q_proj", "q", "query", "q_lin"),
    "key": ("k_proj", "k", "key", "k_lin"),
    "value": ("v_proj", "v", "value", "v_lin"),
    "fused": ("c_attn", "query_key_value", "qkv_proj", "q_attn"),
    "attention_out": (
        "o_proj",
        "o",
        "attention.output.dense",
        "out_lin",
        "out_proj",
        "attn.c_proj",
        "attention.dense",
    ),
    "feedforward_out": ("down_proj", "wo", "output.dense", "lin2", "fc2", "mlp.c_proj", "dense_4h_to_h"),
}


@dataclass(frozen=True)
class Target:
    """What a method is put on: a base's shape (models.Shape), and the recipe with the method's own defaults filled
    in."""

    settings: dict[str, Any]
    shape: Any
    task: TaskRow

    @property
    def sizes(self) -> list[tuple[str, int, int]]:
        """Name, inputs and outputs of the layers that get an adapter."""
        asked = self.settings.get("target_modules", "all-linear")
        all_of_them = self.shape.linear_layers
        return [x for x in all_of_them if asked == "all-linear" or any(is_named(x[0], a) for a in asked)]

    @property
    def layers(self) -> list[str]:
        """Names of the layers that get an adapter: short ones where those mean no other layer."""
        wanted = [name for name, _, _ in self.sizes]
        shared = {n.rpartition(".")[2] for n in set(self.shape.modules) - set(wanted)}
        return sorted({leaf if (leaf := n.rpartition(".")[2]) not in shared else n for n in wanted})

    def role(self, *roles: str) -> list[str]:
        """Names of the layers that do this in their block."""
        return [name for name, _, _ in self.shape.linear_layers if _role(name) in roles]

    def common(self) -> dict:
        """What every configuration of PEFT's is told."""
        heads = list(self.shape.heads)
        return {"task_type": self.task.peft_type, **({"modules_to_save": heads} if heads else {})}


def is_named(name: str, target: str) -> bool:
    """Whether PEFT takes the layer `name` for `target`."""
    return name == target or name.endswith("." + target)


def _role(name: str) -> str | None:
    matches = [(len(end), role) for role, ends in ROLES.items() for end in ends if is_named(name, end)]
    return max(matches)[1] if matches else None


def peft_config(name: str, **fixed) -> Callable[[Target], list]:
    """The configuration of PEFT's on the target layers; a callable among `fixed` is asked for its value."""

    def parts(target: Target) -> list:
        import peft

        values = {k: v(target.settings) if callable(v) else v for k, v in fixed.items()}
        return [getattr(peft, name)(target_modules=target.layers, **target.common(), **values)]

    return parts


def setting(name: str) -> Callable[[dict], Any]:
    return lambda settings: settings[name]


RANK, ALPHA = setting("rank"), setting("alpha")
LORA = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": setting("dropout")}


def ia3(target: Target, is_second: bool = False) -> list:
    from peft import IA3Config

    feedforward = target.role("feedforward_out")
    attention = target.role("key", "value") or target.role("fused")
    layers = attention + feedforward
    # Told the task, PEFT would train a head of its own on top of the first part's.
    common = {} if is_second else target.common()
    return [IA3Config(target_modules=layers, feedforward_modules=feedforward, **common)]


def soft_prompt(name: str, **fixed) -> Callable[[Target], list]:
    def parts(target: Target) -> list:
        import peft

        values = {k: v(target) if callable(v) else v for k, v in fixed.items()}
        number = target.settings["virtual_tokens"]
        # In an encoder-decoder the encoder alone is prompted, as in Lester et al.
        common = {"task_type": target.task.peft_type, "num_transformer_submodules": 1}
        return [getattr(peft, name)(num_virtual_tokens=number, **common, **values)]

    return parts


def llama_adapter(target: Target) -> list:
    from peft import AdaptionPromptConfig

    layers = min(target.settings["layers"], target.shape.layers)
    return [
        AdaptionPromptConfig(
            adapter_len=target.settings["virtual_tokens"], adapter_layers=layers, task_type=target.task.peft_type
        )
    ]


def bottleneck(target: Target) -> list:
    from tuner.methods.native import BottleneckConfig

    modules = target.role("attention_out", "feedforward_out")
    return [BottleneckConfig(modules, target.settings["bottleneck"], _head_weights(target))]


def selected(chosen: Callable[[Target], list[str]]) -> Callable[[Target], list]:
    def parts(target: Target) -> list:
        from tuner.methods.native import SelectedConfig

        return [SelectedConfig([*dict.fromkeys(chosen(target) + _head_weights(target))])]

    return parts


def _head_weights(target: Target) -> list[str]:
    return [n for n in target.shape.weights if n.startswith(tuple(f"{head}." for head in target.shape.heads))]


def biases(target: Target) -> list[str]:
    """The base's own bias terms."""
    return [n for n in target.shape.weights if n.endswith(".bias")]


def bitfit(target: Target) -> list:
    if biases(target):
        return selected(biases)(target)
    from peft import BeftConfig

    return [BeftConfig(target_modules=target.layers, **target.common())]


def upper_blocks(target: Target) -> list[str]:
    """Weights of the last blocks; of an encoder-decoder, the decoder's."""
    places = [(m[1], int(m[2]), n) for n in target.shape.weights if (m := re.match(r"(.*?)\.(\d+)\.", n))]
    stack = places[-1][0]
    numbers = sorted({i for s, i, _ in places if s == stack})[-target.settings["layers"] :]
    return [n for s, i, n in places if s == stack and i in numbers]


def layer_norm(target: Target) -> list:
    from peft import LNTuningConfig

    return [LNTuningConfig(target_modules=list(target.shape.norms), **target.common())]


def lora_and_ia3(target: Target) -> list:
    """(IA)3 on the layers that it is made for, LoRA on the others: two on one layer can't be merged apart."""
    (factors,) = ia3(target, is_second=True)
    left = [name for name, _, _ in target.shape.linear_layers if name not in factors.target_modules]
    (low_rank,) = peft_config("LoraConfig", **LORA)(
        replace(target, settings=target.settings | {"target_modules": left})
    )
    return [low_rank, factors]


def unless_known(*roles: str) -> Callable[[Target], str | None]:
    """A method that looks for layers by their role can't work where none has a name that is known."""

    def refuses(target: Target) -> str | None:
        if any(target.role(role) for role in roles):
            return None
        return "its layers have names that do not tell what they do"

    return refuses


def only_plain_linear(target: Target) -> str | None:
    return "it works on linear layers only, and this model is built of Conv1D layers" if target.shape.conv1d else None


def llama_adapter_refuses(target: Target) -> str | None:
    known = ("llama", "mistral", "gpt2")
    if target.shape.model_type in known:
        return None
    return f"PEFT knows it for {', '.join(known)} models only, and this one is {target.shape.model_type}"
