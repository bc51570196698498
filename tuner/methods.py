"""METHODS: one row per fine-tuning method, with the facts that checks and the page need. No torch until a method is
applied."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuner.recipe import Recipe


@dataclass(frozen=True)
class MethodRow:
    name: str
    title: str
    kind: str
    paper: str
    explanation: str
    learning_rate: Callable[[int], float]  # hidden width -> peak rate
    learning_rate_reason: str
    mergeable: bool
    quantizations: tuple[str, ...]  # the ways of holding the base that it works on
    config: Callable[[Recipe], Any]  # -> peft.PeftConfig
    parameters: Callable[[Recipe, list[tuple[int, int]]], int]  # target layers' (inputs, outputs) -> what is trained


def _lora(recipe: Recipe):
    from peft import LoraConfig

    method = recipe.method
    targets = method.target_modules if method.target_modules == "all-linear" else list(method.target_modules)
    return LoraConfig(
        r=method.rank,
        lora_alpha=2 * method.rank if method.alpha == "auto" else method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


METHODS = {
    row.name: row
    for row in [
        MethodRow(
            name="lora",
            title="LoRA",
            kind="reparameterisation",
            paper="https://arxiv.org/abs/2106.09685",
            explanation="Leaves every weight of the model as it is and learns a small low-rank update beside each "
            "linear layer. On a base held in 4 or 8 bits this is QLoRA (https://arxiv.org/abs/2305.14314).",
            # Schulman et al., 'LoRA Without Regret' (2025): ten times full fine-tuning's 5e-5 at width 2000.
            learning_rate=lambda width: round(5e-4 * (2000 / width) ** 0.78, 5),
            learning_rate_reason="what suits LoRA at this model's width, a power law fitted in 'LoRA Without Regret'",
            mergeable=True,
            quantizations=("nf4", "int8", "none"),
            config=_lora,
            parameters=lambda recipe, layers: sum(recipe.method.rank * (a + b) for a, b in layers),
        ),
    ]
}
