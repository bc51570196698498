"""What a run is: model, data, method, training, budget, evaluation and seed, as one frozen object with units.

Read from YAML and written back with every default spelled out. It knows nothing of torch, of the Hub or of the page;
the page takes its labels, help texts, defaults and bounds from the fields below. Every problem of a recipe is reported
in one TunerError.
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuner.errors import TunerError

EXAMPLES = Path(__file__).resolve().parent / "examples"  # as installed
if not EXAMPLES.is_dir():
    EXAMPLES = Path(__file__).resolve().parent.parent / "examples"  # as checked out

Auto = Literal["auto"]
# Strict numbers would refuse YAML's "3e-3", which YAML 1.1 reads as text; pydantic's lax mode reads it as the number
# that was meant.
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Part):
    """The base model."""

    name: str = Field(
        "tiny-office", min_length=1, description="a Hub name such as Qwen/Qwen3-0.6B, or a shipped model"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; the newest if left out")
    quantization: Literal["nf4", "int8", "none"] = Field(
        "nf4", description="how the frozen base is held: 4-bit NormalFloat with nested constants, 8-bit, or 16-bit"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="what the arithmetic runs in")


class Data(Part):
    """The rows to learn from."""

    source: str = Field(
        "corporate.jsonl", min_length=1, description="a file, a shipped example or a Hub dataset's name"
    )
    config: str | None = Field(None, description="the Hub dataset's configuration")
    split: str | None = Field(None, description="the split to train on; train if there is one")
    heldout_split: str | None = Field(None, description="the split to hold out; validation or test if there is one")
    heldout: Annotated[float, Field(gt=0, lt=1)] | Count = Field(
        0.1, description="share of the rows (below 1) or number of rows held out where no split exists"
    )
    format: Literal[
        "auto",
        "prompt_completion",
        "instruction",
        "messages",
        "sharegpt",
        "text_label",
        "tokens_tags",
        "squad",
        "text",
    ] = Field("auto", description="how a row is read")
    columns: dict[str, str] = Field(default_factory=dict, description="part of the format -> column that holds it")
    system: str | None = Field(None, description="a system prompt put before every row")
    max_rows: Count | None = Field(None, description="use only so many rows, picked by the seed")
    max_length: Auto | Annotated[int, Field(ge=8)] = Field("auto", description="longest row in tokens")


class Method(Part):
    """How the model is changed. A setting that is left out takes the method's own default."""

    name: str = Field("lora", description="a row of the method table")
    rank: Auto | Annotated[int, Field(ge=1, le=1024)] = Field("auto", description="width of the low-rank update")
    alpha: Auto | Positive = Field("auto", description="scale of the update; twice the rank if auto")
    dropout: Auto | Annotated[float, Field(ge=0, lt=1)] = Field(
        "auto", description="share of the adapter's inputs dropped; none if auto"
    )
    target_modules: Auto | Literal["all-linear"] | list[str] = Field(
        "auto", description="the layers that get an adapter: all linear ones, or their names"
    )
    virtual_tokens: Auto | Annotated[int, Field(ge=1, le=512)] = Field(
        "auto", description="tokens or positions whose vectors are learned"
    )
    bottleneck: Auto | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="width of the small layers that are put in"
    )
    layers: Auto | Annotated[int, Field(ge=1, le=200)] = Field(
        "auto", description="how many of the last blocks are changed"
    )


class Training(Part):
    """How the optimizer walks."""

    learning_rate: Auto | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description="peak learning rate of AdamW"
    )
    batch_size: Auto | Annotated[int, Field(ge=1, le=1024)] = Field("auto", description="rows per step")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(10, description="steps over which the learning rate rises")
    scheduler: Literal["linear", "cosine", "constant"] = Field("linear", description="how the learning rate falls")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's weight decay")
    max_grad_norm: Positive = Field(1.0, description="gradients are clipped to this norm")
    loss_on: Literal["completion", "all"] = Field("completion", description="which tokens the loss is taken over")
    checkpoint_seconds: Auto | Positive = Field(
        "auto", description="seconds between checkpoints; ten, or more where they would take over 1% of the time"
    )


