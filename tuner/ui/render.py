"""The page's own drawings as HTML: what will happen, how a run goes, what it came to. Text from outside is escaped.

`view` draws a run from its folder alone, so a reload, another tab and a resumed run all look the same.
"""

from html import escape

from tuner import recipe
from tuner.evaluation.metrics import metric_of
from tuner.evaluation.verdict import judge, other_scores
from tuner.planning.forecast import PARTS, duration, gigabytes
from tuner.runs import Run
from tuner.ui import chart, progress, run_queue

SHOWN_CHARACTERS = 600  # of a prompt or an answer
NAMES = {"base": "Base model", "adapter": "With adapter"}
MERGE_CHECKS = {
    "": "the adapter on the 16-bit base: the merge's share",
    "_quantized": "the adapter as it was trained: quantisation's share added",
}


def tag(name: str, content: str, kind: str = "") -> str:
    """An element of HTML; `content` is HTML already."""
    return f'<{name} class="{kind}">{content}</{name}>' if kind else f"<{name}>{content}</{name}>"


def problems(sentences: list[str], title: str = "") -> str:
    """A box with one sentence a line; empty where there is none."""
    if not sentences:
        return ""
    title = title or ("This can't work yet" if len(sentences) == 1 else f"{len(sentences)} things to mend")
    items = "".join(tag("li", escape(s)) for s in sentences)
    return f'<div class="t-problems" role="alert"><strong>{escape(title)}</strong><ul>{items}</ul></div>'


def note(text: str) -> str:
    return tag("div", escape(text), "t-note") if text else ""


def busy(text: str) -> str:
    return tag("div", tag("h3", escape(text)) + tag("div", "<i></i>", "t-progress endless"), "t-card")


def pushed(url: str) -> str:
    """The link to a new repository."""
    safe = escape(url, quote=True)
    return tag("div", f'Pushed: <a href="{safe}" target="_blank" rel="noopener">{safe}</a>', "t-note good")


def reference(text: str) -> str:
    """A held-out row's own answer, to hold the three against."""
    return tag("div", f"<b>reference</b> {_short(text)}", "t-reference")


def plan(facts: dict, name: str, quota: dict | None = None) -> str:
    """What will happen; `quota` is the visitor's GPU time (left, resets_in) where it is known."""
    steps, per_epoch, rows = facts["steps"], facts["steps_per_epoch"], facts["rows"]
    budget = f"<b>{steps:,}</b> steps" if steps else f"<b>{facts['seconds']:g}</b> seconds"
    epochs = f", {facts['epochs']:g} times through the rows" if steps else ""
    trained, parameters = facts["trainable_parameters"], facts["model_parameters"]
    lines = [
        f"<b>{rows:,}</b> rows to train on, <b>{facts['heldout_rows']:,}</b> held out to judge by",
        f"<b>{facts['tokens']:,}</b> tokens a pass, {facts['trained_tokens']:,} of them trained",
        f"{rows:,} rows at {facts['settings']['batch_size']} a step are <b>{per_epoch:,}</b> steps a pass (an epoch)",
        f"The budget is {budget}{epochs}",
        f"<b>{trained:,}</b> of {parameters:,} parameters are trained ({trained / parameters:.1%})",
    ]
    listed = tag("ul", "".join(tag("li", line) for line in lines), "t-facts")
    foreseen = facts.get("forecast")
    warnings = [*facts["warnings"], *(_quota_warning(foreseen, quota) if foreseen and quota else [])]
    warned = "".join(tag("div", escape(w), "t-warning") for w in warnings)
    title = tag("h3", "What will happen") + tag("p", escape(name), "t-sub")
    picture = _forecast(foreseen, quota) if foreseen else ""
    return tag("div", title + picture + listed + warned + chosen(facts), "t-card")


