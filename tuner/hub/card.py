"""The model card: what an adapter is, what it learned from, how it was trained, how it scored, how to load it.

A card says only what the run folder tells; what it does not tell is "not measured". Nothing in it names a place on
this machine.
"""

import json
import re
from importlib import metadata
from pathlib import PurePath

from tuner.data.parse import SUFFIXES
from tuner.data.sources import HUB_NAME
from tuner.hub.card_use import fence, use
from tuner.methods.files import is_native
from tuner.methods.registry import METHODS
from tuner.methods.spec import PRECISIONS
from tuner.recipe import EXAMPLES, Recipe
from tuner.runs import Run
from tuner.tasks import TASKS, TaskRow, metric_of

UNKNOWN = "not measured"
SHOWN = 2  # rows before and after
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "huggingface_hub")


def card(run: Run, repo: str | None = None, base: str | None = None) -> str:
    """The card in Markdown with its YAML front matter, for `repo` ("owner/name") on the Hub.

    `base` is the base model's name on the Hub where it is not the recipe's, as for a shipped model that is pushed too.
    """
    recipe, scores = run.recipe, run.read_json("evaluation.json") or {}
    title = (repo or recipe.name or f"adapter-{run.id}").rpartition("/")[2]
    parts = [
        f"# {_line(title)}",
        _summary(run, recipe, base),
        use(run, recipe, base, repo or "OWNER/" + re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII)),
        _scores(run, scores, recipe),
        _before_and_after(scores),
        _data(run, recipe),
        _settings(run, recipe),
        _training(run),
        _limits(run, recipe, scores),
    ]
    return f"---\n{_front_matter(run, recipe, scores, title, base)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe with a file's name in place of its path, which means nothing elsewhere and tells of this machine."""
    return recipe.with_settings({"data.source": _source(recipe)})


def base_card(name: str, adapter: str) -> str:
    """The card of a shipped base model that is pushed beside an adapter."""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- tuner\n---\n\n"
        f"# {name}\n\nA tiny language model that comes with Tuner as an example and is on the Hub under no name of "
        f"its own. It lies here, unchanged, so that [{adapter}](https://huggingface.co/{adapter}), an adapter trained "
        "on it, can be loaded by its name. It is of no other use.\n"
    )


def is_hub_dataset(source: str) -> bool:
    return bool(HUB_NAME.fullmatch(source)) and not source.lower().endswith(SUFFIXES)


def _source(recipe: Recipe) -> str:
    source = recipe.data.source
    return source if is_hub_dataset(source) else PurePath(source.replace("\\", "/")).name


