"""What an experiment trains: methods, seeds of one recipe, or the trials of a search, as settings of one recipe.

All runs learn from the same rows and are scored on the same rows. Knows nothing about torch.
"""

from dataclasses import dataclass, field

from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.recipe import Method, Recipe
from tuner.words import count

MOST_RUNS = 100  # of an experiment
MOST_SEEDS = 20
FEWEST_TRIALS = 2


@dataclass(frozen=True)
class Choice:
    """A candidate: its name, and the settings that are changed in the common recipe."""

    label: str
    settings: dict


@dataclass(frozen=True)
class Request:
    """An experiment that is asked for; `create` checks it against model and rows."""

    kind: str  # methods, seeds or search
    recipe: Recipe  # what all runs share
    candidates: list[Choice]
    seeds: list[int] = field(default_factory=list)  # each candidate is trained with each of them; none: the recipe's
    trials: int = 0  # of a search
    seconds: float | None = None  # for each run; the recipe's own budget if left out
    total_seconds: float | None = None  # of training in all
    notes: list[str] = field(default_factory=list)  # what a person should know, in sentences

    def recipes(self) -> dict[str, Recipe]:
        """The recipe of each candidate, by its label."""
        return {c.label: with_settings(self.recipe, c.settings, c.label) for c in self.candidates}

    def entries(self) -> list[tuple]:
        """Label, settings and candidate of each run, none for a search, whose runs are made one after the other.

        Every candidate is trained once before any is trained again, so an experiment that is stopped has all of them.
        """
        if self.kind == "search":
            return []
        if not self.seeds:
            return [(c.label, c.settings) for c in self.candidates]
        return [
            (f"{c.label}, seed {seed}", {**c.settings, **_seeded(self.recipe, seed)}, c.label)
            for seed in self.seeds
            for c in self.candidates
        ]


def request(
    recipe: Recipe,
    methods: list[str] | None = None,
    *,
    search: int | None = None,
    seeds: int | None = None,
    seconds: float | None = None,
    total_seconds: float | None = None,
) -> Request:
    """The experiment that is asked for: several methods, a search with so many trials, or several seeds.

    With `methods`, a search chooses among them, and seeds are trained of each. Seconds are those of training: for
    each run, in all, or both; in all alone, they are divided. Raises TunerError with all problems.
    """
    problems = _problems(methods, search, seeds, seconds, total_seconds)
    if problems:
        raise TunerError(*problems)
    kind = "search" if search else "methods" if methods and len(methods) > 1 else "seeds"
    size = search or len(methods or [""]) * (seeds or 1)
    each = seconds if seconds is not None or total_seconds is None else total_seconds / size
    recipe, choices, notes = _choices(recipe, methods)
    if each is not None:
        recipe = recipe.with_settings({"budget.seconds": each})
    own_seeds = [recipe.seed + number for number in range(seeds or 0)]
    if own_seeds:
        recipe.with_settings(_seeded(recipe, own_seeds[-1]))  # the largest may be more than a seed can be
    return Request(kind, recipe, choices, own_seeds, search or 0, each, total_seconds, notes)


def _problems(
    methods: list[str] | None,
    search: int | None,
    seeds: int | None,
    seconds: float | None,
    total_seconds: float | None,
) -> list[str]:
    problems = []
    unknown = [name for name in methods or [] if name not in METHODS]
    if is_unknown := bool(unknown) or methods == []:
        problems.append(f"There is no method '{', '.join(unknown)}'. Choose from: {', '.join(METHODS)}.")
    if methods and len(set(methods)) < len(methods):
        problems.append(
            f"A method is named twice ({', '.join(methods)}). To see how far chance goes, use several seeds."
        )
    if search and seeds:
        problems.append(
            "A search and several seeds are two experiments. Search first, then train the best trial's recipe with "
            "several seeds."
        )
    if search is not None and search < FEWEST_TRIALS:
        problems.append(f"A search takes at least {FEWEST_TRIALS} trials, and this one has {search}.")
    if seeds is not None and not 2 <= seeds <= MOST_SEEDS:
        problems.append(f"Give 2 to {MOST_SEEDS} seeds, not {seeds}: one alone says nothing about chance.")
    if search is None and seeds is None and not is_unknown and len(methods or []) < 2:
        only = f"{methods[0]} alone can't be compared" if methods else "There is nothing to compare"
        problems.append(f"{only}. Name at least two methods, or ask for a search or for several seeds.")
    if (size := search or len(methods or [""]) * (seeds or 1)) > MOST_RUNS:
        problems.append(f"{size:,} runs are more than an experiment may have ({MOST_RUNS}).")
    if any(given is not None and not given > 0 for given in (seconds, total_seconds)):
        problems.append("The seconds must be more than 0.")
    elif seconds and total_seconds and total_seconds < 2 * seconds:
        problems.append(f"{total_seconds:g} seconds in all are too few for two runs of {count(seconds, 'second')}.")
    return problems


def _choices(recipe: Recipe, methods: list[str] | None) -> tuple[Recipe, list[Choice], list[str]]:
    """The recipe that is shared, the candidates, and notes.

    Several methods have their own defaults each; a single one has the recipe's settings. If one can't train at the
    recipe's precision, all train at 16-bit: with different precisions, base models would be compared, not methods.
    """
    names, notes = methods or [recipe.method.name], []
    unable = [METHODS[name].title for name in names if recipe.model.quantization not in METHODS[name].quantizations]
    if unable and len(names) > 1:
        recipe = recipe.with_settings({"model.quantization": "none"})
        notes.append(f"All train on the 16-bit base model, because {', '.join(unable)} can't on another.")
    if len(names) == 1:
        return with_settings(recipe, {"method.name": names[0]}), [Choice(names[0], {})], notes
    recipe = recipe.with_settings({"training.learning_rate": "auto"})
    recipe = recipe.model_copy(update={"method": Method(name=names[0])})
    return recipe, [Choice(name, {"method.name": name}) for name in names], notes


def with_settings(recipe: Recipe, settings: dict, name: str | None = None) -> Recipe:
    """The recipe with dotted settings changed; another method has its own defaults. Raises TunerError."""
    method = settings.get("method.name", recipe.method.name)
    if method != recipe.method.name:
        recipe = recipe.model_copy(update={"method": Method(name=method)})
        recipe = recipe.with_settings({"training.learning_rate": "auto"})
    recipe = recipe.with_settings(settings)
    return recipe if name is None else recipe.model_copy(update={"name": name})


def _seeded(recipe: Recipe, seed: int) -> dict:
    """A seed for what training draws, while the rows stay those that the recipe's own seed held out."""
    return {"seed": seed, "data.seed": recipe.seed if recipe.data.seed is None else recipe.data.seed}
