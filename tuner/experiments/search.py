"""The settings of a search's trials: first each method's defaults, then what Optuna's TPE proposes.

TPE (Bergstra et al. 2011, https://papers.nips.cc/paper/4443) draws where good trials are denser than bad ones. A
trial's settings follow from the seed and the trials before it alone, and the study is made anew of these for each
trial. So a search that was killed goes on with the trials that it would have had otherwise.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

from pydantic import JsonValue
from typing_extensions import TypedDict

from tuner.experiments.candidates import Request

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution


class Range(TypedDict):
    """Where a setting is looked for, on a logarithmic scale, and its value in a method's first trial."""

    low: float
    high: float
    first: float
    whole: bool  # whether it is a whole number


Space = dict[str, dict[str, Range]]  # method -> setting -> range


class Trial(NamedTuple):
    """A trial's settings, and its score by the rows that choose; None if it failed. Higher is better."""

    settings: dict[str, JsonValue]
    score: float | None


# Setting -> its name in a plan's settings, the factors to both sides of the first value, and the bounds.
SIZE = (4, 4, 1, 1024)
SEARCHED = {
    "training.learning_rate": ("learning_rate", 10, 10, 1e-9, 1.0),
    "training.batch_size": ("batch_size", 4, 2, 1, 1024),
    "method.rank": ("rank", *SIZE),
    "method.bottleneck": ("bottleneck", *SIZE),
    "method.virtual_tokens": ("virtual_tokens", 4, 4, 1, 512),
}
EPOCHS = (2, 2)
DIGITS = 3  # of a proposed value that is no whole number


def space_of(request: Request, plans: dict[str, dict]) -> Space:
    """Where to look for each method's settings: around those that its plan has chosen.

    Settings that a method lacks are left out, and epochs where seconds or steps are given.
    """
    space = {}
    for label, plan in plans.items():
        ranges = {
            setting: _range(plan["settings"][name], *bounds)
            for setting, (name, *bounds) in SEARCHED.items()
            if isinstance(plan["settings"].get(name), (int, float))
        }
        if request.recipe.budget.seconds is None and request.recipe.budget.steps is None and plan["epochs"]:
            ranges["budget.epochs"] = _range(float(plan["epochs"]), *EPOCHS, 0.01, 1e6)
        space[label] = ranges
    return space


def _range(first: float, below: float, above: float, least: float, most: float) -> Range:
    whole = isinstance(first, int)
    low, high = max(least, first // below if whole else first / below), min(most, first * above)
    # What the recipe gives may lie outside of the bounds.
    return {"low": min(low, first), "high": max(high, first), "first": first, "whole": whole}


def propose(space: Space, trials: int, seed: int, earlier: list[Trial]) -> dict[str, JsonValue]:
    """The settings of the next trial of a search with so many."""
    methods = list(space)
    if len(earlier) < len(methods):
        return {"method.name": methods[len(earlier)]}  # with its own defaults
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = max(len(methods) + 1, min(10, trials // 3))  # trials that are drawn at random, the first ones included
    sampler = optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed + len(earlier))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in earlier:
        _add(study, space, trial)
    drawn = study.ask()
    method = drawn.suggest_categorical("method", methods)
    settings: dict[str, JsonValue] = {"method.name": method}
    for setting, range in space[method].items():
        suggest = drawn.suggest_int if range["whole"] else drawn.suggest_float
        value = suggest(_parameter(method, setting), range["low"], range["high"], log=True)
        settings[setting] = _rounded(value, range)
    return settings


def _add(study: "Study", space: Space, trial: Trial) -> None:
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    method = trial.settings["method.name"]
    ranges = space[method]
    distributions: dict[str, BaseDistribution] = {"method": CategoricalDistribution(list(space))}
    distributions |= {_parameter(method, setting): _distribution(range) for setting, range in ranges.items()}
    values = {_parameter(method, s): trial.settings.get(s, range["first"]) for s, range in ranges.items()}
    study.add_trial(
        create_trial(
            params={"method": method, **values},
            distributions=distributions,
            value=trial.score,
            state=TrialState.FAIL if trial.score is None else TrialState.COMPLETE,
        )
    )


def _parameter(method: str, setting: str) -> str:
    return f"{method} {setting}"  # since each method has its own range


def _distribution(range: Range) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    return (IntDistribution if range["whole"] else FloatDistribution)(range["low"], range["high"], log=True)


def _rounded(value: float, range: Range) -> float:
    if range["whole"] or not value:
        return value
    digits = DIGITS - 1 - math.floor(math.log10(value))
    return min(max(round(value, digits), range["low"]), range["high"])
