"""What breaks while a base model is loaded is told as what it is: transformers reports all of it as one error."""

import bitsandbytes.functional
import pytest
from conftest import small_recipe
from drive_faults import FAULTS

from tuner.models import device_errors, load
from tuner.models.fetch import fetch_model
from tuner.models.shape import Base


@pytest.mark.parametrize(
    ("fault", "reason"), [("memory", None), ("illegal address", "an illegal memory access was encountered")]
)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_error_of_the_device_while_weights_are_quantized_is_raised_as_it_is(
    monkeypatch, fault, reason, quantization
):
    def fail(*arguments, **options):
        raise FAULTS[fault]

    for name in ("quantize_4bit", "int8_vectorwise_quant"):
        monkeypatch.setattr(bitsandbytes.functional, name, fail)
    model = small_recipe(model__quantization=quantization).model
    with pytest.raises(RuntimeError) as caught:
        load.load_base(Base(fetch_model(model), model, "generation"))
    assert device_errors.is_out_of_memory(caught.value) == (reason is None)
    assert device_errors.breakdown(caught.value) == reason
