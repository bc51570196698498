"""Whether a base model's files are whole, of one model, and small enough for whoever wants to use it."""

from typing import TYPE_CHECKING

from tuner.data.tokens import check_ids
from tuner.models.complete import check_complete
from tuner.models.fetch import check_size
from tuner.models.quantized import check_precision, origin_of
from tuner.models.shape import Base, Shape, shape_of
from tuner.models.weights import check_fit, check_index, stored_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_base(base: Base, most: float | None = None) -> None:
    """Raise TunerError if the base can't be loaded as it is asked for, or has more than `most` parameters."""
    name, folder = base.model.name, base.folder
    if most:
        check_size(name, shape_of(base).parameters, most)
    check_precision(base.stored, base.model.quantization, name, origin_of(folder))
    described, stored = shape_of(base).base_weights, stored_sizes(folder, name)
    check_index(folder, described, stored, name)
    if not base.stored:  # which packs several numbers into one
        check_fit(described, stored, name)
    check_complete(base)


def check_vocabulary(model: Base, shape: Shape, tokenizer: "PreTrainedTokenizerBase", rows: list[dict]) -> None:
    """Raise TunerError if the model has no embedding for a token of the rows, of the answers or of the padding."""
    read = [[tokenizer.pad_token_id or 0], *(row["input_ids"] for row in rows)]
    check_ids(read + ([row["labels"] for row in rows] if model.row.generates else []), shape.vocabulary, tokenizer)
