"""The verdict is right where it is known what helps: a prompt with examples, only tuning, or nothing.

Each case is a real run, from its rows to its scores. The seed is that of rows, split, examples and adapter.
"""

import json
import random
from pathlib import Path
from typing import NamedTuple

import planted
import pytest
from conftest import mostly_long

from tuner.evaluation.verdict import judge
from tuner.planning import plan
from tuner.recipe import Recipe
from tuner.training.window import train

pytestmark = pytest.mark.usefixtures("no_estimates")
SEEDS = range(5)
VARIANTS = ("base", "few_shot", "few_shot_similar", "adapter")
SOLVED, CHANCE = 0.95, 0.25  # scores at least, and at most; one of sixteen rooms is right by chance
RUN = {
    "model.quantization": "none",
    "data.heldout": 64,
    "method.rank": 8,
    "training.learning_rate": 5e-3,
    "training.batch_size": 16,
    "training.warmup_steps": 5,
    "budget.steps": 120,
    "evaluation.rows": 64,
    "evaluation.max_new_tokens": 3,
}


class Case(NamedTuple):
    """Rows, what differs from RUN, and what is right to say: who solves the task, the advice, and the next step."""

    base: str
    depends_on: str
    settings: dict
    solved_by: set[str]
    advice: str
    next_step: str


MORE_ROWS, LONGER, HIGHER = "Train on more rows", "Train longer", "Raise the learning rate"
BY_HEART = {"training.patience": 0, "training.keep": "last", "budget.steps": 200}
FIXED = {"data.heldout": 16, "evaluation.rows": 16, "evaluation.few_shot": 11}
CASES = {
    "a prompt does as well": Case("reader", "thing", {}, {"few_shot_similar", "adapter"}, "prompt", "no training"),
    "a fixed prompt does as well": Case("reader", "few", FIXED, {*VARIANTS[1:]}, "prompt", "these examples"),
    "only tuning helps": Case("reader", "name", {}, {"adapter"}, "tune", ""),
    "a base that reads no examples": Case("blank", "name", {"budget.steps": 100}, {"adapter"}, "tune", ""),
    "rows learned by heart": Case("reader", "nothing", BY_HEART, set(), "neither", MORE_ROWS),
    "too low a rate": Case("reader", "name", {"training.learning_rate": 5e-6}, set(), "neither", HIGHER),
    "too few steps": Case("blank", "name", {"budget.steps": 10}, set(), "neither", LONGER),
}
QUICK = (("a base that reads no examples", 0), ("too few steps", 0))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The base of a name, trained when it is first asked for."""
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in made:
            episodes = {"reader": planted.EPISODES, "blank": 0}[name]
            made[name] = planted.reader(tmp_path_factory.mktemp("planted") / name, episodes=episodes)
        return made[name]

    return base


def evaluation(depends_on: str, base: Path, seed: int, folder: Path, settings: dict) -> dict:
    """What a run with these rows writes into its evaluation.json."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in planted.rows(depends_on, seed)))
    recipe = Recipe().with_settings(RUN | {"model.name": str(base), "data.source": str(file), "seed": seed} | settings)
    run = plan.prepare(recipe, path=folder / f"run-{seed}")
    list(train(run))
    return run.read_json("evaluation.json")


@pytest.mark.parametrize(("name", "seed"), mostly_long([(name, seed) for name in CASES for seed in SEEDS], *QUICK))
def test_the_verdict_is_right_where_the_answer_is_known(name, seed, bases, tmp_path):
    case = CASES[name]
    scores = evaluation(case.depends_on, bases(case.base), seed, tmp_path, case.settings)
    got = {variant: scores[variant][scores["metric"]] for variant in VARIANTS}
    assert {variant for variant in VARIANTS if got[variant] >= SOLVED} == case.solved_by, got
    unsolved = set(VARIANTS) - case.solved_by - ({"few_shot"} if case.advice == "prompt" else set())
    assert all(got[variant] <= CHANCE for variant in unsolved), got  # a fixed prompt has some of the things
    verdict = judge(scores)
    assert verdict.advice == case.advice
    assert case.next_step in verdict.next_step
    if case.advice == "tune":
        assert LONGER not in verdict.next_step  # nothing is left to gain


@pytest.mark.long
def test_where_nothing_helps_hardly_ever_a_run_is_said_to_have_helped(bases, tmp_path):
    """Intervals of 95% are wrong now and then, so it is about ten runs together."""
    runs = [evaluation("nothing", bases("reader"), seed, tmp_path, {}) for seed in range(10)]
    verdicts = [judge(scores) for scores in runs]
    neither = [verdict.next_step for verdict in verdicts if verdict.advice == "neither"]
    assert len(neither) >= 9, [verdict.advice for verdict in verdicts]
    assert all(MORE_ROWS in step for step in neither), neither


@pytest.mark.long
def test_the_base_answers_from_its_prompt_and_knows_nothing_else(bases):
    import torch
    from transformers import AutoModelForCausalLM

    model, words, rng = AutoModelForCausalLM.from_pretrained(bases("reader")), planted.tokenizer(), random.Random(1)
    texts = [planted.conversation(rng, 8) for _ in range(64)]
    turns = torch.tensor(words(texts, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        answers = model.eval()(input_ids=turns).logits.argmax(-1).view(64, planted.TURNS, -1)[:, :, 2]
    turns = turns.view(64, planted.TURNS, -1)  # of five tokens: the mark, a name, a thing, a room, the end
    was_answered = (turns[:, :, None, 2] == turns[:, None, :, 2]).tril(-1).any(-1)
    is_right = answers == turns[:, :, 3]
    assert is_right[was_answered].float().mean() >= SOLVED
    assert is_right[:, 0].float().mean() <= CHANCE
