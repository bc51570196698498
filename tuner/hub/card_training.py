"""What a card says of the training: its settings, how it went, on what it ran and how long."""

from importlib import metadata

from tuner.hub.card_data import public_recipe
from tuner.hub.card_scores import UNKNOWN, cell, counted, line, number
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.training import ending, energy
from tuner.words import count

LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "huggingface_hub")
CURVE = "curve.png"  # beside the card


def settings_section(run: Run) -> str:
    """The section on the settings: those given, and those chosen with the reason."""
    chosen = {choice["setting"]: choice for choice in run.plan.get("chosen", [])}
    lines = ["| setting | value | meaning |", "|---|---|---|"]
    shown = public_recipe(run)
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


def training_section(run: Run) -> str:
    """The section on how training went, and on what."""
    taken = energy.sentence(run) or UNKNOWN  # first, since a new fold reads the log from its start
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
    trained, all_parameters = number(plan.get("trainable_parameters")), number(plan.get("model_parameters"))
    lines = [
        f"- steps: {number(steps)}{share} ({epochs}){f', {reason}' if reason else ''}",
        f"- time: {seconds}, device: {line(start.get('device', UNKNOWN))}, {counted(step.get('tokens'), 'token')}",
        f"- energy: {taken}",
        f"- final loss: {loss} (training), {heldout_loss} (held-out), in nats per token",
        f"- parameters: {trained} trained; the base model has {all_parameters}",
        *(f"- {sentence}" for sentence in ending.sentences(end)),
    ]
    versions = ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name)))
    return "## Training\n\n" + "\n".join(lines) + f"\n\nLibrary versions when this card was written: {versions}."


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
