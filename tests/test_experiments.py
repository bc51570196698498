"""Experiments: what can be asked for, how certain their results are, and what is said of them. Nothing is trained."""

import csv
import io
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from conftest import in_order, mostly_long
from scored import experiment_of, scored_run

from tuner.errors import TunerError
from tuner.experiments import certainty, plot, search
from tuner.experiments.beside import beside
from tuner.experiments.candidates import request, with_settings
from tuner.experiments.certainty import Scored
from tuner.experiments.ranking import results
from tuner.methods.registry import METHODS
from tuner.metrics import METRICS, TEXT, Metric, mean_of
from tuner.recipe import Recipe

RECIPE = Recipe.load("corporate")
NATURE = random.Random(0)
ROUGE = METRICS["rougeL"]


@pytest.fixture(autouse=True)
def same_nature() -> None:
    """Each test draws the same rows, whatever ran before it."""
    NATURE.seed(0)


def rows(share: float, number: int = 64) -> list[bool]:
    """Which rows are answered right, about this share of them."""
    return [NATURE.random() < share for _ in range(number)]


# -- what can be asked for


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"methods": ["lorra", "ia3"]}, "There is no method 'lorra'. Choose from: lora, "),
        ({"methods": []}, "There is no method ''. Choose from: lora, "),
        ({"methods": ["lora"]}, "lora alone can't be compared. Name at least two methods, or ask for a search or "),
        ({}, "There is nothing to compare. Name at least two methods, or ask for a search or for several seeds."),
        (
            {"methods": ["lora", "lora"]},
            "A method is named twice (lora, lora). To see how far chance goes, use several",
        ),
        ({"search": 1}, "A search takes at least 2 trials, and this one has 1."),
        ({"search": 0}, "A search takes at least 2 trials, and this one has 0."),
        ({"search": 3, "seeds": 3}, "A search and several seeds are two experiments. Search first, then train the "),
        ({"seeds": 1}, "Give 2 to 20 seeds, not 1: one alone says nothing about chance."),
        ({"seeds": 21}, "Give 2 to 20 seeds, not 21"),
        ({"search": 101}, "101 runs are more than an experiment may have (100)."),
        ({"seeds": 2, "seconds": 0}, "The seconds must be more than 0."),
        (
            {"seeds": 2, "seconds": 30, "total_seconds": 50},
            "50 seconds in all are too few for two runs of 30 seconds.",
        ),
        ({"seeds": 2, "seconds": float("nan")}, "The seconds must be more than 0."),
        ({"seeds": 3, "recipe": RECIPE.with_settings({"seed": 2**31 - 2})}, "seed: 2147483648 can't be used"),
    ],
)
def test_what_can_not_be_compared_is_refused_with_what_to_do(asked, problem):
    methods, recipe = asked.pop("methods", None), asked.pop("recipe", RECIPE)
    with pytest.raises(TunerError) as refusal:
        request(recipe, methods, **asked)
    assert problem in str(refusal.value)


@pytest.mark.parametrize("asked", [{"methods": ["lorra"]}, {"methods": []}, {"search": 0}, {"seeds": 0}])
def test_one_mistake_is_one_problem(asked):
    with pytest.raises(TunerError) as refusal:
        request(RECIPE, **asked)
    assert len(refusal.value.problems) == 1


@pytest.mark.parametrize(
    ("names", "given", "precision"),
    [
        (["ia3", "lora"], "nf4", "nf4"),
        (["lora", "layernorm"], "int8", "int8"),
        (["lora", "upper_layers"], "nf4", "none"),
    ],
)
def test_methods_share_a_precision_that_all_can_train_and_each_has_its_own_defaults(names, given, precision):
    settings = {"model.quantization": given, "method.rank": 4, "training.learning_rate": 0.5, "training.batch_size": 4}
    asked = request(RECIPE.with_settings(settings), names, seconds=7.5)
    assert [asked.kind, [name for name, _ in asked.entries()]] == ["methods", names]
    for name, recipe in asked.recipes().items():
        assert (recipe.name, recipe.method.name, recipe.method.rank) == (name, name, "auto")
        assert recipe.model.quantization == precision
        assert recipe.budget.model_dump(exclude_none=True) == {"seconds": 7.5}
        assert (recipe.training.learning_rate, recipe.training.batch_size) == ("auto", 4)
    told = f"All train on the 16-bit base model, because {METHODS[names[1]].title} can't on another."
    assert asked.notes == ([told] if precision != given else [])


