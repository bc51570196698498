"""The page's own drawings as HTML: what will happen, how a run goes, what it came to. All text from outside is escaped.

`view` draws a run from its folder alone, so a reload, another tab and a resumed run all look the same.
"""

from html import escape

from tuner import recipe
from tuner.runs import Run
from tuner.ui import chart, progress

SHOWN_CHARACTERS = 600  # of a prompt or an answer


def problems(sentences: list[str], title: str = "") -> str:
    """A box with one sentence a line; empty where there is none."""
    if not sentences:
        return ""
    title = title or ("This can't work yet" if len(sentences) == 1 else f"{len(sentences)} things to mend")
    items = "".join(f"<li>{escape(s)}</li>" for s in sentences)
    return f'<div class="t-problems" role="alert"><strong>{escape(title)}</strong><ul>{items}</ul></div>'


def note(text: str, kind: str = "") -> str:
    return f'<div class="t-note {kind}">{escape(text)}</div>' if text else ""


def busy(text: str) -> str:
    return f'<div class="t-card"><h3>{escape(text)}</h3><div class="t-progress endless"><i></i></div></div>'


def plan(facts: dict, name: str) -> str:
    """What will happen."""
    warnings = "".join(f'<div class="t-warning">{escape(w)}</div>' for w in facts["warnings"])
    steps, per_epoch = facts["steps"], facts["steps_per_epoch"]
    batch = facts["settings"]["batch_size"]
    budget = f"<b>{steps:,}</b> steps" if steps else f"<b>{facts['seconds']:g}</b> seconds"
    epochs = f", {facts['epochs']:g} times through the rows" if steps else ""
    share = facts["trainable_parameters"] / facts["model_parameters"]
    lines = [
        f"<b>{facts['rows']:,}</b> rows to train on, <b>{facts['heldout_rows']:,}</b> held out to judge by",
        f"<b>{facts['tokens']:,}</b> tokens a pass, {facts['trained_tokens']:,} of them trained",
        f"{facts['rows']:,} rows at {batch} a step are <b>{per_epoch:,}</b> steps a pass (an epoch)",
        f"The budget is {budget}{epochs}",
        f"<b>{facts['trainable_parameters']:,}</b> of {facts['model_parameters']:,} parameters are trained ({share:.1%})",
    ]
    listed = "".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<div class="t-card"><h3>What will happen</h3><p class="t-sub">{escape(name)}</p>'
        f'<ul class="t-facts">{listed}</ul>{warnings}{chosen(facts)}</div>'
    )


def chosen(facts: dict) -> str:
    """Every setting that was taken, with its reason, folded."""
    rows = "".join(
        f"<tr><th>{escape(c['setting'].replace('_', ' '))}</th><td>{escape(_value(c['value']))}</td>"
        f"<td>{escape(c['reason'])}</td></tr>"
        for c in facts.get("chosen", [])
    )
    return f"<details><summary>What was chosen, and why</summary><table class='t-chosen'>{rows}</table></details>"


def recipe_name(asked: recipe.Recipe) -> str:
    return asked.name or f"{asked.method.name} on {asked.model.name}, {asked.data.source}"


def view(run: Run, now: progress.Progress | None = None) -> str:
    """The run as its folder tells it."""
    now = now or progress.read(run)
    scores = run.read_json("evaluation.json")
    if now.phase == "finished" and scores:
        return _finished(run, now, scores)
    return _going(run, now)


def _going(run: Run, now: progress.Progress) -> str:
    title, sub = _title(now)
    share = now.step / now.steps if now.steps else 0
    if now.phase == "scoring" and now.scored[1]:
        share = now.scored[0] / now.scored[1]
    endless = now.phase in ("waiting", "starting") or (now.phase == "scoring" and not now.scored[0])
    bar = f'<div class="t-progress {"endless" if endless else ""}"><i style="width:{min(1, share):.1%}"></i></div>'
    facts = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in _numbers(now))
    picture = chart.loss_curve(now.losses, now.heldout, now.steps) if now.losses else ""
    return (
        f'<div class="t-card t-run" data-phase="{now.phase}"><h3>{title}</h3><p class="t-sub">{escape(recipe_name(run.recipe))}</p>'
        f"{bar if now.is_live else ''}<p class='t-what' aria-live='polite'>{escape(sub)}</p>{problems(now.problems, 'It stopped early')}"
        f'<div class="t-numbers">{facts}</div>{picture}{chosen(run.plan)}</div>'
    )


