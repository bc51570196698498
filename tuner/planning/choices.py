"""The settings that a recipe leaves open, each with its value and the reason for it."""

from tuner.data.tokens import Tokenized
from tuner.errors import TunerError
from tuner.methods import spec
from tuner.methods.registry import METHODS, resolve
from tuner.models.device import compute_dtype
from tuner.models.shape import Base, Shape
from tuner.planning import forecast
from tuner.planning.scoring import Prompts
from tuner.recipe import Recipe

DEFAULT_LENGTH = 1024  # tokens
DEFAULT_BATCH = 16  # rows


def choose(recipe: Recipe, shape: Shape, rows: int) -> dict[str, tuple]:
    """Every setting with its value and the reason for it: a default, or "as given"; for so many training rows.

    Raises TunerError if the model can't read rows as long as the recipe allows.
    """
    row, given = METHODS[recipe.method.name], recipe.method.model_dump()
    settings = resolve(recipe, shape, None).settings
    batch = min(DEFAULT_BATCH, max(1, rows // 4))
    few = f"there are only {rows} rows" if rows > 1 else "there is only 1 row"
    length, why_length = _choose_length(recipe, shape, settings)
    dtype, why_dtype = compute_dtype(recipe.model)
    defaults = {
        "learning_rate": (recipe.training.learning_rate, *spec.learning_rate(row, shape)),
        "batch_size": (
            recipe.training.batch_size,
            batch,
            few if batch < DEFAULT_BATCH else "small batches suit adapters in short runs",
        ),
        "max_length": (recipe.data.max_length, length, why_length),
        **{name: (given[name], value, f"{row.title}'s default") for name, value in settings.items()},
    }
    chosen = {
        name: (value, reason) if value_given == "auto" else (value_given, "as given")
        for name, (value_given, value, reason) in defaults.items()
    }
    return chosen | {"dtype": (dtype, why_dtype)}


def _choose_length(recipe: Recipe, shape: Shape, settings: dict) -> tuple[int, str]:
    """The longest row in tokens, and why. Raises TunerError if the model can't read as many as the recipe gives."""
    given, room = recipe.data.max_length, room_for_rows(recipe, shape, settings)
    is_prompted = room < shape.context
    if shape.is_bounded and given != "auto" and given > room:
        beside = f" next to {settings['virtual_tokens']} virtual tokens" if is_prompted else ""
        raise TunerError(
            f"data.max_length: {given:,} tokens do not fit the model's context of {shape.context:,}{beside}. Set it "
            f"to at most {room:,}, or leave it out."
        )
    if room > DEFAULT_LENGTH:
        return DEFAULT_LENGTH, "long enough for most rows, and affordable"
    return room, "the model's context, less the virtual tokens" if is_prompted else "the model's context"


def room_for_rows(recipe: Recipe, shape: Shape, settings: dict) -> int:
    """Tokens of the context that are left for a row."""
    is_prompted = METHODS[recipe.method.name].kind == "soft prompt"
    return shape.context - (settings["virtual_tokens"] if is_prompted else 0)


def fit(
    recipe: Recipe,
    model: Base,
    settings: dict,
    train: Tokenized,
    heldout: int,
    trainable: int,
    prompts: Prompts = Prompts(),  # noqa: B008  which never changes
) -> dict:
    """The forecast. A batch size left on auto is lowered in `settings` until it fits, to one row if nothing does."""
    estimate = forecast.estimate_run(recipe, model, settings, train, heldout, trainable, prompts)
    fitting = max(1, forecast.rows_that_fit(estimate, settings["batch_size"]))
    if recipe.training.batch_size != "auto" or fitting == settings["batch_size"]:
        return estimate
    settings["batch_size"] = fitting
    return forecast.estimate_run(recipe, model, settings, train, heldout, trainable, prompts)
