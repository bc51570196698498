"""Did it help? One rule and one wording, for the page, the terminal and the model card."""

from collections.abc import Callable
from dataclasses import dataclass

from tuner.evaluation.advice import advise, fits_others, is_better, knows_by_heart, next_step, outcome, pair_of
from tuner.evaluation.figures import digits_apart, digits_of_gain, gain_parts, shown_gain, title, with_interval
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
    "below": "It does worse than a constant answer.",
    "neither": "Neither tuning nor a prompt clearly helped.",
    "unsure": "No clear difference.",
}
OTHERS = {"good": "it helped", "bad": "it made things worse", "unsure": "there is no clear difference"}
NO_ANSWERS = "No verdict: all right answers are empty."
NO_VERDICT = "No verdict: the base model's head may be untrained."
RARE_LABEL = "No verdict: a label has too few held-out rows."
EMPTY = "All right answers are empty, so this only says how often nothing is answered."
SILENT = 3  # rows with a right answer, at least, whose answers are looked at to tell that a variant says nothing
UNKNOWN_HEAD = (
    "An earlier version of Tuner scored this run. It compared the adapter with the base model even where that has a "
    "new head, whose answers are at random."
)
SCORE_AGAIN = (
    "Score the run again, on its page or with `tuner evaluate`, to compare it with the best answer that knows nothing."
)
CHECK_PAIRS = "Check that each completion stands beside its own prompt."
NO_RIVAL = (
    "The base model may have a new head, whose answers are at random. The run's training rows are gone, so it can't "
    "be compared with the best answer that knows nothing."
)


@dataclass(frozen=True)
class Verdict:
    """What the scores of a run say: a headline, one sentence, the figures, and notes that must stay in sight.

    `template` has the figures in a few sentences, with the placeholders {base} and {adapter}. `advice` is tune, prompt
    or neither; empty if the scores allow no claim. `next_step` is a sentence, or empty.
    """

    kind: str  # good, bad or unsure
    headline: str
    summary: str
    base: str
    adapter: str
    template: str
    notes: tuple[str, ...] = ()
    advice: str = ""
    next_step: str = ""

    def figures(self, emphasise: Callable[[str], str] = str, escape: Callable[[str], str] = str) -> str:
        """The figures in a few sentences, both scores passed through `emphasise` and all else through `escape`."""
        return escape(self.template).format(base=emphasise(self.base), adapter=emphasise(self.adapter))

    def text(self, emphasise: Callable[[str], str] = str, escape: Callable[[str], str] = str) -> str:
        """The figures and the notes."""
        return " ".join([self.figures(emphasise, escape), *map(escape, self.notes)])


def judge(scores: dict, digits: int = 2) -> Verdict:
    """The verdict on an evaluation: good or bad only if the 95% interval of the gain excludes 0.

    A good or bad one has at least `digits`, and as many as it takes to tell the scores apart, and the gain from 0.
    """
    if not scores["gain"]:  # plain text has no prompts to answer
        losses = tuple(f"{scores[variant]['loss']:.3f}" for variant in ("base", "adapter"))
        text = "On held-out text, the base model's loss is {base} and the adapter's {adapter} (lower is better)."
        return _open("Only the loss was measured.", text, losses, text, [_by_heart(scores)])
    metric, rows = metric_of(scores), scores["rows"]
    shown = tuple(f"{scores[variant][metric.name]:.{digits}f}" for variant in ("base", "adapter"))
    figures = f"{_rival(scores)} scores {{base}} in {metric.title} and the adapter {{adapter}}"
    meaning = metric.explanation if metric.higher_is_better else f"{metric.explanation}; {metric.direction}"
    if rows < FEWEST_ROWS:
        return _too_few(scores, figures, meaning, shown)
    measured = f"On {_scored(scores)}, {figures} ({meaning})."
    if scores.get("unknown_head"):
        doubt, step = (UNKNOWN_HEAD, SCORE_AGAIN) if needs_scoring(scores) else (NO_RIVAL, "")
        return _open(NO_VERDICT, doubt, shown, f"{measured} {doubt} {step}", [_by_heart(scores, step)], step)
    if scores.get("empty_references"):
        step = "Check the column of right answers, and fill in those that are missing."
        return _open(NO_ANSWERS, EMPTY, shown, f"{measured} {EMPTY}", [_by_heart(scores, step)], step)
    without = [_without_interval(part) for part in (scores, *scores.get("other_metrics", []))]
    if without[0]:
        step = "Hold out more rows (data.heldout)."
        figures = " ".join(filter(None, [measured, *without]))
        return _open(RARE_LABEL, without[0], shown, figures, [_by_heart(scores, step)], step)
    return _judged(scores, measured, without, digits_of(scores, digits))


