"""Examples in the prompt: what the base model can do without any tuning, if it is shown training rows.

Two rivals of the adapter. "few_shot" has the same examples in every prompt, drawn with the seed: somebody could paste
that prompt anywhere. "few_shot_similar" has those most like the prompt, as a program would look them up. A chat model
reads an example as two turns, behind the system prompt and before the conversation. An encoder-decoder reads one text:
an example, its answer on the next line, an empty line, the next example, ..., and the text to be answered.
"""

import os
import random
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from tuner.data import encode
from tuner.data.chat import render_prompt, thinks, token_count
from tuner.errors import TunerError
from tuner.models.shape import Base
from tuner.planning.heldout import prompt_room
from tuner.recipe import Recipe
from tuner.words import count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VARIANTS = ("few_shot", "few_shot_similar")
MOST = 8  # examples in a prompt, unless the recipe wants more
TOKENS = 1024  # of all examples in a prompt, or as many as the longest row that is trained on
TRIED = 64  # rows that are looked at for the plan
CANDIDATES = 4000  # rows that the most similar ones are found among
CHARACTERS = 2_000_000  # of all candidates that are compared; three seconds on one core
GRAMS = (2, 3)  # characters in a row: they need no spaces between words, so they work in every script
TOGETHER = 256  # prompts compared at a time
YOURS = "{your text}"  # stands for the question in a prompt to copy
OFF = "Examples in the prompt were switched off (evaluation.few_shot: 0)."
NO_EXCHANGE = "No training row is a single question with its answer, so none can be an example in a prompt."
CALLS = "The held-out rows have tools, and prompts with examples are compared only for rows without any."
NO_ROOM = "The training rows are too long to be examples: not even one fits beside a held-out prompt and its answer."


class Example(NamedTuple):
    """A training row as an example."""

    question: str
    answer: str


class Choice(NamedTuple):
    """How many examples a prompt has at most, why, and what they add to it in tokens. None if `why_not` says why."""

    examples: int
    reason: str
    tokens: float = 0.0
    why_not: str = ""


def choose(
    recipe: Recipe,
    base: Base,
    rows: list[dict],
    heldout: list[dict],
    settings: dict,
    tokenizer: "PreTrainedTokenizerBase",
) -> Choice | None:
    """How many training `rows` are shown before each held-out prompt; None if these rows have no prompts."""
    prompts = list(filter(None, map(encode.heldout_prompt, heldout)))[: recipe.evaluation.rows]
    if not (base.row.generates and prompts):
        return None
    given = recipe.evaluation.few_shot
    if given == 0:
        return Choice(0, "as given", why_not=OFF)
    if any("tools" in prompt for prompt in prompts):
        return _none(CALLS)
    if not (examples := candidates(rows, base, recipe.seed)):
        return _none(NO_EXCHANGE)
    most, room = MOST if given == "auto" else given, _room_for_examples(recipe, base, settings)
    shown = _short(examples[:TRIED], room, tokenizer)[:most]
    try:
        sizes = _sizes(base, prompts[0], shown, tokenizer)
        own = median(_size(_text(base, prompt, [], tokenizer), base, tokenizer) for prompt in prompts[:TRIED])
    except TunerError as error:
        return _none(_refused(error))
    if not shown:
        return _none(NO_ROOM)
    context = prompt_room(recipe, base, settings)
    fitting = sum(size <= room and (context is None or own + size <= context) for size in sizes)
    number = max(1, fitting)  # some prompts are shorter
    return Choice(number, _reason(given, number, len(shown), most, len(examples), room), sizes[number - 1])


def _reason(given: str | int, number: int, shown: int, most: int, examples: int, room: float) -> str:
    if number == most:
        return "enough to show what is wanted, and still cheap to read" if given == "auto" else "as given"
    if number == shown < most and examples <= TRIED:
        return f"there {'is' if examples == 1 else 'are'} only {count(examples, 'training row')} to choose from"
    return f"as many as fit, of {room:,.0f} tokens together at most" if given == "auto" else "as many as fit"


def _none(why_not: str) -> Choice:
    return Choice(0, why_not[0].lower() + why_not[1:].rstrip("."), why_not=why_not)


def _refused(error: TunerError) -> str:
    return f"Prompts can't have examples: {error.problems[0]}"


def _room_for_examples(recipe: Recipe, base: Base, settings: dict) -> float:
    """The most tokens of all examples in a prompt."""
    context = prompt_room(recipe, base, settings) or float("inf")
    return min(context, max(TOKENS, settings["max_length"])) if recipe.evaluation.few_shot == "auto" else context


def candidates(rows: list[dict], base: Base, seed: int) -> list[Example]:
    """The training rows that can be examples, each once, in an order drawn with the seed: a question and its answer,
    without tools or earlier turns."""
    drawn: dict[Example, None] = {}
    for index in random.Random(seed).sample(range(len(rows)), len(rows)):
        if len(drawn) < CANDIDATES and (example := _example(rows[index], base)):
            drawn.setdefault(example)
    return list(drawn)


def _example(row: dict, base: Base) -> Example | None:
    turns = [message for message in row.get("messages", ()) if message["role"] != "system"]
    if row.get("tools") or [turn["role"] for turn in turns] != ["user", "assistant"] or "tool_calls" in turns[1]:
        return None
    question = turns[0]["content"] if base.row.chats else encode.source(row["messages"][:-1])
    answer = turns[1]["content"]
    return Example(question, answer) if question.strip() and answer.strip() else None


