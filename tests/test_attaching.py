"""Adapters on their base: what is trained, saved, loaded again and merged, for PEFT's, ours, and two at once."""

import json
import re
from dataclasses import dataclass

import cuda_branches
import pytest
import torch
from handmade import chosen
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers.pytorch_utils import Conv1D

from tuner.errors import TunerError
from tuner.methods import attach, files, native
from tuner.methods.registry import METHODS, resolve
from tuner.models.load import load_base
from tuner.models.shape import Base, shape_of
from tuner.recipe import Model
from tuner.tasks import TASKS


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("attached"), {}

    def base(family: str, task: str = "generation", **model) -> Base:
        if family not in made:
            made[family] = tiny_model(folder / family, family)
        labels = ("good", "bad", "mixed") if TASKS[task].has_labels else ()
        return Base(made[family], Model(**{"name": family, "quantization": "none", **model}), task, labels)

    return base


def attached(base: Base, name: str, **settings) -> attach.Adapted:
    """A method attached to the base, with other numbers than at the start in all that it trains."""
    target = resolve(chosen(name, **settings), shape_of(base), base.row)
    model = attach.attach(load_base(base), METHODS[name].configs(target))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@torch.inference_mode()
def logits(base: Base, model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    more = {"decoder_input_ids": ids.flip(1)} if base.row.encoder_decoder else {}
    return model(input_ids=ids, **more).logits


PLACES = [
    ("lora_ia3", "distilbert", "classification"),
    ("lora_ia3", "gpt2", "generation"),
    ("lora", "bert", "token_classification"),
    ("full", "llama", "generation"),
    ("full", "distilbert", "classification"),
    ("upper_layers", "t5", "seq2seq"),
    ("bitfit", "bert", "classification"),
    ("bitfit", "llama", "token_classification"),
    ("layernorm", "gpt2", "generation"),
    ("bottleneck", "gpt2", "classification"),
    ("ia3", "t5", "seq2seq"),
]


@pytest.mark.parametrize(("name", "family", "task"), PLACES)
def test_what_was_trained_is_saved_loaded_and_merged_with_the_head_and_comes_off_again(
    bases, name, family, task, tmp_path
):
    base = bases(family, task)
    plain, model = logits(base, load_base(base)), attached(base, name)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if name == "lora_ia3":  # attaching the second freezes nothing of the first
        assert all(any(part in n for n in trained) for part in ("lora_A", "lora_B", "ia3_l"))
    heads = [n for n in trained if any(f"{head}." in n for head in shape_of(base).heads)]
    assert bool(heads) == (task != "generation" and task != "seq2seq")
    for head in heads:  # the copy of the head that is trained is the one that answers
        before = logits(base, model)
        trained[head].data += 0.5
        assert not torch.equal(logits(base, model), before), head
    answers = logits(base, model)
    assert not torch.allclose(answers, plain, atol=1e-2)

    (tmp_path / "adapter").mkdir()
    attach.save(model, tmp_path / "adapter", "owner/name")
    saved = {str(path.relative_to(tmp_path / "adapter")) for path in (tmp_path / "adapter").rglob("*.*")}
    folders = ("", f"{files.SECOND}/") if name == "lora_ia3" else ("",)
    assert saved == {f"{folder}{file}" for folder in folders for file in (files.CONFIG, files.WEIGHTS)}
    numbers = 0
    for folder in folders:
        config = json.loads((tmp_path / "adapter" / folder / files.CONFIG).read_text())
        assert config["base_model_name_or_path"] == "owner/name"
        stored = load_file(tmp_path / "adapter" / folder / files.WEIGHTS)
        assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
        numbers += sum(tensor.numel() for tensor in stored.values())
    assert numbers == sum(p.numel() for p in trained.values())
    assert attach.stored_bytes(model) == 4 * numbers
    assert files.is_native(tmp_path / "adapter") == isinstance(model, native.NativeModel)

    base_model = load_base(base)
    loaded = attach.load(base_model, {"default": tmp_path / "adapter"})
    assert not any(module.training for module in loaded.modules())
    torch.testing.assert_close(logits(base, loaded), answers)
    with attach.disabled(loaded):
        assert torch.equal(logits(base, loaded), plain)
    bare = attach.detach(loaded)
    assert bare is base_model
    assert torch.equal(logits(base, bare), plain)
    assert "peft_config" not in vars(bare)
    assert {n: p.shape for n, p in bare.named_parameters()} == {
        n: p.shape for n, p in load_base(base).named_parameters()
    }

    row = METHODS[name]
    if row.mergeable and row.mergeable_on(resolve(chosen(name), shape_of(base), base.row)):
        merged = attach.merge(model)
        torch.testing.assert_close(logits(base, merged), answers, atol=1e-4, rtol=1e-4)
        assert [n for n, _ in merged.named_parameters()] == list(shape_of(base).weights)
        assert "peft_config" not in vars(merged)


def test_the_values_at_the_start_are_what_is_trained_in_float32(bases):
    model = attached(bases("llama", dtype="bfloat16"), "lora", rank=3)
    values = attach.start_values(model)
    assert len(values) == 2 * 14
    assert all(".lora_" in name for name in values)
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert not any(value.requires_grad for value in values.values())


def test_several_adapters_are_loaded_side_by_side_each_by_its_name(bases, tmp_path):
    base, seen = bases("llama"), {}
    for name, rank in (("one", 2), ("two", 5)):
        model = attached(base, "lora", rank=rank)
        attach.save(model, tmp_path / name, "x")
        seen[name] = logits(base, model)
    model = attach.load(load_base(base), {"two": tmp_path / "two", "one": tmp_path / "one"})
    assert list(model.peft_config) == ["two", "one"]
    assert torch.equal(logits(base, model), seen["two"])  # the first is active
    for name, expected in seen.items():
        model.set_adapter(name)
        assert torch.equal(logits(base, model), expected)
    assert not model.training


QUANTIZED = [
    (method, precision)
    for method in ("ia3", "lora", "dora", "adalora", "hira")
    for precision in METHODS[method].quantizations
    if precision != "none"
]


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize(("method", "quantization"), QUANTIZED)
def test_layers_on_quantized_weights_keep_the_type_of_their_inputs_on_a_gpu_too(
    bases, tmp_path, method, quantization, load
):
    base = bases("llama", dtype="bfloat16", quantization=quantization)
    model = attached(base, method)
    if load:
        attach.save(model, tmp_path, "x")
        model = attach.load(load_base(base), {"default": tmp_path})
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert len(layers) == 2 * (3 if method == "ia3" else 7)
    for layer in layers:
        given = torch.ones(1, layer.in_features, dtype=torch.bfloat16)
        assert layer(given).dtype == torch.bfloat16
        with cuda_branches.taken(), torch.autocast("cpu", torch.bfloat16):
            assert layer(given).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "family", "task"),
    [
        ("layernorm", "gpt2", "generation"),
        ("llama_adapter", "llama", "generation"),
        ("lora", "bert", "classification"),
        ("adalora", "distilbert", "token_classification"),
        ("lora_ia3", "roberta", "classification"),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_was_trained_in_float32_comes_back_unrounded_on_a_16_bit_base(bases, tmp_path, name, family, task, dtype):
    base = bases(family, task, dtype=dtype)
    model = attached(base, name)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for p in trained.values():  # as the trainer does
        p.data = p.data.float() * 1.0001
    attach.save(model, tmp_path, "x")
    loaded = dict(attach.load(load_base(base), {"default": tmp_path}).named_parameters())
    assert all(torch.equal(loaded[name], p) for name, p in trained.items())


def test_boft_compiles_no_extension_so_that_it_is_the_same_on_every_machine(bases, recwarn):
    model = attached(bases("llama"), "boft")
    assert not [str(w.message) for w in recwarn if "extension" in str(w.message)]
    assert not any(getattr(module, "fbd_cuda_available", False) for module in model.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_adalora_trains_its_three_factors_alone_on_a_base_of_any_type(bases, dtype):
    model = attached(bases("llama", dtype=dtype), "adalora")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 3 * 14
    assert all(re.search(METHODS["adalora"].parameters, name) for name in trained)


# Ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bottleneck_starts_as_the_identity_and_adds_what_its_two_layers_make(dtype):
    layer, x = native.Bottleneck(6, 4), torch.randn(3, 6, dtype=dtype)
    assert torch.equal(layer(x), x)
    assert (layer.down.weight.shape, layer.up.weight.shape) == ((4, 6), (6, 4))
    torch.nn.init.normal_(layer.up.weight)
    torch.nn.init.normal_(layer.up.bias)
    inner = torch.nn.functional.gelu(x.float() @ layer.down.weight.T + layer.down.bias)
    expected = x + (inner @ layer.up.weight.T + layer.up.bias).to(dtype)
    assert layer(x).dtype == dtype
    torch.testing.assert_close(layer(x), expected)


class Small(torch.nn.Module):
    """Two linear layers with one weight between them, one of GPT-2's, and a normalization layer."""

    config = "the base's own"

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.norm, self.turned = torch.nn.LayerNorm(4), Conv1D(6, 4)

    def forward(self, x):
        return self.turned(self.norm(self.last(self.first(x))))


def test_copies_are_trained_in_float32_and_the_originals_come_back():
    base = Small().to(torch.bfloat16)
    before = dict(base.named_parameters())
    values = {name: p.detach().clone() for name, p in before.items()}
    model = native.NativeModel(base, native.SelectedConfig(["first.weight", "norm.bias"]))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "base.first.weight",
        "base.norm.bias",
    ]
    assert base.first.weight is base.last.weight is model.copies["first.weight"]
    # Scale and shift of a normalization layer are of one type, and only the one is trained.
    assert (base.norm.weight.dtype, base.norm.weight.requires_grad) == (torch.float32, False)
    assert base.norm.bias.dtype == base.first.weight.dtype == torch.float32
    assert base.first.bias.dtype == torch.bfloat16
    assert model.turned is base.turned  # what it lacks is the base's
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.nothing
    assert (model.config, model.peft_config["default"].parameters[0]) == ("the base's own", "first.weight")
    with torch.no_grad():
        for copy in model.copies.values():
            copy += 1

    def fail_while_disabled() -> None:
        with model.disable_adapter():
            assert dict(base.named_parameters()) == before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_disabled()
    assert base.first.weight is base.last.weight is model.copies["first.weight"]
    assert base.norm.weight.dtype == torch.float32
    assert model.unload() is base
    for name, p in base.named_parameters():
        assert p is before[name], name
        assert torch.equal(p, values[name]), name
    model.merge()
    for name, p in base.named_parameters():
        assert p.dtype == torch.bfloat16
        added = 1 if name in ("first.weight", "norm.bias") else 0
        assert torch.equal(p, (values[name].float() + added).to(torch.bfloat16)), name


def test_bottlenecks_stand_behind_the_modules_named_with_their_widths_and_are_left_out_when_disabled(tmp_path):
    base, x = Small(), torch.randn(2, 4)
    model = native.NativeModel(base, native.BottleneckConfig(["first", "turned"], 3, ["norm.weight"]))
    with torch.no_grad():
        plain = base(x)
        assert [layer.up.out_features for layer in model.bottlenecks.values()] == [4, 6]
        assert {layer.down.out_features for layer in model.bottlenecks.values()} == {3}
        model.bottlenecks["turned"].up.bias += 1
        assert torch.allclose(model(x), plain + 1)
        model.bottlenecks["first"].up.bias += 2
        both = model(x)
        assert torch.allclose(both, base.turned(base.norm(base.last(base.first(x)))))
        with model.disable_adapter():
            assert torch.equal(model(x), plain)
        assert torch.equal(model(x), both)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert json.loads((tmp_path / files.CONFIG).read_text()) == {
        "native": "BottleneckConfig",
        "modules": ["first", "turned"],
        "size": 3,
        "heads": ["norm.weight"],
        "method": "bottleneck",
        "base_model_name_or_path": None,
    }
    with safe_open(tmp_path / files.WEIGHTS, "pt") as stored:
        assert stored.metadata() == {"format": "pt"}  # as transformers requires
    other = Small()
    other.load_state_dict(Small.state_dict(model.unload()))
    again = native.load(other, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(x), both)
        assert torch.equal(model.unload()(x), plain)


@dataclass
class Written:
    """What stands in an adapter's configuration."""

    text: str
    native: bool


@pytest.mark.parametrize("case", [Written('{"native": "X"}', True), Written('{"peft_type": "native"}', False)])
def test_an_adapter_is_ours_if_its_configuration_says_so(tmp_path, case):
    (tmp_path / "adapter_config.json").write_text(case.text)
    assert files.is_native(tmp_path) == case.native


@pytest.mark.parametrize("config", [{"bias": "all"}, {"init_lora_weights": "pissa"}, {}])
def test_what_would_change_the_base_is_not_loaded(bases, config, tmp_path):
    """Whatever was written into the folder of a run: the base answers all others, too."""
    base = bases("gpt2")
    attach.save(attached(base, "lora", rank=2), tmp_path, "owner/name")
    if config:
        file = tmp_path / files.CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    else:
        tensors = load_file(tmp_path / files.WEIGHTS)
        tensors["base_model.model.transformer.ln_f.weight"] = torch.zeros(48)
        save_file(tensors, tmp_path / files.WEIGHTS)
        model = attached(base, "lora", rank=2)
        before = model.get_submodule("base_model.model.transformer.ln_f").weight.clone()
        with pytest.raises(TunerError, match=r"such as base_model\.model\.transformer\.ln_f"):
            attach.begin_with(model, tmp_path)
        assert torch.equal(model.get_submodule("base_model.model.transformer.ln_f").weight, before)
    with pytest.raises(TunerError, match="would change the base model"):
        attach.load(load_base(base), {"default": tmp_path})
