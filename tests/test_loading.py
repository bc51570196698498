"""How a base model is described, found and loaded, on tiny models of every family: sizes, precision, cache, files."""

import json
import os
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import small_recipe
from safetensors.torch import save_file
from tiny import DECODER, FAMILIES, tiny_model
from transformers import GPT2Config, LlamaConfig, OlmoConfig, T5Config

from tuner import models_cleanup, recipe
from tuner.errors import TunerError
from tuner.models import device, fetch, load, quantized
from tuner.models.fetch import base_of, fetch_model, is_shipped
from tuner.models.shape import PADDED_POSITIONS, Base, _context, can_do, check_task, load_tokenizer, on_meta, shape_of
from tuner.models.weights import check_fit, stored_sizes
from tuner.tasks import TASKS

LABELS = ("bad", "good", "mixed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model of each family, by its name."""
    folder = tmp_path_factory.mktemp("families")
    return {family: tiny_model(folder / family, family) for family in FAMILIES}


def base(folders: dict, family: str, task: str = "generation", *, labels=LABELS, **model) -> Base:
    model = recipe.Model(**{"name": family, "quantization": "none", **model})
    return Base(folders[family], model, task, labels if TASKS[task].has_labels else ())


# The description

# By family and task: the new head and its parameters, linear layers, norms, the context, and whether it is a bound.
DENSE = 48 * 48 + 48
SHAPES = {
    ("llama", "generation"): ((), 0, 14, 5, 512, True),
    ("llama", "classification"): (("score",), 3 * 48, 14, 5, 512, True),
    ("llama", "question_answering"): (("qa_outputs",), 2 * 48 + 2, 14, 5, 512, True),
    ("qwen3", "token_classification"): (("score",), 3 * 48 + 3, 14, 9, 512, True),
    ("gpt2", "generation"): ((), 0, 8, 5, 512, True),
    ("gpt2", "token_classification"): (("classifier",), 3 * 48 + 3, 8, 5, 512, True),
    ("t5", "seq2seq"): ((), 0, 36, 12, 2048, False),
    ("t5", "classification"): (("classification_head",), 3 * 48 + 3 + DENSE, 36, 12, 2048, False),
    ("t5", "question_answering"): (("qa_outputs",), 2 * 48 + 2, 36, 12, 2048, False),
    ("bart", "seq2seq"): ((), 0, 32, 12, 512, True),
    ("bert", "classification"): (("classifier", "bert.pooler"), 3 * 48 + 3 + DENSE, 12, 5, 512, True),
    ("bert", "token_classification"): (("classifier",), 3 * 48 + 3, 12, 5, 512, True),
    ("roberta", "classification"): (("classifier",), 3 * 48 + 3 + DENSE, 12, 5, 512, True),
    ("distilbert", "classification"): (("pre_classifier", "classifier"), 3 * 48 + 3 + DENSE, 12, 5, 512, True),
    ("distilbert", "question_answering"): (("qa_outputs",), 2 * 48 + 2, 12, 5, 512, True),
}


@pytest.mark.parametrize(("family", "task"), SHAPES)
def test_a_model_is_described_without_its_weights_as_it_is_when_loaded(folders, family, task):
    described, model = shape_of(base(folders, family, task)), load.load_base(base(folders, family, task))
    heads, in_heads, linear, norms, context, is_bounded = SHAPES[family, task]
    assert (described.heads, described.head_parameters) == (heads, in_heads)
    assert (len(described.linear_layers), len(described.norms)) == (linear, norms)
    assert (described.context, described.is_bounded) == (context, is_bounded)
    assert (described.width, described.layers, described.vocabulary) == (48, 2, 320)
    assert (described.model_type, described.conv1d) == (family, family == "gpt2")
    assert dict(zip(described.weights, described.weight_sizes, strict=True)) == {
        name: p.numel() for name, p in model.named_parameters()
    }
    assert described.parameters == sum(described.weight_sizes) == model.num_parameters()
    assert described.modules == tuple(name for name, _ in model.named_modules())
    for name, inputs, outputs in described.linear_layers:
        weight = model.get_submodule(name).weight
        assert tuple(weight.shape) == ((inputs, outputs) if family == "gpt2" else (outputs, inputs))
        assert not name.startswith(heads)
    assert sum(described.base_weights.values()) == described.parameters - in_heads
    if described.heads:
        assert model.config.num_labels == (3 if TASKS[task].has_labels else 2)


def test_a_pooler_that_was_published_is_no_new_module(folders, tmp_path):
    from transformers import BertModel

    model = BertModel.from_pretrained(folders["bert"])
    model.save_pretrained(tmp_path)
    described = shape_of(base({"bert": tmp_path}, "bert", "classification"))
    assert (described.heads, described.head_parameters) == (("classifier",), 3 * 48 + 3)


def test_norms_without_weights_are_no_norms_to_train(tmp_path):
    """OLMo normalizes without weights of its own."""
    sizes = {**DECODER, "vocab_size": 320, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1}
    OlmoConfig(**sizes, architectures=["OlmoForCausalLM"]).save_pretrained(tmp_path)
    described = shape_of(base({"olmo": tmp_path}, "olmo"))
    assert "model.layers.1.input_layernorm" in described.modules
    assert described.norms == ()


def test_positions_are_read_by_each_familys_name_less_roberta_s_two_of_padding():
    assert _context(LlamaConfig(max_position_embeddings=300)) == 300
    assert _context(GPT2Config(n_positions=301)) == 301
    assert _context(T5Config()) == 2048
    numbered = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet"}
    assert set(PADDED_POSITIONS) == numbered
    for name in (*numbered, "bert"):
        text = SimpleNamespace(max_position_embeddings=514, model_type=name)
        assert _context(text) == (514 if name == "bert" else 512)


def test_a_task_is_possible_if_transformers_has_a_class_or_the_model_was_published_as_it(folders):
    def config(family: str, **others):
        return SimpleNamespace(**{"model_type": family, "architectures": [FAMILIES[family][0]], **others})

    possible = {
        "generation": {"llama", "qwen3", "gpt2"},
        "seq2seq": {"t5", "bart"},
        "classification": set(FAMILIES),
        "token_classification": set(FAMILIES) - {"bart"},
        "question_answering": set(FAMILIES),
    }
    for task, families in possible.items():
        assert {family for family in FAMILIES if can_do(config(family), TASKS[task])} == families, task
    assert not can_do(config("bert", architectures=None), TASKS["generation"])
    check_task(config("t5"), "mine", TASKS["seq2seq"])
    with pytest.raises(TunerError) as caught:
        check_task(config("bart", architectures=["BartModel", "Other"]), "mine", TASKS["token_classification"])
    assert str(caught.value) == (
        "'mine' is not a model that can be given a head for tags (it is BartModel, Other), but these rows are for "
        "named entities and other tags of words. Choose an encoder such as google-bert/bert-base-cased."
    )
    with pytest.raises(TunerError, match=r"\(it is of unknown architecture\)"):
        check_task(config("bert", architectures=None), "mine", TASKS["generation"])


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}, None),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "(bitsandbytes, FP4)"),
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, None),
        ({"load_in_8bit": False, "quant_method": "gptq"}, "(gptq)"),
        ({"bits": 4}, "(an unknown method)"),
    ],
)
def test_only_weights_that_bitsandbytes_quantized_can_be_trained_on(stored, says):
    settings = {"quantization_config": stored}
    if not says:
        assert quantized.precision_of(settings, "mine") == ("int8" if "load_in_8bit" in stored else "nf4")
        return
    with pytest.raises(TunerError) as caught:
        quantized.precision_of(settings, "mine")
    assert str(caught.value).startswith(f"'mine' is already quantized {says}, and Tuner can't train")


