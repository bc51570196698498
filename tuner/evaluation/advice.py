"""Tune or prompt? What the scores of a run advise, and the next step that its losses suggest.

A variant helped if its interval over the base model is above 0. A prompt with examples is advised where it helped and
the adapter is not clearly better than it: then training bought nothing that a prompt does not have.
"""

from collections.abc import Callable

from tuner.metrics import metric_of

PROMPTS = ("few_shot", "few_shot_similar")
KEPT = 0.5  # of what a prompt gains over the base model, at most, that the adapter may have over it if it does as well
OWN_SHARE = 0.25  # of a gain, at least, that answers lose beside other rows' references
MOVED = 0.05  # share of a loss that it falls or rises by, at least, to have moved
STILL_FALLING = 0.02  # share of the held-out loss that its last third fell by, at least, if it was still falling
HIGHEST_RATE = 1.0  # that a recipe may ask for
MANY_ROWS = 64  # scored; with fewer, a gain worth having may be hidden by chance


def pair_of(scores: dict, one: str, other: str) -> dict:
    """The gain of one variant over another; empty if it is not known, as in runs of earlier versions."""
    if (one, other) == ("adapter", "base"):
        return scores["gain"] or {}
    return next((pair for pair in scores.get("pairs", []) if (pair["of"], pair["over"]) == (one, other)), {})


def is_better(scores: dict, one: str, other: str) -> bool:
    """Whether the interval of the one's gain over the other is above 0."""
    return pair_of(scores, one, other).get("low", 0) > 0


def fits_others(scores: dict, variant: str = "adapter") -> bool:
    """Whether answers fit other rows' references about as well as their own, so that the gain is not the prompts'."""
    others, name = scores.get("other_rows"), metric_of(scores).name
    if variant in PROMPTS:
        others = scores.get("other_rows_of_prompts", {}).get(variant)
    if not others or others["low"] > 0:
        return False
    return abs(scores[variant][name] - others[name]) < OWN_SHARE * pair_of(scores, variant, "base")[name]


def helped(scores: dict, variant: str) -> bool:
    """Whether a variant is clearly better than the base model, and not for the look of its answers alone."""
    return is_better(scores, variant, "base") and not fits_others(scores, variant)


def advise(scores: dict) -> tuple[str, str]:
    """Tune, prompt or neither; and the prompt with examples that it is about, or "" if there is none.

    For "prompt" it is the one to use, at random rather than by likeness if both will do, since a fixed one is less
    work. Else it is the best rival of the adapter.
    """
    metric, prompts = metric_of(scores), [v for v in PROMPTS if v in scores and pair_of(scores, v, "base")]
    as_good = [v for v in prompts if helped(scores, v) and not is_better(scores, "adapter", v)]
    if as_good:
        return "prompt", as_good[-1 if is_better(scores, as_good[-1], as_good[0]) else 0]
    best = max(prompts, key=lambda v: scores[v][metric.name] * (1 if metric.higher_is_better else -1), default="")
    return "tune" if helped(scores, "adapter") else "neither", best


def is_as_good(scores: dict, prompt: str) -> bool:
    """Whether a prompt that is advised does as well as the adapter: not only because too few rows tell them apart."""
    return pair_of(scores, "adapter", prompt)["high"] <= KEPT * pair_of(scores, prompt, "base")[metric_of(scores).name]


def next_step(scores: dict, advice: str, prompt: str) -> str:
    """One sentence about what to do next, by the first rule that applies; empty if none does."""
    if advice == "prompt":
        kind = "these examples in each prompt" if prompt == "few_shot" else "the most similar rows in each prompt"
        rows = "score more rows (evaluation.rows)" if _leaves_rows(scores) else "hold out more rows (data.heldout)"
        more = "" if is_as_good(scores, prompt) else f", or {rows} to learn whether the adapter is better"
        return f"Use the base model with {kind}, which needs no training{more}."
    if "course" not in scores or "best" in scores or (is_better(scores, "adapter", "base") and advice != "tune"):
        return ""  # answers that only look right are no matter of how the losses went
    metric = metric_of(scores)
    facts = {**scores["course"], **scores.get("losses", {}), "held": scores.get("heldout_rows", scores["rows"])}
    facts |= {"scored": scores["rows"], "gain": scores["gain"][metric.name], "base": scores["base"][metric.name]}
    facts["left"] = 1 - scores["adapter"][metric.name] if metric.higher_is_better else 1.0
    facts["is_solved"] = metric.higher_is_better and "baseline" not in scores and 1 - facts["base"] <= MOVED
    facts["is_open"] = advice == "tune" and prompt != "" and not is_better(scores, "adapter", prompt)
    rules = AFTER_TUNE if advice == "tune" else AFTER_NEITHER
    sentence = next((sentence for applies, sentence in rules if applies(facts)), "")
    rate = facts["learning_rate"]
    rates = {"higher": min(HIGHEST_RATE, rate * 10), "lower": rate / 10} if rate else {}
    shown = {name: f", to {rates[name]:.2g} for example" if rates else "" for name in ("higher", "lower")}
    return sentence.format(**facts, **shown)