def test_seeds_change_what_training_draws_and_never_the_held_out_rows():
    asked = request(RECIPE.with_settings({"seed": 5, "method.rank": 4}), seeds=3)
    entries = asked.entries()
    recipes = [with_settings(asked.recipe, settings, label) for label, settings, _ in entries]
    assert [(r.seed, r.data.seed, r.method.rank, r.name) for r in recipes] == [
        (5 + n, 5, 4, f"lora, seed {5 + n}") for n in range(3)
    ]
    both = request(RECIPE, ["lora", "ia3"], seeds=2, total_seconds=60)
    assert [label for label, *_ in both.entries()] == ["lora, seed 0", "ia3, seed 0", "lora, seed 1", "ia3, seed 1"]
    assert both.recipe.budget.seconds == both.seconds == 15
    assert request(RECIPE.with_settings({"data.seed": 9}), seeds=2).entries()[1][1] == {"seed": 1, "data.seed": 9}


def test_without_seconds_each_run_has_the_recipes_own_budget_and_with_some_in_all_they_are_divided():
    assert request(RECIPE, search=4).recipe.budget == RECIPE.budget
    assert request(RECIPE, search=4, total_seconds=100).seconds == 25
    both = request(RECIPE, search=4, seconds=30, total_seconds=100)
    assert (both.seconds, both.total_seconds) == (30, 100)


# -- the trials of a search

PLANS = {
    "lora": {"settings": {"learning_rate": 0.002, "batch_size": 16, "rank": 16, "alpha": 32}, "epochs": 3.0},
    "ia3": {"settings": {"learning_rate": 0.02, "batch_size": 16}, "epochs": 3.0},
}


def space_of(**settings) -> search.Space:
    recipe = RECIPE.with_settings({"budget.epochs": 3.0} | {k.replace("__", "."): v for k, v in settings.items()})
    return search.space_of(request(recipe, ["lora", "ia3"], search=6), PLANS)


def searched(space: search.Space, trials: int, earlier: list[search.Trial] | None = None) -> list[search.Trial]:
    """A search whose score is best at a rate of 0.0005 for LoRA, and whose fourth trial fails."""
    found = list(earlier or [])
    while len(found) < trials:
        settings = search.propose(space, trials, 3, found)
        rate = settings.get(
            "training.learning_rate", space[settings["method.name"]]["training.learning_rate"]["first"]
        )
        score = -abs(np.log10(rate / 0.0005)) - (settings["method.name"] == "ia3")
        found.append(search.Trial(settings, None if len(found) == 3 else score))
    return found


def test_only_settings_that_a_method_has_are_searched_around_what_its_plan_chose():
    space = space_of()
    assert set(space["lora"]) == {"method.rank", "training.learning_rate", "training.batch_size", "budget.epochs"}
    assert set(space["ia3"]) == {"training.learning_rate", "training.batch_size", "budget.epochs"}
    assert space["lora"]["method.rank"] == {"low": 4, "high": 64, "first": 16, "whole": True}
    assert space["ia3"]["training.learning_rate"] == pytest.approx(
        {"low": 0.002, "high": 0.2, "first": 0.02, "whole": 0}
    )
    for given in ({"budget__seconds": 9}, {"budget__steps": 9}):
        assert not any("budget.epochs" in ranges for ranges in space_of(**given).values())