def test_labels_and_padding_reach_the_configuration_and_the_meta_model_has_a_type(folders, tmp_path):
    classifier = base(folders, "gpt2", "classification")
    config = load.load_base(classifier).config
    assert config.id2label == {0: "bad", 1: "good", 2: "mixed"}
    assert config.label2id == {"bad": 0, "good": 1, "mixed": 2}
    without = tiny_model(tmp_path / "gpt2", "gpt2")
    settings = json.loads((without / "config.json").read_text()) | {"pad_token_id": None}
    (without / "config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(without)
    for task, padding in (("classification", tokenizer.pad_token_id), ("generation", None)):
        assert load.load_base(base({"gpt2": without}, "gpt2", task)).config.pad_token_id == padding
    assert on_meta(classifier).dtype == torch.float32
    meta = on_meta(classifier, dtype=torch.bfloat16)
    assert (meta.dtype, meta.device.type, meta.num_labels) == (torch.bfloat16, "meta", 3)
    assert on_meta(classifier, meta.config.__class__(num_labels=7, n_embd=48, n_head=4)).num_labels == 7


def test_a_tokenizer_without_padding_pads_with_its_end_mark(folders, tmp_path):
    from transformers import AutoTokenizer

    assert load_tokenizer(folders["llama"]).pad_token == "<|endoftext|>"
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<|im_end|>"


# The device and the precision


@pytest.mark.parametrize(
    ("given", "cuda", "bf16", "dtype", "reason"),
    [
        ("auto", False, False, "float32", "exact, and fast enough on a CPU"),
        ("auto", False, True, "float32", "exact, and fast enough on a CPU"),
        ("auto", True, True, "bfloat16", "supported by this GPU, and it does not overflow"),
        ("auto", True, False, "float16", "this GPU has no bfloat16"),
        ("float16", False, True, "float16", "as given"),
        ("bfloat16", True, False, "bfloat16", "as given"),
        ("float32", True, True, "float32", "as given"),
    ],
)
def test_the_type_of_the_computation_follows_the_recipe_then_the_device(monkeypatch, given, cuda, bf16, dtype, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert device.device_type() == ("cuda" if cuda else "cpu")
    assert device.compute_dtype(recipe.Model(dtype=given)) == (dtype, reason)


@pytest.mark.parametrize("given", ["float32", "bfloat16", "float16"])
def test_layers_compute_in_the_type_of_the_base(given):
    with device.autocast(recipe.Model(dtype=given)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, given)
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("heads", [(), ("score", "pooler")])
def test_each_precision_is_bitsandbytes_own_and_leaves_new_heads_out(heads):
    nf4, int8 = (load._quantization(kind, torch.bfloat16, heads) for kind in ("nf4", "int8"))
    assert (nf4.load_in_4bit, nf4.bnb_4bit_quant_type, nf4.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert (nf4.bnb_4bit_compute_dtype, nf4.load_in_8bit) == (torch.bfloat16, False)
    assert (int8.load_in_8bit, int8.load_in_4bit) == (True, False)
    assert nf4.llm_int8_skip_modules == int8.llm_int8_skip_modules == (list(heads) or None)
    assert load._quantization("none", torch.float16, heads) is None


def test_a_base_is_loaded_in_the_recipes_type_in_evaluation_mode_with_the_same_new_head_every_time(folders):
    classifier = base(folders, "bert", "classification", dtype="bfloat16")
    loaded = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded.append(load.load_base(classifier))
        drawn = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(drawn, torch.rand(1))  # random numbers go on as if nothing had been loaded
    first, second = loaded
    assert not first.training
    assert {p.dtype for p in first.parameters()} == {torch.bfloat16}
    assert first.classifier.weight.abs().sum() > 0
    for name, p in first.named_parameters():
        assert torch.equal(p, second.get_parameter(name)), name


def test_a_head_for_other_labels_is_replaced_and_quantization_leaves_it_whole(folders, tmp_path):
    load.load_base(base(folders, "distilbert", "classification", labels=("a", "b"))).save_pretrained(tmp_path)
    load_tokenizer(folders["distilbert"]).save_pretrained(tmp_path)
    published = {"distilbert": tmp_path}
    assert load.load_base(base(published, "distilbert", "classification")).classifier.out_features == 3
    for asked, given in (({"quantization": "nf4"}, None), ({}, "nf4")):
        model = load.load_base(base(published, "distilbert", "classification", **asked), quantization=given)
        layer = model.distilbert.transformer.layer[0].ffn.lin1
        assert type(layer).__name__ == "Linear4bit"
        assert type(model.classifier) is type(model.pre_classifier) is torch.nn.Linear
        assert not getattr(layer, "support_avx512bf16_for_cpu", False)
    nf4 = base(published, "distilbert", "classification", quantization="nf4")
    assert type(load.load_base(nf4, quantization="none").pre_classifier) is torch.nn.Linear


def test_int8_weights_have_a_scale_for_each_output(folders):
    layer = load.load_base(base(folders, "llama", quantization="int8")).model.layers[1].mlp.down_proj
    exact = load.load_base(base(folders, "llama")).model.layers[1].mlp.down_proj.weight
    assert type(layer).__name__ == "Linear8bitLt"
    assert layer.weight.dtype == torch.int8
    scales = layer.weight.SCB
    assert scales.shape == (48,)  # outputs; there are 96 inputs
    torch.testing.assert_close(scales, exact.abs().amax(1).float(), rtol=0.01, atol=0)
    torch.testing.assert_close(layer.weight * scales[:, None] / 127, exact.detach(), rtol=0, atol=1e-3)


# The cache


@pytest.fixture
def cache(folders, monkeypatch):
    """`shared_base` with an empty cache, on names in place of models; returns those that were loaded."""
    loaded = []
    monkeypatch.setattr(load, "_kept", type(load._kept)())
    monkeypatch.setattr(
        load, "load_base", lambda base, quantization=None: loaded.append((base, quantization)) or len(loaded)
    )
    return loaded


def test_the_three_bases_used_last_stay_loaded(folders, cache):
    bases = [base(folders, family) for family in ("llama", "qwen3", "gpt2", "t5")]
    numbers = [load.shared_base(bases[i]) for i in (0, 1, 2, 0, 3)]
    assert numbers == [1, 2, 3, 1, 4]
    # The second was used longest ago, so it made room.
    assert [load.shared_base(bases[i]) for i in (2, 0, 3)] == [3, 1, 4]
    assert load.shared_base(bases[1]) == 5
    load.forget_bases()
    assert load.shared_base(bases[1]) == 6


def test_a_base_is_loaded_anew_only_where_it_would_be_another(folders, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(load, "KEPT", 99)
    folder = tiny_model(tmp_path / "llama")
    here = {"llama": folder}
    others = [
        (base(here, "llama"), None),
        (base(here, "llama"), "nf4"),
        (base(here, "llama"), "int8"),
        (base(here, "llama", dtype="bfloat16"), None),
        (base(here, "llama", "classification"), None),
        (base(here, "llama", "token_classification"), None),
        (base(here, "llama", "classification", labels=LABELS[::-1]), None),
        (base({"llama": folders["llama"]}, "llama"), None),
    ]
    numbers = [load.shared_base(one, quantization=q) for one, q in others]
    assert numbers == list(range(1, len(others) + 1))
    assert cache == others
    # The same in other words: the name is no part of what is loaded, nor is a precision that is given twice.
    assert load.shared_base(base(here, "llama", name="other")) == 1
    assert load.shared_base(base(here, "llama", quantization="nf4")) == 2
    assert load.shared_base(base(here, "llama", quantization="nf4"), quantization="none") == 1
    assert load.shared_base(base(here, "llama", dtype="float32")) == 1
    os.utime(folder / "config.json", ns=(1, 1))
    assert load.shared_base(base(here, "llama")) == len(others) + 1


def test_kept_models_are_dropped_while_they_take_more_than_a_tenth_of_the_gpu(folders, monkeypatch):
    class Loaded:
        def __init__(self, size):
            self.size = size

        def get_memory_footprint(self):
            return self.size

    sizes = iter([60, 40, 50, 11, 1])
    monkeypatch.setattr(load, "_kept", type(load._kept)())
    monkeypatch.setattr(load, "load_base", lambda base, quantization=None: Loaded(next(sizes)))
    monkeypatch.setattr(load, "compute_dtype", lambda model: ("float32", ""))
    monkeypatch.setattr(load, "_free_bytes", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(load, "device_type", lambda: "cuda")
    families = ("llama", "qwen3", "gpt2", "t5", "bart")
    kept = []
    for family in families:
        load.shared_base(base(folders, family, "seq2seq" if family in ("t5", "bart") else "generation"))
        kept.append([model.size for model in load._kept.values()])
    # 100 in all are a tenth and stay; 150 are more, and so are 101.
    assert kept == [[60], [60, 40], [60, 40, 50], [40, 50, 11], [50, 11, 1]]
    monkeypatch.setattr(load, "device_type", lambda: "cpu")
    assert not load._is_full()


# The files


def stored(folder, **files: dict[str, tuple]) -> None:
    for name, shapes in files.items():
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, folder / f"{name}.safetensors")


def test_the_sizes_of_stored_tensors_come_from_the_files_that_transformers_reads(tmp_path):
    stored(tmp_path, b={"x": (2, 3)}, a={"y": (5,), "z": ()}, other={"x": (7,), "w": (4, 1)})
    assert stored_sizes(tmp_path, "mine") == {"y": 5, "z": 1, "x": 7, "w": 4}  # no index: all of them
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "b.safetensors", "y": "gone.safetensors"}}')
    with pytest.raises(TunerError, match=r"^'mine' can't be loaded: gone\.safetensors is missing\. Download or copy"):
        stored_sizes(tmp_path, "mine")
    index.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}))
    assert stored_sizes(tmp_path, "mine") == {"y": 5, "z": 1, "x": 6}
    stored(tmp_path, model={"v": (2, 2, 3)})
    assert stored_sizes(tmp_path, "mine") == {"v": 12}
    (tmp_path / "model.safetensors").unlink()
    for content in ("{}", "[]", '{"weight_map": []}', '{"weight_map": {"x": 3}}', "\x00"):
        index.write_text(content)
        with pytest.raises(TunerError) as caught:
            stored_sizes(tmp_path, "mine")
        assert str(caught.value) == (
            "'mine' can't be loaded: model.safetensors.index.json is damaged or incomplete. Download or copy it "
            "again, or choose another model."
        )


