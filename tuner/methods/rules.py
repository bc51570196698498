"""What a method requires of the base and its settings, for cases that PEFT refuses late or in unclear words.

A rule looks at the target and returns None, or a Refusal. No torch.
"""

from collections.abc import Callable
from typing import NamedTuple

from tuner.methods.target import Target
from tuner.words import count

# Families that transformers 5.23 reads or writes with from tokens only, not from the vectors of a prompt.
READ_TOKENS = ("bamba", "falcon_h1", "fsmt", "gemma3", "gemma4", "gemma4_text", "nemotron_h", "zamba2")
# Families in which PEFT's prefix has no place: some layers keep a state in place of keys and values (Qwen3.5), all
# queries share one key (Falcon), keys are compressed (DeepSeek), or nothing is cached (GPT).
WITHOUT_PREFIX = (
    *("axk1", "axk2", "bailing_hybrid", "bamba", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4"),
    *("dots3_note_text", "falcon", "falcon_h1", "glm4_moe_lite", "glm_moe_dsa", "granitemoehybrid", "inkling2_text"),
    *("inkling_text", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "longcat_flash", "mamba2", "minicpm3"),
    *("minimax", "nemotron_h", "olmo_hybrid", "openai-gpt", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
    *("qwen4_exp_text", "recurrent_gemma", "xlstm", "youtu", "zamba2", "zaya"),
)
LORA_WORKS = "Choose lora, which works on any model"


class Refusal(NamedTuple):
    """Why a method can't be used: a phrase that continues its title, then what to choose instead."""

    why: str
    instead: str = LORA_WORKS
    setting: str = "name"  # of recipe.method, the one to change


Rule = Callable[[Target], Refusal | None]


def plain_linear(target: Target) -> Refusal | None:
    """PEFT implements many methods for torch.nn.Linear only."""
    if target.shape.conv1d:
        return Refusal("works on linear layers only, and this model is built from Conv1D layers")
    return None


def has_role(*roles: str) -> Rule:
    """For a method that needs layers of certain roles: at least one layer has one of these."""

    def rule(target: Target) -> Refusal | None:
        if target.layers_of(*roles):
            return None
        return Refusal("can't tell this model's attention and feed-forward layers apart by their names")

    return rule


def model_types(*types: str) -> Rule:
    """For a method that PEFT implements model by model."""

    def rule(target: Target) -> Refusal | None:
        if target.shape.model_type in types:
            return None
        return Refusal(
            f"is implemented for {', '.join(types[:-1])} and {types[-1]} models only, and this one is "
            f"{target.shape.model_type}"
        )

    return rule


def other_models(*types: str) -> Rule:
    """For a method that fails on some families."""

    def rule(target: Target) -> Refusal | None:
        if target.shape.model_type not in types:
            return None
        return Refusal(f"does not work on {target.shape.model_type} models")

    return rule


def rank_divides_inputs(target: Target) -> Refusal | None:
    """BOFT cuts each layer's inputs into blocks of `rank`, and can't be attached without storage to try it."""
    widths, rank = sorted({inputs for _, inputs, _ in target.layers}), target.settings["rank"]
    if all(width % rank == 0 for width in widths):
        return None
    possible = [n for n in range(1, widths[0] + 1) if all(width % n == 0 for width in widths)]
    listed = ", ".join(map(str, possible[:12]))
    return Refusal(
        f"needs a rank that divides the inputs of every target layer ({', '.join(map(str, widths))}), and {rank} "
        "does not",
        f"Choose {'one of ' if len(possible) > 1 else ''}{listed}",
        "rank",
    )


def rank_fits_weights(target: Target) -> Refusal | None:
    """SHiRA picks rank x (inputs + outputs) of a layer's weights, and can't be attached without storage either."""
    rank = target.settings["rank"]
    largest = min((inputs * outputs // (inputs + outputs) for _, inputs, outputs in target.layers), default=rank)
    if rank <= largest:
        return None
    return Refusal(
        f"with rank {rank} would train more weights than the smallest target layer has",
        f"Choose at most {largest}",
        "rank",
    )


def room_in_context(target: Target) -> Refusal | None:
    """Virtual tokens use up the model's context; beyond its end, learned positions run out."""
    tokens, context = target.settings["virtual_tokens"], target.shape.context
    if tokens <= context // 2:
        return None
    return Refusal(
        f"with {count(tokens, 'virtual token')} leaves too little of this model's context of {context} tokens for the "
        "rows",
        f"Choose at most {context // 2}",
        "virtual_tokens",
    )