@pytest.mark.parametrize(("rate", "size", "epochs"), [(1e-12, 1, 1e-4), (1.0, 1024, 1e7)])
def test_a_search_has_room_around_settings_at_the_ends_of_what_a_recipe_may_have(rate, size, epochs):
    settings = {"learning_rate": rate, "batch_size": size, "rank": size}
    asked = request(RECIPE.with_settings({"budget.epochs": 1}), ["lora"], search=4)
    space = search.space_of(asked, {"lora": {"settings": settings, "epochs": epochs}})
    assert all(found["low"] <= found["first"] <= found["high"] for found in space["lora"].values())
    assert len(searched(space, 4)) == 4


def test_a_search_begins_with_the_defaults_and_goes_where_trials_are_good():
    space, trials = space_of(), searched(space_of(), 20)
    assert [trial.settings for trial in trials[:2]] == [{"method.name": "lora"}, {"method.name": "ia3"}]
    for settings, _ in trials[2:]:
        method = settings["method.name"]
        assert set(settings) == {"method.name", *space[method]}
        for setting, allowed in space[method].items():
            assert allowed["low"] <= settings[setting] <= allowed["high"]
            assert isinstance(settings[setting], int) == allowed["whole"]
        assert with_settings(RECIPE, settings).method.name == method
    late = [trial.score for trial in trials[10:]]
    early = [trial.score for trial in trials[2:10] if trial.score is not None]
    assert np.mean(late) > np.mean(early)
    assert max(late) > -0.2


@pytest.mark.parametrize("known", [1, 4, 5])
def test_a_resumed_search_proposes_what_an_uninterrupted_one_would(known):
    space = space_of()
    whole = searched(space, 8)
    assert whole[3].score is None  # its failure did not stop the search
    read_back = json.loads(json.dumps(whole[:known]))
    assert searched(space, 8, [search.Trial(*trial) for trial in read_back]) == whole


# -- luck

MEASURED_SPREAD = 0.02  # of LoRA's scores over 24 seeds on the shipped models, that of the rows left out


def drawn(seeds: int, sharing: np.ndarray, draw: np.random.Generator, spread: float, better: float = 0.0) -> list:
    """A candidate's seeds on rows that are as hard for all candidates; a seed moves all of its rows."""
    made = []
    for _ in range(seeds):
        chance = np.clip(sharing + better + draw.normal(0, spread), 0, 1)
        each = (draw.random(len(sharing)) < chance).astype(float)
        made.append(Scored(each.mean(), each - each.mean(), each))
    return made


def claims(candidates: list[list[Scored]], pairs: int | None = None) -> bool:
    """Whether one of any pair would be called clearly better."""
    number = len(candidates)
    seeds, together = certainty.seeds_of(candidates), pairs or number * (number - 1) // 2
    gains = [
        certainty.gain(one, other, ROUGE, (0.0, 1.0), seeds, together)
        for place, one in enumerate(candidates)
        for other in candidates[place + 1 :]
    ]
    return any(gain.low > 0 or gain.high < 0 for gain in gains)


@pytest.mark.parametrize(
    ("candidates", "seeds", "number"),
    mostly_long([(2, 1, 64), (2, 1, 16), (4, 1, 64), (6, 1, 32), (2, 3, 64), (3, 2, 32), (2, 1, 1000)], (2, 1, 64)),
)
def test_a_method_against_itself_is_no_difference_in_at_least_95_percent(candidates, seeds, number):
    draw, false = np.random.default_rng(candidates * seeds), 0
    for _ in range(2000):
        sharing = draw.beta(1, 1, number)
        false += claims([drawn(seeds, sharing, draw, MEASURED_SPREAD) for _ in range(candidates)])
    assert false / 2000 <= 0.05


def test_a_method_that_is_better_is_said_to_be():
    draw, found = np.random.default_rng(1), {1: 0, 3: 0}
    for seeds in found:
        for _ in range(200):
            sharing = draw.beta(1, 1, 64) * 0.5
            found[seeds] += claims([drawn(seeds, sharing, draw, 0.02), drawn(seeds, sharing, draw, 0.02, 0.4)])
    assert min(found.values()) >= 190


