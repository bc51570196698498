"""Examples in the prompt: what the base model can do without any tuning, if it is shown training rows.

Two rivals of the adapter. "few_shot" has the same examples in every prompt, drawn with the seed: somebody could paste
that prompt anywhere. "few_shot_similar" has those most like the prompt, as a program would look them up. A chat model
reads an example as two turns, behind the system prompt and before the conversation. An encoder-decoder reads one text:
an example, its answer on the next line, an empty line, the next example, ..., and the text to be answered.
"""

import random
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from tuner.data import encode
from tuner.data.chat import render_prompt, thinks, token_count
from tuner.data.split import Split
from tuner.errors import TunerError
from tuner.models.shape import Base
from tuner.planning.heldout import prompt_room
from tuner.recipe import Recipe
from tuner.words import count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VARIANTS = ("few_shot", "few_shot_similar")
MOST = 8  # examples in a prompt, unless the recipe says how many
TOKENS = 512  # of all examples in a prompt; reading more would cost many times what the answers themselves do
TRIED = 64  # rows that are looked at for the plan
CANDIDATES = 4000  # rows that the most similar ones are found among
CHARACTERS = 2_000_000  # of all candidates, or of all prompts, that are compared
GRAMS = (2, 3)  # characters in a row: they need no spaces between words, so they work in every script
FEATURES = 2**20  # that such characters are counted in; hardly two of them share one
TOGETHER = 256  # prompts compared at a time
YOURS = "{your text}"  # stands for the question in a prompt to copy
OFF = "Examples in the prompt were switched off (evaluation.few_shot: 0)."
NO_EXCHANGE = "No training row is a single question with its answer, so none can be an example in a prompt."
TOOLS = "The held-out rows have tools, and examples in the prompt are only tried on rows without."
TOO_LONG = "The training rows are too long to be examples: not even one fits beside a held-out prompt and its answer."


class Example(NamedTuple):
    """A training row as an example."""

    question: str
    answer: str


class Choice(NamedTuple):
    """How many examples a prompt has at most, why, and what they add to it in tokens; or why there are none."""

    examples: int
    reason: str
    tokens: float = 0.0
    why_not: str = ""

    @property
    def facts(self) -> dict:
        """What the plan says of it."""
        return {"why_not": self.why_not} if self.why_not else {"examples": self.examples}


