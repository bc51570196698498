"""All scored rows of a run: filtered, sorted and cut into pages, for whoever has the run's link.

One look reads one file of bounded size and returns one page of shortened texts, whatever strangers trained on.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

from pydantic import JsonValue
from typing_extensions import TypedDict

from tuner.errors import TunerError
from tuner.evaluation.results import ROWS, read_rows
from tuner.metrics import METRICS
from tuner.runs import Run
from tuner.ui.result import NAMES

PER_PAGE = 10
MOST_CHARACTERS = 3000  # of a text on a page
MOST_SEARCHED = 200  # characters of what is searched for

Outcome = Literal["all", "better", "worse", "equal"]
Order = Literal["worst", "best", "scored"]
# Whether a row with this gain of the adapter is shown.
SHOWS: dict[Outcome, Callable[[float], bool]] = {
    "all": lambda gain: True,
    "better": lambda gain: gain > 0,
    "worse": lambda gain: gain < 0,
    "equal": lambda gain: gain == 0,
}
# How rows are sorted by the adapter's gain; sorting keeps the order in which they were scored where gains are equal.
SORTS: dict[Order, Callable[[float], float]] = {
    "worst": lambda gain: gain,
    "best": lambda gain: -gain,
    "scored": lambda gain: 0.0,
}


class Page(TypedDict):
    """Some rows of those that were asked for, each with its number, its answers, and its scores by all metrics."""

    over: str  # the variant that the adapter is compared with
    rivals: list[str]
    metric: str  # by which gains are meant
    outcomes: dict[str, int]  # how many rows are better, worse and equal, and all of them; before any search
    found: int
    page: int
    pages: int
    rows: list[dict]


def look(
    run: Run, over: str = "", outcome: Outcome = "all", order: Order = "worst", search: str = "", page: int = 1
) -> Page:
    """A page of the run's scored rows, compared with the variant `over` (the base if that is not among them).

    Raises TunerError if the run has none, or if they are damaged.
    """
    for given, known in ((outcome, Outcome), (order, Order)):
        if given not in get_args(known):
            raise TunerError(f"'{given}' is not one of: {', '.join(get_args(known))}.")
    lines, metric = _read(run), _metric(run)
    rivals = [v for v in NAMES if v != "adapter" and lines and all(isinstance(line.get(v), str) for line in lines)]
    over = over if over in rivals else next(iter(rivals), "")
    gains = [_gain(line, metric, over) for line in lines]
    counts = {name: sum(map(shows, gains)) for name, shows in SHOWS.items()}
    wanted = search[:MOST_SEARCHED].casefold().strip()
    found = [
        number
        for number, (line, gain) in enumerate(zip(lines, gains))
        if SHOWS[outcome](gain) and (not wanted or _has(line, wanted, rivals))
    ]
    found.sort(key=lambda number: SORTS[order](gains[number]))
    pages = max(1, math.ceil(len(found) / PER_PAGE))
    page = min(max(1, page), pages)
    shown = found[(page - 1) * PER_PAGE : page * PER_PAGE]
    rows = [{"row": number + 1, **_shown(lines[number], rivals), "gain": gains[number]} for number in shown]
    facts = {"over": over, "rivals": rivals, "metric": metric, "outcomes": counts}
    return {**facts, "found": len(found), "page": page, "pages": pages, "rows": rows}


def has_rows(run: Run) -> bool:
    """Whether the run has scored rows to look at; those of earlier versions kept none."""
    return (run.path / ROWS).is_file()


def _read(run: Run) -> list[dict]:
    if (lines := read_rows(run)) is None:
        raise TunerError(f"Run {run.id} has no scored rows to show. Those of earlier versions kept none.")
    return lines


def _metric(run: Run) -> str:
    return (run.read_json("evaluation.json") or {}).get("metric", "rougeL")


def _gain(line: dict, metric: str, over: str) -> float:
    """How much better the adapter's answer is than the rival's; 0 where one has no score."""
    scores = [line.get(f"{variant}_{metric}") for variant in ("adapter", over)]
    if not all(map(_is_score, scores)):
        return 0.0
    sign = 1 if metric not in METRICS or METRICS[metric].higher_is_better else -1
    return round(sign * (scores[0] - scores[1]), 4) + 0.0


def _has(line: dict, wanted: str, rivals: list[str]) -> bool:
    texts = (line["prompt"], line["reference"], line["adapter"], *line.get("references", ()))
    return any(wanted in text.casefold() for text in (*texts, *(line[rival] for rival in rivals)))


def _shown(line: dict, rivals: list[str]) -> dict:
    """The row with texts of bounded length, and the scores of the variants by each metric."""
    variants = [*rivals, "adapter"]
    scored = {f"{variant}_{metric}" for variant in variants for metric in METRICS}
    texts = {name: _cut(line[name]) for name in ("prompt", "reference", *variants)}
    others = [_cut(text) for text in line.get("references", [])[:PER_PAGE]]
    scores = {name: value for name, value in line.items() if name in scored and _is_score(value)}
    return texts | ({"references": others} if others else {}) | scores


def _is_score(value: JsonValue) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _cut(text: str) -> str:
    left = len(text) - MOST_CHARACTERS
    return text if left <= 0 else f"{text[:MOST_CHARACTERS]} … ({left:,} more characters)"