def _short(examples: list[Example], room: float, tokenizer: "PreTrainedTokenizerBase") -> list[Example]:
    """The examples that have room by themselves."""
    plain = {"add_special_tokens": False, "verbose": False}
    sizes = tokenizer([f"{question}\n{answer}" for question, answer in examples], **plain)["input_ids"]
    return [example for example, ids in zip(examples, sizes, strict=True) if len(ids) <= room]


def _sizes(base: Base, prompt: dict, examples: list[Example], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that the first example adds to a prompt, the first two, and so on."""
    sizes = [
        _size(_text(base, prompt, examples[:number], tokenizer), base, tokenizer)
        for number in range(len(examples) + 1)
    ]
    return [size - sizes[0] for size in sizes[1:]]


def _text(
    base: Base, prompt: dict, examples: list[Example], tokenizer: "PreTrainedTokenizerBase", thinks: bool = False
) -> str:
    """A held-out prompt behind examples, as the model reads it. Raises TunerError if the template refuses it."""
    if base.row.chats:
        return render_prompt(turns(prompt["messages"], examples), tokenizer, thinks=thinks)
    return one_text(prompt.get("text") or encode.source(prompt["messages"]), examples)


def turns(messages: list[dict], examples: list[Example]) -> list[dict]:
    """A conversation with examples behind its system prompt."""
    head = int(messages[0]["role"] == "system")
    shown = [
        {"role": role, "content": text} for example in examples for role, text in zip(("user", "assistant"), example)
    ]
    return [*messages[:head], *shown, *messages[head:]]


def one_text(text: str, examples: list[Example]) -> str:
    """A text behind examples, for an encoder."""
    return "\n\n".join([*("\n".join(example) for example in examples), text])


def _size(text: str, base: Base, tokenizer: "PreTrainedTokenizerBase") -> int:
    return token_count(text, tokenizer) + (0 if base.row.chats else tokenizer.num_special_tokens_to_add())


def add_examples(
    recipe: Recipe,
    base: Base,
    rows: list[dict],
    heldout: list[dict],
    prompts: list[dict],
    settings: dict,
    choice: Choice,
    tokenizer: "PreTrainedTokenizerBase",
) -> dict:
    """Write into the `prompts` that are scored, of the rows `heldout`, what they are with examples; returns what the
    run says of it: {"examples": how many, "fewest": in any prompt, and "messages" or "text" to copy} or {"why_not"}."""
    if choice.why_not:
        return {"why_not": choice.why_not}
    scored = prompts[: recipe.evaluation.rows]
    examples = _short(candidates(rows, base, recipe.seed), _room_for_examples(recipe, base, settings), tokenizer)
    fixed = examples[: choice.examples]
    similar = most_similar([prompt["messages"][-1]["content"] for prompt in scored], examples, choice.examples)
    fewest, highest, why_not = choice.examples, 0, NO_ROOM
    try:
        for prompt, given, nearest in zip(scored, heldout, similar):
            for variant, shown in zip(VARIANTS, (fixed, nearest), strict=True):
                prompt[variant], number = _fitted(recipe, base, prompt, shown, settings, tokenizer, thinks(given))
                fewest, highest = min(fewest, number), max(highest, number)
    except TunerError as error:
        highest, why_not = 0, _refused(error)
    if highest:
        return {"examples": highest, "fewest": fewest, **_to_copy(base, scored, fixed)}
    for prompt in scored:
        for variant in VARIANTS:
            prompt.pop(variant, None)
    return {"why_not": why_not}


def _fitted(
    recipe: Recipe,
    base: Base,
    prompt: dict,
    examples: list[Example],
    settings: dict,
    tokenizer: "PreTrainedTokenizerBase",
    thinks: bool,
) -> tuple[str, int]:
    """The prompt behind as many of the examples as fit, the first ones dropped first; and how many these are."""
    context = prompt_room(recipe, base, settings) or float("inf")
    most = min(context, _size(prompt["text"], base, tokenizer) + _room_for_examples(recipe, base, settings))
    for dropped in range(len(examples)):
        text = _text(base, prompt, examples[dropped:], tokenizer, thinks)
        if _size(text, base, tokenizer) <= most:
            return text, len(examples) - dropped
    return prompt["text"], 0


def _to_copy(base: Base, prompts: list[dict], examples: list[Example]) -> dict:
    if not base.row.chats:
        return {"text": one_text(YOURS, examples)}
    systems = {prompt["messages"][0]["content"] for prompt in prompts if prompt["messages"][0]["role"] == "system"}
    is_shared = len(systems) == 1 and all(prompt["messages"][0]["role"] == "system" for prompt in prompts)
    system = [{"role": "system", "content": systems.pop()}] if is_shared else []
    return {"messages": turns([*system, {"role": "user", "content": YOURS}], examples)}


def most_similar(questions: list[str], examples: list[Example], number: int) -> list[list[Example]]:
    """For each question the examples whose questions are most like it, by TF-IDF of characters; the nearest last."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Instructions that all rows begin with would take the room of what differs.
    shared = len(os.path.commonprefix([example.question for example in examples])) if len(examples) > 1 else 0
    most = CHARACTERS // max(1, len(examples))
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=GRAMS, sublinear_tf=True, dtype=np.float32)
    try:
        vectors = vectorizer.fit_transform([example.question[shared : shared + most] for example in examples])
    except ValueError:  # all are shorter than two characters
        return [examples[:number] for _ in questions]
    found = []
    for start in range(0, len(questions), TOGETHER):
        asked = vectorizer.transform([text[shared : shared + most] for text in questions[start : start + TOGETHER]])
        likeness = (asked @ vectors.T).toarray()
        nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :number]
        found += [[examples[index] for index in reversed(row)] for row in nearest.tolist()]
    return found
