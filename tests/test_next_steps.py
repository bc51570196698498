"""No headline and next step contradict each other, whatever the scores and however the losses went."""

import itertools
import re

import pytest
from test_advice import BETTER, COURSE, EQUAL, WORSE, gains, judged

from tuner.evaluation.advice import NEXT_STEPS, advise, outcome
from tuner.evaluation.verdict import HEADLINES, judge

LOOKS = {"other_rows": {"rougeL": 0.49, "low": -0.02, "high": 0.02}}
OUTCOMES = {
    "tune": [judged(gains(), BETTER), judged(gains(), EQUAL), judged({"adapter": BETTER})],
    "prompt": [judged(gains(BETTER), EQUAL), judged(gains(BETTER, adapter=WORSE), EQUAL)],
    "better prompt": [judged(gains(BETTER, adapter=WORSE), WORSE)],
    "looks": [judged(gains(), BETTER, **LOOKS), judged({"adapter": BETTER}, **LOOKS)],
    "bad": [judged(gains(adapter=WORSE), WORSE), judged({"adapter": WORSE})],
    "below": [judged({"adapter": WORSE}, baseline='always "a"')],
    "neither": [judged(gains(adapter=EQUAL), EQUAL), judged(gains(adapter=(-0.01, -0.1, 0.1)), EQUAL)],
    "unsure": [judged({"adapter": EQUAL})],
}
TRAINING = [(2.0, 2.2), (2.0, 1.98), (2.0, 1.7), (2.0, 1.0), (2.0, 0.02), (0.021, 0.02), (0.002, 0.0022)]
# The held-out losses at the start, after two thirds, at their lowest and at the end.
HELDOUT = [
    None,
    (2.0, 1.5, 1.2, 1.2),
    (2.0, 1.2, 1.2, 1.2),
    (2.0, 1.99, 1.98, 1.99),
    (2.0, 1.2, 1.2, 1.6),
    (2.0, 2.1, 2.0, 2.4),
]
ROWS = [{"rows": scored, "heldout_rows": held} for scored, held in ((32, 80), (32, 32), (80, 80))]
NOT_ABOUT_CHANCE = ("from chance", "as well")
NEVER = {
    "tune": ("Raise", "Lower", "larger", "as it is", "from chance"),
    "looks": ("as it is", *NOT_ABOUT_CHANCE),
    "bad": ("Raise", "longer", "larger", *NOT_ABOUT_CHANCE),
    "below": ("as it is", "the answers got worse", *NOT_ABOUT_CHANCE),
    "neither": ("the answers got worse", "as well"),
    "unsure": ("the answers got worse", "as well"),
    "perhaps prompt": ("Train", "Raise", "Lower", "larger", "as it is"),
    "prompt": ("Train", "Raise", "Lower", "larger", "Score", "Hold out"),
    "better prompt": ("Train", "Raise", "Lower", "larger", "Score", "Hold out"),
}


def courses() -> list[dict]:
    """Every way in which losses can go, as the facts of a run."""
    made = []
    for (first, final), heldout, (epochs, rate), (ended, kept) in itertools.product(
        TRAINING,
        HELDOUT,
        ((0.1, 1e-3), (10.0, 1e-3), (None, None)),
        (("steps", None), ("steps", 18), ("patience", 18)),
    ):
        course = {key: value for key, value in COURSE.items() if "heldout" not in key}
        course |= {"first": first, "middle": max(final, 0.9 * first), "final": final}
        course |= {"epochs": epochs, "ended": ended, "learning_rate": rate}
        facts = {"course": course, "losses": {}}
        if heldout:
            start, middle, lowest, last = heldout
            course |= {"heldout_start": start, "heldout_middle": middle}
            facts["losses"] = {"training": final, "lowest": lowest, "last": last} | ({"kept": kept} if kept else {})
        made.append(facts)
    return made


@pytest.mark.parametrize("name", OUTCOMES)
def test_no_next_step_contradicts_its_headline_its_notes_or_the_course(name):
    for scores, facts, rows in itertools.product(OUTCOMES[name], courses(), ROWS):
        verdict = judge(scores | facts | rows)
        assert verdict.headline == HEADLINES[name]
        step, told = verdict.next_step, f"{verdict.headline} {verdict.next_step} {verdict.notes} {facts}"
        assert not any(said in step for said in NEVER[name]), told
        assert re.fullmatch(r"([A-Z].*[^.{},]\.)?", step), told
        assert not re.search(r"None|nan|  |\. [A-Z]|from ([\d.]+) to \1\b", step), told
        if rise := re.search(r"rose from ([\d.]+) to ([\d.]+\d)", step):
            assert float(rise[1]) < float(rise[2]), told
        if still := re.search(r"hardly moved, from ([\d.]+) to ([\d.]+\d)", step):
            assert float(still[2]) == pytest.approx(float(still[1]), rel=0.06), told
        if facts["course"]["ended"] == "patience":
            assert "longer" not in step, told
        if any("by heart" in note for note in verdict.notes):
            assert not re.search("longer|Raise|Lower|larger", step), told
            assert not step or not any("epochs" in note for note in verdict.notes), told


def test_each_rule_of_each_outcome_applies_to_some_course():
    best = judged({"adapter": EQUAL}) | {"base": {"rougeL": 0.97}, "adapter": {"rougeL": 0.98}}
    worst = judged({"adapter": WORSE}) | {"base": {"rougeL": 0.97}, "adapter": {"rougeL": 0.77}}
    solved = {"unsure": [best], "bad": [worst], "neither": [judged(gains(adapter=EQUAL)) | {"base": {"rougeL": 0.97}}]}
    for name, rules in NEXT_STEPS.items():
        cases = OUTCOMES[name] + solved.get(name, [])
        assert {outcome(scores, *advise(scores)) for scores in cases} == {name}
        steps = {
            judge(scores | facts | rows).next_step for scores, facts, rows in itertools.product(cases, courses(), ROWS)
        }
        for _, sentence in rules:
            said = re.sub(r"\\\{.*?\\\}", ".*", re.escape(sentence))
            assert any(re.fullmatch(said, step) for step in steps), (name, sentence)
