"""Did it help? One rule and one wording, for the page, the terminal and the model card."""

from collections.abc import Callable
from dataclasses import dataclass

from tuner.evaluation.advice import advise, fits_others, is_as_good, next_step, pair_of
from tuner.evaluation.figures import digits_apart, shown_gain, with_interval
from tuner.evaluation.prompts import about_prompts
from tuner.metrics import FEWEST_ROWS, metric_of
from tuner.words import count

FEW_ROWS = 16  # below this a score is only a hint
HEADLINES = {
    "tune": "It helped.",
    "prompt": "A prompt does as well.",
    "perhaps prompt": "A prompt may do as well.",
    "better prompt": "A prompt does better.",
    "looks": "It learned how answers look, not what they depend on.",
    "bad": "It made things worse.",
    "neither": "Neither tuning nor a prompt clearly helped.",
    "unsure": "No clear difference.",
}
OTHERS = {"good": "it helped", "bad": "it made things worse", "unsure": "there is no clear difference"}
NO_VERDICT = "No verdict: the base model's head may be untrained."
RARE_LABEL = "No verdict: a label has too few held-out rows."
EMPTY = "All right answers are empty, so this only says how often nothing is answered."
UNKNOWN_HEAD = (
    "An earlier version of Tuner scored this run. It compared the adapter with the base model even where that has a "
    "new head, whose answers are at random. Score the run again, on its page or with `tuner evaluate`, to compare it "
    "with the best answer that knows nothing."
)
NO_RIVAL = (
    "The base model may have a new head, whose answers are at random. The run's training rows are gone, so it can't "
    "be compared with the best answer that knows nothing."
)
BY_HEART = 4  # times as low as the held-out loss is the training loss of rows that are known by heart
ROSE = 1.1  # times its lowest value is a held-out loss that has risen


@dataclass(frozen=True)
class Verdict:
    """What the scores of a run say. `template` has the placeholders {base} and {adapter}.

    `advice` is tune, prompt or neither; empty if the scores allow no claim. `next_step` is a sentence, or empty.
    """

    kind: str  # good, bad or unsure
    headline: str
    base: str
    adapter: str
    template: str
    advice: str = ""
    next_step: str = ""

    def text(self, emphasise: Callable[[str], str] = str, escape: Callable[[str], str] = str) -> str:
        """The figures in a few sentences, both scores passed through `emphasise` and all else through `escape`."""
        return escape(self.template).format(base=emphasise(self.base), adapter=emphasise(self.adapter))