@dataclass(frozen=True)
class Prompter:
    """Writes a base's prompts with examples."""

    recipe: Recipe
    base: Base
    settings: dict
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def context(self) -> float:
        """The most tokens of a prompt."""
        return prompt_room(self.recipe, self.base, self.settings) or float("inf")

    @property
    def room(self) -> float:
        """The most tokens of the examples in a prompt."""
        return min(self.context, TOKENS) if self.recipe.evaluation.few_shot == "auto" else self.context

    def candidates(self, rows: list[dict], most: int = CANDIDATES) -> list[Example]:
        """The training rows that can be examples, each once, in an order drawn with the seed: questions with their
        answers, without tools or earlier turns."""
        drawn: dict[Example, None] = {}
        for index in random.Random(self.recipe.seed).sample(range(len(rows)), len(rows)):
            if len(drawn) < most and (example := self._example(rows[index])):
                drawn.setdefault(example)
        return list(drawn)

    def _example(self, row: dict) -> Example | None:
        turns = [message for message in row.get("messages", ()) if message["role"] != "system"]
        if row.get("tools") or [turn["role"] for turn in turns] != ["user", "assistant"] or "tool_calls" in turns[1]:
            return None
        question = turns[0]["content"] if self.base.row.chats else encode.source(row["messages"][:-1])
        answer = turns[1]["content"]
        return Example(question, answer) if question.strip() and answer.strip() else None

    def short(self, examples: list[Example]) -> list[Example]:
        """The examples that have room for themselves."""
        texts = [f"{question}\n{answer}" for question, answer in examples]
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        # One that is too long for the examples' room may still be the only one.
        room = min(self.context, max(self.room, self.settings["max_length"]))
        return [example for example, row in zip(examples, ids, strict=True) if len(row) <= room]

    def text(self, prompt: dict, examples: list[Example], thinks: bool = False) -> str:
        """A held-out prompt with examples, as the model reads it. Raises TunerError if the template refuses it."""
        if self.base.row.chats:
            return render_prompt(with_examples(prompt["messages"], examples), self.tokenizer, thinks=thinks)
        source = prompt["text"] if "text" in prompt else encode.source(prompt["messages"])
        ids = self.tokenizer(source, verbose=False)["input_ids"]
        if len(ids) > (most := self.settings["max_length"]):  # base and adapter read no more
            source = self.tokenizer.decode(ids[:most], skip_special_tokens=True)
        return one_text(source, examples)

    def size(self, text: str) -> int:
        """The tokens of a prompt."""
        added = 0 if self.base.row.chats else self.tokenizer.num_special_tokens_to_add()
        return token_count(text, self.tokenizer) + added

    def fitted(self, prompt: dict, examples: list[Example], thinks: bool) -> tuple[str, int]:
        """The prompt with as many of the examples as fit, the first ones dropped first, and how many these are."""
        own = prompt["text"] if self.base.row.chats else self.text(prompt, [])
        own_size = self.size(own)
        for dropped in range(len(examples)):
            text = self.text(prompt, examples[dropped:], thinks)
            size, number = self.size(text), len(examples) - dropped
            if size <= self.context and (size - own_size <= self.room or number == 1):
                return text, number
        return own, 0


def with_examples(messages: list[dict], examples: list[Example]) -> list[dict]:
    """A conversation with examples behind its system prompt."""
    head = int(messages[0]["role"] == "system")
    shown = [
        {"role": role, "content": text} for example in examples for role, text in zip(("user", "assistant"), example)
    ]
    return [*messages[:head], *shown, *messages[head:]]


def one_text(text: str, examples: list[Example]) -> str:
    """A text with examples before it, for an encoder."""
    return "\n\n".join([*("\n".join(example) for example in examples), text])


def choose(prompter: Prompter, rows: list[dict], heldout: list[dict]) -> Choice | None:
    """How many training `rows` are shown before each held-out prompt; None if these rows have no prompts."""
    given, scored = prompter.recipe.evaluation.few_shot, prompter.recipe.evaluation.rows
    prompts = list(filter(None, map(encode.heldout_prompt, heldout)))[:scored]
    if not (prompter.base.row.generates and prompts):
        return None
    if given == 0:
        return Choice(0, "as given", why_not=OFF)
    if any("tools" in prompt for prompt in prompts):
        return _none(TOOLS)
    if not (examples := prompter.candidates(rows, TRIED)):
        return _none(NO_EXCHANGE)
    if not (shown := prompter.short(examples)[: MOST if given == "auto" else given]):
        return _none(TOO_LONG)
    try:
        sizes = [prompter.size(prompter.text(prompts[0], shown[:number])) for number in range(len(shown) + 1)]
        own = median(prompter.size(prompter.text(prompt, [])) for prompt in prompts[:TRIED])
    except TunerError as error:
        return _none(_refused(error))
    added = [size - sizes[0] for size in sizes[1:]]
    # Some prompts are shorter than most.
    number = max(1, sum(size <= prompter.room and own + size <= prompter.context for size in added))
    return Choice(number, _reason(prompter, number, len(shown), len(examples)), added[number - 1])


def _reason(prompter: Prompter, number: int, shown: int, examples: int) -> str:
    given = prompter.recipe.evaluation.few_shot
    if number == given:
        return "as given"
    if number == MOST and given == "auto":
        return "they show what is wanted, and are still cheap to read"
    if number == examples < TRIED:
        return f"there {'is' if examples == 1 else 'are'} only {count(examples, 'row')} to choose from"
    if number < shown and prompter.room == TOKENS:
        return f"more would have over {TOKENS} tokens to be read for each answer"
    return "as many as fit beside a prompt and its answer"