def test_intervals_that_hold_together_are_wider_and_the_base_has_no_seeds():
    draw = np.random.default_rng(4)
    one, other = (drawn(1, draw.beta(1, 1, 64), draw, 0.0) for _ in range(2))
    alone, together = (certainty.gain(one, other, ROUGE, (0.0, 1.0), None, pairs) for pairs in (1, 6))
    base, bases = (certainty.gain(one, other, ROUGE, (0.0, 1.0), None, n, is_trained=False) for n in (1, 6))
    assert bases.low < base.low < base.high < bases.high
    assert together.low < alone.low < base.low < base.value < base.high < alone.high < together.high
    opposite = certainty.gain(other, one, ROUGE, (0.0, 1.0))
    assert (opposite.value, opposite.low, opposite.high) == pytest.approx((-alone.value, -alone.high, -alone.low))


def test_rows_that_are_equal_on_average_are_ties_in_whatever_order_their_seeds_come():
    seeds = [Scored(mean, np.zeros(12), np.full(12, mean)) for mean in (0.1, 0.2, 0.3)]
    assert certainty.wins(seeds, seeds[::-1], ROUGE) == {"wins": 0, "losses": 0, "ties": 12}


def test_figures_of_seeds_are_the_mean_and_the_standard_deviation():
    draw = np.random.default_rng(2)
    made = drawn(4, draw.beta(1, 1, 40), draw, 0.1)
    scores = [run.score for run in made]
    value, low, high = certainty.mean(made, (0.0, 1.0), certainty.seeds_of([made]))
    assert value == pytest.approx(np.mean(scores))
    assert certainty.spread(made) == pytest.approx(np.std(scores, ddof=1))
    half = 3.182446 * np.std(scores, ddof=1) / 2  # Student's t of three degrees of freedom, four seeds
    assert high - value >= half - 1e-9
    assert value - low >= half - 1e-9
    alone = certainty.mean(made[:1], (0.0, 1.0))
    assert 0 < alone.low < made[0].score < alone.high < 1
    assert certainty.spread(made[:1]) is None


# -- what is said


def test_the_candidate_with_the_fewest_errors_comes_first(tmp_path, monkeypatch):
    wrong = Metric("errors", "errors", "", "", "", TEXT, mean_of(lambda reference, answer: float(reference != answer)))
    monkeypatch.setitem(METRICS, "errors", replace(wrong, higher_is_better=False))
    shares = {"ia3": 0.7, "lora": 0.9, "boft": 0.5}
    made = [scored_run(tmp_path, name, rows(share), metric="errors") for name, share in shares.items()]
    assert [line["label"] for line in results(experiment_of(made)).lines] == ["lora", "ia3", "boft"]


def test_the_first_is_clearly_better_or_may_be_lucky(tmp_path):
    better, worse = (scored_run(tmp_path, name, rows(share)) for name, share in (("good", 0.95), ("poor", 0.2)))
    like_it = scored_run(tmp_path, "like_it", rows(0.9))
    found = results(experiment_of([worse, better]))
    assert (found.metric, found.rows, found.best) == ("rougeL", 64, "good")
    assert [line["label"] for line in found.lines] == ["good", "poor"]
    pair = next(pair for pair in found.pairs if pair["over"] == "poor")
    assert pair["wins"] > 30
    assert 0 < pair["low"] < pair["rougeL"] < pair["high"]
    assert found.sentences[0] == (
        f"good is clearly better than poor, the next best: +{pair['rougeL']:.3f} in ROUGE-L (95% interval "
        f"+{pair['low']:.3f} to +{pair['high']:.3f})."
    )
    assert any(said.startswith("good is clearly better than the base model: +") for said in found.sentences)
    found = results(experiment_of([worse, better, like_it], name="three_again"))
    assert in_order(found.sentences[0], found.best, "scored highest, but that may be luck: it is not clearly better")
    assert "It is clearly better than poor." in found.sentences


