"""Scoring row by row: which rows are answered when, what is kept, and what the scores say of each row."""

import json
import shutil
from contextlib import nullcontext
from math import inf
from types import SimpleNamespace

import pytest
from conftest import small_recipe, without_estimates
from datasets import load_from_disk
from tables import table
from tiny import tiny_model

from tuner import runs
from tuner.errors import TunerError
from tuner.evaluation import answers
from tuner.evaluation.answers import evaluate
from tuner.hub import card_use
from tuner.inference.generate import Answer
from tuner.inference.variants import ActiveModel, LoadedVariants
from tuner.models.device import device_type
from tuner.planning import plan
from tuner.planning.pace import PACES, pace_key, recall
from tuner.runs import Run
from tuner.tasks import TASKS
from tuner.training.window import train

QUESTIONS = ["five long words are here", "a", "three words here", "two words", "four words are here", "never answered"]


class Clock:
    """Whether to stop, and why."""

    def __init__(self, later: str = "window"):
        self.reason, self.later, self.left = None, later, inf

    def is_set(self) -> bool:
        return self.reason is not None


class Speaker:
    """Stands for the model: the base repeats a question in capitals and the adapter gives its reference. Takes 3
    seconds, and can be cut off by a clock after so many batches."""

    def __init__(self, clock: Clock | None = None, batches: int = 0):
        self.clock, self.batches, self.asked, self.now = clock, batches, [], 100.0

    def answer(self, loaded, active, variants, conversations, sampling, longest, stop=None) -> list[Answer]:
        questions = [messages[-1]["content"] for messages in conversations]
        self.asked.append((active.variants, variants, questions, sampling.max_new_tokens, stop))
        self.now += 3.0
        if self.clock and len(self.asked) > self.batches:
            self.clock.reason = self.clock.later
        pairs = zip(variants, questions, strict=True)
        return [Answer(q.upper() if v == "base" else f"re {q}") for v, q in pairs]

    def monotonic(self) -> float:
        return self.now


def loaded(*groups: tuple[str, ...], padding: int | None = 7) -> LoadedVariants:
    """Variants whose models are their names."""
    actives = [ActiveModel(group, lambda group=group: nullcontext(" ".join(group))) for group in groups]
    base = SimpleNamespace(row=TASKS["generation"])
    return LoadedVariants(base, SimpleNamespace(pad_token_id=padding), actives)


TOGETHER, IN_TURN = (("base", "adapter"),), (("base",), ("adapter",))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Run:
    recipe = small_recipe(data__heldout=6, training__batch_size=3, evaluation__rows=5, evaluation__max_new_tokens=11)
    rows = table(["prompt", "completion"], *[(f"q {i}", f"a {i}") for i in range(12)])
    with without_estimates():
        return plan.prepare(recipe, rows, path=tmp_path_factory.mktemp("prepared") / "run")