def _front_matter(run: Run, recipe: Recipe, scores: dict, title: str, base: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    hub_data, task = is_hub_dataset(recipe.data.source), _task(run)
    quantized = ["qlora"] if recipe.model.quantization != "none" and recipe.method.name == "lora" else []
    name = base or (recipe.model.name if "/" in recipe.model.name else None)
    metric = metric_of(scores)
    is_scored = metric.name in scores.get("adapter", {})
    facts = {
        "base_model": name,
        "base_model_relation": ("finetune" if METHODS[recipe.method.name].changes_base else "adapter")
        if name
        else None,
        "library_name": "transformers" if run.adapter.is_dir() and is_native(run.adapter) else "peft",
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
    link = f"[{name}](https://huggingface.co/{name})" if "/" in name else f"{name}, a model that comes with Tuner"
    pinned = f", revision `{revision}`" if revision and not base else ""
    ours = f" (Tuner's example model {recipe.model.name}, unchanged)" if base and base != recipe.model.name else ""
    title = METHODS[recipe.method.name].title
    return (
        f"A {title} adapter for {link}{ours}{pinned}, trained with Tuner on {_rows(run)} rows of {_link(recipe)}. "
        "It holds what was trained only; the base model is loaded beside it."
    )


def _scores(run: Run, scores: dict, recipe: Recipe) -> str:
    base, adapter, rows = scores.get("base", {}), scores.get("adapter", {}), scores.get("rows", 0)
    if not adapter:
        return f"## Did it help?\n\nHeld-out scores: {UNKNOWN}."

    metric = metric_of(scores)
    name = metric.name

    def measured(part: dict) -> str:
        interval = f" ({part[name + '_low']:.3f} to {part[name + '_high']:.3f})" if f"{name}_low" in part else ""
        return f"{part[name]:.3f}{interval}" if name in part else UNKNOWN

    def number(part: dict, key: str, form: str) -> str:
        return format(part[key], form) if key in part else UNKNOWN

    equal, loss = (
        [number(part, *key) for part in (base, adapter)] for key in (("exact_match", ".1%"), ("loss", ".3f"))
    )
    lines = [
        "| on held-out rows | base model | with adapter |",
        "|---|---|---|",
        f"| {metric.title}, 0 to 1, higher is better (95% interval) | {measured(base)} | {measured(adapter)} |",
        f"| answers equal to the reference | {equal[0]} | {equal[1]} |",
        f"| loss, nats, lower is better | {loss[0]} | {loss[1]} |",
    ]
    gain = scores.get("gain")
    said = (
        f"Gain in {metric.title}: {gain[name]:+.3f} (95% interval {gain['low']:+.3f} to {gain['high']:+.3f}). "
        if gain
        else ""
    )
    generated = f", the likeliest token each time, at most {recipe.evaluation.max_new_tokens} tokens"
    generated = generated if _task(run).generates else ""
    how = (
        f"{said}{rows} rows that training never saw were answered by the base model and by the adapter{generated}, on "
        f"the base as trained ({_quantization(recipe)}). {metric.title}: {metric.explanation}. The intervals are "
        "percentile bootstraps over the rows, the gain's is paired."
    )
    if _task(run).has_labels:
        how += " The base model's head is new and untrained, so the base's score is that of guessing."
    loss_only = "The rows are plain text without prompts, so only the loss on held-out rows was measured."
    return "## Did it help?\n\n" + "\n".join(lines) + "\n\n" + (how if rows else loss_only)


def _before_and_after(scores: dict) -> str | None:
    examples = scores.get("examples", [])[:SHOWN]
    if not examples:
        return None
    shown = [
        "\n\n".join(f"{said}\n\n{fence(row[key])}" for said, key in (
            ("Prompt", "prompt"), ("Reference", "reference"), ("Base model", "base"), ("With adapter", "adapter")
        ))
        for row in examples
    ]  # fmt: skip
    return "## Before and after\n\nThe first held-out rows, not picked.\n\n" + "\n\n---\n\n".join(shown)


def _data(run: Run, recipe: Recipe) -> str:
    plan = run.plan
    told = {choice["setting"]: choice for choice in plan.get("chosen", [])}
    nothing = {"value": UNKNOWN, "reason": ""}
    heldout, form = told.get("held-out rows", nothing), told.get("format", nothing)
    tokens, trained = _count(plan.get("tokens")), _count(plan.get("trained_tokens"))
    lines = [
        f"- source: {_link(recipe)}",
        f"- trained on: {_rows(run)} rows of {tokens} tokens, the loss taken over {trained} of them",
        f"- held out: {_count(plan.get('heldout_rows'))} rows. {_line(heldout['reason'])}",
        f"- format: {_line(form['value'])}. {_line(form['reason'])}",
        f"- cut to length: {_count(plan.get('truncated_rows'))} rows",
    ]
    warnings = [f"- warning: {_line(warning)}" for warning in plan.get("warnings", [])]
    return "## Data\n\n" + "\n".join([*lines, *warnings])


def _settings(run: Run, recipe: Recipe) -> str:
    chosen = {choice["setting"]: choice for choice in run.plan.get("chosen", [])}
    lines = ["| setting | value | what it is |", "|---|---|---|"]
    shown = public_recipe(recipe)
    for part in Recipe.model_fields:
        holder = getattr(shown, part)
        fields = type(holder).model_fields if hasattr(type(holder), "model_fields") else None
        rows = [(f"{part}.{k}", getattr(holder, k), f) for k, f in fields.items()] if fields else []
        for name, value, field in rows or [(part, holder, Recipe.model_fields[part])]:
            if value is None or value == {}:
                continue
            choice = chosen.get(name.rpartition(".")[2]) if value in ("auto", "all-linear") else None
            value = choice["value"] if choice else value
            why = f" ({choice['reason']})" if choice else ""
            lines.append(f"| {name} | {_cell(value)} | {_cell((field.description or '') + why)} |")
    return "## Settings\n\n" + "\n".join(lines)


def _training(run: Run) -> str:
    last: dict[str, dict] = {event["event"]: event for event in run.events()}
    start, end, step, plan = last.get("start", {}), last.get("end", {}), last.get("step", {}), run.plan
    reason = {"steps": "all steps done", "clock": "the time was up", "stopped": "stopped by hand"}.get(
        end.get("reason")
    )
    done, asked = end.get("step"), step.get("steps")
    share = f" of {asked}" if asked and asked != done else ""
    seconds = f"{end['seconds']:.1f} s" if "seconds" in end else UNKNOWN
    heldout, loss = last.get("heldout", {}).get("loss", UNKNOWN), step.get("loss", UNKNOWN)
    trained, frozen = _count(plan.get("trainable_parameters")), _count(plan.get("model_parameters"))
    lines = [
        f"- steps: {_count(done)}{share} ({step.get('epoch', UNKNOWN)} epochs){f', {reason}' if reason else ''}",
        f"- time: {seconds}, device: {_line(start.get('device', UNKNOWN))}, {_count(step.get('tokens'))} tokens",
        f"- last loss: {loss} (training), {heldout} (held-out), nats a token",
        f"- parameters: {trained} trained, {frozen} frozen",
    ]
    versions = ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name)))
    return "## Training\n\n" + "\n".join(lines) + f"\n\nLibraries when this card was written: {versions}."


