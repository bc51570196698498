"""The model card: what was trained, how to use it, whether it helped, what it learned from, how it was trained.

A card states only what the run's folder records; whatever is missing there is "not measured". No path of this machine
appears in it, nor the name of a file of one's own.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from tuner.hub import card_data
from tuner.hub.card_front import WHOLE, front_matter
from tuner.hub.card_scores import UNKNOWN, before_and_after, counted, line, scores_section
from tuner.hub.card_training import CURVE, settings_section, training_section
from tuner.hub.card_use import HERE, kind_of, use
from tuner.inference import merge_check
from tuner.methods.registry import METHODS
from tuner.methods.spec import PRECISIONS
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.words import count

UNCHANGED: Mapping[str, str] = MappingProxyType({})


def card(
    run: Run,
    repo: str | None = None,
    base: str | None = None,
    *,
    kind: str | None = None,
    data_name: str | None = None,
    licenses: Mapping[str, str] = UNCHANGED,
    has_curve: bool = False,
) -> str:
    """The card as Markdown with YAML front matter, for `repo` ("owner/name") on the Hub, or for a folder (HERE).

    `base` is the base model's name on the Hub if it differs from the recipe's: a shipped model is pushed as well.
    `kind` is merged or gguf for a whole model, otherwise that of the adapter. `data_name` is what the owner of a file
    calls it. `licenses` are those of "base" and "data" as their cards on the Hub say. `has_curve`: whether the file
    CURVE stands beside the card.
    """
    recipe, scores = card_data.without_paths(run), run.read_json("evaluation.json") or {}
    kind = kind or kind_of(run)
    title = (recipe.name or f"adapter-{run.id}" if repo in (None, HERE) else repo).rpartition("/")[2]
    place = repo or "OWNER/" + re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII)
    facts = front_matter(run, scores, title, base, kind, card_data.title(run, data_name), licenses)
    parts = [
        f"# {line(title)}",
        _summary(run, recipe, base, kind, data_name),
        use(run, recipe, base, place, kind),
        scores_section(run, scores),
        before_and_after(scores),
        card_data.data_section(run, data_name, licenses.get("data")),
        settings_section(run),
        training_section(run) + (f"\n\n![Training and held-out loss by step]({CURVE})" if has_curve else ""),
        _limits(run, recipe, scores, kind, licenses.get("base")),
    ]
    return f"---\n{facts}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def base_card(name: str, adapter: str) -> str:
    """The card of a shipped base model that is pushed together with an adapter."""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- tuner\n---\n\n"
        f"# {name}\n\nA tiny language model that comes with Tuner as an example and has no repository of its own on "
        f"the Hub. This unchanged copy makes it possible to load [{adapter}](https://huggingface.co/{adapter}), an "
        "adapter trained on it. It has no other use.\n"
    )


def _summary(run: Run, recipe: Recipe, base: str | None, kind: str, data_name: str | None) -> str:
    revision = run.plan.get("revision")
    name = base or recipe.model.name
    where = "a model that is not published" if run.plan.get("model_folder") else "a model that comes with Tuner"
    link = f"[{name}](https://huggingface.co/{name})" if "/" in name else f"{name}, {where}"
    pinned = f", revision `{revision}`" if revision and not base else ""
    ours = f" (Tuner's example model {recipe.model.name}, unchanged)" if base and base != recipe.model.name else ""
    title = METHODS[recipe.method.name].title
    trained = f"trained with Tuner, using {title}, on {_rows(run)} of {card_data.source(run, data_name)}"
    if kind in WHOLE:
        return (
            f"This model is {link}{ours}{pinned} with an adapter merged into its weights. The adapter was {trained}. "
            "The model is used like its base model."
        )
    return (
        f"This adapter for {link}{ours}{pinned} was {trained}. It contains only the trained weights: load it together "
        "with its base model, as shown below."
    )


def _limits(run: Run, recipe: Recipe, scores: dict, kind: str, license: str | None) -> str:
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
    loaded = "This model is" if kind in WHOLE else "The code above loads the base model"
    precision = (
        f"It was trained and scored on the base model in {PRECISIONS[recipe.model.quantization]}. {loaded} "
        "unquantized, so the answers can differ slightly. "
        if recipe.model.quantization != "none" and "origin" not in run.plan  # such a base is published quantized
        else ""
    )
    licensed = f" ({line(license)})" if license else ""
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
        f"The base model's license{licensed}, languages and biases apply here as well.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _rows(run: Run) -> str:
    return counted(run.plan.get("rows"), "row")