@pytest.fixture
def run(prepared, tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    mine = Run(shutil.copytree(prepared.path, tmp_path / "mine"))
    ask(mine, QUESTIONS)

    def losses(kind, model, rows, size, padding) -> tuple[list[float], list[int]]:
        scored = len(mine.heldout()[: Run(mine.path).recipe.evaluation.rows]) or len(rows)
        return [1.234567 if "base" in model else 0.5] * scored, [1] * scored

    monkeypatch.setattr(answers, "row_losses", losses)
    return mine


def ask(run: Run, questions: list[str]) -> None:
    """The questions become the run's held-out prompts."""
    rows = [{"messages": [{"role": "user", "content": q}], "reference": f"re {q}"} for q in questions]
    run.write_text("data/heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def speaker(monkeypatch):
    """Makes a model speak, and with it the time go on."""

    def made(*args) -> Speaker:
        speaking = Speaker(*args)
        monkeypatch.setattr(answers.generate, "answer", speaking.answer)
        monkeypatch.setattr(answers, "time", speaking)
        return speaking

    return made


def without_time(events: list[dict]) -> list[dict]:
    return [{key: value for key, value in event.items() if key != "time"} for event in events]


@pytest.mark.parametrize("groups", [TOGETHER, IN_TURN], ids=["together", "in turn"])
def test_rows_are_answered_shortest_first_and_each_keeps_its_own_answers(run, speaker, monkeypatch, groups):
    monkeypatch.setattr(answers, "BATCH", 2)
    speaking = speaker()
    run.write_json("answers.json", {"2": {"base": "KEPT", "adapter": "kept"}})
    *progress, last = without_time(list(evaluate(run, loaded(*groups))))
    seconds = 3.0 * len(groups)
    assert progress == [
        {"event": "evaluating", "row": 1, "rows": 5},
        {"event": "answered", "row": 3, "seconds_per_answer": seconds / 2},
        {"event": "evaluating", "row": 3, "rows": 5},
        {"event": "answered", "row": 5, "seconds_per_answer": seconds / 2},
        {"event": "evaluating", "row": 5, "rows": 5},
    ]
    batches = [["a", "two words"], ["four words are here", "five long words are here"]]
    if groups == TOGETHER:
        expected = [(("base", "adapter"), ["base"] * 2 + ["adapter"] * 2, b * 2, 11, None) for b in batches]
    else:
        expected = [((variant,), [variant] * 2, b, 11, None) for b in batches for variant in ("base", "adapter")]
    assert speaking.asked == expected
    scores = run.read_json("evaluation.json")
    assert [(e["prompt"], e["reference"], e["base"], e["adapter"]) for e in scores["examples"]] == [
        (q, f"re {q}", *(("KEPT", "kept") if q == "three words here" else (q.upper(), f"re {q}")))
        for q in QUESTIONS[:5]
    ]
    assert [e["adapter_rougeL"] for e in scores["examples"]] == [1, 1, 0, 1, 1]
    assert [e["base_rougeL"] for e in scores["examples"]] == pytest.approx([10 / 11, 2 / 3, 0, 0.8, 8 / 9], abs=1e-4)
    assert (scores["rows"], scores["adapter"]["exact_match"]) == (5, 0.8)
    assert (scores["base"]["loss"], scores["adapter"]["loss"]) == (1.23457, 1.23457 if groups == TOGETHER else 0.5)
    assert last == {"event": "evaluation"} | {key: value for key, value in scores.items() if key != "examples"}
    assert without_time(run.events())[-6:] == [*progress, last]
    assert not (run.path / "answers.json").exists()
    assert recall(runs.RUNS / PACES, pace_key(device_type(), run.recipe)) == {
        "seconds_per_answer": seconds / 2,
        "runs": 1,
    }


@pytest.mark.parametrize("reason", ["window", "stopped"])
def test_answers_that_were_cut_off_are_asked_for_again_and_the_others_are_not(run, speaker, monkeypatch, reason):
    monkeypatch.setattr(answers, "BATCH", 2)
    clock = Clock(reason)
    speaking = speaker(clock, 1)
    events = without_time(list(evaluate(run, loaded(*TOGETHER), clock)))
    assert [event["event"] for event in events] == ["evaluating", "answered", "evaluating", "unscored"]
    assert events[-1] == {"event": "unscored", "reason": reason, "row": 2, "rows": 5}
    assert speaking.asked[0][4] is clock
    costs = {"costs": {"base": [0, 0, 0.75], "adapter": [0, 0, 0.75]}}  # they share the seconds of their batch
    kept = {"1": {"base": "A", "adapter": "re a"}, "3": {"base": "TWO WORDS", "adapter": "re two words"}}
    kept = {row: given | costs for row, given in kept.items()}
    assert run.read_json("answers.json") == kept
    assert run.read_json("evaluation.json") is None
    later = speaker()
    list(evaluate(run, loaded(*TOGETHER), Clock()))
    if reason == "window":  # which halves the batch
        assert [asked[2][0] for asked in later.asked] == QUESTIONS[2:3] + QUESTIONS[4:5] + QUESTIONS[:1]
    assert run.read_json("evaluation.json")["adapter"]["exact_match"] == 1


WINDOW, STOPPED = ({"event": "unscored", "reason": reason, "row": 0, "rows": 70} for reason in ("window", "stopped"))
ANSWERED, QUEUED, OTHER = ({"event": kind} for kind in ("answered", "queued", "evaluating"))


@pytest.mark.parametrize(
    ("before", "sizes"),
    [
        ([], [32, 32, 6]),
        ([STOPPED, STOPPED], [32, 32, 6]),
        ([WINDOW, OTHER], [16, 16, 16, 16, 6]),
        ([WINDOW, STOPPED, WINDOW], [8] * 8 + [6]),
        ([WINDOW, WINDOW, ANSWERED, WINDOW], [16, 16, 16, 16, 6]),
        ([WINDOW, WINDOW, QUEUED], [32, 32, 6]),
        ([WINDOW] * 5, [1] * 70),
    ],
)
def test_a_batch_is_halved_for_each_window_that_closed_on_it_since_the_last_answer(run, speaker, before, sizes):
    ask(run, [f"question {i}" for i in range(70)])
    run.write_text("recipe.yaml", run.recipe.with_settings({"evaluation.rows": 80}).to_yaml())
    speaking, mine = speaker(), Run(run.path)
    for event in before:
        mine.append(event)
    list(evaluate(mine, loaded(("base",), ("adapter",))))
    assert [len(asked[2]) for asked in speaking.asked] == [size for size in sizes for _ in range(2)]
    scores = mine.read_json("evaluation.json")
    assert (scores["rows"], len(scores["examples"])) == (70, 8)
    paces = [event["seconds_per_answer"] for event in mine.events() if "seconds_per_answer" in event]
    assert paces == [round(6.0 / size, 4) for size in sizes]


def test_an_answer_longer_than_a_window_is_refused_with_what_to_do(run):
    for _ in range(6):
        run.append(WINDOW)
    with pytest.raises(TunerError) as refused:
        list(evaluate(run, loaded(*TOGETHER)))
    assert refused.value.problems == (
        "Run mine can't be scored: one answer takes longer than a window. Its adapter is trained, and you can chat "
        "with it. To get a score, train again with a smaller evaluation.max_new_tokens or evaluation.few_shot.",
    )


@pytest.mark.parametrize(("padding", "rows", "scored"), [(7, 4, 4), (None, 6, 6), (7, 9, 6)])
def test_the_loss_is_of_as_many_rows_as_are_answered_in_batches_as_in_training(
    run, speaker, monkeypatch, padding, rows, scored
):
    speaker()
    asked = []
    monkeypatch.setattr(
        answers,
        "row_losses",
        lambda kind, model, rows, size, pad: (
            asked.append((kind, model, rows["input_ids"][:], size, pad)) or ([2] * len(rows), [1] * len(rows))
        ),
    )
    run.write_text("recipe.yaml", run.recipe.with_settings({"evaluation.rows": rows}).to_yaml())
    settings = run.plan["settings"] | {"batch_size": 2}  # 3 in the recipe
    run.write_json("plan.json", run.plan | {"settings": settings})
    mine = Run(run.path)
    list(evaluate(mine, loaded(*IN_TURN, padding=padding)))
    ids = load_from_disk(str(run.data / "heldout"))["input_ids"][:scored]
    assert len(ids) == scored
    assert asked == [("next_token", variant, ids, 2, padding or 0) for variant in ("base", "adapter")]


def test_rows_without_prompts_are_judged_by_their_perplexity_alone(run, speaker):
    ask(run, [])
    run.write_text("recipe.yaml", run.recipe.with_settings({"evaluation.metrics": ["answer_f1", "rougeL"]}).to_yaml())
    run, speaking = Run(run.path), speaker()
    _, event = without_time(list(evaluate(run, loaded(*IN_TURN))))
    assert not speaking.asked
    gain = {"perplexity": 0.5203, "wins": 5, "losses": 0, "ties": 0}
    scores = {
        "rows": 5,
        "metric": "perplexity",
        "base": {"perplexity": 3.4369, "loss": 1.23457},
        "adapter": {"perplexity": 1.6487, "loss": 0.5},
        "gain": gain,
        "pairs": [{"of": "adapter", "over": "base", **gain}],
        "other_metrics": [],
        "heldout_rows": 6,
    }
    assert event == {"event": "evaluation", **scores}
    assert run.read_json("evaluation.json") == scores | {"examples": []}


def test_a_run_that_cannot_be_scored_says_why(run):
    run.write_text("recipe.yaml", run.recipe.with_settings({"evaluation.metrics": "accuracy"}).to_yaml())
    with pytest.raises(TunerError, match="accuracy can't score text generation"):
        list(evaluate(Run(run.path), loaded(*TOGETHER)))
    (run.data / "heldout.jsonl").unlink()
    with pytest.raises(TunerError) as refused:
        answers.heldout_rows(run)
    assert refused.value.problems == ("Run mine has no held-out rows. Train its recipe again in a new run.",)


@pytest.mark.usefixtures("no_estimates")
def test_a_line_separator_inside_a_row_does_not_cut_it(tmp_path):
    cells = [(f"first line\u2028and\x85next {i}", f"so\u2029be it {i}") for i in range(7)]
    run = plan.prepare(small_recipe(), table(["prompt", "completion"], *cells), path=tmp_path / "run")
    ((prompt, reference),) = [(row["messages"][-1]["content"], row["reference"]) for row in answers.heldout_rows(run)]
    assert (prompt, reference) in cells
    assert "first line" in card_use.use(run, run.recipe, None, "me/adapter", "peft")


@pytest.mark.usefixtures("no_estimates")
def test_scoring_runs_no_template_which_might_never_end(tmp_path):
    base = tiny_model(tmp_path / "base")
    run = plan.prepare(small_recipe(model__name=str(base)), path=tmp_path / "run")
    (base / "chat_template.jinja").write_text("{{ raise_exception('rendered again') }}")
    *_, last = train(run)
    assert (last["event"], last["rows"]) == ("evaluation", 4)
