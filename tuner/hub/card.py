"""The model card: what an adapter is, how to use it, whether it helped, what it learned from, how it was trained.

A card states only what the run's folder records; whatever is missing there is "not measured". No path of this machine
appears in it.
"""

import re
from importlib import metadata
from pathlib import PurePath

from tuner.data.sources import is_hub_name
from tuner.hub.card_scores import UNKNOWN, before_and_after, cell, line, scores_section
from tuner.hub.card_use import kind_of, use
from tuner.inference import merge_check
from tuner.methods.registry import METHODS
from tuner.methods.spec import PRECISIONS
from tuner.metrics import metric_of
from tuner.recipe import EXAMPLES, Recipe
from tuner.runs import Run
from tuner.tasks import TaskRow, task_of
from tuner.training import ending
from tuner.words import count

LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "huggingface_hub")


def card(run: Run, repo: str | None = None, base: str | None = None) -> str:
    """The card as Markdown with YAML front matter, for `repo` ("owner/name") on the Hub.

    `base` is the base model's name on the Hub if it differs from the recipe's: a shipped model is pushed as well.
    """
    recipe, scores = _shown_recipe(run), run.read_json("evaluation.json") or {}
    kind = kind_of(run)
    title = (repo or recipe.name or f"adapter-{run.id}").rpartition("/")[2]
    parts = [
        f"# {line(title)}",
        _summary(run, recipe, base),
        use(run, recipe, base, repo or "OWNER/" + re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII), kind),
        scores_section(run, scores),
        before_and_after(scores),
        _data(run, recipe),
        _settings(run, recipe),
        _training(run),
        _limits(run, recipe, scores),
    ]
    return (
        f"---\n{_front_matter(run, recipe, scores, title, base, kind)}\n---\n\n"
        + "\n\n".join(filter(None, parts))
        + "\n"
    )


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe with the data file's name in place of its path on this machine."""
    return recipe.with_settings({"data.source": _source(recipe)})


def without_paths(run: Run) -> Recipe:
    """The run's recipe with names in place of this machine's paths."""
    return public_recipe(_shown_recipe(run))


def _shown_recipe(run: Run) -> Recipe:
    """The run's recipe, with a model folder's name in place of its path."""
    own_folder = run.plan.get("model_folder")
    return run.recipe.with_settings({"model.name": PurePath(own_folder).name}) if own_folder else run.recipe


def base_card(name: str, adapter: str) -> str:
    """The card of a shipped base model that is pushed together with an adapter."""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- tuner\n---\n\n"
        f"# {name}\n\nA tiny language model that comes with Tuner as an example and has no repository of its own on "
        f"the Hub. This unchanged copy makes it possible to load [{adapter}](https://huggingface.co/{adapter}), an "
        "adapter trained on it. It has no other use.\n"
    )


def _source(recipe: Recipe) -> str:
    named = recipe.data.sources
    return ", ".join(name if is_hub_name(name) else PurePath(name.replace("\\", "/")).name for name in named)


def _front_matter(run: Run, recipe: Recipe, scores: dict, title: str, base: str | None, kind: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    hub_data, task = is_hub_name(recipe.data.source), _task(run)
    quantized = ["qlora"] if recipe.model.quantization != "none" and recipe.method.name == "lora" else []
    name = base or (recipe.model.name if "/" in recipe.model.name else None)
    metric = metric_of(scores)
    is_scored = metric.name in scores.get("adapter", {})
    facts = {
        "base_model": name,
        "base_model_relation": ("finetune" if METHODS[recipe.method.name].changes_base else "adapter")
        if name
        else None,
        "library_name": "peft" if kind in ("peft", "hybrid") else "transformers",
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
                dataset_name=f"{_source(recipe)}, held-out rows",
                dataset_config=recipe.data.config,
                dataset_split=recipe.data.heldout_split,
                metric_type=metric.hub,
                metric_name=metric.title,
                metric_value=scores["adapter"][metric.name],
            )
        ]
    return ModelCardData(**facts).to_yaml()


def _summary(run: Run, recipe: Recipe, base: str | None) -> str:
    revision = run.plan.get("revision")
    name = base or recipe.model.name
    where = "a model that is not published" if run.plan.get("model_folder") else "a model that comes with Tuner"
    link = f"[{name}](https://huggingface.co/{name})" if "/" in name else f"{name}, {where}"
    pinned = f", revision `{revision}`" if revision and not base else ""
    ours = f" (Tuner's example model {recipe.model.name}, unchanged)" if base and base != recipe.model.name else ""
    title = METHODS[recipe.method.name].title
    return (
        f"This adapter for {link}{ours}{pinned} was trained with Tuner, using {title}, on {_rows(run)} "
        f"of {_link(recipe)}. It contains only the trained weights: load it together with its base model, as "
        "shown below."
    )


def _data(run: Run, recipe: Recipe) -> str:
    plan = run.plan
    choices = {choice["setting"]: choice for choice in plan.get("chosen", [])}
    unknown = {"value": UNKNOWN, "reason": ""}
    heldout, form = choices.get("held-out rows", unknown), choices.get("format", unknown)
    tokens, trained = _count(plan.get("tokens"), "token"), _number(plan.get("trained_tokens"))
    lines = [
        f"- source: {_link(recipe)}",
        f"- training: {_rows(run)} with {tokens}, {trained} of them learned from",
        f"- held out: {_count(plan.get('heldout_rows'), 'row')}. {line(heldout['reason'])}",
        f"- format: {line(form['value'])}. {line(form['reason'])}",
        f"- truncated: {_count(plan.get('truncated_rows'), 'row')}",
    ]
    warnings = [f"- warning: {line(warning)}" for warning in plan.get("warnings", [])]
    return "## Data\n\n" + "\n".join([*lines, *warnings])