BLOCKS = {"embed.weight": 10, "layers.0.up.weight": 6, "layers.1.up.weight": 6, "layers.2.up.weight": 7}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"embed.weight": None}, None),  # a few names may differ
        ({"layers.1.up.weight": None, "layers.1.other.weight": 1}, None),
        ({"layers.3.up.weight": 9}, None),  # more than is described
        ({"layers.2.up.weight": 8}, "layers.2.up.weight has 8 values in place of 7"),
        ({"embed.weight": 12345}, "embed.weight has 12,345 values in place of 10"),
        ({"layers.2.up.weight": None}, "there are none for layers.2"),
        ({"layers.2.up.weight": None, "layers.1.up.weight": None}, "there are none for layers.1"),
    ],
)
def test_stored_weights_fit_a_description_whose_blocks_and_sizes_they_have(change, says):
    there = {name: size for name, size in (BLOCKS | change).items() if size}
    if not says:
        check_fit(BLOCKS, there, "mine")
        return
    with pytest.raises(TunerError) as caught:
        check_fit(BLOCKS, there, "mine")
    assert str(caught.value) == (
        f"'mine' can't be loaded: its weights do not fit its config.json ({says}). Put the two of one model into the "
        "folder, or choose another model."
    )


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_name_may_have_a_prefix_in_the_file_or_in_the_description(wrong):
    bare = {"embed.weight": 10 + wrong}
    for described, there in (
        ({"model.embed.weight": 10}, bare),
        ({"embed.weight": 10}, {f"model.{name}": size for name, size in bare.items()}),
        ({"model.embed.weight": 10}, {f"outer.model.{name}": size for name, size in bare.items()} | {"x": 3}),
    ):
        if not wrong:
            check_fit(described, there, "mine")
            continue
        with pytest.raises(TunerError, match=r"embed\.weight has 11 values in place of 10"):
            check_fit(described, there, "mine")


