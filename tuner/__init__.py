"""Fine-tune a language model in minutes, see whether it helped, and push the adapter to the Hub.

    run = tuner.prepare(tuner.Recipe.load("corporate"))
    for event in tuner.train(run): ...
    tuner.chat(run, "hi")

The names below are the public ones. Each is imported when it is first used, so `import tuner` loads nothing heavy.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.evaluation.answers import evaluate
    from tuner.hub.push import push
    from tuner.inference.chat import chat
    from tuner.inference.merge import merge
    from tuner.planning.plan import check, prepare
    from tuner.recipe import Recipe
    from tuner.training.window import train

__version__ = "0.1.0"
__all__ = ["Recipe", "chat", "check", "evaluate", "merge", "prepare", "push", "train"]

# Read when torch is first imported. By default OpenMP's threads wait in a long busy loop, so two runs on two cores
# mostly wait for each other. With no busy loop at all, a single run loses time waking its threads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_MODULES = {
    "Recipe": "recipe",
    "chat": "inference.chat",
    "check": "planning.plan",
    "evaluate": "evaluation.answers",
    "merge": "inference.merge",
    "prepare": "planning.plan",
    "push": "hub.push",
    "train": "training.window",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tuner' has no attribute '{name}'")
    globals()[name] = value = getattr(importlib.import_module(f"tuner.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
