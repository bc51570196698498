"""A finished run's answer as HTML: did it help, by how much, against which rivals, at what cost, and what to do next.

Text from outside is escaped. Runs of earlier versions have neither rivals nor costs.
"""

import json
from html import escape

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
    "few_shot": "Prompt with examples",
    "few_shot_similar": "Prompt with similar examples",
    "adapter": "With adapter",
}
# What an answer costs -> how it is written.
COSTS = {"Tokens per prompt": ("prompt_tokens", "{:,.0f}"), "Seconds per answer": ("seconds", "{:.2g}")}
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
    shown = NAMES | {"base": sentence_case(rival(scores))}
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
    """Each variant against the base and what it costs, in a table; empty if no prompt with examples was tried."""
    costs, shown = scores.get("costs") or {}, names(scores)
    if not costs and len(shown) < 3:
        return ""
    base = rival(scores)
    head = tag("th", "") + "".join(
        tag("td", title) for title in (f"Gain over {escape(base)}", "Rows better / worse / equal", *COSTS)
    )
    rows = [tag("tr", tag("th", escape(name)) + _row(scores, costs, variant)) for variant, name in shown.items()]
    return tag("div", _table(tag("tr", head), rows), "t-wide") + _remarks(scores, run)


def _row(scores: dict, costs: dict, variant: str) -> str:
    gain = gain_of(scores, variant, "base")
    cells = ["–", "–"]
    if gain:
        name = metric_of(scores).name
        interval = f" <small>{gain['low']:+.2f} to {gain['high']:+.2f}</small>" if "low" in gain else ""
        cells[0] = f"{gain[name] + 0.0:+.2f}{interval}"
        if "wins" in gain:
            cells[1] = f"{gain['wins']:,} / {gain['losses']:,} / {gain['ties']:,}"
    for key, form in COSTS.values():
        value = costs.get(variant, {}).get(key)
        cells.append("–" if value is None else form.format(value))
    return "".join(tag("td", cell) for cell in cells)


def gain_of(scores: dict, of: str, over: str) -> dict:
    """The gain of one variant over another; empty if they were not compared."""
    pairs = scores.get("pairs") or [{"of": "adapter", "over": "base", **(scores.get("gain") or {})}]
    return next((pair for pair in pairs if (pair["of"], pair["over"]) == (of, over) and len(pair) > 2), {})


def _remarks(scores: dict, run: Run) -> str:
    """What else decides between a prompt and an adapter, in a sentence or two."""
    told, seconds = [], (run.last_event("end") or {}).get("seconds")
    if seconds:
        told.append(f"Training took {duration(seconds)}, once.")
    prompting = scores.get("prompting") or {}
    if "examples" in prompting:
        most, fewest = prompting["examples"], prompting.get("fewest", prompting["examples"])
        number = f"{most}" if fewest == most else f"{fewest} to {most}"
        told.append(f"A prompt with examples has {number} of the rows that were trained on.")
    told.append(prompting.get("why_not", ""))
    return tag("p", escape(" ".join(filter(None, told))), "t-sub")


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
    use = "Send this to the base model, with your own text in place of {your text}."
    content = tag("p", use, "t-sub") + tag("dl", turns, "t-prompt") + button
    title = "The prompt that does as well" if is_open else "The prompt with examples that was compared"
    return f"<details{' open' * is_open}>{tag('summary', title)}{content}</details>"


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
