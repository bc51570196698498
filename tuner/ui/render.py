"""Runs as HTML: progress, result, rows, answers and lists of runs. Text from outside is escaped.

`run_card` is made from the run's folder alone, so a reload, another tab and a resumed run all look the same.
"""

import os
from html import escape
from pathlib import Path

from tuner import runs
from tuner.hub.card_data import without_paths
from tuner.inference.merge_check import in_float32
from tuner.inference.merge_check import problem as merge_problem
from tuner.metrics import METRICS
from tuner.planning.forecast import duration
from tuner.runs import Run
from tuner.training import ending
from tuner.ui import actions, chart, plan_card, progress, result, run_queue
from tuner.ui.elements import note, problems, short, tag
from tuner.words import count, file_size, micro_batch

APP = Path(__file__).resolve().parents[2]  # on a Space, the folder that holds app.py
COMPARED = {variant: result.NAMES[variant] for variant in ("base", "adapter")}  # in the list of runs
MERGE_CHECKS = {
    "": "the adapter on the 16-bit base (effect of merging)",
    "_quantized": "the adapter as trained (effect of merging and quantization)",
}


def push_link(url: str) -> str:
    """The link to a repository that an adapter was pushed to."""
    safe = escape(url, quote=True)
    return tag("div", f'Pushed: <a href="{safe}" target="_blank" rel="noopener">{safe}</a>', "t-note good")


def sent(event: dict) -> str:
    """How far a push is, by one of its events: a bar, and the file that is sent."""
    share = 100 * event["sent"] / max(1, event["bytes"])
    doing = f"{event['repo']}: {event['file']}" if event["file"] else "Committing"
    told = f"{escape(doing)}, {file_size(event['sent'])} of {file_size(event['bytes'])} sent"
    bar = f'<div class="t-progress"><i style="width:{share:.0f}%"></i></div>'
    return tag("div", f"{bar}{told}", "t-note")


def disk_note() -> str:
    """That a restart of the Space deletes the runs, and what to do; empty where it does not."""
    folder = runs.RUNS.resolve()
    # What is mounted for the runs and not for the app is a volume, which outlives a restart.
    volumes = [path for path in (folder, *folder.parents) if os.path.ismount(path) and not APP.is_relative_to(path)]
    if "SPACE_ID" not in os.environ or volumes:
        return ""
    return "This Space's disk is erased when it restarts: push an adapter to the Hub to keep it."


def reference(text: str) -> str:
    """A held-out row's own answer, to compare the models' answers with."""
    return tag("div", f"<b>Reference</b> {short(text)}", "t-reference")


def run_card(run: Run, now: progress.Progress | None = None) -> str:
    """The run's progress, or its result once it is scored."""
    now = now or run_queue.look(run)
    scores = run.read_json("evaluation.json") if now.phase in progress.SCORED else None
    content = _result(run, now, scores) if scores else _progress(run, now)
    chosen = plan_card.chosen_settings(run.plan)
    return f'<div class="t-card t-run" data-phase="{now.phase}">{content}{chosen}</div>'


def _progress(run: Run, now: progress.Progress) -> str:
    title, sub = status(now, *place_and_wait(run.id))
    share = now.step / now.steps if now.steps else 0
    if now.phase == "scoring" and now.scored[1]:
        share = now.scored[0] / now.scored[1]
    endless = now.phase in ("waiting", "starting") or (now.phase == "scoring" and not now.scored[0])
    bar = tag("div", f'<i style="width:{min(1, share):.1%}"></i>', f"t-progress {'endless' if endless else ''}")
    return (
        tag("h3", title)
        + tag("p", escape(plan_card.title(without_paths(run))), "t-sub")
        + (bar if now.is_live else "")
        + f'<p aria-live="polite">{escape(sub)}</p>'
        + problems(now.problems, "It stopped early")
        + _numbers(now)
        + _by_heart(now)
        + _rows_at_a_time(run)
        + (_curve(now, now.steps if now.is_live else None) if now.losses else "")
    )


def _curve(now: progress.Progress, steps: int | None) -> str:
    return chart.loss_curve(now.losses, now.heldout, steps, now.step, now.kept)


def place_and_wait(run: str) -> tuple[int | None, str]:
    """The run's place in the queue, and about how long it will wait there if that is known."""
    place = run_queue.queue.place(run)
    seconds = run_queue.queue.seconds_to_wait(place) if place else None
    return place, duration(seconds) if seconds else ""


def status(now: progress.Progress, place: int | None, wait: str = "") -> tuple[str, str]:
    """Heading and sentence for the phase."""
    of = f" of {now.steps:,}" if now.steps else ""
    kept = "What was learned is kept." if now.step else ""
    scored = f" ({now.scored[0]} of {now.scored[1]} answered)" if now.scored[1] else ""
    again = (
        "It has now failed twice in the same way: unless something has changed, resuming will not help."
        * now.failed_again
    )
    return {
        "prepared": ("Ready to start", "Everything is prepared. Press Resume to train it."),
        "waiting": ("Waiting for its turn", f"{_queue_place(place, wait)} It starts automatically."),
        "continuing": ("Between windows", "This window's GPU time is used up. Requesting the next window."),
        "paused": ("Paused", f"{_so_far(now, of)} Its GPU window is over. Press Resume for the next one."),
        "starting": ("Starting", "Loading the base model."),
        "training": ("Training", "Stopping after this step." if now.stopping else _to_go(now)),
        "scoring": ("Scoring", f"Base model and adapter answer the held-out rows{scored}."),
        "stopped": ("Stopped", f"Stopped after step {now.step:,}{of}. {kept} Press Resume, or chat with it as it is."),
        "interrupted": ("Interrupted", f"It ended early. {_so_far(now, of)} {kept} Press Resume to continue."),
        "failed": ("It failed", f"{kept} {again}".strip()),
        "adopted": ("From the Hub", "This adapter was not trained here. Chat with it in the playground."),
        **dict.fromkeys(progress.SCORED, ("Finished", "It has not been scored.")),
    }[now.phase]


