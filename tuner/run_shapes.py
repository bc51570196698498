"""What the files of a run's folder hold: their entries and the kinds of these.

Entries that are not named here are left as they are, so that older and newer versions of Tuner can read each other's
files.
"""

from typing import Annotated

from pydantic import Field, JsonValue, TypeAdapter
from typing_extensions import NotRequired, Required, TypedDict

Number = float | None
Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Choice(TypedDict):
    """A setting that was chosen automatically."""

    setting: str
    value: JsonValue
    reason: str


class Forecast(TypedDict, total=False):
    """Estimated seconds, and bytes of memory."""

    training: Finite
    scoring: Finite
    untuned: dict[str, Finite]  # of scoring
    start_up: Finite
    a_step: Finite
    measuring: Finite
    memory: dict[str, Finite] | None


class Measuring(TypedDict):
    """How the held-out loss is measured during training, as in planning/budget.py."""

    every: Count | None
    first: Count
    last: Count
    keep: str
    patience: Count


class Prompting(TypedDict, total=False):
    """How the base is prompted with examples: so many, the fewest in any prompt, the same prompt for all rows as
    messages or, for an encoder, as a text; or why it is not."""

    examples: Count
    fewest: Count
    messages: list[dict[str, str]]
    text: str
    why_not: str


class Source(TypedDict):
    """Where the rows are from: of one's own, an example that comes with Tuner, or the Hub at a commit."""

    origin: str
    revision: str | None


class PlanFile(TypedDict, total=False):
    """plan.json; who asks for a missing entry is told that it is incomplete."""

    format: int
    task: str
    labels: list[str]
    settings: dict[str, JsonValue]
    revision: str | None
    data: Source
    model_folder: str | None
    start: dict[str, str | None]  # the adapter that training starts from: on the Hub its name and revision; its hash
    adopted: dict[str, str]  # an adapter of the Hub, with its revision, that answers in place of a trained one
    origin: str | None  # of a base that was published quantized: the model that it was made from, if its card says so
    rows: Count
    heldout_rows: Count
    repeated_rows: NotRequired[Count]  # held-out ones whose prompts are also trained on
    heldout_parts: NotRequired[list[Count]]  # tokenized rows that each became, if one became several
    tokens: Count
    trained_tokens: Count
    steps_per_epoch: Count
    steps: Count | None
    epochs: Number
    seconds: Number
    model_parameters: Count
    trainable_parameters: Count
    truncated_rows: Count
    end_tokens: list[Count]
    stop_ids: list[Count]  # instead of end_tokens in runs of earlier versions, without those that the model names
    chat_template: str  # with which it is trained, if that writes conversations otherwise than the base's own
    thinks: bool  # whether answers begin with a thought; missing in runs of earlier versions
    scored_rows: Count
    baseline: str | None
    warnings: list[str]
    chosen: list[Choice]
    forecast: Forecast | None
    measuring: Measuring
    prompting: Prompting


class Scores(TypedDict):
    """What evaluation.json holds of a metric. Runs of the first version don't name it."""

    metric: NotRequired[str]
    rows: NotRequired[int]
    base: dict[str, Number]
    few_shot: NotRequired[dict[str, Number]]
    few_shot_similar: NotRequired[dict[str, Number]]
    adapter: dict[str, Number]
    gain: dict[str, Number] | None
    pairs: NotRequired[list[dict[str, Number | str]]]
    fewest_rows: NotRequired[Count]  # of the rarest label, if the metric is a mean over labels
    best: NotRequired[Finite]  # what right answers score, if it is less than 1


class Example(TypedDict):
    """A held-out row with both answers."""

    prompt: str
    reference: str
    base: str
    adapter: str


class Cut(TypedDict):
    """How many answers reached the limit of tokens, by variant, and how many prompts were cut."""

    max_new_tokens: Count
    answers: dict[str, Count]
    prompts: Count


class Short(TypedDict):
    """How many rows were to be scored in how many seconds, if those were too few."""

    asked: Count
    seconds: Finite