def test_few_rows_other_rows_and_rows_of_earlier_versions_are_said(tmp_path):
    few = [scored_run(tmp_path, name, rows(share, 9)) for name, share in (("one", 0.9), ("two", 0.1))]
    found = results(experiment_of(few))
    assert "With 9 rows in common, nobody can tell whether that is luck: it takes 10." in found.sentences[0]
    assert "low" not in found.pairs[0]
    other = scored_run(tmp_path, "other", rows(0.5), first=1000)
    found = results(experiment_of([few[0], other], name="apart"))
    assert found.rows == 0
    assert found.sentences == [
        "The runs have no scored rows in common, so whether the first is first by luck can't be told."
    ]
    earlier = scored_run(tmp_path, "earlier", rows(0.8), keeps_rows=False)
    found = results(experiment_of([other, earlier], name="older"))
    assert [line["label"] for line in found.lines] == ["earlier", "other"]
    assert found.lines[0]["low"] is not None  # as it was scored
    assert found.sentences[0] == "earlier scored highest, but it has no scored rows in common with the others."


def test_seeds_of_a_method_are_one_line_with_its_spread(tmp_path):
    made = [scored_run(tmp_path, f"lora{n}", rows(0.7)) for n in range(3)]
    made += [scored_run(tmp_path, f"ia3{n}", rows(0.1)) for n in range(3)]
    found = results(experiment_of(made, candidates=["lora"] * 3 + ["ia3"] * 3))
    assert [(line["label"], line["finished_seeds"]) for line in found.lines] == [("lora", 3), ("ia3", 3)]
    scores = [run.read_json("evaluation.json")["adapter"]["rougeL"] for run in made[:3]]
    assert found.lines[0]["score"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert found.lines[0]["spread"] == pytest.approx(np.std(scores, ddof=1), abs=1e-4)
    assert found.sentences[0].startswith("lora is clearly better than ia3")
    alone = results(experiment_of(made[:3], "seeds", candidates=["lora"] * 3, name="alone"))
    assert in_order(alone.sentences[0], "3 seeds of lora score", "in ROUGE-L on average, with a standard deviation of")


def test_a_searchs_winner_is_scored_by_rows_that_did_not_choose_it(tmp_path):
    """Trials that are all alike: the best looks better by the rows that choose it, and not by the others."""
    made = [scored_run(tmp_path, f"trial {n}", rows(0.5)) for n in range(1, 13)]
    experiment = experiment_of(made, "search", trials=12)
    found = results(experiment)
    assert (found.rows, found.chosen_by) == (64, 32)
    best = found.lines[0]
    right = {
        run.recipe.name: [
            row["adapter"] == row["reference"]
            for row in map(json.loads, (run.path / "evaluation_rows.jsonl").read_text().splitlines())
        ]
        for run in made
    }
    assert best["choosing"] == max(sum(rows[::2]) / 32 for rows in right.values())
    assert {line["label"]: line["score"] for line in found.lines} == {
        label: sum(rows[1::2]) / 32 for label, rows in right.items()
    }
    assert in_order(found.sentences[0], best["label"], "is the best of 12 trials by 32 of the 64 held-out rows")
    if best["label"] != "trial 1":
        assert "That is not clearly better than trial 1, the settings that there were" in found.sentences[1]
    few = [scored_run(tmp_path / "few", f"trial {n}", rows(0.5, 19)) for n in range(1, 4)]
    found = results(experiment_of(few, "search", trials=3))
    assert found.chosen_by == 0
    assert "is probably too good, since the same 19 rows chose it" in found.sentences[0]


def test_the_choosing_rows_decide_and_the_others_score(tmp_path):
    even = [number % 2 == 0 for number in range(40)]
    lucky = scored_run(tmp_path, "trial 2", even)  # right on just the rows that choose
    steady = scored_run(tmp_path, "trial 1", [number % 4 < 2 for number in range(40)])
    found = results(experiment_of([steady, lucky], "search", trials=2))
    first, second = found.lines
    assert (first["label"], first["choosing"], first["score"]) == ("trial 2", 1.0, 0.0)
    assert (second["choosing"], second["score"]) == (0.5, 0.5)
    assert "scores 0.000 in ROUGE-L" in found.sentences[0]


def test_the_front_is_of_what_nothing_beats_at_its_cost(tmp_path):
    figures = {"cheap": (0.3, 1, 10), "good": (0.9, 8, 400), "dear": (0.6, 9, 900), "small": (0.6, 7, 5)}
    made = [
        scored_run(tmp_path, name, [n < 64 * share for n in range(64)], seconds=seconds, parameters=size)
        for name, (share, seconds, size) in figures.items()
    ]
    found = results(experiment_of(made))
    fronts = {line["label"]: set(line["fronts"]) for line in found.lines}
    every = {"seconds", "trainable_parameters"}
    assert fronts == {"cheap": {"seconds"}, "good": every, "dear": set(), "small": every}


@pytest.mark.parametrize("label", ["high", "low"])
def test_a_mean_beyond_its_bound_by_a_rounding_error_is_drawn(label, tmp_path):
    found = results(experiment_of([scored_run(tmp_path, "one", rows(0.5))]))
    found.lines[0][label] = found.lines[0]["score"] - 1e-16 * (1 if label == "high" else -1)
    assert plot.png(found).startswith(b"\x89PNG")


def test_a_loss_that_is_no_number_comes_last_and_without_scores_nothing_is_on_the_front(tmp_path):
    names = {"broken": float("nan"), "endless": float("inf"), "two": 2.0, "one": 1.0}
    made = [scored_run(tmp_path, name, rows(0.5), seconds=n) for n, name in enumerate(names, 1)]
    for run, loss in zip(made, names.values(), strict=True):
        run.write_json("evaluation.json", {"base": {"loss": 3.0}, "adapter": {"loss": loss}, "gain": None})
    found = results(experiment_of(made))
    assert [(line["loss"], line["fronts"]) for line in found.lines] == [(1.0, []), (2.0, []), (None, []), (None, [])]
    assert json.dumps(found.as_dict(), allow_nan=False)
    found = results(experiment_of(made[:2], name="broken_alone"))
    assert found.sentences == ["No run has a held-out loss that is a finite number."]
    made[2].write_json("evaluation.json", {})
    assert results(experiment_of(made[2:], name="empty")).lines[0]["label"] == "one"


def test_runs_that_failed_were_deleted_or_wait_are_named(tmp_path):
    done, failed, gone = (scored_run(tmp_path, name, rows(0.5)) for name in ("done", "failed", "gone"))
    (failed.path / "evaluation.json").unlink()
    experiment = experiment_of([done, failed, gone], seconds=4.0, total_seconds=9.0)
    experiment.set_aside(failed, ["It ran out of memory."])
    gone.delete()
    found = results(experiment)
    assert {line["label"]: line["status"] for line in found.lines} == {
        "done": "finished", "failed": "failed", "gone": "deleted",
    }  # fmt: skip
    assert "failed failed: It ran out of memory." in found.sentences
    assert "gone: its run was deleted, and is not trained again." in found.sentences


# -- runs beside each other


def test_runs_are_held_beside_each_other_on_the_rows_that_both_had(tmp_path):
    one = scored_run(tmp_path, "mine", rows(0.9, 40), training__learning_rate=0.01, method__rank=4)
    other = scored_run(tmp_path, "other", rows(0.2, 40), first=10, method__rank=16)
    other.append({"event": "start", "step": 4, "steps": 8})  # resumed from an earlier step, whose later ones are lost
    other.append({"event": "step", "step": 5, "loss": 0.5, "seconds": 5.0})
    other.append({"event": "heldout", "step": 5, "loss": 0.75})
    other.append({"event": "end", "reason": "steps", "step": 5, "seconds": 5.0})
    found = beside([one, other])
    assert found.results.rows == 30
    assert [line["label"] for line in found.results.lines] == ["mine", "other"]
    assert found.settings["method.rank"] == {"mine": 4, "other": 16}
    assert found.settings["training.learning_rate"] == {"mine": 0.01, "other": 0.001}
    assert found.curves == {
        "mine": {"loss": [(8, 1.0)], "heldout": []},
        "other": {"loss": [(5, 0.5)], "heldout": [(5, 0.75)]},
    }
    told = " ".join(found.results.sentences)
    assert in_order(told, "mine is clearly better than other", "Compared on the 30 held-out rows that all runs were")
    assert json.loads(json.dumps(found.as_dict()))["results"]["best"] == "mine"


def test_the_best_run_is_held_against_its_own_base_and_not_that_of_another_run(tmp_path):
    small = scored_run(tmp_path, "small", [n < 20 for n in range(64)])
    large = scored_run(tmp_path, "large", [n < 50 for n in range(64)], base=[n < 48 for n in range(64)])
    for runs in ([small, large], [large, small]):
        found = beside(runs).results
        assert [(rival["label"], rival["score"]) for rival in found.rivals] == [("base model", 48 / 64)]
        assert any(s.startswith("large is not clearly better than the base model") for s in found.sentences)


def test_runs_that_can_not_be_compared_are_refused_and_other_metrics_are_named(tmp_path):
    one = scored_run(tmp_path, "one", rows(0.9, 20))
    exact = scored_run(tmp_path, "exact", rows(0.9, 20), metric="answer_f1")
    assert (
        "The runs were judged by different metrics; here all are compared by rougeL."
        in beside([one, exact]).results.sentences
    )
    labels = scored_run(tmp_path, "labels", rows(0.9, 20))
    labels.write_json("plan.json", labels.plan | {"task": "classification"})
    unfinished = scored_run(tmp_path, "unfinished", rows(0.9, 20))
    (unfinished.path / "evaluation.json").unlink()
    broken = scored_run(tmp_path, "broken", rows(0.9, 20))
    (broken.path / "evaluation_rows.jsonl").write_text("{not json\n")
    for several, problem in [
        ([one], "Name at least two different runs to compare, each once."),
        ([one, one], "Name at least two different runs to compare, each once."),
        ([one, labels], "Runs of different tasks can't be compared: one learns "),
        ([one, unfinished], "Run unfinished is interrupted, not finished, so it has no scores to compare."),
        ([one, broken], "Run broken: its evaluation_rows.jsonl is damaged. Delete that file"),
        ([one, scored_run(tmp_path / "else", "one", rows(0.1, 20))], "Two of the runs are named one, in different "),
    ]:
        with pytest.raises(TunerError) as refusal:
            beside(several)
        assert problem in str(refusal.value)
    earlier = scored_run(tmp_path, "earlier", rows(0.9, 20), keeps_rows=False)
    told = beside([one, earlier]).results.sentences
    assert any("earlier was scored by an earlier version, which kept no answers to compare." in said for said in told)


def test_no_run_is_held_against_the_base_model_of_another_one(tmp_path):
    weak = scored_run(tmp_path, "weak", rows(0.1), model__name="one/base")
    strong = scored_run(tmp_path, "strong", rows(0.9), base=rows(0.9), model__name="other/base")
    found = beside([weak, strong]).results
    assert (found.best, found.rivals, [pair["over"] for pair in found.pairs]) == ("strong", [], ["weak"])
    assert not any("than the base model" in said for said in found.sentences)
    told = "The runs differ in base model or precision, so none is compared with an untrained model here."
    assert told in found.sentences
    same = scored_run(tmp_path, "same", rows(0.5), model__name="other/base")
    assert told not in beside([strong, same]).results.sentences


# -- the drawing and the table


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    made = [scored_run(folder, name, rows(share)) for name, share in (("<b>$x^2$</b>", 0.9), ("=SUM(1)", 0.4))]
    return results(experiment_of(made))


def test_one_drawing_serves_page_and_file(found):
    was_imported = "matplotlib.pyplot" in sys.modules  # by a test before
    drawn = plot.svg(found)
    assert drawn.startswith("<svg ")
    assert drawn.endswith("</svg>\n")
    assert "var(--t-train, " in drawn
    assert "currentColor" in drawn
    assert not any(word in drawn for word in ("<style", "<metadata", "<script", "<b>", ": #0f766e"))
    assert plot.png(found).startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == was_imported  # it keeps what it draws, and is not for threads
    with ThreadPoolExecutor(3) as pool:
        assert len({len(png) for png in pool.map(lambda _: plot.png(found), range(3))}) == 1


def test_the_table_has_every_line_and_no_formula_for_a_spreadsheet(found, tmp_path):
    paths = plot.write(found, tmp_path / "out")
    assert [path.name for path in paths] == ["comparison.csv", "comparison.png"]
    lines = list(csv.DictReader(io.StringIO(paths[0].read_text())))
    assert [line["label"] for line in lines] == ["<b>$x^2$</b>", "'=SUM(1)", "base model"]
    assert float(lines[0]["score"]) == found.lines[0]["score"]
    assert lines[2]["status"] == "not trained"
    empty = results(experiment_of([scored_run(tmp_path, "a", rows(0.5))], name="none"))
    empty.lines.clear()
    assert (plot.svg(empty), plot.png(empty)) == ("", b"")


def test_the_first_is_held_against_the_base_and_its_best_prompt(tmp_path):
    made = [scored_run(tmp_path, name, [n < right for n in range(64)]) for name, right in (("one", 60), ("two", 30))]
    for run in made:
        lines = [json.loads(line) for line in (run.path / "evaluation_rows.jsonl").read_text().splitlines()]
        for number, row in enumerate(lines):
            row["few_shot"] = row["reference"] if number < 10 else "no"
            row["few_shot_similar"] = row["reference"] if number < 58 else "<think>hm</think>no"
        run.write_text("evaluation_rows.jsonl", "".join(f"{json.dumps(row)}\n" for row in lines))
    found = results(experiment_of(made))
    assert [(rival["variant"], round(rival["score"], 3)) for rival in found.rivals] == [
        ("base", 0.0), ("few_shot", 0.156), ("few_shot_similar", 0.906),
    ]  # fmt: skip
    told = [said for said in found.sentences if said.startswith("one is")]
    assert len(told) == 3  # than two, the base and the better of the prompts
    assert told[1].startswith("one is clearly better than the base model: +0.938 in ROUGE-L")
    assert told[2].startswith("one is not clearly better than similar examples in the prompt: +0.031 in ROUGE-L")


def test_runs_on_plain_text_are_ranked_by_their_losses_and_nothing_is_said_of_luck(tmp_path):
    made = [scored_run(tmp_path, name, rows(0.5)) for name in ("one", "two")]
    for run, loss in zip(made, (2.0, 1.5), strict=True):
        run.write_json("evaluation.json", {"base": {"loss": 3.0}, "adapter": {"loss": loss}, "gain": None})
    found = results(experiment_of(made))
    assert (found.metric, found.best, found.lines[0]["score"], found.pairs) == (None, "two", None, [])
    assert found.sentences == ["two has the lowest loss on held-out text. Losses alone have no intervals."]
    for run, value in zip(made, (7.4, 4.5), strict=True):
        scores = {"metric": "perplexity", "rows": 64, "gain": {"perplexity": 0.5, "low": 0.4, "high": 0.6}}
        adapter = {"perplexity": value, "perplexity_low": value - 1, "perplexity_high": value + 1, "loss": 1.5}
        run.write_json("evaluation.json", scores | {"base": adapter | {"perplexity": 9.0}, "adapter": adapter})
        (run.path / "evaluation_rows.jsonl").unlink()
    found = results(experiment_of(made, name="perplexity"))
    assert [(line["label"], line["score"], line["high"]) for line in found.lines] == [
        ("two", 4.5, 5.5),
        ("one", 7.4, 8.4),
    ]
    assert found.sentences[0].startswith("two has the lowest perplexity. It is not compared row by row")
    assert plot.png(found).startswith(b"\x89PNG")
