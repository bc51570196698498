"""TASKS: one row per model family and task. No torch until a row is used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskRow:
    name: str
    title: str
    auto_class: str  # the class of transformers that loads the model
    architectures: str  # the mapping of transformers that names the models it fits
    metric: str


TASKS = {
    row.name: row
    for row in [
        TaskRow(
            name="generation",
            title="text generation with a decoder-only model",
            auto_class="AutoModelForCausalLM",
            architectures="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
            metric="rougeL",
        ),
    ]
}
