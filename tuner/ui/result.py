"""A finished run's answer as HTML: did it help, by how much, against which rivals, at what cost, and what to do next.

Text from outside is escaped. Runs of earlier versions have neither rivals nor costs.
"""

import json
from html import escape

from tuner.evaluation.advice import PROMPTS
from tuner.evaluation.figures import HEADS, table, title
from tuner.evaluation.verdict import Verdict, judge, other_scores, rival, sentence_case
from tuner.metrics import FEWEST_ROWS, metric_of
from tuner.planning.forecast import duration
from tuner.runs import Run
from tuner.ui import chart
from tuner.ui.elements import folded, short, tag
from tuner.words import gigabytes

# The variants that answer the held-out rows, in the order in which they are shown.
NAMES = {
    "base": "Base model",
    "few_shot": "Examples in the prompt",
    "few_shot_similar": "Similar rows in the prompt",
    "adapter": "With adapter",
}
# What the browser does at a click on a prompt's button.
COPY = """element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-copy]');
    if (button) navigator.clipboard?.writeText(button.dataset.copy).then(() => { button.textContent = 'Copied'; });
});"""


def html(run: Run, trained: str, scores: dict, details: str) -> str:
    """The result of a scored run; `trained` is a sentence of what was trained, `details` goes behind a title."""
    few = scores.get("rows", 0) < FEWEST_ROWS  # which tell more than their scores
    judged = judge(scores)
    return (
        verdict(scores)
        + tag("p", escape(trained), "t-sub")
        + (score_bars(scores) + comparison(scores, run) if scores["gain"] and not few else "")
        + prompt(scores, is_open=judged.advice == "prompt")
        + before_and_after(scores.get("examples", [])[: None if few else 2], scores.get("baseline", "before"))
        + folded("Training details", details + _estimate_and_actual(run))
    )


def verdict(scores: dict) -> str:
    """Did it help, and by how much, in plain words; and what to do next."""
    judged: Verdict = judge(scores)
    return (
        tag("h3", judged.headline, f"t-verdict {judged.kind}")
        + tag("p", judged.text(lambda s: tag("b", s), escape))
        + (tag("p", f"<b>Next</b> {escape(judged.next_step)}", "t-next") if judged.next_step else "")
    )


def names(scores: dict) -> dict[str, str]:
    """The variants that were scored, with their names."""
    own = {"base": rival(scores), **{variant: title(scores, variant) for variant in PROMPTS}}
    shown = NAMES | {variant: sentence_case(name) for variant, name in own.items()}
    return {variant: name for variant, name in shown.items() if variant in scores}


def score_bars(scores: dict) -> str:
    """The metric's value of each variant with its interval, and the other metrics in a table."""
    metric = metric_of(scores)
    keys = (metric.name, f"{metric.name}_low", f"{metric.name}_high")
    # Runs of the first version have neither intervals nor exact matches.
    drawn = chart.score_bars([(v, escape(n), *(scores[v].get(key) for key in keys)) for v, n in names(scores).items()])
    base = escape(rival(scores).removesuffix(" model"))
    exact = ", ".join(
        f"{name} {scores[v]['exact_match']:.0%}"
        for v, name in (("base", base), ("adapter", "adapter"))
        if "exact_match" in scores[v]
    )
    # For labels, accuracy is the share of exact matches.
    is_new = metric.name not in ("accuracy", "exact_match")
    drawn += tag("p", f"Exact matches: {exact}", "t-sub") if exact and is_new else ""
    rows = [
        tag("tr", tag("th", name) + "".join(tag("td", v) for v in values)) for name, *values in other_scores(scores)
    ]
    head = f"<tr><th>Other metrics</th><td>{base}</td><td>adapter</td><td>gain</td></tr>"
    return drawn + (_table(head, rows) if rows else "")


def comparison(scores: dict, run: Run) -> str:
    """Each variant's score, gain over the base, and costs, in a table; empty if no prompt with examples was tried."""
    rows = table(scores, rival(scores))
    if not rows:
        return ""
    head = tag("tr", "".join(tag("td", cell) for cell in HEADS))
    lines = [tag("tr", tag("th", escape(name)) + "".join(map(_cell, cells))) for name, *cells in rows]
    seconds = (run.last_event("end") or {}).get("seconds")
    training = tag("p", f"Training took {duration(seconds)}, once.", "t-sub") if seconds else ""
    return tag("div", _table(head, lines), "t-wide") + training


def _cell(text: str) -> str:
    """A cell of the table; an interval gets a line of its own."""
    value, _, interval = text.partition(" (")
    return tag("td", value + (f"<small>{interval.removesuffix(')')}</small>" if interval else "") or "–")


def prompt(scores: dict, is_open: bool) -> str:
    """The prompt with examples that was compared with the adapter, to be copied; empty if there is none."""
    prompting = scores.get("prompting") or {}
    messages, text = prompting.get("messages"), prompting.get("text")
    if not messages and not text:
        return ""
    turns = "".join(
        tag("dt", escape(turn["role"])) + tag("dd", escape(turn["content"])) for turn in messages or []
    ) or tag("dd", escape(text))
    copied = json.dumps(messages, indent=1, ensure_ascii=False) if messages else text
    label = "Copy as chat messages (JSON)" if messages else "Copy"
    button = f'<button type="button" class="t-button" data-copy="{escape(copied)}">{label}</button>'
    use = f"{_examples(prompting)}Send this to the base model, with your own text in place of {{your text}}."
    content = tag("p", use, "t-sub") + tag("dl", turns, "t-prompt") + button
    title = "The prompt that does as well" if is_open else "The prompt with examples that was compared"
    return f"<details{' open' * is_open}>{tag('summary', title)}{content}</details>"


def _examples(prompting: dict) -> str:
    """How many rows the prompts had, in a sentence."""
    if "examples" not in prompting:
        return ""
    most, fewest = prompting["examples"], prompting.get("fewest", prompting["examples"])
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"The prompts had {number} of the rows that were trained on. "


def before_and_after(examples: list[dict], before: str = "before") -> str:
    """Held-out prompts with both answers and the reference; `before` names the base's."""
    parts = [
        tag("p", short(e["prompt"]), "prompt")
        + f"<dl><dt>{escape(sentence_case(before))}</dt><dd>{short(e['base'])}</dd>"
        + f"<dt>After</dt><dd class='after'>{short(e['adapter'])}</dd>"
        + f"<dt>Reference</dt><dd>{short(e['reference'])}</dd></dl>"
        for e in examples
    ]
    return tag("div", "".join(tag("div", part, "t-example") for part in parts), "t-examples")


def _estimate_and_actual(run: Run) -> str:
    forecast, end = run.plan.get("forecast"), run.last_event("end") or {}
    if not forecast or not end.get("seconds_per_step"):
        return ""
    text = (
        f"Estimated {duration(forecast['training'])} of training ({1000 * forecast['a_step']:.0f} ms per step), "
        f"took {duration(end.get('seconds') or 0)} ({1000 * end['seconds_per_step']:.0f} ms per step)."
    )
    if end.get("peak_memory") and forecast["memory"]:
        text += f" Memory: estimated {gigabytes(forecast['memory']['total'])}, used {gigabytes(end['peak_memory'])}."
    return tag("p", text, "t-sub")


def _table(head: str, rows: list[str]) -> str:
    return tag("table", tag("thead", head) + tag("tbody", "".join(rows)), "t-merge")
