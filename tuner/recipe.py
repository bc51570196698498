"""The recipe: all settings of a run (model, data, method, training, budget, ...) as one frozen object with units.

Read from YAML and written back with every default spelled out. The page takes its labels, help texts, defaults and
bounds from the fields below. All problems of a recipe are reported in one TunerError. Knows nothing about torch, the
Hub or the page.
"""

import json
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from tuner.errors import TunerError
from tuner.recipe_names import visible
from tuner.recipe_problems import sentences
from tuner.recipe_yaml import MOST_CHARACTERS, read_yaml
from tuner.tasks import TASKS

EXAMPLES = Path(__file__).resolve().parent / "examples"  # as installed
if not EXAMPLES.is_dir():
    EXAMPLES = Path(__file__).resolve().parent.parent / "examples"  # as checked out

Auto = Literal["auto"]


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # which pydantic would take for 0 or 1
        raise PydanticKnownError("float_type")
    return value


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    is_exponent = isinstance(value, str) and EXPONENT.fullmatch(value.strip())
    return int(float(value)) if is_exponent and float(value).is_integer() else value


def _not_tiny(value: float) -> float:
    if 0 < value < SMALLEST:
        raise PydanticCustomError("too_small", f"Input should be at least {SMALLEST:g}")
    return value


SMALLEST = 1e-30  # models compute in float32, which holds 1e-38, and multiply it with numbers below 1
# What files have that no program of today writes; all are Python's. Windows-1252 has all of Latin-1's letters.
ENCODINGS = ("utf-8", "utf-16", *(f"windows-{n}" for n in range(1250, 1259)), "iso-8859-2", "iso-8859-15", "koi8-r")
ENCODINGS += ("mac-roman", "shift_jis", "gb18030", "big5", "euc-kr")
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", re.ASCII)
# Numbers are not strict, because YAML 1.1 reads "3e-3" as text; pydantic's lax mode makes a number of it.
NUMBER = BeforeValidator(_number)  # behind the bounds, or pydantic leaves them out of the schema
WHOLE = BeforeValidator(_whole_number)
ENDLESS = 2**31  # no run gets as far
TINY = AfterValidator(_not_tiny)
Positive = Annotated[float, Field(gt=0, lt=ENDLESS), NUMBER, TINY]
Count = Annotated[int, Field(ge=1, lt=ENDLESS), WHOLE]
Seed = Annotated[int, Field(ge=0, lt=2**31), WHOLE]
# So that a recipe which was accepted can be read back (recipe_yaml.MOST_CHARACTERS).
Name = Annotated[str, Field(max_length=8000)]
Source = Annotated[Name, Field(min_length=1)]
Names = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=500)]
Columns = Annotated[dict[Annotated[str, Field(max_length=200)], Name], Field(max_length=8)]
Prompt = Annotated[str, Field(max_length=30_000)]


