"""How many steps a run has, as given or chosen from its rows; runs that see their rows too often are warned of."""

import pytest
from conftest import small_recipe
from test_plan import planned, reasons

from tuner import runs
from tuner.errors import TunerError
from tuner.planning import forecast
from tuner.planning.budget import warnings_of
from tuner.recipe import Budget, Recipe


@pytest.fixture(autouse=True)
def no_earlier_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(forecast, "estimate_memory", lambda *args: {"activations": 1, "logits": 1, "total": 2})


def planned_for(rows: int, batch: int | str = 16, **settings) -> dict:
    """A plan for so many training rows, with twelve more held out."""
    return planned(rows + 12, data__heldout=12, training__batch_size=batch, **settings)


def test_a_recipe_without_a_budget_is_trained_for_three_epochs():
    done = planned_for(720)
    assert Recipe().budget == Budget() == Recipe.parse({"budget": {}}).budget
    assert (done["steps"], done["epochs"], done["steps_per_epoch"]) == (135, 3, 45)
    assert reasons(done)["steps"] == "three epochs of 45 steps"
    assert done["forecast"]["steps"] == 135


def test_a_run_chosen_by_tuner_has_at_least_sixty_steps():
    done = planned_for(180)
    assert (done["steps"], done["epochs"]) == (60, 5)
    assert reasons(done)["steps"] == "three epochs are only 36 steps, and fewer than 60 teach little"
    assert done["forecast"]["steps"] == 60
    assert not done["warnings"]


@pytest.mark.parametrize(
    ("budget", "steps", "reason"),
    [
        ({"steps": 7}, 7, "as given"),
        ({"epochs": 2}, 24, "2 epochs of 12 steps, as given"),
        ({"epochs": 0.01}, 1, "0.01 epochs of 12 steps, as given"),
        ({"seconds": 30}, None, None),
    ],
)
def test_a_budget_that_was_given_is_kept(budget, steps, reason):
    done = planned_for(180, **{f"budget__{name}": value for name, value in budget.items()})
    assert done["steps"] == steps
    assert reasons(done).get("steps") == reason
    assert done["seconds"] == budget.get("seconds")


def test_at_most_one_of_the_three_can_be_given():
    assert Recipe.parse({"budget": {"steps": None}}).budget == Budget()
    with pytest.raises(TunerError, match=r"budget: give at most one of steps, epochs and seconds \(steps, epochs gi"):
        Recipe.parse({"budget": {"steps": 3, "epochs": 1}})


def test_a_budget_that_was_unset_is_chosen_again():
    recipe = small_recipe().with_settings({"budget.steps": None})
    assert recipe.budget == Budget()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("rows", "budget", "said"),
    [
        (
            27,  # in batches of 6
            {},
            "60 steps are 12 epochs: the model sees each row 12 times, and may learn the rows by heart. "
            "Give more rows.",
        ),
        (
            180,
            {"steps": 300},
            "300 steps are 25 epochs: the model sees each row 25 times, and may learn the rows by heart. "
            "Give more rows, or train for at most 120 steps (budget.steps).",
        ),
        (
            180,
            {"epochs": 11},
            "132 steps are 11 epochs: the model sees each row 11 times, and may learn the rows by heart. "
            "Give more rows, or train for at most 10 epochs (budget.epochs).",
        ),
        (180, {"epochs": 10}, None),
        (180, {"steps": 120}, None),
    ],
)
def test_more_than_ten_epochs_are_warned_of_before_the_run(rows, budget, said):
    given = {f"budget__{name}": value for name, value in budget.items()}
    done = planned_for(rows, 6 if rows == 27 else 16, **given)
    assert [warning for warning in done["warnings"] if "by heart" in warning] == ([said] if said else [])


def test_seconds_that_are_many_epochs_are_warned_of(monkeypatch):
    monkeypatch.setattr(forecast, "step_seconds", lambda *given: 0.1)
    monkeypatch.setattr(forecast, "load_seconds", lambda *given: 1.0)
    done = planned_for(180, budget__seconds=31, evaluation__loss_every=0)
    assert [warning for warning in done["warnings"] if "by heart" in warning] == [
        "31 seconds are about 25 epochs: the model sees each row 25 times, and may learn the rows by heart. "
        "Give more rows, or train for at most 10 epochs (budget.epochs)."
    ]
    few = planned_for(180, budget__seconds=11)
    assert not [warning for warning in few["warnings"] if "by heart" in warning]