def test_a_download_that_fails_is_explained_with_the_models_name(monkeypatch):
    def fail(api, name, **options):
        raise PermissionError(13, "no")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(TunerError, match=r"^The model 'a/b': a folder on this machine is not writable"):
        fetch_model(recipe.Model(name="a/b"))


def test_only_a_plain_name_is_shipped():
    assert is_shipped("tiny-office")
    for name in (
        "tiny-offic",
        "./tiny-office",
        "../examples/tiny-office",
        "tiny-office/",
        "/",
        "",
        ".",
        "é",
        "corporate.jsonl",
    ):
        assert not is_shipped(name), name
    assert fetch_model(recipe.Model(name="tiny-office")) == recipe.EXAMPLES / "tiny-office"


def test_a_run_finds_its_own_base_again_with_its_task_labels_and_revision(monkeypatch, tmp_path, folders):
    asked = []
    monkeypatch.setattr(fetch, "_cached", lambda model: None)
    monkeypatch.setattr(fetch, "fetch_model", lambda model, own, token: asked.append((model, own)) or tmp_path)
    wanted = small_recipe(model__name="a/b", model__revision="main", model__quantization="int8")
    kept = {"revision": "0123", "task": "classification", "labels": ["x", "y", "z"]}
    run = SimpleNamespace(id="r1", recipe=wanted, plan=kept)
    found = base_of(run)
    assert asked == [(wanted.model.model_copy(update={"revision": "0123"}), None)]
    plain = {"revision": None}  # the folder is the version
    assert found == Base(tmp_path, wanted.model.model_copy(update=plain), "classification", ("x", "y", "z"))
    own = folders["bert"]
    found = base_of(SimpleNamespace(id="r1", recipe=wanted, plan={"revision": None, "model_folder": str(own)}))
    named = wanted.model.model_copy(update={"name": "bert"})
    assert asked[1:] == [(named.model_copy(update={"revision": None}), own)]
    assert found == Base(tmp_path, named.model_copy(update=plain), "generation", ())
    with pytest.raises(TunerError) as caught:
        base_of(SimpleNamespace(id="r1", recipe=wanted, plan={"revision": None, "model_folder": "/no/where"}))
    assert str(caught.value) == (
        "The base model of run r1, the folder 'where', was moved or deleted. Put it back: plan.json in the run's "
        "folder says where it was."
    )


def test_free_disk_is_what_is_left_where_the_path_is_or_will_be(monkeypatch, tmp_path):
    disks = {tmp_path: SimpleNamespace(total=7, used=4, free=3)}
    monkeypatch.setattr(shutil, "disk_usage", disks.__getitem__)
    assert models_cleanup.free_disk(tmp_path) == 3
    assert models_cleanup.free_disk(f"{tmp_path}/not/yet") == 3