def judge(scores: dict, digits: int = 2) -> Verdict:
    """The verdict on an evaluation: good or bad only if the 95% interval of the gain excludes 0.

    A good or bad one has at least `digits`, and as many as it takes to tell the scores apart, and the gain from 0.
    """
    gain = scores["gain"]
    if not gain:  # plain text has no prompts to answer
        losses = (f"{scores[variant]['loss']:.3f}" for variant in ("base", "adapter"))
        text = "On held-out text, the base model's loss is {base} and the adapter's {adapter} (lower is better)."
        return Verdict("unsure", "Only the loss was measured.", *losses, text + _by_heart(scores))
    metric, rows = metric_of(scores), scores["rows"]
    values = [scores[variant][metric.name] for variant in ("base", "adapter")]
    meaning = metric.explanation if metric.higher_is_better else f"{metric.explanation}; {metric.direction}"
    figures = f"{_rival(scores)} scores {{base}} in {metric.title} and the adapter {{adapter}} ({meaning})."
    held = scores.get("heldout_rows", rows)
    scored = f"{f'{rows:,} of ' if rows < held else ''}{count(held, 'held-out row')}"
    doubt = "" if not scores.get("unknown_head") else UNKNOWN_HEAD if needs_scoring(scores) else NO_RIVAL
    if rows < FEWEST_ROWS:
        headline = f"Too few to tell: {scored}."
        few = f"On {'it' if rows == 1 else 'them'}, {figures} A verdict takes at least {FEWEST_ROWS} "
        few += "scored rows (evaluation.rows)." if rows < held else "held-out rows."
        text = " ".join(filter(None, [few, doubt, _by_heart(scores).strip(), _cut(scores)]))
        return Verdict("unsure", headline, *(f"{value:.{digits}f}" for value in values), text)
    if doubt:
        text = " ".join(filter(None, [f"On {scored}, {figures} {doubt}", _by_heart(scores).strip()]))
        return Verdict("unsure", NO_VERDICT, *(f"{value:.{digits}f}" for value in values), text)
    without = [_without_interval(part) for part in (scores, *scores.get("other_metrics", []))]
    if without[0]:
        text = " ".join(filter(None, [f"On {scored}, {figures}", *without, _by_heart(scores).strip()]))
        return Verdict("unsure", RARE_LABEL, *(f"{value:.{digits}f}" for value in values), text)
    advice, prompt = advise(scores)
    kind = "good" if advice == "tune" else "bad" if gain["high"] < 0 else "unsure"
    if _kind(gain) != "unsure" and not (fits_others(scores) and kind == "unsure"):
        digits = digits_apart([values, *((gain[key], 0) for key in (metric.name, "low", "high"))], digits)
    base, adapter = (f"{value:.{digits}f}" for value in values)
    sentences = [
        f"On {scored}, {figures}",
        f"The gain is {shown_gain(scores, gain, digits, '95% interval ')}{_wins(gain)}.",
        EMPTY if scores.get("empty_references") else "",
        *_unreachable(scores, digits),
        _repeated(scores),
        *about_prompts(scores, advice, prompt, digits),
        "With so few rows this is only a hint." if rows < FEW_ROWS else "",
        *_disagreements(scores, digits),
        *without,
        *_findings(scores, kind, digits),
        _cut(scores),
    ]
    text = " ".join(filter(None, sentences))
    headline, step = _headline(scores, kind, advice, prompt), next_step(scores, advice, prompt)
    return Verdict(kind, headline, base, adapter, text, advice, step)


def _headline(scores: dict, kind: str, advice: str, prompt: str) -> str:
    if advice == "prompt":
        is_better = pair_of(scores, "adapter", prompt)["high"] < 0
        return HEADLINES[
            "better prompt" if is_better else "prompt" if is_as_good(scores, prompt) else "perhaps prompt"
        ]
    if advice == "tune":
        return HEADLINES["tune"]
    if _kind(scores["gain"]) == "good":
        return HEADLINES["looks"]
    return HEADLINES["bad" if kind == "bad" else "neither" if prompt else "unsure"]


def _wins(gain: dict) -> str:
    """On how many rows the adapter is better and worse, as the end of a sentence; earlier runs did not count them."""
    if "wins" not in gain:
        return ""
    return f": better on {count(gain['wins'], 'row')}, worse on {gain['losses']:,}, the same on {gain['ties']:,}"


def rival(scores: dict) -> str:
    """What the adapter is compared with: the base model, or the best answer that knows nothing."""
    return scores.get("baseline", "base model, head perhaps untrained" if scores.get("unknown_head") else "base model")


def sentence_case(words: str) -> str:
    """The words with a capital at their beginning."""
    return words[:1].upper() + words[1:]


def needs_scoring(scores: dict | None) -> bool:
    """Whether a trained run has no scores, or ones of an earlier version that scoring it again may better."""
    return scores is None or ("unknown_head" in scores and "heldout_rows" not in scores)


def _rival(scores: dict) -> str:
    if "baseline" not in scores:
        return "the base model"
    return f"an answer that is {scores['baseline']}".replace("{", "{{").replace("}", "}}")  # as the template needs it


def _kind(gain: dict) -> str:
    return "good" if gain["low"] > 0 else "bad" if gain["high"] < 0 else "unsure"


def _disagreements(scores: dict, digits: int) -> list[str]:
    """A sentence for each further metric that says something else than the first."""
    first = _kind(scores["gain"])
    return [
        f"By {metric_of(other).title}, {OTHERS[_kind(other['gain'])]}: "
        f"{shown_gain(other, other['gain'], digits, '95% interval ')}."
        for other in scores.get("other_metrics", [])
        if not _without_interval(other) and _kind(other["gain"]) != first
    ]


