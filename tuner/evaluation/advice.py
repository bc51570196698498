"""Tune or prompt? What the scores of a run advise, and the next step that its losses suggest.

A variant helped if its interval over the base model is above 0. A prompt with examples is advised where it helped and
the adapter is not clearly better than it: then training bought nothing that a prompt does not have.

Each outcome has its own rules for the next step, so that a headline and the step below it never contradict.
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
BY_HEART = 4  # times as low as the held-out loss is the training loss of rows that are known by heart
ROSE = 1.1  # times its lowest value is a held-out loss that has risen


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


def outcome(scores: dict, advice: str, prompt: str) -> str:
    """What headline and next step are about: a key of NEXT_STEPS, or "prompt", "perhaps prompt" or "better prompt"."""
    gain = scores["gain"]
    if advice == "prompt":
        if pair_of(scores, "adapter", prompt)["high"] < 0:
            return "better prompt"
        return "prompt" if is_as_good(scores, prompt) else "perhaps prompt"
    if advice == "tune":
        return "tune"
    if gain["low"] > 0:
        return "looks"
    if gain["high"] < 0:
        return "below" if "baseline" in scores else "bad"
    return "neither" if prompt else "unsure"


def next_step(scores: dict, outcome: str, prompt: str) -> str:
    """One sentence about what to do next, by the first rule of the outcome that applies; empty if none does."""
    if outcome not in NEXT_STEPS:
        kind = "these examples in each prompt" if prompt == "few_shot" else "the most similar rows in each prompt"
        rows = "score more rows (evaluation.rows)" if _leaves_rows(scores) else "hold out more rows (data.heldout)"
        more = f", or {rows} to learn whether the adapter is better" if outcome == "perhaps prompt" else ""
        return f"Use the base model with {kind}, which needs no training{more}."
    if "course" not in scores or "best" in scores:
        return ""
    metric = metric_of(scores)
    base, adapter = (scores[variant][metric.name] for variant in ("base", "adapter"))
    facts = {**scores["course"], **scores.get("losses", {}), "held": scores.get("heldout_rows", scores["rows"])}
    facts |= {"scored": scores["rows"], "gain": scores["gain"][metric.name]}
    facts["left"] = 1 - adapter if metric.higher_is_better else 1.0
    facts["is_solved"] = metric.higher_is_better and "baseline" not in scores and 1 - base <= MOVED
    facts["is_open"] = outcome == "tune" and prompt != "" and not is_better(scores, "adapter", prompt)
    sentence = next((sentence for applies, sentence in NEXT_STEPS[outcome] if applies(facts)), "")
    return sentence.format(**facts | _in_words(facts), base=f"{base:.2f}")


def _in_words(facts: dict) -> dict[str, str]:
    """What the sentences say of the losses and the learning rate."""
    rate = facts.get("learning_rate") or 0.0
    rates = {"higher": min(HIGHEST_RATE, rate * 10), "lower": rate / 10}
    said = {key: f", to {other:.2g} for example" if rate else "" for key, other in rates.items()}
    said["training_course"] = _from_to(facts["first"], facts["final"])
    said["still"] = f"training loss hardly moved, {said['training_course']}"
    if "heldout_start" in facts:
        said["heldout_course"] = _from_to(facts["heldout_start"], facts["last"])
        said["still"] = f"loss on held-out rows hardly moved, {said['heldout_course']}"
    return said


def _leaves_rows(scores: dict) -> bool:
    return scores["rows"] < scores.get("heldout_rows", scores["rows"])


def _from_to(before: float, after: float) -> str:
    digits = 2 if f"{before:.2f}" != f"{after:.2f}" else 4
    return f"from {before:.{digits}f} to {after:.{digits}f}"


def knows_by_heart(losses: dict) -> bool:
    """Whether the training loss is near 0 while the held-out loss has risen."""
    return losses["training"] * BY_HEART <= losses["last"] and losses["last"] >= ROSE * losses["lowest"]


def _rose(facts: dict) -> bool:
    # Each step has other rows, so that a rise may be chance; the held-out rows are the same each time.
    fell = "heldout_start" in facts and facts["last"] < (1 - MOVED) * facts["heldout_start"]
    return facts["final"] > (1 + MOVED) * facts["first"] and not fell


def _rose_on_heldout(facts: dict) -> bool:
    return "heldout_start" in facts and facts["last"] > (1 + MOVED) * facts["heldout_start"]


def _hardly_moved(facts: dict) -> bool:
    if _knows_rows(facts):
        return False
    fell = facts["first"] - facts["final"]
    if "heldout_start" in facts:  # of the same rows each time, so that little is chance
        start = facts["heldout_start"]
        return start - facts["lowest"] < MOVED * start and fell < 4 * MOVED * facts["first"]
    return fell < MOVED * facts["first"]


def _may_be_raised(facts: dict) -> bool:
    return _hardly_moved(facts) and (facts.get("learning_rate") or 0.0) < HIGHEST_RATE


def _was_short(facts: dict) -> bool:
    is_less = facts["epochs"] is not None and facts["epochs"] < 1
    return _hardly_moved(facts) and is_less and facts["ended"] != "patience"


def _is_falling(facts: dict) -> bool:
    if facts["ended"] == "patience" or _knows_rows(facts):
        return False
    if "heldout_middle" in facts:
        middle = facts["heldout_middle"]
        return facts["last"] <= 1.005 * facts["lowest"] and middle - facts["last"] > STILL_FALLING * middle
    return facts["middle"] - facts["final"] > MOVED * facts["middle"]


def _knows_rows(facts: dict) -> bool:
    if "lowest" not in facts:
        return False
    is_higher = facts["last"] > (1 + MOVED) * facts["lowest"] and facts["final"] < (1 - MOVED) * facts["first"]
    return is_higher or _is_by_heart(facts)


def _is_by_heart(facts: dict) -> bool:
    return "lowest" in facts and knows_by_heart(facts)


def _needs_rows(facts: dict) -> bool:
    return facts["gain"] > 0 and facts["scored"] < MANY_ROWS


def _is_open(facts: dict) -> bool:
    return facts["is_open"]


Rule = tuple[Callable[[dict], bool], str]
SOLVED: Rule = (lambda facts: facts["is_solved"], "Use the base model as it is, as it already scores {base}.")
MORE_ROWS = "Train on more rows than these {rows:,}, as the loss fell on them and rose on the held-out ones."
FEWER_EPOCHS = (
    "Train on more rows than these {rows:,}, or for fewer epochs, as the loss fell on them and rose on the held-out "
    "ones."
)
OVERFITTED: tuple[Rule, ...] = (
    (lambda facts: "kept" in facts and _knows_rows(facts), MORE_ROWS),  # fewer epochs would change nothing
    (_knows_rows, FEWER_EPOCHS),
)
LOWER: tuple[Rule, ...] = (
    (_rose, "Lower the learning rate{lower}, as the training loss rose {training_course}."),
    (_rose_on_heldout, "Lower the learning rate{lower}, as the loss on held-out rows rose {heldout_course}."),
)
LOWER_STILL: Rule = (_hardly_moved, "Lower the learning rate{lower}, as the answers got worse while the {still}.")
HIGHER: tuple[Rule, ...] = (
    (_was_short, "Train longer, as less than one epoch was too little for the loss to fall."),
    (_may_be_raised, "Raise the learning rate{higher}, as the {still}."),
)
LONGER: Rule = (_is_falling, "Train longer, as the loss was still falling at the end.")
LARGER: Rule = (lambda facts: True, "Try a larger base model, as the loss fell and then stayed where it was.")
LEARNING = (*OVERFITTED, *LOWER, *HIGHER, LONGER)
UNSURE = (
    SOLVED,
    *LEARNING,
    (
        lambda facts: _needs_rows(facts) and facts["scored"] < facts["held"],
        "Score more rows (evaluation.rows), as on {scored} of {held} a gain of this size can't be told from chance.",
    ),
    (
        _needs_rows,
        "Hold out more rows (data.heldout), as on {scored} a gain of this size can't be told from chance.",
    ),
    LARGER,
)
# By outcome, the rules from which the next step follows.
NEXT_STEPS: dict[str, tuple[Rule, ...]] = {
    "tune": (
        (lambda facts: "kept" in facts and _is_by_heart(facts), MORE_ROWS),
        (_is_by_heart, FEWER_EPOCHS),
        (
            lambda facts: facts["left"] > MOVED and _is_falling(facts),
            "Train longer, as the loss was still falling at the end and there may be more to gain.",
        ),
        (
            lambda facts: _is_open(facts) and facts["scored"] < facts["held"],
            "Score more rows (evaluation.rows) to learn whether a prompt would do as well.",
        ),
        (_is_open, "Hold out more rows (data.heldout) to learn whether a prompt would do as well."),
    ),
    "looks": (  # which is no matter of how the losses went
        (
            lambda facts: True,
            "Check that each completion stands beside its own prompt.",
        ),
    ),
    "bad": (
        SOLVED,
        *OVERFITTED,
        *LOWER,
        LOWER_STILL,
        (
            lambda facts: True,
            "Read the rows that got worse: the loss fell, so check that the completions you train on are like the "
            "answers you want.",
        ),
    ),
    "below": (*LEARNING, LARGER),
    "neither": UNSURE,
    "unsure": UNSURE,
}