def _forecast(found: dict, quota: dict | None) -> str:
    """Seconds and memory in parts, and the share of the visitor's GPU time."""
    seconds, memory = found["training"] + found["scoring"], found["memory"]
    source = "at the pace of an earlier run" if found["measured"] else "estimated from the model's size"
    parts = [(n, found[k], duration(found[k])) for k, n in (("training", "training"), ("scoring", "scoring"))]
    said = f"about {duration(seconds)}, {found['steps']:,} steps"
    drawn = chart.parts("Time", said, parts, seconds) + tag("p", source, "t-sub")
    if quota:
        left = [("this run", seconds, duration(seconds)), ("what stays", max(0.0, quota["left"] - seconds), "")]
        drawn += chart.parts(
            "Your GPU time", f"{duration(quota['left'])} left today", left, max(seconds, quota["left"])
        )
    if memory:
        parts = [(n, memory[k], gigabytes(memory[k])) for k, n in PARTS.items() if k in memory]
        said = f"{gigabytes(memory['total'])} of {gigabytes(found['available'])}"
        drawn += chart.parts("Memory", said, parts, found["available"])
    return drawn


def _quota_warning(found: dict, quota: dict) -> list[str]:
    needed = found["training"] + found["scoring"]
    if needed <= quota["left"]:
        return []
    fits = int(quota["left"] - found["scoring"])
    instead = f" A budget of {fits} seconds would finish today." if fits > found["start_up"] + found["a_step"] else ""
    return [
        f"This will not finish today: it needs {duration(needed)}, and {duration(quota['left'])} of your GPU time are "
        f"left, whole again in {duration(quota['resets_in'])}. It pauses safely and goes on then.{instead}"
    ]


def chosen(facts: dict) -> str:
    """Every setting that was taken, with its reason, folded."""
    rows = "".join(
        f"<tr><th>{escape(c['setting'].replace('_', ' '))}</th><td>{escape(_value(c['value']))}</td>"
        f"<td>{escape(c['reason'])}</td></tr>"
        for c in facts.get("chosen", [])
    )
    return _folded("What was chosen, and why", tag("table", rows, "t-chosen"))


def recipe_name(asked: recipe.Recipe) -> str:
    return asked.name or f"{asked.method.name} on {asked.model.name}, {asked.data.source}"


def view(run: Run, now: progress.Progress | None = None) -> str:
    """The run as its folder tells it."""
    now = now or run_queue.look(run)
    scores = run.read_json("evaluation.json")
    content = _finished(run, now, scores) if now.phase == "finished" and scores else _going(run, now)
    return f'<div class="t-card t-run" data-phase="{now.phase}">{content}{chosen(run.plan)}</div>'


def _going(run: Run, now: progress.Progress) -> str:
    title, sub = _title(now, run_queue.queue.place(run.id))
    share = now.step / now.steps if now.steps else 0
    if now.phase == "scoring" and now.scored[1]:
        share = now.scored[0] / now.scored[1]
    endless = now.phase in ("waiting", "starting") or (now.phase == "scoring" and not now.scored[0])
    bar = tag("div", f'<i style="width:{min(1, share):.1%}"></i>', f"t-progress {'endless' if endless else ''}")
    return (
        tag("h3", title)
        + tag("p", escape(recipe_name(run.recipe)), "t-sub")
        + (bar if now.is_live else "")
        + f'<p aria-live="polite">{escape(sub)}</p>'
        + problems(now.problems, "It stopped early")
        + _numbers(now)
        + (chart.loss_curve(now.losses, now.heldout, now.steps if now.is_live else None) if now.losses else "")
    )


def _title(now: progress.Progress, place: int | None) -> tuple[str, str]:
    of = f" of {now.steps:,}" if now.steps else ""
    kept = "What was learned is kept." if now.step else ""
    scored = f" ({now.scored[0]} of {now.scored[1]} answered)" if now.scored[1] else ""
    cut = f"It ended before its time. {_so_far(now, of)} {kept} Press Go on."
    return {
        "prepared": ("Ready to start", "Everything is prepared. Press Go on to train it."),
        "waiting": ("Waiting for its turn", f"{_place(place)} It starts by itself."),
        "continuing": ("The next window", "This window's GPU time is over. The next one is asked for."),
        "paused": ("Paused", f"{_so_far(now, of)} Its GPU window is over: press Go on for the next one."),
        "starting": ("Starting", "Loading the base model."),
        "training": ("Training", "Stopping after this step." if now.stopping else _to_go(now)),
        "scoring": ("Scoring", f"Base and adapter answer the rows that were held out{scored}."),
        "stopped": ("Stopped", f"Stopped after step {now.step:,}{of}. {kept} Go on, or chat with it as it is."),
        "interrupted": ("Interrupted", cut),
        "failed": ("It did not work", kept),
        "finished": ("Finished", "It has not been scored."),
    }[now.phase]