def _without_interval(part: dict) -> str:
    """Why a metric has no interval although others have one, in a sentence; empty if it has one."""
    title = sentence_case(metric_of(part).title)
    if (fewest := part.get("fewest_rows", FEWEST_ROWS)) < FEWEST_ROWS:
        each = f"{FEWEST_ROWS} held-out rows of each label"
        return f"{title} has no interval: that takes {each}, and one has {fewest or 'none'}."
    if (rows := part.get("rows", FEWEST_ROWS)) < FEWEST_ROWS:
        return f"{title} has no interval: that takes {FEWEST_ROWS} held-out rows, and {rows} have a loss."
    return ""


def _findings(scores: dict, kind: str, digits: int) -> list[str]:
    """What else the run shows: sentences about answers that ignore the prompt, and about rows known by heart."""
    metric, sentences = metric_of(scores), []
    if fits_others(scores) and scores["gain"]["low"] > 0 and kind == "unsure":
        own, others = scores["adapter"][metric.name], scores["other_rows"][metric.name]
        sentences.append(
            f"Its answers fit other rows' references ({others:.{digits}f}) about as well as their own "
            f"({own:.{digits}f}). Check that each completion stands beside its own prompt."
        )
    base, adapter = (scores[variant].get("loss") for variant in ("base", "adapter"))
    if kind != "good" and base is not None and adapter is not None and adapter > base:
        sentences.append(
            f"Its loss on held-out rows is higher than the base model's ({adapter:.3f} and {base:.3f}): what it "
            "learned does not carry over to them."
        )
    return [*sentences, _by_heart(scores).strip()]


def _by_heart(scores: dict) -> str:
    """That the training loss is near 0 while the held-out loss has risen, if so."""
    losses = scores.get("losses") or {}
    if not losses or losses["training"] * BY_HEART > losses["last"] or losses["last"] < ROSE * losses["lowest"]:
        return ""
    kept = losses.get("kept")
    began, remedy = "It", "Train for fewer epochs, or give more rows."
    if kept is not None:
        began = f"After step {kept:,} it"
        remedy = (
            f"The weights of step {kept:,} were kept, and they are what was scored. To learn more, give more rows."
        )
    return (
        f" {began} learned its rows by heart: its training loss fell to {losses['training']:.3f} while its loss on "
        f"held-out rows rose from {losses['lowest']:.3f} to {losses['last']:.3f}. {remedy}"
    )


def _unreachable(scores: dict, digits: int) -> list[str]:
    """A sentence for each metric that does not give right answers a full score."""
    return [
        f"Even right answers score {part['best']:.{digits}f} in {metric_of(part).title} here, because they are too "
        "short for it: choose other metrics (evaluation.metrics)."
        for part in (scores, *scores.get("other_metrics", []))
        if "best" in part
    ]


def _repeated(scores: dict) -> str:
    """How many held-out prompts are also trained on, in a sentence."""
    number, held = scores.get("repeated_rows", 0), scores.get("heldout_rows", 0)
    have = "has" if number == 1 else "have"
    said = f"{number:,} of the {count(held, 'held-out row')} {have} a prompt that is also trained on, so the scores "
    return f"{said}look too good." if number else ""


def _cut(scores: dict) -> str:
    """What was cut for the scores, in a sentence or two."""
    cut = scores.get("cut")
    if not cut:
        return ""
    base, adapter, limit = cut["answers"]["base"], cut["answers"]["adapter"], count(cut["max_new_tokens"], "token")
    answers = f"Cut at {limit}: {count(base, 'answer')} of the base model, {adapter:,} of the adapter."
    prompts = f"To fit, {count(cut['prompts'], 'prompt')} {'was' if cut['prompts'] == 1 else 'were'} cut."
    return " ".join([answers] * bool(base or adapter) + [prompts] * bool(cut["prompts"]))


def other_scores(scores: dict, digits: int = 2) -> list[tuple[str, str, str, str]]:
    """For each further metric: its title, the scores of base and adapter, and the gain, with their intervals."""
    rows = []
    for other in scores.get("other_metrics", []):
        metric = metric_of(other)
        title = metric.title if metric.higher_is_better else f"{metric.title} ({metric.direction})"
        base, adapter = (with_interval(other[variant], metric.name, digits) for variant in ("base", "adapter"))
        gain = "unknown" if scores.get("unknown_head") else shown_gain(other, other["gain"], digits)
        rows.append((title, base, adapter, gain))
    return rows
