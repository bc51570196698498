"""Estimates of memory and time, against what real models, real passes and real optimizers need."""

import gc
import json
from contextlib import nullcontext

import psutil
import pytest
import torch
from conftest import small_recipe
from tiny import tiny_model
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tuner.methods import attach
from tuner.methods.registry import METHODS, resolve
from tuner.models.fetch import fetch_model
from tuner.models.load import load_base
from tuner.models.losses import mean_loss
from tuner.models.shape import Base, shape_of
from tuner.planning import memory
from tuner.planning.memory import (
    adapter_bytes,
    available_memory,
    count_trainable,
    estimate_memory,
    method_key,
    weight_bytes,
)
from tuner.planning.pace import KEPT_PACES, device_speed, flops_per_step, pace_key, recall, remember, step_seconds
from tuner.recipe import Recipe

OWN = {"method__rank": "auto"}  # each method's own
SHAPES = [(4, 48), (2, 160)]  # rows, tokens


class Alive(TorchDispatchMode):
    """Bytes of the tensors made since it was entered: alive now, and at the most."""

    def __init__(self):
        super().__init__()
        self.storages, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before:
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, self.now())
        return result

    def now(self) -> int:
        self.storages = {k: (ref, size) for k, (ref, size) in self.storages.items() if not ref.expired()}
        return sum(size for _, size in self.storages.values())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each family: the shipped Llama, and random models with a padded batch's peculiarities."""
    made = {family: tiny_model(tmp_path_factory.mktemp(family), family) for family in ("llama", "qwen3", "gpt2")}
    return {"tiny-office": fetch_model(Recipe().model), **made}


def made(folder, name, quantization, dtype="float32", **settings):
    """A recipe on the folder's model, and that model as a base."""
    recipe = small_recipe(model__name=name, model__quantization=quantization, model__dtype=dtype, **settings)
    return recipe, Base(folder, recipe.model)


def adapted(base, recipe):
    """The model as training has it."""
    method = METHODS[recipe.method.name]
    parts = method.configs(resolve(recipe, shape_of(base), base.row))
    model = attach.attach(load_base(base), parts).train()
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return model


def batch(rows, length, columns, vocabulary):
    """Random rows of which every other is shorter, so that there is padding; labels in the last `columns`."""
    ids = torch.randint(3, vocabulary, (rows, length))
    mask = torch.ones_like(ids)
    mask[::2, length - 5 :] = 0
    labels = torch.where(torch.arange(length) >= length - columns, ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def autocast(dtype):
    return nullcontext() if dtype == "float32" else torch.autocast("cpu", dtype=getattr(torch, dtype))


def measured(base, recipe, rows, length, columns):
    """Bytes alive between the passes of a real step without the loss's own, and the most that were alive in it."""
    model = adapted(base, recipe)
    vocabulary = shape_of(base).vocabulary
    inputs = batch(rows, length, columns, vocabulary)
    mean_loss("next_token", model, inputs).backward()  # bitsandbytes moves its constants at the first pass
    gc.collect()
    with Alive() as alive:
        with autocast(recipe.model.dtype):
            loss = mean_loss("next_token", model, inputs)
        gc.collect()
        between = alive.now()
        loss.backward()
    return between - rows * columns * vocabulary * 4, alive.most


def estimated(base, recipe, rows, length, columns):
    settings = {"batch_size": rows, "dtype": recipe.model.dtype}
    return estimate_memory(base, recipe, settings, length, columns)


CASES = [
    *[(f, q, "float32", s) for f in ("tiny-office", "qwen3") for q in ("nf4", "int8", "none") for s in SHAPES],
    *[("gpt2", q, "float32", SHAPES[1]) for q in ("nf4", "int8", "none")],
    *[("qwen3", q, "bfloat16", SHAPES[0]) for q in ("nf4", "int8", "none")],
    ("gpt2", "nf4", "bfloat16", SHAPES[0]),
]


@pytest.mark.parametrize(("family", "quantization", "dtype", "size"), CASES)
def test_activations_are_what_a_real_forward_pass_leaves_alive(folders, family, quantization, dtype, size):
    recipe, base = made(folders[family], family, quantization, dtype)
    real, _ = measured(base, recipe, *size, 5)
    estimate = estimated(base, recipe, *size, 5)
    assert estimate["activations"] == pytest.approx(real, rel=0.15)


def test_activations_where_only_some_layers_have_an_adapter(folders):
    for quantization in ("nf4", "int8"):
        recipe, base = made(folders["qwen3"], "qwen3", quantization, method__target_modules=["q_proj"])
        real, _ = measured(base, recipe, 4, 48, 5)
        estimate = estimated(base, recipe, 4, 48, 5)["activations"]
        assert estimate == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.needs_storage])
def test_activations_of_every_method_that_can_be_made_without_storage(folders, method):
    recipe, base = made(folders["llama"], "llama", "none", method__name=method, **OWN)
    real, _ = measured(base, recipe, 4, 48, 5)
    assert estimated(base, recipe, 4, 48, 5)["activations"] == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_is_activations_and_logits(folders, dtype):
    recipe, base = made(folders["tiny-office"], "tiny-office", "none", dtype)
    _, most = measured(base, recipe, 4, 80, 78)
    estimate = estimated(base, recipe, 4, 80, 78)
    assert estimate["logits"] == 4 * 78 * 1536 * 12
    assert estimate["activations"] + estimate["logits"] == pytest.approx(most, rel=0.1)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize(("family", "dtype"), [("tiny-office", "float32"), ("qwen3", "bfloat16"), ("gpt2", "float32")])