class Budget(Part):
    """How long to train: exactly one of the three."""

    steps: Count | None = Field(None, description="optimizer steps")
    epochs: Positive | None = Field(None, description="passes over the training rows")
    seconds: Positive | None = Field(
        None, description="seconds that a device is held for training, loading and saving included"
    )

    @model_validator(mode="after")
    def exactly_one(self):
        given = [k for k in ("steps", "epochs", "seconds") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of steps, epochs and seconds ({', '.join(given) or 'none'} given)")
        return self


class Evaluation(Part):
    """How the result is judged on rows that training never saw."""

    rows: Annotated[int, Field(ge=1, le=2000)] = Field(64, description="held-out rows answered by base and adapter")
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = Field(64, description="longest answer in tokens")
    loss_every: Annotated[int, Field(ge=0)] = Field(50, description="steps between held-out losses; 0 for none")


class Recipe(Part):
    """One run, whole."""

    name: str | None = Field(None, max_length=80, description="what you call the run")
    task: Literal["auto", "generation", "seq2seq", "classification", "token_classification", "question_answering"] = (
        Field("auto", description="what the model learns to do; told by its kind and by the rows if auto")
    )
    model: Model = Model()
    data: Data = Data()
    method: Method = Method()
    training: Training = Training()
    budget: Budget = Budget(steps=300)
    evaluation: Evaluation = Evaluation()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="fixes the split, the row order and the start weights"
    )

    @classmethod
    def parse(cls, settings: Any, name: str = "the recipe") -> "Recipe":
        """A recipe from plain nested settings. Raises TunerError with every problem."""
        if not isinstance(settings, dict):
            raise TunerError(
                f"{name} is not a recipe: it must be a list of settings such as 'budget: {{steps: 300}}'."
            )
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise TunerError(*_sentences(error.errors())) from None

    @classmethod
    def from_yaml(cls, text: str, name: str = "the recipe") -> "Recipe":
        """A recipe from YAML text. Raises TunerError with every problem."""
        try:
            settings = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise TunerError(
                f"{name} is not valid YAML{where}: {getattr(error, 'problem', error)}. Mend that place."
            ) from None
        return cls.parse(settings, name)

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """A recipe from a file, or from a shipped example by name (`corporate`). Raises TunerError."""
        file = find(path)
        try:
            return cls.from_yaml(file.read_text(encoding="utf-8"), file.name)
        except UnicodeDecodeError:
            raise TunerError(f"{file.name} is not a text file. Give a recipe in YAML.") from None

    def to_yaml(self) -> str:
        """YAML that reads back as this very recipe, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def with_settings(self, settings: dict[str, Any]) -> "Recipe":
        """This recipe with dotted settings changed, such as {"training.learning_rate": 3e-3}. Raises TunerError."""
        values = self.model_dump()
        for key, value in settings.items():
            part, _, leaf = key.partition(".")
            if part == "budget":
                # A budget is one of three: naming one takes back the others.
                values["budget"] = dict.fromkeys(values["budget"])
            if leaf and isinstance(values.get(part), dict):
                values[part][leaf] = value
            else:
                values[key] = value
        return Recipe.parse(values)


def find(path: str | Path) -> Path:
    """The recipe file meant by `path`, from any working directory. Raises TunerError where there is none."""
    shipped = EXAMPLES / Path(path).name
    for file in (Path(path), shipped, shipped.with_suffix(".yaml")):
        if file.is_file():
            return file
    names = ", ".join(sorted(f.stem for f in EXAMPLES.glob("*.yaml")))
    raise TunerError(f"There is no recipe '{path}'. Give a YAML file, or one of the shipped ones: {names}.")


def _sentences(errors: list[dict]) -> list[str]:
    """Pydantic's errors in plain words, one sentence a setting."""
    by_place: dict[str, list[dict]] = {}
    for error in errors:
        # Pydantic names the branch of a union after the setting, such as "literal['auto']" or "float".
        place = ".".join(p for p in error["loc"] if isinstance(p, str) and p.isidentifier() and p not in _BRANCHES)
        by_place.setdefault(place, []).append(error)
    # Of a union's branches the literal ("auto") says least about what is wrong.
    return [
        _sentence(place, min(es, key=lambda e: e["type"] == "literal_error"), es) for place, es in by_place.items()
    ]


_BRANCHES = {"int", "float", "str", "list"}


def _sentence(place: str, error: dict, branches: list[dict]) -> str:
    given = json.dumps(error["input"], default=str)[:80]
    otherwise = (
        "auto" if any("auto" in str(e.get("ctx", {}).get("expected", "")) for e in branches) else "leave it out"
    )
    reason = error["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    reason = reason.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if error["type"] == "extra_forbidden":
        return f"'{place}' is not a setting. {_near(place)}"
    if error["type"].startswith(("int_", "float_")):
        whole = "whole " if error["type"].startswith("int_") else ""
        return f"{place}: {given} is not a {whole}number. Give a {whole}number, or {otherwise}."
    if error["type"] == "value_error":
        return f"{place}: {reason}."
    if error["type"] == "model_type":
        return f"{place}: {given} can't be used. Put its settings under it, one a line."
    return f"{place}: {given} can't be used, {reason}."


def _near(place: str) -> str:
    """The settings that may have been meant by an unknown one."""
    part, _, leaf = place.rpartition(".")
    names = list((Recipe.model_fields[part].annotation if part else Recipe).model_fields)
    close = difflib.get_close_matches(leaf, names, 1)
    return f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(names)}."