def _open(headline: str, summary: str, shown: tuple, figures: str, notes: list[str], step: str = "") -> Verdict:
    """A verdict that makes no claim."""
    summary = summary.format(**dict(zip(("base", "adapter"), shown)))
    return Verdict("unsure", headline, summary, *shown, figures, tuple(filter(None, notes)), next_step=step)


def _too_few(scores: dict, figures: str, meaning: str, shown: tuple) -> Verdict:
    rows, held = scores["rows"], scores.get("heldout_rows", scores["rows"])
    them = "it" if rows == 1 else "them"
    takes = f"A verdict takes at least {FEWEST_ROWS} "
    takes += "scored rows (evaluation.rows)." if rows < held else "held-out rows."
    if held >= FEWEST_ROWS:
        step = f"Score at least {FEWEST_ROWS} rows (evaluation.rows)."
    else:
        step = f"Hold out at least {FEWEST_ROWS} rows (data.heldout)."
    doubt = f"{UNKNOWN_HEAD} {SCORE_AGAIN}" if needs_scoring(scores) else NO_RIVAL
    notes = [doubt if scores.get("unknown_head") else "", _by_heart(scores, step), _cut(scores)]
    measured = f"On {them}, {figures} ({meaning}). {takes}"
    return _open(f"Too few to tell: {_scored(scores)}.", f"On {them}, {figures}.", shown, measured, notes, step)


def _judged(scores: dict, measured: str, without: list[str], digits: int) -> Verdict:
    """The verdict where there are enough rows for one."""
    metric, gain = metric_of(scores), scores["gain"]
    advice, prompt = advise(scores)
    kind = "good" if advice == "tune" else "bad" if gain["high"] < 0 else "unsure"
    said = outcome(scores, advice, prompt)
    step = next_step(scores, said, prompt)
    base, adapter = (f"{scores[variant][metric.name]:.{digits}f}" for variant in ("base", "adapter"))
    figures = [
        measured,
        f"The gain is {shown_gain(scores, gain, digits, '95% interval ')}{_wins(gain)}.",
        *about_prompts(scores, advice, prompt, digits),
        *without,
        f"{_looks(scores, digits)} {CHECK_PAIRS}" if said == "looks" else "",
    ]
    notes = [
        "With so few rows this is only a hint." if scores["rows"] < FEW_ROWS else "",
        _repeated(scores),
        *_unreachable(scores, digits),
        "" if prompt else scores.get("prompting", {}).get("why_not", ""),
        *_disagreements(scores, digits),
        *_silent(scores),
        _worse_loss(scores) if kind != "good" else "",
        _by_heart(scores, step),
        _cut(scores),
    ]
    return Verdict(
        kind,
        HEADLINES[said],
        _looks(scores, digits) if said == "looks" else _summary(scores, kind, advice, prompt, digits),
        base,
        adapter,
        " ".join(filter(None, figures)),
        tuple(filter(None, notes)),
        advice,
        step,
    )


def digits_of(scores: dict, least: int = 2) -> int:
    """The digits of the scores: as many as it takes to tell apart those of a firm verdict, and its gain from 0."""
    gain, name = scores["gain"], metric_of(scores).name
    if "low" not in gain or _kind(gain) == "unsure" or (fits_others(scores) and gain["low"] > 0):
        return least
    values = [scores[variant][name] for variant in ("base", "adapter")]
    return digits_apart([values, *((gain[key], 0) for key in (name, "low", "high"))], least)


