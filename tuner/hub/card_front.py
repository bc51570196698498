"""The front matter of a card: what the Hub lists a model by."""

from collections.abc import Mapping

from tuner.hub import card_data
from tuner.methods.registry import METHODS
from tuner.metrics import metric_of
from tuner.runs import Run
from tuner.tasks import task_of

WHOLE = ("merged", "gguf")  # kinds that need no base model
LIBRARIES = {"peft": "peft", "hybrid": "peft", "gguf": "gguf"}  # by kind; the others are loaded by transformers


def front_matter(
    run: Run, scores: dict, title: str, base: str | None, kind: str, data_title: str, licenses: Mapping[str, str]
) -> str:
    """The front matter as YAML; for the rest see `card`."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe, task = card_data.without_paths(run), task_of(run.plan)
    hub_data = card_data.origin(run) == "hub"
    quantized = ["qlora"] if recipe.model.quantization != "none" and recipe.method.name == "lora" else []
    name = base or (recipe.model.name if "/" in recipe.model.name else None)
    is_whole = kind in WHOLE or METHODS[recipe.method.name].changes_base
    metric = metric_of(scores)
    is_scored = metric.name in scores.get("adapter", {})
    facts = {
        "base_model": name,
        "base_model_relation": ("finetune" if is_whole else "adapter") if name else None,
        "license": licenses.get("base"),
        "library_name": LIBRARIES.get(kind, "transformers"),
        "pipeline_tag": task.pipeline,
        "tags": ["tuner", recipe.method.name, *quantized, *(["sft"] if task.generates else []), task.pipeline],
        "datasets": [recipe.data.source] if hub_data else None,
        "metrics": [metric.hub] if is_scored else None,
    }
    if is_scored:
        facts["model_name"] = title
        facts["eval_results"] = [
            EvalResult(
                task_type=task.pipeline,
                task_name=task.title.capitalize(),
                dataset_type=recipe.data.source if hub_data else "custom",
                dataset_name=f"{data_title}, held-out rows",
                dataset_config=recipe.data.config,
                dataset_split=recipe.data.heldout_split,
                dataset_revision=(run.plan.get("data") or {}).get("revision"),
                metric_type=metric.hub,
                metric_name=metric.title,
                metric_value=scores["adapter"][metric.name],
            )
        ]
    return ModelCardData(**facts).to_yaml()
