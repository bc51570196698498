"""The licenses of base model and data, as their cards on the Hub say."""

import logging
from typing import TYPE_CHECKING

from tuner.hub import card_data
from tuner.models.fetch import is_shipped
from tuner.runs import Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds
LONGEST = 100  # characters of a license's name; stranger's text


def licenses(api: "HfApi", run: Run) -> dict[str, str]:
    """The licenses of "base" and "data" in the versions that were used, as far as the Hub tells them."""
    model, plan = run.recipe.model, run.plan
    asked = {}
    if not is_shipped(model.name) and not plan.get("model_folder"):
        asked["base"] = api.model_info, model.name, plan.get("revision")
    if card_data.origin(run) == "hub":
        asked["data"] = api.dataset_info, run.recipe.data.source, (plan.get("data") or {}).get("revision")
    found = {}
    for part, (ask, name, revision) in asked.items():
        try:
            told = getattr(ask(name, revision=revision, timeout=PATIENCE).card_data, "license", None)
        except Exception as error:  # a card without a license is better than no push
            log.info("the license of %s is not known: %s", name, type(error).__name__)
            continue
        told = told if isinstance(told, list) else [told]
        if text := ", ".join(item for item in told if isinstance(item, str) and item.isprintable()):
            found[part] = text[:LONGEST]
    return found
