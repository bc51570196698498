"""A finished run's answer as HTML: did it help, by how much, against which rivals, at what cost, and what to do next.

Text from outside is escaped. Runs of earlier versions have neither rivals nor costs.
"""

import json
from html import escape

from tuner.evaluation.advice import PROMPTS, pair_of
from tuner.evaluation.figures import HEADS, copied, digits_of_gain, gain_parts, table, title
from tuner.evaluation.verdict import Verdict, digits_of, judge, other_scores, rival, sentence_case
from tuner.hub.card_scores import how_measured
from tuner.metrics import FEWEST_ROWS, metric_of
from tuner.planning.forecast import duration
from tuner.runs import Run
from tuner.ui import chart
from tuner.ui.elements import folded, short, tag
from tuner.words import count, gigabytes

# The variants that answer the held-out rows, in the order in which they are shown.
NAMES = {
    "base": "Base model",
    "few_shot": "Examples in the prompt",
    "few_shot_similar": "Similar rows in the prompt",
    "adapter": "With adapter",
}
GAINS = (0, 2, 3)  # the HEADS of the table of what was gained over the base model
# What the browser does at a click on a prompt's button.
COPY = """element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-copy]');
    if (button) navigator.clipboard?.writeText(button.dataset.copy).then(() => { button.textContent = 'Copied'; });
});"""


def html(run: Run, trained: str, scores: dict, details: str) -> str:
    """The result of a scored run; `trained` is a sentence of what was trained, `details` goes behind a title."""
    few = scores.get("rows", 0) < FEWEST_ROWS  # which tell more than their scores
    judged, seconds = judge(scores), (run.last_event("end") or {}).get("seconds")
    drawn = variants(scores, seconds) + other_metrics(scores) if scores["gain"] else losses(scores)
    return (
        verdict(scores)
        + ("" if scores["gain"] and few else drawn)
        + tag("p", escape(trained), "t-sub")
        + prompt(scores, is_open=judged.advice == "prompt")
        + before_and_after(scores.get("examples", [])[: None if few else 2], scores.get("baseline", "before"))
        + folded("How this was measured", measured(run, scores, judged))
        + folded("Training details", details + _estimate_and_actual(run))
    )


def verdict(scores: dict) -> str:
    """Did it help, and how sure is that, in plain words; what to do next; and what must not be overlooked."""
    judged: Verdict = judge(scores)
    notes = "".join(tag("li", escape(note)) for note in judged.notes)
    return (
        tag("h3", judged.headline, f"t-verdict {judged.kind}")
        + tag("p", escape(judged.summary))
        + (tag("p", f"<b>Next</b> {escape(judged.next_step)}", "t-next") if judged.next_step else "")
        + (tag("ul", notes, "t-notes") if notes else "")
    )


def names(scores: dict) -> dict[str, str]:
    """The variants that were scored, with their names."""
    own = {"base": rival(scores), **{variant: title(scores, variant) for variant in PROMPTS}}
    shown = NAMES | {variant: sentence_case(name) for variant, name in own.items()}
    return {variant: name for variant, name in shown.items() if variant in scores}


def variants(scores: dict, seconds: float | None = None) -> str:
    """The scores of all variants as bars, what the adapter gained over each, and what each costs, in a table.

    `seconds` is how long training took.
    """
    metric, costs, digits = metric_of(scores), scores.get("costs", {}), digits_of(scores)
    keys = [metric.name + end for end in ("", "_low", "_high")]
    # Runs of the first version have no intervals.
    values = {variant: [scores[variant].get(key) for key in keys] for variant in names(scores)}
    bars = _bars(values, digits)
    trained = tag("small", f"trained once, in {duration(seconds)}") if seconds else ""
    rows = {
        variant: [bar, trained if variant == "adapter" else _adapter_over(scores, variant, digits)]
        for variant, bar in bars.items()
    }
    heads = [f"{metric.title}{'' if metric.higher_is_better else f' ({metric.direction})'}", "Adapter against it"]
    if costs:
        heads.append("Prompt, time")
        rows = {variant: [*cells, _cost(costs.get(variant))] for variant, cells in rows.items()}
    note = tag("p", escape(copied(scores)), "t-sub") if costs and copied(scores) else ""
    return _drawn(heads, names(scores), rows) + note


