"""The held-out prompts of a run, as they will be answered and scored."""

from typing import TYPE_CHECKING

from tuner.data import encode
from tuner.data.chat import render_answer, render_prompt, thinks
from tuner.data.tokens import IGNORE_INDEX
from tuner.models.shape import Base, shape_of
from tuner.planning.choices import room_for_rows
from tuner.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def heldout_prompts(
    recipe: Recipe,
    base: Base,
    rows: list[dict],
    lengths: list[int],
    settings: dict,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[dict]:
    """The held-out prompts with their references; those to be scored as the text that is answered, cut to fit.

    `lengths` are the tokens of the rows. This is done before training: a template is a program, and what trains has no
    limits on seconds and memory.
    """
    prompts = list(filter(None, map(encode.heldout_prompt, rows)))
    task, most = base.row, settings["max_length"]
    room = prompt_room(recipe, base, settings) if task.chats else most
    for row, given, length in zip(prompts[: recipe.evaluation.rows], rows, lengths):
        if task.chats:
            options = {"tools": given.get("tools"), "thinks": thinks(given)}
            row["text"] = render_prompt(row["messages"], tokenizer, room=room, **options)
            row["cut"] = room is not None and row["text"] != render_prompt(row["messages"], tokenizer, **options)
            row["reference"] = render_answer(given, tokenizer)
        elif task.encoder_decoder:
            row["text"], cut = encode.fitted_source(row["messages"], most, tokenizer)
            row["cut"] = bool(cut)
        else:
            row["cut"] = length > most
    return prompts


def prompt_room(recipe: Recipe, base: Base, settings: dict) -> int | None:
    """The most tokens of a held-out prompt that leave room for an answer; None if the model reads any number."""
    shape = shape_of(base)
    if not shape.is_bounded:
        return None
    room = room_for_rows(recipe, shape, settings)
    if base.row.encoder_decoder:  # its answer is not read beside the prompt
        return room
    return max(room - settings.get("max_new_tokens", recipe.evaluation.max_new_tokens), room // 4)


def prompt_tokens(base: Base, rows: list[dict]) -> float:
    """The mean tokens of a prompt in tokenized rows, which a causal model's have before their labels."""
    answers = [0 if base.row.encoder_decoder else sum(i != IGNORE_INDEX for i in row["labels"]) for row in rows]
    lengths = [len(row["input_ids"]) - answer for row, answer in zip(rows, answers, strict=True)]
    return sum(lengths) / max(1, len(lengths)) if base.row.generates else 0.0