def test_weights_are_what_the_loaded_base_holds(folders, family, dtype, quantization):
    _, base = made(folders[family], family, quantization, dtype)
    held = list(load_base(base).parameters())
    for p in list(held):
        if state := getattr(p, "quant_state", None):
            held += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        held += [t for t in (getattr(p, "SCB", None),) if t is not None]
    real = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}.values())
    assert weight_bytes(shape_of(base), quantization, dtype) == pytest.approx(real, rel=0.05)


def test_the_adapter_is_its_weights_gradients_and_moments(folders):
    recipe, base = made(folders["llama"], "llama", "none")
    model = adapted(base, recipe)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    mean_loss("next_token", model, batch(2, 16, 4, 300)).backward()
    optimizer.step()
    real = sum(p.nbytes + p.grad.nbytes for p in trained)
    real += sum(s["exp_avg"].nbytes + s["exp_avg_sq"].nbytes for s in optimizer.state.values())
    assert estimated(base, recipe, 2, 16, 4)["adapter"] == real


def test_counting_touches_no_gpu(folders, monkeypatch):
    """On ZeroGPU the main process sees a card, and `spaces` forbids every real call to it."""

    def touched(*args, **kwargs):
        raise RuntimeError("Low-level CUDA init reached")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for module in (torch.cuda, torch.cuda.random):
        monkeypatch.setattr(module, "_lazy_init", touched)
    with pytest.raises(RuntimeError, match="CUDA init reached"):
        torch.cuda.get_rng_state(0)
    recipe, base = made(folders["qwen3"], "untouched", "nf4")
    key = method_key(recipe)
    assert count_trainable(base, key) > 0
    assert adapter_bytes(base, key) > 0


def test_parts_add_up_and_grow_with_the_batch(folders):
    recipe, base = made(folders["llama"], "llama", "nf4")
    small, large = (estimated(base, recipe, rows, 32, 4) for rows in (2, 4))
    for estimate in (small, large):
        assert all(isinstance(v, int) for v in estimate.values())
        assert estimate["total"] == sum(v for k, v in estimate.items() if k != "total")
    assert large["activations"] == pytest.approx(2 * small["activations"], rel=0.02)
    assert small["weights"] == large["weights"]


def test_memory_that_programs_use_is_not_available(monkeypatch):
    monkeypatch.setattr(memory, "device_type", lambda: "cpu")  # a GPU's memory is counted as a whole
    assert 2**20 < available_memory() < psutil.virtual_memory().total - psutil.Process().memory_full_info().uss


def test_a_model_of_billions_is_estimated_from_its_configuration_alone(tmp_path):
    from transformers import Qwen3Config

    Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    recipe, base = made(tmp_path, "qwen", "nf4", "bfloat16")
    estimate = estimated(base, recipe, 16, 256, 128)
    assert shape_of(base).parameters == pytest.approx(1.72e9, rel=0.01)
    assert 1.2 * 2**30 < estimate["weights"] < 1.5 * 2**30
    assert 2**30 < estimate["activations"] < 30 * 2**30


def test_flops_of_a_step_counted_by_hand(folders):
    shape = shape_of(made(folders["llama"], "llama", "nf4")[1])
    settings = {"batch_size": 2}
    # Two layers of width 48: q and o 48 x 48, k and v 48 x 24, gate, up and down 48 x 96.
    linear = 2 * (2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 96)
    attention = 3 * 2 * (2 * 10 * 10 * 48) * 2 * 2  # passes, products, flops, layers, rows
    head = 2 * (2 * 3 * 48 * shape.vocabulary) * 2
    assert flops_per_step(shape, 0, settings, 10, 3) == 2 * 10 * 4 * linear + attention + head
    more = flops_per_step(shape, 1000, settings, 10, 3) - flops_per_step(shape, 0, settings, 10, 3)
    assert more == 2 * 10 * 6 * 1000


def test_seconds_come_from_an_earlier_pace_or_else_from_the_flops(monkeypatch):
    monkeypatch.setattr("tuner.planning.pace.device_speed", device_speed)
    assert step_seconds(1e9, 200, {"seconds_per_token": 0.01}) == pytest.approx(2)
    assert 1e9 < device_speed() < 1e16
    for pace in (None, {}, {"seconds_per_token": None}):
        assert step_seconds(1e9, 200, pace) == 1e9 / device_speed()


def test_paces_are_kept_a_broken_file_counts_as_empty(tmp_path):
    path = tmp_path / "new" / "paces.json"
    key = pace_key("CPU", small_recipe())
    assert key == "CPU | tiny-office | nf4 | lora"
    assert recall(path, key) is None
    pace = {"seconds_per_token": 0.001, "start_up": 3.0, "save": 0.1, "seconds_per_answer": 0.05}
    remember(path, key, pace)
    assert recall(path, key) == pace
    for broken in (b'{"CPU', b"[1, 2]", b"\xff\xfe", b'{"CPU | tiny-office | nf4 | lora": 3}'):
        path.write_bytes(broken)
        assert recall(path, key) is None
    remember(path, key, pace)
    assert recall(path, key) == pace
    assert [p.name for p in path.parent.iterdir()] == ["paces.json"]


def test_a_pace_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "paces.json"
    remember(path, "a", {"save": 1.0})
    with pytest.raises(TypeError):
        remember(path, "b", {"save": object()})
    assert json.loads(path.read_text()) == {"a": {"save": 1.0}}


def test_the_oldest_paces_go(tmp_path):
    path = tmp_path / "paces.json"
    for i in range(KEPT_PACES + 5):
        remember(path, str(i), {"save": float(i)})
        if i == 150:
            remember(path, "0", {"save": 0.5})
    kept = json.loads(path.read_text())
    assert len(kept) == KEPT_PACES
    assert recall(path, "1") is None
    assert recall(path, "0") == {"save": 0.5}
    assert recall(path, str(KEPT_PACES + 4))
