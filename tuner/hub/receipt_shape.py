"""The shape of a receipt, so that one from a stranger's repository is refused before anything uses it."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from tuner.run_shapes import Turn
from tuner.tasks import TASKS

FORMAT = 1


class Prompt(TypedDict):
    """A held-out prompt as it was rendered and read, and the adapter's answer."""

    messages: list[Turn]
    text: str
    ids: list[int] | None
    answer: str | None
    ended: bool | None


class BaseModel(TypedDict):
    """The base model: its version and its files."""

    name: str
    revision: str | None
    quantization: Literal["nf4", "int8", "none"]
    dtype: str | None
    files: dict[str, str] | None
    stops: list[int] | None


class Tokenizer(TypedDict):
    """What decides how a tokenizer reads and renders."""

    vocabulary: str
    tokens: int
    added: dict[str, int]
    template: str | None
    eos: str | None
    bos: str | None
    plain: list[int]


class Fingerprint(TypedDict):
    """Hashes of rows."""

    sha256: str
    rows: int
    each: int
    hashes: list[str]


class Training(TypedDict, total=False):
    """What decides how training went."""

    settings: dict[str, Any] | None
    steps: int | None
    windows: int | None
    device: str | None
    threads: int | None
    micro_batch: int | None


class Receipt(TypedDict):
    """The file as a whole."""

    format: int
    task: str
    labels: list[str]
    base: BaseModel
    adapter: dict[str, dict[str, Any] | None]
    tokenizer: Tokenizer | None
    thinks: bool | None
    ends: list[int] | None
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] | None
    prompts: list[Prompt] | None
    data: dict[str, Fingerprint | None]
    training: Training
    versions: dict[str, str]


RECEIPT = TypeAdapter(Receipt)


def checked(value: Any) -> dict:
    """The receipt. Raises ValueError if it is none, or of another version."""
    try:
        known = RECEIPT.validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError("not a receipt") from error
    if known["format"] != FORMAT or known["task"] not in TASKS:
        raise ValueError("a receipt of another version")
    return known