def _none(why_not: str) -> Choice:
    return Choice(0, why_not[0].lower() + why_not[1:].rstrip("."), why_not=why_not)


def _refused(error: TunerError) -> str:
    return f"Prompts can't have examples. {error.problems[0]}"


def add_examples(prompter: Prompter, split: Split, prompts: list[dict], choice: Choice) -> dict:
    """Write into the held-out `prompts` that are scored how they are with examples.

    Returns {"examples": most in a prompt, "fewest": ..., "messages" or "text": the prompt to copy}, or {"why_not"}.
    """
    if choice.why_not:
        return choice.facts
    scored = prompts[: prompter.recipe.evaluation.rows]
    examples = prompter.short(prompter.candidates(split.train))
    fixed = examples[: choice.examples]
    similar = most_similar([prompt["messages"][-1]["content"] for prompt in scored], examples, choice.examples)
    written, numbers, why_not = [], [], TOO_LONG
    try:
        for prompt, row, nearest in zip(scored, split.heldout, similar):
            texts, shown = zip(*(prompter.fitted(prompt, some, thinks(row)) for some in (fixed, nearest)), strict=True)
            written.append(dict(zip(VARIANTS, texts, strict=True)))
            numbers += shown
    except TunerError as error:
        numbers, why_not = [0], _refused(error)
    if not max(numbers):
        return {"why_not": why_not}
    for prompt, texts in zip(scored, written, strict=True):
        prompt.update(texts)
    return {"examples": max(numbers), "fewest": min(numbers), **_to_copy(prompter, scored, fixed)}


def _to_copy(prompter: Prompter, prompts: list[dict], examples: list[Example]) -> dict:
    """The prompt with the same examples for all, to be copied."""
    if not prompter.base.row.chats:
        return {"text": one_text(YOURS, examples)}
    firsts = [prompt["messages"][0] for prompt in prompts]
    is_shared = firsts[0]["role"] == "system" and all(first == firsts[0] for first in firsts)
    return {"messages": with_examples([*firsts[:is_shared], {"role": "user", "content": YOURS}], examples)}


def most_similar(questions: list[str], examples: list[Example], number: int) -> list[list[Example]]:
    """For each question the examples whose questions are most like it, by TF-IDF of characters; the nearest last."""
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline

    texts = [example.question for example in examples]
    # Instructions that all rows begin with would take the room of what differs.
    first, last = min(texts), max(texts)
    shared = first[: next((i for i, (one, other) in enumerate(zip(first, last)) if one != other), 0)]
    most = CHARACTERS // max(len(texts), len(questions))

    def own(text: str) -> str:
        """What is compared: a question may lack what the examples share, such as a system prompt."""
        start = next((i for i, (one, other) in enumerate(zip(text, shared)) if one != other), len(shared))
        return text[start : start + most]

    # A vocabulary of all their characters may take a gigabyte, in scripts with thousands of characters.
    grams = HashingVectorizer(
        analyzer="char", ngram_range=GRAMS, n_features=FEATURES, alternate_sign=False, norm=None, dtype=np.float32
    )
    vectorizer = make_pipeline(grams, TfidfTransformer(sublinear_tf=True))
    vectors = vectorizer.fit_transform([own(text) for text in texts]).T.tocsr()
    found = []
    for start in range(0, len(questions), TOGETHER):
        asked = vectorizer.transform([own(text) for text in questions[start : start + TOGETHER]])
        nearest = np.argsort(-(asked @ vectors).toarray(), axis=1, kind="stable")[:, :number]
        found += [[examples[index] for index in reversed(row)] for row in nearest.tolist()]
    return found