class Part(BaseModel):
    """A group of settings. Unknown ones are refused, and none can be changed afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Part):
    """The base model."""

    name: Name = Field(
        "tiny-office", min_length=1, description="a model on the Hub, such as Qwen/Qwen3-0.6B, or a shipped one"
    )
    revision: Name | None = Field(None, description="branch, tag or commit on the Hub; the latest if left out")
    quantization: Literal["nf4", "int8", "none"] = Field(
        "nf4", title="Precision", description="of the base's frozen weights: 4-bit saves memory, 16-bit is exact"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", title="Compute type", description="number type for computing; chosen for the device if auto"
    )


class Data(Part):
    """The rows to learn from, and those held out."""

    source: Source | Annotated[list[Source], Field(min_length=1, max_length=50)] = Field(
        "corporate.jsonl", description="a file, a list of files, a shipped example or a dataset on the Hub"
    )
    config: Name | None = Field(
        None, title="Configuration", description="the Hub dataset's configuration or subset, or a spreadsheet's sheet"
    )
    split: Name | None = Field(None, description="split to train on; train if there is one")
    heldout_split: Name | None = Field(
        None, title="Held-out split", description="split to score on; validation or test if there is one"
    )
    heldout: Auto | Annotated[float, Field(gt=0, lt=1), NUMBER] | Count = Field(
        "auto",
        title="Held-out rows",
        description="share (below 1) or number of rows to score on, if there is no held-out split; 10% to 20% if auto",
    )
    format: Name = Field("auto", description="how the rows are written; recognized from their columns if auto")
    columns: Columns = Field(
        default_factory=dict, description="part of the format -> its column, or a text with {column} in it"
    )
    header: Literal["auto", "present", "absent"] = Field(
        "auto", description="of a CSV or a sheet: whether the first row names the columns; found out if auto"
    )
    encoding: Literal[("auto", *ENCODINGS)] = Field(
        "auto", description="of a text file; UTF-8, or UTF-16 with a byte order mark, if auto"
    )
    empty: Literal["refuse", "skip"] = Field(
        "refuse", title="Rows with an empty cell", description="refuse them, or leave them out"
    )
    system: Prompt | None = Field(None, title="System prompt", description="for rows that have none of their own")
    max_rows: Count | None = Field(None, description="most rows to use, drawn with the seed; all if left out")
    seed: Seed | None = Field(None, title="Split seed", description="draws the held-out rows; the run's if left out")
    max_length: Auto | Annotated[int, Field(ge=8, lt=ENDLESS), WHOLE] = Field(
        "auto", description="in tokens; longer rows are cut, conversations in what was said first"
    )

    @property
    def sources(self) -> list[str]:
        """The source, or each of several files."""
        return [self.source] if isinstance(self.source, str) else list(self.source)

    @property
    def title(self) -> str:
        """The source in words."""
        return ", ".join(self.sources)


class Method(Part):
    """How the model is adapted. A setting that is left out gets the method's own default."""

    name: Name = Field("lora", description="the fine-tuning method")
    rank: Auto | Annotated[int, Field(ge=1, le=1024), WHOLE] = Field(
        "auto", description="rank of the low-rank update; higher learns more and needs more memory"
    )
    alpha: Auto | Positive = Field("auto", description="scale of the update, divided by the rank; mostly 32 if auto")
    dropout: Auto | Annotated[float, Field(ge=0, lt=1), NUMBER] = Field(
        "auto", description="share of the adapter's inputs dropped in training; 0 if auto"
    )
    target_modules: Auto | Literal["all-linear"] | Names = Field(
        "auto", description="layers that get an adapter: all-linear, or their names"
    )
    virtual_tokens: Auto | Annotated[int, Field(ge=1, le=512), WHOLE] = Field(
        "auto", description="number of learned tokens before the input"
    )
    bottleneck: Auto | Annotated[int, Field(ge=1, le=1024), WHOLE] = Field(
        "auto", description="width of the inserted layers"
    )
    layers: Auto | Annotated[int, Field(ge=1, le=200), WHOLE] = Field(
        "auto", description="how many of the last blocks are trained"
    )
    start_from: Source | None = Field(
        None,
        title="Train on from",
        description="an adapter on the Hub, owner/name, or one of your runs by its id; a new adapter if left out",
    )


class Training(Part):
    """Optimizer and schedule."""

    learning_rate: Auto | Annotated[float, Field(gt=0, le=1), NUMBER, TINY] = Field(
        "auto", description="peak learning rate of AdamW"
    )
    batch_size: Auto | Annotated[int, Field(ge=1, le=1024), WHOLE] = Field("auto", description="rows per step")
    warmup_steps: Annotated[int, Field(ge=0, lt=ENDLESS), WHOLE] = Field(
        10, title="Warm-up steps", description="steps over which the learning rate rises from 0"
    )
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls after warm-up"
    )
    weight_decay: Annotated[float, Field(ge=0, lt=ENDLESS), NUMBER] = Field(0.0, description="AdamW's weight decay")
    max_grad_norm: Positive = Field(1.0, description="norm to which gradients are clipped")
    loss_on: Literal["completion", "last", "all"] = Field(
        "completion",
        description="learn from every answer of the assistant (completion), from its last one, or from all tokens",
    )
    checkpoint_seconds: Auto | Positive = Field(
        "auto", description="seconds between checkpoints; if auto, 10, or more if saving takes long"
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="weights to end with: the last, or those with the lowest held-out loss where it is clearly lower",
    )
    patience: Auto | Annotated[int, Field(ge=0, lt=ENDLESS), WHOLE] = Field(
        "auto", description="held-out losses without a lower one after which training stops early; 0 for never"
    )