class Losses(TypedDict):
    """The losses of a run's training: of its last steps, and on held-out rows."""

    training: Finite
    lowest: Finite
    last: Finite
    kept: NotRequired[Count]  # the step of the adapter's weights, if they are earlier ones


class Course(TypedDict):
    """How training went, in training losses and, if they were measured, held-out ones (evaluation/facts.py)."""

    rows: Count
    steps: Count
    epochs: Number
    learning_rate: Number
    seconds: Number
    ended: str | None
    first: Finite
    middle: Finite
    final: Finite
    heldout_start: NotRequired[Finite]
    heldout_middle: NotRequired[Finite]


class Evaluation(Scores):
    """evaluation.json."""

    heldout_rows: NotRequired[Count]
    repeated_rows: NotRequired[Count]
    baseline: NotRequired[str]
    unknown_head: NotRequired[bool]  # added when it is read: the base's answers may be those of an untrained head
    other_rows: NotRequired[dict[str, Finite]]
    other_rows_of_prompts: NotRequired[dict[str, dict[str, Finite]]]
    empty_references: NotRequired[bool]
    course: NotRequired[Course]
    losses: NotRequired[Losses]
    examples: NotRequired[list[Example]]
    cut: NotRequired[Cut]
    other_metrics: NotRequired[list[Scores]]
    costs: NotRequired[dict[str, dict[str, Finite]]]
    prompting: NotRequired[Prompting]
    short: NotRequired[Short]
    copied: NotRequired[dict[str, str]]  # by variant the run of the experiment that answered


class Answered(TypedDict):
    """A held-out row in answers.json."""

    base: NotRequired[str]  # missing if its head is untrained
    few_shot: NotRequired[str]
    few_shot_similar: NotRequired[str]
    adapter: NotRequired[str]  # missing while only the base's answers are known
    costs: NotRequired[dict[str, list[Finite]]]  # tokens of prompt and answer, and seconds
    cut: NotRequired[list[str]]  # whose answer reached the limit
    lost: NotRequired[Count]  # tokens of the prompt that were cut off


class Untuned(TypedDict, total=False):
    """What the base answered in an experiment, in untuned.json, or its nats and labels on all held-out rows."""

    text: str
    cost: list[Finite]  # tokens of prompt and answer, and seconds
    cut: bool
    losses: Annotated[list[list[float]], Field(min_length=2, max_length=2)]
    run: Required[str]  # which asked


class MergeCheck(TypedDict):
    """merge_check.json."""

    tokens: int
    top1_agreement: float
    max_logit_difference: float
    top1_agreement_quantized: float
    max_logit_difference_quantized: float
    # Runs that were merged by earlier versions have none of these.
    quantization_agreement: NotRequired[float]
    merge_error: NotRequired[float]
    merge_tolerance: NotRequired[float]
    merge_failed: NotRequired[bool]
    merge_dtype: NotRequired[str]  # float32 if 16 bits were too few


SHAPES: dict[str, TypeAdapter] = {
    "plan.json": TypeAdapter(PlanFile),
    "evaluation.json": TypeAdapter(Evaluation),
    "merge_check.json": TypeAdapter(MergeCheck),
    "answers.json": TypeAdapter(dict[str, Answered]),
    "untuned.json": TypeAdapter(dict[str, Untuned]),
}


class Turn(TypedDict):
    """A turn of a conversation."""

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, JsonValue]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


class Prompt(TypedDict):
    """A held-out row."""

    messages: list[Turn]
    reference: str
    references: NotRequired[list[str]]  # all right answers, if there are several
    tools: NotRequired[list[dict[str, JsonValue]]]
    text: NotRequired[str]  # as a chat model reads it; of the rows that are scored
    cut: NotRequired[bool]  # whether the text lacks a part of the messages
    few_shot: NotRequired[str]  # the text behind examples, the same for all rows
    few_shot_similar: NotRequired[str]  # behind those most like it


PROMPT = TypeAdapter(Prompt)