def _queue_place(place: int | None, wait: str) -> str:
    if not place:
        return "A place is free."
    ahead = "It is next." if place == 1 else f"{count(place - 1, 'run')} {'is' if place == 2 else 'are'} ahead of it."
    return ahead + (f" The wait is about {wait}, judging by the latest runs." if wait else "")


def _so_far(now: progress.Progress, of: str) -> str:
    if now.steps and now.step == now.steps:
        return f"Training is done ({count(now.step, 'step')}); the scoring is not."
    return f"Step {now.step:,}{of} is done."


def _to_go(now: progress.Progress) -> str:
    if not now.last:
        return "The first step is running."
    of = f" of {now.steps:,}" if now.steps else ""
    left = now.last.get("seconds_to_go")
    return f"Step {now.step:,}{of}{'' if left is None else f', about {duration(left)} left'}."


def _numbers(now: progress.Progress) -> str:
    if not now.last:
        return ""
    time = ("training time", now.seconds or None)
    if now.phase == "training":
        time = ("left", now.last.get("seconds_to_go"))
    numbers = (
        ("training loss", now.last.get("loss"), "{:.3f}".format),
        ("held-out loss", now.heldout[-1][1] if now.heldout else None, "{:.3f}".format),
        ("tokens per second", now.last.get("tokens_per_second"), "{:,.0f}".format),
        (*time, duration),
    )
    shown = (f"<div><b>{write(v)}</b><span>{n}</span></div>" for n, v, write in numbers if v is not None)
    return tag("div", "".join(shown), "t-numbers")


def _by_heart(now: progress.Progress) -> str:
    text = ending.by_heart(now.overfitting)
    return tag("p", escape(text), "t-warning") if text else ""


def _result(run: Run, now: progress.Progress, scores: dict) -> str:
    trained = f"{plan_card.title(without_paths(run))}, {count(now.step, 'step')} in {duration(now.seconds or 0)}"
    endings = ending.sentences(run.last_event("end") or {})
    trained += "." * bool(endings)
    details = _curve(now, now.steps) + _numbers(now) + _rows_at_a_time(run)
    return result.html(run, " ".join([trained, *endings]), scores, details) + note(
        "" if run.id == actions.EXAMPLE else disk_note()
    )


def _rows_at_a_time(run: Run) -> str:
    event = run.last_event("micro_batch")
    return tag("p", micro_batch(event), "t-sub") if event else ""


def preview(facts: dict) -> str:
    """What the model will see: rows with the tokens that it learns from marked, and the lengths of all rows."""
    rows = "".join(tag("div", "".join(map(_piece, row)), "t-tokens") for row in facts["rows"])
    key = (
        tag("span", "learned from", "trained") + tag("span", "context only") + tag("span", "special token", "special")
    )
    cut = (
        facts["warning"]
        or f"No row is cut off: the longest has {facts['longest']:,} of {facts['max_length']:,} tokens."
    )
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
    """How far the merged model is from the adapter: the effects of merging and of quantization, separately."""
    if not check:
        return note("The adapter is merged, and the merge checked, when the merged model first answers.")
    head = "<tr><th>Merged model compared with</th><td>same top token</td><td>largest logit difference</td></tr>"
    rows = "".join(
        f"<tr><th>{name}</th><td>{check['top1_agreement' + key]:.1%}</td>"
        f"<td>{check['max_logit_difference' + key]:.3g}</td></tr>"
        for key, name in MERGE_CHECKS.items()
    )
    table = tag("table", tag("thead", head) + tag("tbody", rows), "t-merge")
    failure = merge_problem(check)
    warning = tag("p", escape(failure), "t-warning") if failure else ""
    measured = f"Measured on {count(check['tokens'], 'token')} of held-out answers. {in_float32(check)}".rstrip()
    return warning + table + tag("p", measured, "t-sub")


def runs_list(rows: list[dict], selected: str, example: str) -> str:
    """The visitor's runs as buttons."""
    if not rows:
        return note("No runs yet. Train one, and it will appear here.")
    return tag("div", "".join(_run_row(r, r["run"] == selected, r["run"] == example) for r in rows), "t-runs")


def _run_row(row: dict, selected: bool, shared: bool) -> str:
    scores, picture = row["scores"], ""
    if scores and scores["gain"] and (metric := METRICS.get(scores.get("metric", "rougeL"))):
        minis = "".join(
            f'<span class="t-mini {v}" title="{name}: {metric.title} {scores[v][metric.name]:.2f}">'
            f'<i style="width:{min(1, scores[v][metric.name]):.0%}"></i></span>'
            for v, name in COMPARED.items()
        )
        is_judged = "low" in scores["gain"] and not scores.get("unknown_head")
        gain = f"{scores['gain'][metric.name]:+.2f}" if is_judged else ""
        picture = tag("span", minis, "t-minis") + tag("span", gain, "t-gain")
    damage = " ".join(row.get("problems", []))
    title = row["name"] or (row["run"] if damage else f"{row['method']} on {row['model']}")
    below = damage or row["data"] + (" · included example" if shared else "")
    name = tag("b", escape(title)) + tag("small", escape(below))
    return (
        f'<button type="button" class="t-row {"selected" if selected else ""}" data-run="{escape(row["run"])}" '
        f'aria-pressed="{"true" if selected else "false"}">{tag("span", name, "t-row-name")}'
        f"{tag('span', row['status'], 't-status ' + row['status'])}{picture}</button>"
    )
