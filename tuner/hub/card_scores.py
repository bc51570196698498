"""What a model card says of the scores, with two rows before and after."""

import json
import re

from tuner.evaluation.figures import HEADS, table, with_interval
from tuner.evaluation.verdict import judge, other_scores, rival, sentence_case
from tuner.hub.card_use import fence
from tuner.methods.spec import PRECISIONS
from tuner.metrics import metric_of
from tuner.planning.answering import answer_limit
from tuner.runs import Run
from tuner.tasks import task_of
from tuner.words import count

UNKNOWN = "not measured"
SHOWN = 2  # rows shown before and after


def scores_section(run: Run, scores: dict) -> str:
    """Whether it helped: the scores of base and adapter, the verdict, all variants, and how it was measured."""
    base, adapter = scores.get("base", {}), scores.get("adapter", {})
    if not adapter:
        return f"## Did it help?\n\nHeld-out scores: {UNKNOWN}."

    metric = metric_of(scores)
    name = metric.name

    def measured(part: dict) -> str:
        return with_interval(part, name, 3) if name in part else UNKNOWN

    def number(part: dict, key: str, form: str) -> str:
        return format(part[key], form) if key in part else UNKNOWN

    equal, loss = (
        [number(part, *key) for part in (base, adapter)] for key in (("exact_match", ".1%"), ("loss", ".3f"))
    )
    is_exact = metric.from_losses or "exact_match" in [
        name,
        *(other["metric"] for other in scores.get("other_metrics", [])),
    ]
    few = f"{name}_low" not in adapter  # rows for an interval
    interval = "" if few else " (95% interval)"
    lines = [
        f"| on held-out rows | {cell(rival(scores))} | with adapter |",
        "|---|---|---|",
        f"| {metric.title}, {metric.direction}{interval} | {measured(base)} | {measured(adapter)} |",
        *(
            f"| {title} ({'95% interval; ' * ('(' in new)}gain {gain}) | {old} | {new} |"
            for title, old, new, gain in other_scores(scores, 3)
        ),
        *([] if is_exact else [f"| answers equal to the reference | {equal[0]} | {equal[1]} |"]),
        f"| loss, nats, lower is better | {loss[0]} | {loss[1]} |",
    ]
    parts = ["\n".join(lines), _variants(scores), _how(run, scores)]
    return "\n\n".join(["## Did it help?", *filter(None, parts)])


def _variants(scores: dict) -> str:
    """The table of all variants, if the base model was also given examples."""
    if not (rows := table(scores, rival(scores), 3)):
        return ""
    note = "The two intervals of examples over the base model are wider, so that both hold 95% of the time."
    lines = ["|" + "|".join(f" {cell} ".replace("  ", " ") for cell in row) + "|" for row in (HEADS, *rows)]
    return "\n".join([lines[0], "|---" * len(HEADS) + "|", *lines[1:]]) + f"\n\n{note}"


def _how(run: Run, scores: dict) -> str:
    """The verdict, and how the scores were measured."""
    if not scores.get("gain"):
        return how_measured(run, scores)
    judged = judge(scores, 3)
    return f"**{judged.headline}** {judged.text(escape=line)} {how_measured(run, scores)}"


def how_measured(run: Run, scores: dict) -> str:
    """How the scores of a run were measured, in a few sentences."""
    if not (rows := scores.get("rows", 0)):
        return "The rows are plain text without prompts, so only the loss on held-out rows was measured."
    metric = metric_of(scores)
    generated = f", choosing the likeliest token each time, up to {count(answer_limit(run), 'token')}"
    generated = generated if task_of(run.plan).generates else ""
    these, them = ("this row", "it") if rows == 1 else (f"these {rows:,} rows", "them")
    who = "the adapter" if "baseline" in scores else "base model and adapter"
    did = "were scored on" if metric.from_losses else "answered"
    how = (
        f"Training never saw {these}; {who} {did} {them}{'' if metric.from_losses else generated}, on the base model "
        f"in {PRECISIONS[run.recipe.model.quantization]}, as in training. {metric.title} is computed as in "
        f"{metric.package}."
    )
    if f"{metric.name}_low" in scores["adapter"]:
        whose = (
            "Student's, corrected for skew" if metric.from_losses else "Wilson's with the rows' effective sample size"
        )
        how += f" The intervals are {whose}; that of the gain is paired."
    if "baseline" in scores:
        how += " The base model's head is new and untrained, so the adapter is compared with a constant answer."
    return how


def before_and_after(scores: dict) -> str | None:
    """Two rows with their answers; None if there are none."""
    examples = scores.get("examples", [])[:SHOWN]
    if not examples:
        return None
    before = line(sentence_case(rival(scores)))
    shown = [
        "\n\n".join(f"{heading}\n\n{fence(row[key])}" for heading, key in (
            ("Prompt", "prompt"), ("Reference", "reference"), (before, "base"), ("With adapter", "adapter")
        ))
        for row in examples
    ]  # fmt: skip
    return "## Before and after\n\nThe first held-out rows, not selected by hand.\n\n" + "\n\n---\n\n".join(shown)


def line(text: str) -> str:
    """Text of unknown origin on one line, escaped so that it can't open a tag or end a code span."""
    return re.sub(r"\s+", " ", text).replace("`", "'").replace("<", "&lt;").strip()


def cell(value: object) -> str:
    """A value in a cell of a table."""
    return line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).replace("|", "\\|")


def number(value: int | None) -> str:
    """The number with commas, or that it is unknown."""
    return UNKNOWN if value is None else f"{value:,}"


def counted(value: int | None, noun: str) -> str:
    """The number with its noun, or that it is unknown."""
    return f"{UNKNOWN} {noun}s" if value is None else count(value, noun)