def _place(place: int | None) -> str:
    if not place:
        return "A place is free."
    return "It is next." if place == 1 else f"{place - 1} {'run is' if place == 2 else 'runs are'} before it."


def _so_far(now: progress.Progress, of: str) -> str:
    if now.steps and now.step == now.steps:
        return f"All {now.step:,} steps are done, and the scoring is not."
    return f"Step {now.step:,}{of} is done."


def _to_go(now: progress.Progress) -> str:
    if not now.last:
        return "The first step is on its way."
    of = f" of {now.steps:,}" if now.steps else ""
    return f"Step {now.step:,}{of}, about {duration(now.last['seconds_to_go'])} to go."


def _numbers(now: progress.Progress) -> str:
    if not now.last:
        return ""
    numbers = {"training loss": f"{now.last['loss']:.3f}"}
    if now.heldout:
        numbers["held-out loss"] = f"{now.heldout[-1][1]:.3f}"
    numbers["tokens a second"] = f"{now.last['tokens_per_second']:,.0f}"
    if now.phase == "training":
        numbers["to go"] = duration(now.last["seconds_to_go"])
    elif now.seconds:
        numbers["of training"] = duration(now.seconds)
    return tag("div", "".join(f"<div><b>{v}</b><span>{n}</span></div>" for n, v in numbers.items()), "t-numbers")


def _finished(run: Run, now: progress.Progress, scores: dict) -> str:
    trained = f"{recipe_name(run.recipe)}, {now.step:,} steps in {duration(now.seconds or 0)}"
    way = chart.loss_curve(now.losses, now.heldout, now.steps) + _numbers(now) + _foretold(run, now)
    return (
        verdict(scores)
        + tag("p", escape(trained), "t-sub")
        + (bars(scores) if scores["gain"] else "")
        + before_and_after(scores["examples"][:2])
        + _folded("How training went", way)
    )


def _foretold(run: Run, now: progress.Progress) -> str:
    """The estimate beside the fact."""
    foreseen, end = run.plan.get("forecast"), run.last_event("end") or {}
    if not foreseen or not end.get("seconds_per_step"):
        return ""
    said = (
        f"Foretold: {duration(foreseen['training'])} of training at {1000 * foreseen['a_step']:.0f} ms a step. "
        f"Taken: {duration(now.seconds or 0)} at {1000 * end['seconds_per_step']:.0f} ms."
    )
    if end.get("peak_memory") and foreseen["memory"]:
        said += f" Memory: {gigabytes(foreseen['memory']['total'])} foretold, {gigabytes(end['peak_memory'])} taken."
    return tag("p", said, "t-sub")


def verdict(scores: dict) -> str:
    """Did it help, and by how much, in plain words."""
    judged = judge(scores)
    return tag("h3", judged.headline, f"t-verdict {judged.kind}") + tag("p", judged.text(lambda s: tag("b", s)))


def bars(scores: dict) -> str:
    """The metric of base and adapter with their intervals, and the other metrics in a table."""
    metric = metric_of(scores)
    keys = (metric.name, f"{metric.name}_low", f"{metric.name}_high")
    drawn = chart.score_bars([(v, name, *(scores[v][key] for key in keys)) for v, name in NAMES.items()])
    exact = ", ".join(f"{v} {scores[v]['exact_match']:.0%}" for v in NAMES)
    # Of a label the two are the same.
    drawn += "" if metric.name == "accuracy" else tag("p", f"Word for word right: {exact}", "t-sub")
    rows = [
        tag("tr", tag("th", name) + "".join(tag("td", v) for v in values)) for name, *values in other_scores(scores)
    ]
    head = "<tr><th>Other metrics</th><td>base</td><td>adapter</td><td>gain</td></tr>"
    return drawn + (tag("table", tag("thead", head) + tag("tbody", "".join(rows)), "t-merge") if rows else "")


