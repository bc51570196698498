"""Whether a recipe's tracker can be used here, and how its curves are looked at. Imports none of them."""

from importlib.util import find_spec

from tuner.recipe import Recipe

# How to look at a tracker's curves. Its name is also the name of its package.
LOOK = {
    "trackio": "trackio show --project tuner",
    "tensorboard": "tensorboard --logdir RUN/tracking, where RUN is the run's folder",
    "wandb": "wandb sync RUN/tracking/wandb/offline-run-*, where RUN is the run's folder",
}


def tracking_problems(recipe: Recipe, *, local: bool) -> list[str]:
    """Why the recipe's tracker can't be used, in a sentence; without `local`, for a visitor, none can."""
    name = recipe.tracking
    if name == "none":
        return []
    if not local:
        return [
            f"tracking: {name} is for runs in a terminal. The page draws each run's curve itself: leave tracking out, "
            "or set it to none."
        ]
    package = find_spec(name)
    if package is None or package.origin is None:  # a folder of that name, as W&B leaves where it is used
        return [f"tracking: {name} is not installed. Install it (pip install {name}), or set tracking to none."]
    return []


def tracking_choice(recipe: Recipe) -> list[dict]:
    """What a plan says of the recipe's tracker; nothing without one."""
    if recipe.tracking == "none":
        return []
    return [{"setting": "tracking", "value": recipe.tracking, "reason": f"to look: {LOOK[recipe.tracking]}"}]