def _title(now: progress.Progress) -> tuple[str, str]:
    of = f" of {now.steps:,}" if now.steps else ""
    kept = "What was learned is kept." if now.step else ""
    scored = f" ({now.scored[0]} of {now.scored[1]} answered)" if now.scored[1] else ""
    return {
        "prepared": ("Ready to start", "Everything is prepared. Press Go on to train it."),
        "waiting": ("Waiting for its turn", "Other runs are in training; this one starts by itself as soon as one ends."),
        "starting": ("Starting", "Loading the base model."),
        "training": ("Training", "Stopping after this step." if now.stopping else _to_go(now)),
        "scoring": ("Scoring", f"Base and adapter answer the rows that were held out{scored}."),
        "stopped": ("Stopped", f"Stopped after step {now.step:,}{of}. {kept} Go on, or chat with it as it is."),
        "interrupted": ("Interrupted", f"Training ended before its time, after step {now.step:,}{of}. {kept} Press Go on."),
        "failed": ("It did not work", kept),
        "finished": ("Finished", "It has not been scored."),
    }[now.phase]


def _to_go(now: progress.Progress) -> str:
    if not now.last:
        return "The first step is on its way."
    of = f" of {now.steps:,}" if now.steps else ""
    return f"Step {now.step:,}{of}, about {duration(now.last['seconds_to_go'])} to go."


def _numbers(now: progress.Progress) -> list[tuple[str, str]]:
    if not now.last:
        return []
    numbers = [("training loss", f"{now.last['loss']:.3f}")]
    if now.heldout:
        numbers.append(("held-out loss", f"{now.heldout[-1][1]:.3f}"))
    numbers.append(("tokens a second", f"{now.last['tokens_per_second']:,.0f}"))
    if now.phase == "training":
        return numbers + [("to go", duration(now.last["seconds_to_go"]))]
    return numbers + ([("of training", duration(now.seconds))] if now.seconds else [])


def _finished(run: Run, now: progress.Progress, scores: dict) -> str:
    trained = f"{now.step:,} steps in {duration(now.seconds or 0)}"
    return (
        f'<div class="t-card t-run" data-phase="finished">{verdict(scores)}<p class="t-sub">{escape(recipe_name(run.recipe))}, '
        f"{trained}</p>{bars(scores)}{before_and_after(scores['examples'][:2])}"
        f"<details><summary>How training went</summary>{chart.loss_curve(now.losses, now.heldout, now.steps)}"
        f'<div class="t-numbers">{"".join(f"<div><b>{v}</b><span>{n}</span></div>" for n, v in _numbers(now))}</div></details>'
        f"{chosen(run.plan)}</div>"
    )


def verdict(scores: dict) -> str:
    """Did it help, and by how much, in plain words."""
    gain, base, adapter = scores["gain"], scores["base"], scores["adapter"]
    if gain["low"] > 0:
        kind, said = "good", "It helped."
    elif gain["high"] < 0:
        kind, said = "bad", "It made things worse."
    else:
        kind, said = "unsure", "No clear difference."
    moved = "rose" if gain["rougeL"] >= 0 else "fell"
    few = " These are few rows, so take it as a hint." if scores["rows"] < 20 else ""
    return (
        f'<h3 class="t-verdict {kind}">{said}</h3><p>On {scores["rows"]} rows that it never saw, the overlap of its answers with the '
        f"reference {moved} from <b>{base['rougeL']:.2f}</b> to <b>{adapter['rougeL']:.2f}</b> (ROUGE-L; 1 is word for word). "
        f"With 95% confidence the gain lies between {gain['low']:+.2f} and {gain['high']:+.2f}.{few}</p>"
    )


def bars(scores: dict) -> str:
    rows = [
        (v, name, scores[v]["rougeL"], scores[v]["rougeL_low"], scores[v]["rougeL_high"])
        for v, name in (("base", "Base model"), ("adapter", "With adapter"))
    ]
    exact = ", ".join(f"{name} {scores[v]['exact_match']:.0%}" for v, name in (("base", "base"), ("adapter", "adapter")))
    return chart.score_bars(rows) + f'<p class="t-sub">Word for word right: {exact}</p>'