def before_and_after(examples: list[dict]) -> str:
    """Held-out prompts with both answers and the reference."""
    parts = [
        tag("p", _short(e["prompt"]), "prompt")
        + f"<dl><dt>before</dt><dd>{_short(e['base'])}</dd><dt>after</dt><dd class='after'>{_short(e['adapter'])}</dd>"
        + f"<dt>reference</dt><dd>{_short(e['reference'])}</dd></dl>"
        for e in examples
    ]
    return tag("div", "".join(tag("div", part, "t-example") for part in parts), "t-examples")


def preview(facts: dict) -> str:
    """What the model will see: rows with their trained tokens marked, and the lengths."""
    rows = "".join(tag("div", "".join(map(_piece, row)), "t-tokens") for row in facts["rows"])
    key = tag("span", "trained", "trained") + tag("span", "only read") + tag("span", "special token", "special")
    cut = facts["warning"] or f"No row is cut: the longest has {facts['longest']:,} of {facts['max_length']:,} tokens."
    return (
        tag("p", escape(facts["format"]), "t-sub")
        + tag("p", key, "t-key")
        + rows
        + chart.histogram(facts["histogram"], facts["max_length"])
        + tag("p", escape(cut), "t-warning" if facts["warning"] else "t-sub")
    )


def _piece(piece: dict) -> str:
    kind = " ".join(kind for kind in ("trained", "special") if piece[kind])
    return tag("span", escape(piece["text"]), kind)


def merge_check(check: dict | None) -> str:
    """How far the merged model is from the adapter, the merge's share and quantisation's told apart."""
    if not check:
        return note("The merged model is made when it first answers.")
    head = "<tr><th>The merged model against</th><td>same top token</td><td>largest logit difference</td></tr>"
    rows = "".join(
        f"<tr><th>{name}</th><td>{check['top1_agreement' + key]:.1%}</td>"
        f"<td>{check['max_logit_difference' + key]:.3g}</td></tr>"
        for key, name in MERGE_CHECKS.items()
    )
    table = tag("table", tag("thead", head) + tag("tbody", rows), "t-merge")
    return table + tag("p", f"On {check['tokens']:,} tokens of the held-out answers.", "t-sub")


def runs_list(rows: list[dict], selected: str, example: str) -> str:
    """The visitor's runs as buttons."""
    if not rows:
        return note("No runs yet. Train one, and it appears here.")
    return tag("div", "".join(_run_row(r, r["run"] == selected, r["run"] == example) for r in rows), "t-runs")


def _run_row(row: dict, selected: bool, shared: bool) -> str:
    scores, picture = row["scores"], ""
    if scores and scores["gain"]:
        metric = metric_of(scores)
        minis = "".join(
            f'<span class="t-mini {v}" title="{name}: {metric.title} {scores[v][metric.name]:.2f}">'
            f'<i style="width:{min(1, scores[v][metric.name]):.0%}"></i></span>'
            for v, name in NAMES.items()
        )
        picture = tag("span", minis, "t-minis") + tag("span", f"{scores['gain'][metric.name]:+.2f}", "t-gain")
    title = row["name"] or f"{row['method']} on {row['model']}"
    below = row["data"] + (" · the shipped example" if shared else "")
    name = tag("b", escape(title)) + tag("small", escape(below))
    return (
        f'<button type="button" class="t-row {"selected" if selected else ""}" data-run="{escape(row["run"])}" '
        f'aria-pressed="{"true" if selected else "false"}">{tag("span", name, "t-row-name")}'
        f"{tag('span', row['status'], 't-status ' + row['status'])}{picture}</button>"
    )


def _folded(title: str, content: str) -> str:
    return tag("details", tag("summary", title) + content)


def _value(value) -> str:
    return f"{value:g}" if isinstance(value, float) else ", ".join(value) if isinstance(value, list) else f"{value}"


def _short(text: str) -> str:
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"
    return escape(shown) or "<em>(nothing)</em>"