class Budget(Part):
    """How long to train: one of the three, or three epochs and at least 60 steps if all are left out."""

    steps: Count | None = Field(None, description="optimizer steps")
    epochs: Positive | None = Field(None, description="number of times that each training row is seen")
    seconds: Positive | None = Field(None, description="seconds on the device, loading and saving included")

    @model_validator(mode="after")
    def at_most_one(self) -> "Budget":
        """Refuse a budget with several of the three."""
        given = [k for k in ("steps", "epochs", "seconds") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give at most one of steps, epochs and seconds ({', '.join(given)} given)")
        return self


class Evaluation(Part):
    """How the result is judged on rows that training never saw."""

    rows: Annotated[int, Field(ge=1, le=2000), WHOLE] = Field(
        64, description="held-out rows that base and adapter answer"
    )
    max_new_tokens: Auto | Annotated[int, Field(ge=1, le=2048), WHOLE] = Field(
        "auto", description="longest answer in tokens; long enough for 95% of the references if auto"
    )
    metrics: Auto | Name | Names = Field(
        "auto", description="how answers are scored; the first metric decides whether it helped"
    )
    few_shot: Auto | Annotated[int, Field(ge=0, le=32), WHOLE] = Field(
        "auto",
        title="Examples in the prompt",
        description="training rows shown to the base model before each held-out prompt, to see whether that does as "
        "well as tuning; up to 8 if auto, 0 for no such comparison",
    )
    seconds: Positive | None = Field(
        None,
        title="Seconds for answers",
        description="most seconds for answering held-out rows; fewer rows are scored if they take longer",
    )
    loss_every: Auto | Annotated[int, Field(ge=0, lt=ENDLESS), WHOLE] = Field(
        "auto", description="steps between held-out losses; about ten in a run if auto; 0 for none"
    )


class Recipe(Part):
    """All settings of a run."""

    name: Annotated[str, Field(max_length=80), AfterValidator(visible)] | None = Field(
        None, description="your name for the run"
    )
    task: Literal[("auto", *TASKS)] = Field(
        "auto", description="what the model learns to do; inferred from model and rows if auto"
    )
    model: Model = Model()
    data: Data = Data()
    method: Method = Method()
    training: Training = Training()
    budget: Budget = Budget()
    evaluation: Evaluation = Evaluation()
    tracking: Literal["none", "trackio", "tensorboard", "wandb"] = Field(
        "none", description="where else the curve of a run in a terminal is written to"
    )
    seed: Seed = Field(0, description="fixes the held-out rows, the order of rows and the initial weights")

    @classmethod
    def parse(cls, settings: Any, name: str = "the recipe") -> "Recipe":
        """A recipe from plain nested settings. Raises TunerError with every problem."""
        if not isinstance(settings, dict):
            raise TunerError(f"{name} is not a recipe. Give settings by name, such as 'budget: {{steps: 300}}'.")
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise TunerError(*sentences(error.errors(), cls)) from None

    @classmethod
    @lru_cache(maxsize=64)  # a recipe is read wherever its run is opened, and 10 ms are long for it
    def from_yaml(cls, text: str, name: str = "the recipe") -> "Recipe":
        """A recipe from YAML text. Raises TunerError with every problem."""
        return cls.parse(read_yaml(text, name), name)

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """A recipe from a file, or from a shipped example by name (`corporate`).

        A file of rows is as good as a recipe that names nothing else. Raises TunerError.
        """
        file = find(path)
        if file.suffix.lower() not in ("", ".yaml", ".yml", ".json", ".txt"):
            return cls.parse({"data": {"source": str(path)}})
        try:
            with open(file, encoding="utf-8") as opened:
                text = opened.read(MOST_CHARACTERS + 1)
        except UnicodeDecodeError:
            raise TunerError(f"{file.name} is not UTF-8 text. Give a recipe in YAML.") from None
        if file.suffix.lower() in (".json", ".txt") and not _names_settings(text, cls):
            return cls.parse({"data": {"source": str(path)}})
        return cls.from_yaml(text, file.name)

    def to_yaml(self) -> str:
        """YAML that reads back as the same recipe, with every default written out."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

    def with_settings(self, settings: dict[str, Any]) -> "Recipe":
        """This recipe with dotted settings changed, such as {"training.learning_rate": 3e-3}. Raises TunerError."""
        values = self.model_dump()
        for key, value in settings.items():
            part, _, leaf = key.partition(".")
            if part == "budget":
                # A budget is one of three: setting one unsets the others.
                values["budget"] = dict.fromkeys(values["budget"])
            if leaf and isinstance(values.get(part), dict):
                values[part][leaf] = value
            else:
                values[key] = value
        return Recipe.parse(values)


def _names_settings(text: str, recipe: type[Recipe]) -> bool:
    """Whether a text that may also be rows begins like a recipe: with the name of a setting."""
    with suppress(ValueError, RecursionError):
        line, _, rest = text.partition("\n")
        if rest.strip() and isinstance(json.loads(line), dict):  # JSON lines
            return False
    first = re.match(r"[\s{]*(?:#[^\n]*\n\s*)*[\"']?(\w+)[\"']?\s*:(?!\s*\[)", text)
    return first is not None and first[1] in recipe.model_fields


def find(path: str | Path) -> Path:
    """The recipe, or the file of rows, that `path` names, or the shipped recipe of that name. Raises TunerError."""
    if os.path.isfile(path):  # unlike Path.is_file, it accepts names of any length
        return Path(path)
    shipped = str(path).removeprefix("examples/").removesuffix(".yaml")
    # A mistyped path to a file of one's own must not find a shipped one.
    if "/" not in shipped and os.path.isfile(EXAMPLES / f"{shipped}.yaml"):
        return EXAMPLES / f"{shipped}.yaml"
    names = ", ".join(sorted(f.stem for f in EXAMPLES.glob("*.yaml")))
    raise TunerError(f"There is no recipe '{path}'. Give a YAML file, a file of rows, or a shipped recipe: {names}.")