def before_and_after(examples: list[dict]) -> str:
    """Held-out prompts with both answers and the reference."""
    parts = "".join(
        f'<div class="t-example"><p class="prompt">{_short(e["prompt"])}</p>'
        f"<dl><dt>before</dt><dd>{_short(e['base'])}</dd><dt>after</dt><dd class='after'>{_short(e['adapter'])}</dd>"
        f"<dt>reference</dt><dd>{_short(e['reference'])}</dd></dl></div>"
        for e in examples
    )
    return f'<div class="t-examples">{parts}</div>' if parts else ""


def preview(facts: dict) -> str:
    """What the model will see: rows with their trained tokens marked, and the lengths."""
    rows = "".join(
        '<div class="t-tokens">'
        + "".join(
            f'<span class="{"trained " if p["trained"] else ""}{"special" if p["special"] else ""}">{escape(p["text"])}</span>'
            for p in row
        )
        + "</div>"
        for row in facts["rows"]
    )
    cut = facts["warning"] or f"No row is cut: the longest has {facts['longest']:,} of {facts['max_length']:,} tokens."
    return (
        f"<p class='t-sub'>{escape(facts['format'])}</p>"
        '<p class="t-key"><span class="trained">trained</span> <span>only read</span> <span class="special">special token</span></p>'
        f"{rows}{chart.histogram(facts['histogram'], facts['max_length'])}"
        f'<p class="{"t-warning" if facts["warning"] else "t-sub"}">{escape(cut)}</p>'
    )


def merge_check(check: dict | None) -> str:
    """How far the merged model is from the adapter, the merge's share and quantisation's told apart."""
    if not check:
        return note("The merged model is made when it first answers.")
    rows = "".join(
        f"<tr><th>{name}</th><td>{check['top1_agreement' + key]:.1%}</td><td>{check['max_logit_difference' + key]:.3g}</td></tr>"
        for key, name in (
            ("", "the adapter on the 16-bit base: the merge's share"),
            ("_quantized", "the adapter as it was trained: quantisation's share added"),
        )
    )
    return (
        f'<table class="t-merge"><thead><tr><th>The merged model against</th><td>same top token</td>'
        f"<td>largest logit difference</td></tr></thead>{rows}</table>"
        f'<p class="t-sub">On {check["tokens"]:,} tokens of the held-out answers.</p>'
    )


def runs_list(rows: list[dict], selected: str, example: str) -> str:
    """The visitor's runs as buttons."""
    if not rows:
        return note("No runs yet. Train one, and it appears here.")
    return f'<div class="t-runs">{"".join(_run_row(row, row["run"] == selected, row["run"] == example) for row in rows)}</div>'


def _run_row(row: dict, selected: bool, shared: bool) -> str:
    scores, picture = row["scores"], ""
    if scores:
        picture = "".join(
            f'<span class="t-mini {v}" title="{v}: ROUGE-L {scores[v]["rougeL"]:.2f}"><i style="width:{scores[v]["rougeL"]:.0%}"></i></span>'
            for v in ("base", "adapter")
        )
        picture = f'<span class="t-minis">{picture}</span><span class="t-gain">{scores["gain"]["rougeL"]:+.2f}</span>'
    title = row["name"] or f"{row['method']} on {row['model']}"
    return (
        f'<button type="button" class="t-row {"selected" if selected else ""}" data-run="{escape(row["run"])}" '
        f'aria-pressed="{"true" if selected else "false"}"><span class="t-row-name"><b>{escape(title)}</b>'
        f"<small>{escape(row['data'])}{' · the shipped example' if shared else ''}</small></span>"
        f'<span class="t-status {row["status"]}">{row["status"]}</span>{picture}</button>'
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _value(value) -> str:
    return f"{value:g}" if isinstance(value, float) else ", ".join(value) if isinstance(value, list) else f"{value}"


def _short(text: str) -> str:
    return escape(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …") or "<em>(nothing)</em>"


def reference(text: str) -> str:
    """A held-out row's own answer, to hold the three against."""
    return f'<div class="t-reference"><b>reference</b> {_short(text)}</div>'


def pushed(url: str) -> str:
    safe = escape(url, quote=True)
    return f'<div class="t-note good">Pushed: <a href="{safe}" target="_blank" rel="noopener">{safe}</a></div>'