def _scored(scores: dict) -> str:
    """How many rows were scored: 64 of 80 held-out rows."""
    rows, held = scores["rows"], scores.get("heldout_rows", scores["rows"])
    return f"{f'{rows:,} of ' if rows < held else ''}{count(held, 'held-out row')}"


def _summary(scores: dict, kind: str, advice: str, prompt: str, digits: int) -> str:
    """The gain that the headline is about, and how sure it is, in a sentence."""
    where = f"On {_scored(scores)}"
    over, pair = _rival(scores, is_template=False), scores["gain"]
    if advice == "prompt":
        over, pair = f"the base model with {title(scores, prompt)}", pair_of(scores, "adapter", prompt)
    if pair.get("wins") == pair.get("losses") == 0:
        return f"{where}, every answer of the adapter scores the same as that of {over}."
    gain, low, high = gain_parts(scores, pair, digits_of_gain(pair, digits))
    chance = "" if _kind(pair) != "unsure" else ", so it may be chance"
    return (
        f"{where}, the adapter's gain over {over} is {gain} in {metric_of(scores).title}; with 95% confidence it is "
        f"between {low} and {high}{chance}.{_also(scores, advice, prompt)}"
    )


def _also(scores: dict, advice: str, prompt: str) -> str:
    if advice != "tune" or not prompt or not is_better(scores, "adapter", prompt):
        return ""  # whether a prompt does as well is then the next step's
    return f" It is also better than the base model with {title(scores, prompt)}."


def _looks(scores: dict, digits: int) -> str:
    name = metric_of(scores).name
    own, others = scores["adapter"][name], scores["other_rows"][name]
    return (
        f"Its answers fit other rows' references ({others:.{digits}f}) about as well as their own ({own:.{digits}f})."
    )


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


def _rival(scores: dict, is_template: bool = True) -> str:
    if "baseline" not in scores:
        return "the base model"
    words = f"an answer that is {scores['baseline']}"
    return words.replace("{", "{{").replace("}", "}}") if is_template else words


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
        have = "has" if rows == 1 else "have"
        return f"{title} has no interval: that takes {FEWEST_ROWS} held-out rows, and {rows} {have} a loss."
    return ""


def _silent(scores: dict) -> list[str]:
    """A sentence for each variant whose answers are empty, as far as examples of them are kept."""
    rows = [row for row in scores.get("examples", []) if row["reference"].strip()]
    names = {"base": "base model", "adapter": "adapter"} if len(rows) >= SILENT and "baseline" not in scores else {}
    return [
        f"The first {len(rows)} answers of the {name} are empty."
        for variant, name in names.items()
        if not any(row[variant].strip() for row in rows)
    ]


def _worse_loss(scores: dict) -> str:
    base, adapter = (scores[variant].get("loss") for variant in ("base", "adapter"))
    if base is None or adapter is None or adapter <= base:
        return ""
    return (
        f"Its loss on held-out rows is higher than the base model's ({adapter:.3f} and {base:.3f}): what it learned "
        "does not carry over to them."
    )


def _by_heart(scores: dict, step: str = "") -> str:
    """That the training loss is near 0 while the held-out loss has risen, if so; what to do, if no step says it."""
    losses = scores.get("losses") or {}
    if not losses or not knows_by_heart(losses):
        return ""
    kept, began = losses.get("kept"), "It"
    ends = [] if step else ["Train for fewer epochs, or give more rows."]
    if kept is not None:
        began = f"After step {kept:,} it"
        ends = [f"The weights of step {kept:,} were kept, and they are what was scored."]
        ends += [] if step else ["To learn more, give more rows."]
    found = (
        f"{began} learned its rows by heart: its training loss fell to {losses['training']:.3f} while its loss on "
        f"held-out rows rose from {losses['lowest']:.3f} to {losses['last']:.3f}."
    )
    return " ".join([found, *ends])


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