def _leaves_rows(scores: dict) -> bool:
    return scores["rows"] < scores.get("heldout_rows", scores["rows"])


def _rose(facts: dict) -> bool:
    # Each step has other rows, so that a rise may be chance; the held-out rows are the same each time.
    fell = "heldout_start" in facts and facts["last"] < (1 - MOVED) * facts["heldout_start"]
    return facts["final"] > (1 + MOVED) * facts["first"] and not fell


def _heldout_rose(facts: dict) -> bool:
    if "heldout_start" not in facts or _knows_rows(facts):
        return False
    return facts["last"] > (1 + MOVED) * facts["heldout_start"]


def _hardly_moved(facts: dict) -> bool:
    if _knows_rows(facts):
        return False
    fell = facts["first"] - facts["final"]
    if "heldout_start" in facts:  # of the same rows each time, so that little is chance
        start = facts["heldout_start"]
        return start - facts["lowest"] < MOVED * start and fell < 4 * MOVED * facts["first"]
    return fell < MOVED * facts["first"]


def _is_falling(facts: dict) -> bool:
    if facts["ended"] == "patience":
        return False
    if "heldout_middle" in facts:
        middle = facts["heldout_middle"]
        return facts["last"] <= 1.005 * facts["lowest"] and middle - facts["last"] > STILL_FALLING * middle
    return facts["middle"] - facts["final"] > MOVED * facts["middle"]


def _knows_rows(facts: dict) -> bool:
    if "lowest" not in facts:
        return False
    return facts["last"] > (1 + MOVED) * facts["lowest"] and facts["final"] < (1 - MOVED) * facts["first"]


def _needs_rows(facts: dict) -> bool:
    return facts["gain"] > 0 and facts["scored"] < MANY_ROWS


Rule = tuple[Callable[[dict], bool], str]
AFTER_NEITHER: tuple[Rule, ...] = (
    (
        lambda facts: facts["is_solved"],
        "Keep the base model, as it scores {base:.2f} and there is little left to gain.",
    ),
    (
        _rose,
        "Lower the learning rate{lower}, as the training loss rose from {first:.2f} to {final:.2f}.",
    ),
    (
        _heldout_rose,
        "Lower the learning rate{lower}, as the held-out loss rose from {heldout_start:.2f} to {last:.2f} and the "
        "training loss did not fall.",
    ),
    (
        lambda facts: _hardly_moved(facts) and facts["epochs"] is not None and facts["epochs"] < 1,
        "Train longer, as {epochs:g} epochs were too few for the loss to fall.",
    ),
    (
        lambda facts: _hardly_moved(facts) and (facts["learning_rate"] or 0) < HIGHEST_RATE,
        "Raise the learning rate{higher}, as the training loss hardly moved, from {first:.2f} to {final:.2f}.",
    ),
    (_is_falling, "Train longer, as the loss was still falling at the end."),
    (
        _knows_rows,
        "Train on more rows than these {rows:,}, as the loss fell on them and rose on the held-out ones.",
    ),
    (
        lambda facts: _needs_rows(facts) and facts["scored"] < facts["held"],
        "Score more rows (evaluation.rows), as on {scored} of {held} a gain of this size can't be told from chance.",
    ),
    (
        _needs_rows,
        "Hold out more rows (data.heldout), as on {scored} a gain of this size can't be told from chance.",
    ),
    (lambda facts: True, "Try a larger base model, as the loss fell and then stayed where it was."),
)
AFTER_TUNE: tuple[Rule, ...] = (
    (
        lambda facts: facts["left"] > MOVED and _is_falling(facts),
        "Train longer, as the loss was still falling at the end and there may be more to gain.",
    ),
    (
        lambda facts: facts["is_open"] and facts["scored"] < facts["held"],
        "Score more rows (evaluation.rows) to learn whether a prompt would do as well.",
    ),
    (lambda facts: facts["is_open"], "Hold out more rows (data.heldout) to learn whether a prompt would do as well."),
)
