"""Experiments and finished runs beside each other as HTML: how far it is, the ranking, the drawing, and downloads.

Text from outside is escaped. What takes long to compute is kept until another run is finished.
"""

import base64
import threading
from collections import OrderedDict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tuner.experiments import plot, ranking
from tuner.experiments.beside import Beside, beside
from tuner.experiments.experiment import Experiment
from tuner.experiments.results import Results, cost_in_words
from tuner.metrics import METRICS
from tuner.planning.forecast import duration
from tuner.runs import Run
from tuner.ui import chart, elements, progress, render, run_queue
from tuner.ui.elements import folded, tag
from tuner.ui.experiments import Standing, states_of
from tuner.words import count, file_size

MOST_DRAWN = 100  # experiments whose results are kept
TITLES = {"running": "Comparing", "next": "Comparing", "paused": "Paused", "done": "Compared"}
PAUSED = "Nothing is trained at the moment. Press Resume to go on."
_drawn: OrderedDict[Path, tuple[tuple, str]] = OrderedDict()  # experiment -> what its results were made from, and they
_drawing = threading.Lock()


def cost(told: dict, name: str) -> str:
    """What an experiment will take, before it starts."""
    unknown = "The estimate appears once base model and rows are downloaded."
    seconds = told["seconds"]
    time = f"About {duration(seconds)} in all, with loading and scoring." if seconds is not None else unknown
    lines = [f"<b>{count(told['runs'], 'run')}</b>, {duration(told['training'])} of training in all", escape(time)]
    lines += [
        "One run at a time waits or trains, in the same queue as all others.",
        "The next run starts while this page is open.",
    ]
    listed = tag("ul", "".join(tag("li", line) for line in lines), "t-facts")
    notes = "".join(elements.note(text) for text in told["notes"])
    return tag("div", tag("h3", "What will happen") + tag("p", escape(name), "t-sub") + listed + notes, "t-card")


def live(now: Standing) -> str:
    """How far an experiment is, and which run trains."""
    title, share, told, why = TITLES[now.phase], float(now.done), "", ""
    if now.phase == "running":
        seen = run_queue.look(now.state.run)
        share += _share(seen)
        heading, sentence = render.status(seen, *render.place_and_wait(now.state.run.id))
        told = f"<b>{escape(now.state.entry['label'])}</b> {escape(f'{heading}. {sentence}')}"
    elif now.phase == "next":
        told = "The next run is being prepared."
    elif now.phase == "paused":
        told = PAUSED
        if now.state and now.state.status == "failed":
            why = elements.problems(progress.read(now.state.run).problems, f"{now.state.entry['label']} stopped early")
    bar = (
        ""
        if now.phase == "done"
        else tag("div", f'<i style="width:{share / max(1, now.size):.1%}"></i>', "t-progress")
    )
    done = f"{now.done} of {count(now.size, 'run')} {'is' if now.done == 1 else 'are'} over."
    content = tag("h3", title) + bar + tag("p", done, "t-sub") + f'<p aria-live="polite">{told}</p>' + why
    return f'<div class="t-card" data-phase="{now.phase}">{content}</div>'


def _share(seen: progress.Progress) -> float:
    """How much of a run is done, roughly: all but its scoring counts."""
    return min(1.0, seen.step / seen.steps) * 0.9 if seen.steps else 0.0


def results(opened: Experiment) -> str:
    """What the finished runs of an experiment show. Raises TunerError if something of it can't be read."""
    states = [(state.run.id, state.status, _scored_at(state.run)) for state in states_of(opened)]
    made_from = (opened.path, *states)
    with _drawing:
        known = _drawn.get(opened.path)
        if known and known[0] == made_from:
            return known[1]
        html = _results(ranking.results(opened))
        _drawn[opened.path] = made_from, html
        _drawn.move_to_end(opened.path)
        while len(_drawn) > MOST_DRAWN:
            _drawn.popitem(last=False)
        return html


def _scored_at(run: Run) -> int:
    try:
        return (run.path / "evaluation.json").stat().st_mtime_ns
    except OSError:
        return 0


def held_beside(runs: Sequence[Run]) -> str:
    """Finished runs beside each other: settings, curves, scores. Raises TunerError if they can't be compared."""
    found = beside(runs)
    return _results(found.results, settings(found) + curves(found))