def _limits(run: Run, recipe: Recipe, scores: dict) -> str:
    check = run.read_json("merge_check.json")
    merged = (
        f"Merged into the 16-bit base, the likeliest token is the adapter's on {check['top1_agreement']:.1%} of "
        f"{check['tokens']} held-out tokens; against the adapter on the base as trained, on "
        f"{check['top1_agreement_quantized']:.1%}."
        if check
        else f"How far a merged model is from the adapter: {UNKNOWN}."
        if METHODS[recipe.method.name].mergeable
        else "What it learned can't be merged into the base."
    )
    held = (
        f"It was trained and scored on the base held as {_quantization(recipe)}. The lines above load the base "
        "unquantised, and its answers can differ a little. "
        if recipe.model.quantization != "none"
        else ""
    )
    lines = [
        f"It learned one narrow task from {_rows(run)} rows; outside of it, expect the base model or worse.",
        f"The scores come from {scores.get('rows') or 'no'} answered rows of the same source: they say little about "
        "other data, and no metric knows if an answer is true, safe or kind.",
        f"{held}{merged}",
        "One run with one seed: another seed can score otherwise.",
        "It can repeat rows it was trained on, and this repository shows some held-out rows: mind both before you "
        "make it public.",
        "What holds for the base model holds here: its licence, its languages, its biases.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _link(recipe: Recipe) -> str:
    source, config = recipe.data.source, f" ({recipe.data.config})" if recipe.data.config else ""
    if is_hub_dataset(source):
        return f"[{source}](https://huggingface.co/datasets/{source}){config}"
    shipped = (
        ", an example that comes with Tuner"
        if (EXAMPLES / source).is_file()
        else ", a file that is not published here"
    )
    return f"`{_line(_source(recipe))}`{shipped}"


def _task(run: Run) -> TaskRow:
    return TASKS[run.plan.get("task", "generation")]


def _quantization(recipe: Recipe) -> str:
    return PRECISIONS[recipe.model.quantization]


def _rows(run: Run) -> str:
    return _count(run.plan.get("rows"))


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _line(text: str) -> str:
    """Text of a stranger's on one line, that neither opens a tag nor ends a code span."""
    return re.sub(r"\s+", " ", text).replace("`", "'").replace("<", "&lt;").strip()


def _cell(value) -> str:
    return _line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).replace("|", "\\|")


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