def losses(scores: dict) -> str:
    """The held-out losses as bars, where nothing else could be measured."""
    values = {variant: [scores[variant]["loss"], None, None] for variant in names(scores)}
    rows = {variant: [bar] for variant, bar in _bars(values, 3).items()}
    return _drawn(["Loss on held-out text (lower is better)"], names(scores), rows)


def _bars(values: dict[str, list], digits: int) -> dict[str, str]:
    """By variant a bar with its value and interval. The full width is 1, or the largest number if that is more."""
    whole = max(1.0, *(number for figures in values.values() for number in figures if number is not None))
    bars = {}
    for variant, (value, low, high) in values.items():
        interval = "" if low is None else f" <small>{low:.{digits}f} to {high:.{digits}f}</small>"
        bars[variant] = f"{chart.score_bar(value, low, high, whole)}<b>{value:.{digits}f}</b>{interval}"
    return bars


def _drawn(heads: list[str], names: dict[str, str], rows: dict[str, list[str]]) -> str:
    head = tag("tr", "".join(f'<th scope="col">{title}</th>' for title in heads))
    parts = [
        tag("tbody", f'<tr><th scope="rowgroup" colspan="{len(cells)}">{escape(names[variant])}</th></tr>'
        + tag("tr", "".join(tag("td", cell) for cell in cells)), f"t-bar {variant}")
        for variant, cells in rows.items()
    ]  # fmt: skip
    return tag("table", tag("thead", head) + "".join(parts), "t-bars")


def _adapter_over(scores: dict, variant: str, digits: int) -> str:
    """The adapter's gain over a variant, and on how many rows it is better; nothing if that can't be known."""
    is_unknown = scores.get("unknown_head") or scores.get("empty_references")
    pair = {} if is_unknown else pair_of(scores, "adapter", variant)
    if not pair:
        return "–"
    gain, *interval = gain_parts(scores, pair, digits_of_gain(pair, digits))
    kind = "better" if pair.get("low", 0) > 0 else "worse" if pair.get("high", 0) < 0 else ""
    shown = tag("b", gain, kind) + (f" <small>{interval[0]} to {interval[1]}</small>" if interval else "")
    return shown + (chart.outcomes(pair["wins"], pair["ties"], pair["losses"]) if "wins" in pair else "")


def _cost(cost: dict | None) -> str:
    if not cost:
        return "–"
    return f"<small>{count(round(cost['prompt_tokens']), 'token')}<br>{cost['seconds']:.2f} s</small>"


def other_metrics(scores: dict) -> str:
    """The further metrics of base and adapter in a table."""
    metric, base = metric_of(scores), escape(rival(scores).removesuffix(" model"))
    rows = [tag("tr", tag("th", name) + "".join(map(_cell, values))) for name, *values in other_scores(scores)]
    exact = [scores[variant].get("exact_match") for variant in ("base", "adapter")]
    metrics = {metric.name, *(other["metric"] for other in scores.get("other_metrics", []))}
    # For labels, accuracy is the share of exact matches; runs of the first version have neither.
    if not metrics & {"accuracy", "exact_match"} and None not in exact:
        rows.append(
            tag("tr", tag("th", "exact matches") + "".join(_cell(f"{share:.0%}") for share in exact) + _cell(""))
        )
    head = f"<tr><th>Other metrics</th><td>{base}</td><td>adapter</td><td>gain</td></tr>"
    return tag("div", _table(head, rows), "t-wide") if rows else ""


def measured(run: Run, scores: dict, judged: Verdict) -> str:
    """The figures in words, what the prompts gained over the base model, and how all of it was measured."""
    rows = table(scores, rival(scores)) if scores["gain"] else []
    head = tag("tr", "".join(tag("td", HEADS[place]) for place in GAINS))
    lines = [tag("tr", tag("th", escape(row[0])) + "".join(_cell(row[place]) for place in GAINS[1:])) for row in rows]
    gained = tag("div", _table(head, lines), "t-wide") if rows else ""
    return (
        tag("p", judged.figures(lambda score: tag("b", score), escape))
        + gained
        + tag("p", escape(how_measured(run, scores)), "t-sub")
    )


def _cell(text: str) -> str:
    """A cell of a table; an interval gets a line of its own."""
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