def _results(found: Results, more: str = "") -> str:
    if not found.lines:
        return ""
    first, *others = found.sentences or [""]
    said = (tag("h3", escape(first)) if first else "") + "".join(tag("p", escape(text)) for text in others)
    table = tag("div", _table(found), "t-wide")
    costs = tag("p", cost_in_words(found), "t-sub") if found.seconds else ""
    return tag("div", said + table + costs + plot.svg(found) + more + _downloads(found), "t-card t-compared")


def _table(found: Results) -> str:
    is_scored = any("rank" in line for line in found.lines)
    metric = METRICS[found.metric].title if found.metric else "loss" if is_scored else "score"
    spread = any(line.get("spread") is not None for line in found.lines)
    titles = ["", "", metric, *["spread of seeds"] * spread, "training", "trained parameters", "adapter", ""]
    head = tag("tr", "".join(tag("td", title) for title in titles))
    rows = [_line(line, found, spread) for line in found.lines]
    for rival in found.rivals:
        cells = ["", escape(rival["label"]), _score(rival, found), *[""] * spread, "", "", "", "not trained"]
        rows.append(tag("tr", "".join(tag("td", cell) for cell in cells), "rival"))
    return tag("table", tag("thead", head) + tag("tbody", "".join(rows)), "t-merge")


def _line(line: dict[str, Any], found: Results, spread: bool) -> str:
    links = " ".join(f'<a href="?run={escape(run, quote=True)}">{escape(run[:6])}</a>' for run in line["runs"])
    title = f"<small>{escape(line['title'])}</small>" if line.get("title", line["label"]) != line["label"] else ""
    cells = [f"{line['rank']}" if "rank" in line else "–", f"{escape(line['label'])}{title}"]
    if "rank" in line:
        cells.append(_score(line, found))
        cells += [f"{line['spread']:.3f}" if line["spread"] is not None else "–"] * spread
        cells += [
            _best(duration(line["seconds"]), "seconds", line),
            _best(f"{line['trainable_parameters']:,}", "trainable_parameters", line),
            file_size(line["adapter_bytes"]),
        ]
    else:
        cells += ["–"] * (4 + spread)
    cells.append(f"{escape(line['status'])} <small>{links}</small>")
    return tag("tr", "".join(tag("td", cell) for cell in cells))


def _score(line: dict[str, Any], found: Results) -> str:
    value = line["score"] if found.metric else line.get("loss")
    if value is None:
        return "–"
    return f"{value:.3f}" + (
        "" if line.get("low") is None else f"<small>{line['low']:.2f} to {line['high']:.2f}</small>"
    )


def _best(text: str, cost: str, line: dict[str, Any]) -> str:
    """A cost, marked where no other run scores as well for less."""
    return f'<mark title="none is as good for less">{text}</mark>' if cost in line.get("fronts", []) else text


def _downloads(found: Results) -> str:
    """Links to the table and the drawing; their content is in the links, so nothing of it is stored."""
    files = {
        "comparison.csv": ("text/csv", plot.table(found).encode()),
        "comparison.png": ("image/png", plot.png(found)),
    }
    links = []
    for name, (kind, content) in files.items():
        address = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if content:
            links.append(f'<a class="t-button" download="{name}" href="{address}">{name}</a>')
    return tag("p", " ".join(links), "t-downloads")


def settings(found: Beside) -> str:
    """The settings in which the runs differ."""
    if not found.settings:
        return elements.note("All settings are the same.")
    labels = list(found.curves)
    head = tag("tr", tag("td", "Setting") + "".join(tag("td", escape(label)) for label in labels))
    rows = [
        tag("tr", tag("th", escape(name)) + "".join(tag("td", escape(_written(values[label]))) for label in labels))
        for name, values in found.settings.items()
    ]
    table = tag("table", tag("thead", head) + tag("tbody", "".join(rows)), "t-merge")
    return folded("Settings that differ", tag("div", table, "t-wide"))


def _written(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
    return text if len(text) <= elements.SHOWN_CHARACTERS else text[: elements.SHOWN_CHARACTERS] + " …"


def curves(found: Beside) -> str:
    """The runs' curves in one chart: the held-out losses, or the training losses where a run has no such."""
    for kind, title in (("heldout", "Held-out loss"), ("loss", "Training loss")):
        drawn = {label: curve[kind] for label, curve in found.curves.items() if len(curve[kind]) > 1}
        if len(drawn) == len(found.curves):
            return folded(title, chart.curves(drawn, title))
    return ""
