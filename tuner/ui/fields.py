"""The recipe's settings as inputs: labels, help, choices and bounds are read from Recipe, never typed again here.

A setting is known by its dotted path, such as training.learning_rate. An emptied input means Recipe's default.
"""

from typing import Any

import gradio as gr

from tuner.recipe import Recipe

SCHEMA = Recipe.model_json_schema()
# What the page asks for in its own way, or not at all.
OWN = {"name", "model.name", "data.source", "data.columns", "method.name", "budget.steps", "budget.epochs", "budget.seconds"}


def paths(part: str | None = None) -> list[str]:
    """The settings of a part, or of all parts."""
    if part:
        return [f"{part}.{leaf}" for leaf in SCHEMA["$defs"][part.title()]["properties"]]
    parts = [p for p in SCHEMA["properties"] if p.title() in SCHEMA["$defs"]]
    return [path for p in parts for path in paths(p)] + [p for p in SCHEMA["properties"] if p not in parts]


def schema(path: str) -> dict:
    part, _, leaf = path.rpartition(".")
    return (SCHEMA["$defs"][part.title()] if part else SCHEMA)["properties"][leaf]


def bounds(path: str) -> str:
    """The bounds of a number in words, or nothing."""
    said = []
    for branch in schema(path).get("anyOf", [schema(path)]):
        low, high = branch.get("minimum", branch.get("exclusiveMinimum")), branch.get("maximum", branch.get("exclusiveMaximum"))
        if low is not None and high is not None and high < 2**31:
            said.append(f"{low:g} to {high:g}")
        elif low is not None and low > 1:
            said.append(f"{low:g} or more")
    return f" ({' or '.join(said)})" if said else ""


def component(path: str, start: Recipe, **changes) -> gr.components.Component:
    """The input of a setting, filled in from `start`."""
    facts = schema(path)
    branches = facts.get("anyOf", [facts])
    types = {b.get("type") for b in branches}
    common: dict[str, Any] = {
        "label": path.rpartition(".")[2].replace("_", " ").capitalize(),
        "info": facts["description"] + bounds(path),
        "value": to_input(path, start),
    }
    if "enum" in facts:
        return gr.Dropdown(facts["enum"], **common | changes)
    if types & {"integer", "number"}:
        # Bounds are Recipe's to check: it names the setting and the remedy, where gr.Number would open a pop-up.
        precision = 0 if "number" not in types else None
        empty = "auto" if any(b.get("const") == "auto" for b in branches) else "none" if "null" in types else ""
        return gr.Number(precision=precision, placeholder=empty, **common | changes)
    return gr.Textbox(**common | {"placeholder": "none" if "null" in types else ""} | changes)


def to_input(path: str, source: Recipe) -> Any:
    """A setting of the recipe as its input shows it; None for auto."""
    part, _, leaf = path.rpartition(".")
    value = getattr(getattr(source, part) if part else source, leaf)
    if isinstance(value, list | tuple):
        return ", ".join(value)
    return None if value == "auto" and "enum" not in schema(path) else value


def to_settings(values: dict[str, Any]) -> dict:
    """Recipe's nested settings of the inputs' values, by path; what was left empty is left out."""
    settings: dict[str, Any] = {}
    for path, value in values.items():
        if value is None or value == "" or value == {}:
            continue
        if path == "method.target_modules" and value != "all-linear":
            value = [name.strip() for name in str(value).split(",") if name.strip()]
        part, _, leaf = path.rpartition(".")
        (settings.setdefault(part, {}) if part else settings)[leaf] = value
    return settings