@pytest.mark.parametrize(
    ("seconds", "steps", "said"),
    [
        (1, 50, "1 second is about 50 epochs: the model sees each row 50 times"),
        (2, 12345, "2 seconds are about 12,345 epochs: the model sees each row 12,345 times"),
    ],
)
def test_numbers_stand_with_the_right_verb_and_without_a_power_of_ten(seconds, steps, said):
    (warning,) = warnings_of(Budget(seconds=seconds), 4, 4, steps)
    assert warning.startswith(said)


# How the held-out loss is measured, and what follows from it


def measured_for(heldout: int, **settings) -> tuple[dict, dict[str, str]]:
    """How the plan measures with so many held-out rows, and its reasons."""
    done = planned(180 + heldout, data__heldout=heldout, training__batch_size=16, **settings)
    told = {choice["setting"]: choice["reason"] for choice in done["chosen"]}
    return done["measuring"], {name: told[name] for name in ("loss_every", "keep", "patience")}


ALSO = "held-out rows that are also scored, so the scores may look slightly too good"
STOPS = "measurements without a lower held-out loss, after which the run stops"


@pytest.mark.parametrize(
    ("heldout", "settings", "measuring", "reasons"),
    [
        # Rows beyond the scored ones choose if there are 16; a held-out loss of 32 rows takes as long as a step.
        (80, {}, (6, 64, 80, "best", 4), ("about 10", "16 held-out rows that are not scored", STOPS)),
        (79, {}, (10, 0, 32, "best", 3), ("at most 10% of the time", f"32 {ALSO}", STOPS)),
        (20, {"evaluation__rows": 4}, (6, 4, 20, "best", 4), ("about 10", "16 held-out rows that are not", STOPS)),
        (200, {}, (10, 64, 96, "best", 3), ("at most 10%", "32 held-out rows that are not scored", STOPS)),
        (200, {"budget__steps": 300}, (30, 64, 96, "best", 4), ("about 10", "32 held-out rows that are not", STOPS)),
        (4, {}, (6, 0, 4, "best", 4), ("about 10", f"4 {ALSO}", STOPS)),
        (3, {}, (6, 0, 3, "last", 0), ("about 10", "3 held-out rows can't choose", "the last weights are kept")),
        (1, {"budget__steps": 2}, (1, 0, 1, "last", 0), ("about 10", "1 held-out row can't", "the last weights")),
        # As given
        (20, {"training__keep": "last"}, (7, 0, 20, "last", 0), ("at most", "as given", "the last weights are kept")),
        (20, {"evaluation__loss_every": 0}, (0, 0, 20, "last", 0), ("as given", "no held-out loss", "the last")),
        (20, {"evaluation__loss_every": 1}, (1, 0, 20, "best", 24), ("as given", ALSO, STOPS)),
        (20, {"evaluation__loss_every": 50}, (50, 0, 20, "best", 2), ("as given", ALSO, STOPS)),
        (20, {"training__patience": 9}, (7, 0, 20, "best", 9), ("at most", ALSO, "measurements, as given")),
        (20, {"training__patience": 0}, (7, 0, 20, "best", 0), ("at most", ALSO, "measurements, as given")),
        (20, {"training__keep": "last", "training__patience": 2}, (7, 0, 20, "last", 2), ("", "as given", "as given")),
        # Seconds
        (20, {"budget__seconds": 30}, (None, 0, 20, "best", 4), ("about 10 held-out losses", ALSO, STOPS)),
        (20, {"budget__seconds": 30, "evaluation__loss_every": 5}, (5, 0, 20, "best", 0),
         ("as given", ALSO, "the number of steps is not known yet")),
    ],
)  # fmt: skip
def test_a_plan_says_how_the_heldout_loss_is_measured_and_what_follows(heldout, settings, measuring, reasons):
    planned_so, told = measured_for(heldout, **settings)
    assert tuple(planned_so.values()) == measuring
    for reason, words in zip(told.values(), reasons, strict=True):
        assert words in reason


def test_the_estimate_of_a_run_has_the_time_for_its_heldout_losses():
    without, with_them = (
        planned_for(180, evaluation__loss_every=every, budget__steps=120)["forecast"] for every in (0, 12)
    )
    # Eleven times twelve rows in batches of 16, half a step for each batch.
    assert with_them["training"] - without["training"] == pytest.approx(11 * 12 / 16 / 2 * without["a_step"], rel=1e-3)


def test_of_a_budget_in_seconds_the_first_and_the_last_heldout_loss_are_not_promised_as_steps():
    with_losses, without = (
        planned_for(180, 1, budget__seconds=600, evaluation__loss_every=every) for every in ("auto", 0)
    )
    for done, losses in ((with_losses, 12), (without, 0)):  # two of twelve rows, half a step each
        given = done["forecast"]
        assert given["steps"] == pytest.approx((600 - given["start_up"]) / given["a_step"] - losses, abs=1)