def _settings(run: Run, recipe: Recipe) -> str:
    chosen = {choice["setting"]: choice for choice in run.plan.get("chosen", [])}
    lines = ["| setting | value | meaning |", "|---|---|---|"]
    shown = public_recipe(recipe)
    for part in Recipe.model_fields:
        holder = getattr(shown, part)
        fields = type(holder).model_fields if hasattr(type(holder), "model_fields") else None
        rows = [(f"{part}.{k}", getattr(holder, k), f) for k, f in fields.items()] if fields else []
        for name, value, field in rows or [(part, holder, Recipe.model_fields[part])]:
            choice = chosen.get(name.rpartition(".")[2]) if value in (None, "auto", "all-linear") else None
            value = choice["value"] if choice else value
            if value is None or value == {}:
                continue
            why = f" ({choice['reason']})" if choice else ""
            lines.append(f"| {name} | {cell(value)} | {cell(field.description + why)} |")
    return "## Settings\n\n" + "\n".join(lines)


def _training(run: Run) -> str:
    start, end, step, heldout = (run.last_event(kind) or {} for kind in ("start", "end", "step", "heldout"))
    plan = run.plan
    reason = {
        "steps": "all steps done",
        "clock": "all seconds used",
        "stopped": "stopped early",
        "patience": "stopped early",
    }.get(end.get("reason"))
    steps, planned = end.get("step"), step.get("steps")
    share = f" of {planned:,}" if planned and planned != steps else ""
    seconds = UNKNOWN if end.get("seconds") is None else f"{end['seconds']:.1f} s"
    epochs = f"{UNKNOWN} epochs" if step.get("epoch") is None else count(step["epoch"], "epoch")
    heldout_loss, loss = (UNKNOWN if e.get("loss") is None else e["loss"] for e in (heldout, step))
    trained, all_parameters = _number(plan.get("trainable_parameters")), _number(plan.get("model_parameters"))
    lines = [
        f"- steps: {_number(steps)}{share} ({epochs}){f', {reason}' if reason else ''}",
        f"- time: {seconds}, device: {line(start.get('device', UNKNOWN))}, {_count(step.get('tokens'), 'token')}",
        f"- final loss: {loss} (training), {heldout_loss} (held-out), in nats per token",
        f"- parameters: {trained} trained; the base model has {all_parameters}",
        *(f"- {sentence}" for sentence in ending.sentences(end)),
    ]
    versions = ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name)))
    return "## Training\n\n" + "\n".join(lines) + f"\n\nLibrary versions when this card was written: {versions}."


def _limits(run: Run, recipe: Recipe, scores: dict) -> str:
    check = run.read_json("merge_check.json")
    saved = (merge_check.problem(check) or merge_check.in_float32(check)) if check else ""
    merged = (
        f"Merged into the 16-bit base model, it predicts the same next token as the adapter for "
        f"{check['top1_agreement']:.1%} of {check['tokens']} held-out tokens, and the same as the adapter "
        f"on the base model as trained for {check['top1_agreement_quantized']:.1%}. {saved}"
        if check
        else f"Whether merging changes the answers: {UNKNOWN}."
        if METHODS[recipe.method.name].mergeable
        else "What it learned can't be merged into the base model."
    )
    precision = (
        f"It was trained and scored on the base model in {PRECISIONS[recipe.model.quantization]}. The code above "
        "loads the base model unquantized, so the answers can differ slightly. "
        if recipe.model.quantization != "none" and "origin" not in run.plan  # such a base is published quantized
        else ""
    )
    lines = [
        f"It learned one narrow task from {_rows(run)}. On anything else, expect it to be no better than the "
        "base model, or worse.",
        f"The scores come from {count(scores.get('rows') or 0, 'row')} of the same source. They say little about "
        "other data, and no metric knows whether an answer is true, safe or kind.",
        f"{precision}{merged}".rstrip(),
        "This is one run with one seed. Another seed may score differently. The same steps with the same seed give "
        "the same adapter bit for bit on one CPU, with the same number of threads and the same library versions. GPU "
        f"kernels are not deterministic; how far apart two runs on a GPU end is {UNKNOWN}.",
        "It may repeat rows that it was trained on, and this card may show held-out rows. Consider both before you "
        "make the repository public.",
        "The base model's license, languages and biases apply here as well.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _link(recipe: Recipe) -> str:
    source, config = recipe.data.title, f" ({recipe.data.config})" if recipe.data.config else ""
    if is_hub_name(source):
        return f"[{source}](https://huggingface.co/datasets/{source}){config}"
    # A path stays the user's own file, even an absolute one, which joining would leave as it is.
    is_shipped = PurePath(source).name == source and (EXAMPLES / source).is_file()
    origin = "an example that comes with Tuner" if is_shipped else "a file that is not published"
    return f"`{line(_source(recipe))}`, {origin}"


def _task(run: Run) -> TaskRow:
    return task_of(run.plan)


def _rows(run: Run) -> str:
    return _count(run.plan.get("rows"), "row")


def _number(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _count(number: int | None, noun: str) -> str:
    return f"{UNKNOWN} {noun}s" if number is None else count(number, noun)


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
