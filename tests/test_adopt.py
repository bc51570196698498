"""Adapters of the Hub by name: they answer as with plain PEFT, and bad ones are refused in a sentence, with nothing
left behind."""

import json
import shutil
import time
from pathlib import Path

import fresh
import peft
import pytest
import torch
from conftest import ROOT
from hub_double import Hub
from strange_adapters import BASE, CONFIG, IDS, WEIGHTS, ask_here, change_config, change_weights, make
from tiny import tiny_model

from tuner import runs
from tuner.errors import TunerError
from tuner.inference.variants import load_variants
from tuner.planning import adapter_config, adapter_files
from tuner.planning.adopt import adopt
from tuner.runs import Run

LM, CLS = {"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_CLS"}
PROJECTED = {"prefix_projection": True, "encoder_hidden_size": 8}
REGEX = r".*\.(q|v)_proj"
ENDLESS = r"(?:[a-z]|[a-z_]|[a-z.]|[\w.])*(?<=Q)"
KINDS = {
    "lora": peft.LoraConfig(target_modules=["q_proj", "down_proj"], rank_pattern={"layers.0.*q_proj": 3}, **LM),
    "lora by expression": peft.LoraConfig(target_modules=REGEX, exclude_modules=r".*layers\.0.*v_proj", **LM),
    "rslora": peft.LoraConfig(use_rslora=True, target_modules="all-linear", **LM),
    "dora": peft.LoraConfig(use_dora=True, target_modules=["v_proj"], layers_to_transform=[1], **LM),
    "lora with a head": peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], **LM),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **LM),
    "adalora": peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, **LM),
    "vera": peft.VeraConfig(target_modules=["q_proj"], r=16, **LM),
    "loha": peft.LoHaConfig(target_modules=["q_proj", "o_proj"], alpha_pattern={"o_proj": 4}, **LM),
    "oft": peft.OFTConfig(target_modules=["q_proj"], oft_block_size=8, **LM),
    "prompt_tuning": peft.PromptTuningConfig(num_virtual_tokens=4, **LM),
    "p_tuning": peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16, **LM),
    "prefix_tuning": peft.PrefixTuningConfig(num_virtual_tokens=4, **PROJECTED, **LM),
    "llama_adapter": peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, **LM),
    "layernorm": peft.LNTuningConfig(target_modules=["norm", "input_layernorm"], **LM),
    "classification": peft.LoraConfig(target_modules=["q_proj"], **CLS),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    return {
        family: tiny_model(tmp_path_factory.mktemp("bases") / family, family) for family in ("qwen3", "llama", "gpt2")
    }


@pytest.fixture
def home(hub: Hub, tmp_path, monkeypatch) -> Path:
    """A Hub that this process asks, and folders for its cache and for runs."""
    ask_here(hub, tmp_path, monkeypatch)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    return tmp_path


@pytest.fixture
def good(hub: Hub, bases, home) -> Path:
    """The folder of an adapter whose base is on the Hub, to be changed and put there."""
    hub.add_model(BASE, bases["qwen3"])
    make(bases["qwen3"], peft.LoraConfig(target_modules=["q_proj"], r=4, **LM), home / "good")
    return home / "good"


@torch.inference_mode()
def answered(run: Run) -> torch.Tensor:
    with load_variants({"adapter": run}).model_for("adapter") as model:
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_the_hub_answers_as_with_plain_peft(kind, hub, bases, home):
    options = {"num_labels": 3} if kind == "classification" else {}
    family = "llama" if kind == "llama_adapter" else "qwen3"
    expected = make(bases[family], KINDS[kind], home / "made", **options)
    base, sha = hub.add_model(BASE, bases[family]).sha, hub.add_model("bob/it", home / "made").sha
    run = adopt("bob/it", token=False)
    torch.testing.assert_close(answered(run), expected, atol=1e-5, rtol=1e-4)
    assert (run.status, run.recipe.method.name) == ("adopted", "lora" if kind[:4] in ("lora", "clas") else kind)
    assert run.plan["adopted"] == {"adapter": "bob/it", "revision": sha}
    assert run.plan["revision"] == base
    assert run.damage == []
    assert hub.tokens() == {None}


def refused(name: str, token: str | bool = False) -> str:
    """What is said of an adapter that can't be used. Nothing is left of it among the runs."""
    before, start = set(runs.RUNS.glob("*")), time.monotonic()
    with pytest.raises(TunerError) as caught:
        adopt(name, token=token, most=1e9)
    assert time.monotonic() - start < 10
    assert set(runs.RUNS.glob("*")) == before
    return str(caught.value)


def config(**settings):
    return lambda folder: change_config(folder, lambda c: c.update(settings))


def weights(change):
    return lambda folder: change_weights(folder, change)


BAD = {
    "no adapter": (lambda f: (f / CONFIG).unlink(), "no adapter_config.json"),
    "pickles only": (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "(only pickles), and pickles are never"),
    "two adapters": (lambda f: shutil.copytree(f, f / "second"), "consists of two adapters"),
    "broken configuration": (lambda f: (f / CONFIG).write_text("{"), "is not a valid JSON object"),
    "nested configuration": (lambda f: (f / CONFIG).write_text("[" * 10**5), "is not a valid JSON object"),
    "large configuration": (lambda f: (f / CONFIG).write_text(" " * 2**21 + "{}"), "has 2 MB"),
    "damaged weights": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 100), "adapter_model.safetensors is damaged"),
    "another kind": (config(peft_type="XLORA", adapters={"a": "/etc"}), "of the kind XLORA, which can't"),
    "no kind": (config(peft_type=["LORA"]), "of the kind ['LORA'], which can't"),
    "another task": (config(task_type="FEATURE_EXTRACTION"), "for the task FEATURE_EXTRACTION"),
    "base in a folder": (config(base_model_name_or_path="/content/model"), "has '/content/model' as base_model_name"),
    "base at an address": (config(base_model_name_or_path="http://evil/x"), "has 'http://evil/x' as base_model_name"),
    "base above": (config(base_model_name_or_path="../../x"), "has '../../x' as base_model_name"),
    "no base": (config(base_model_name_or_path=None), "has nothing as base_model_name"),
    "unknown base": (config(base_model_name_or_path="ann/gone"), "'ann/gone' is not on the Hub"),
    "a begin that changes the base": (config(init_lora_weights="pissa"), "sets init_lora_weights to pissa"),
    "copied layers": (config(layer_replication=[[0, 2], [0, 2]]), "sets layer_replication to [[0, 2], [0, 2]]"),
    "the base's biases": (config(bias="all"), "sets bias to all"),
    "other tokens": (config(trainable_token_indices=[1]), "sets trainable_token_indices to [1]"),
    "newer PEFT": (config(from_the_future={"a": 1}), "sets from_the_future to {'a': 1}"),
    "endless expression": (config(target_modules=ENDLESS), "takes longer than"),
    "endless rank": (config(rank_pattern={ENDLESS: 3}), "takes longer than"),
    "endless head": (config(modules_to_save=[ENDLESS]), "sets modules_to_save to"),
    "no expression": (config(target_modules="(((("), "target_modules in its adapter_config.json is ((((, which"),
    "long expression": (config(target_modules="a" * 3000), "which can't be right"),
    "no such layer": (config(target_modules=["nowhere"]), "PEFT says: Target modules"),
    "expression without layers": (config(target_modules="nowhere.*x"), "names none of its layers"),
    "many layers": (config(target_modules=["q_proj"] * 6000), "sets target_modules to"),
    "huge rank": (config(r=10**9), "sets r to 1000000000"),
    "huge number": (config(lora_alpha=10**400), "sets lora_alpha to 1000"),
    "other rank": (config(r=8), "it was trained on a model of another size"),
    "more layers": (config(target_modules=["q_proj", "k_proj"]), "it has no LoRA weights for model.layers.0.self"),
    "the base's weights": (
        weights(lambda t: t | {"base_model.model.lm_head.weight": torch.zeros(320, 48)}),
        "such as lm_head.weight. Adapters that replace the base's own weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_adapter_is_refused_in_a_sentence(bad, hub, good, monkeypatch):
    monkeypatch.setattr(adapter_config, "SECONDS", 0.3)
    plant, sentence = BAD[bad]
    plant(good)
    hub.add_model("bob/bad", good)
    assert sentence in refused("bob/bad")


def test_an_adapter_for_another_base_is_refused_with_both_sizes(hub, good, bases):
    hub.add_model(BASE, tiny_model(good.parent / "wide", "qwen3", hidden_size=96))
    hub.add_model("bob/other", good)
    assert (
        "'bob/other' does not fit ann/base: it was trained on a model of another size. Its "
        "model.layers.0.self_attn.q_proj.lora_A.weight is 4 x 48, and ann/base, of width 96, needs 4 x 96."
    ) in refused("bob/other")
    hub.add_model(BASE, bases["gpt2"])
    assert "PEFT says: Target modules" in refused("bob/other")


def test_a_large_adapter_is_refused_before_a_byte_of_it_is_fetched(hub, good, monkeypatch):
    hub.add_model("bob/large", good)
    monkeypatch.setattr(adapter_files, "MOST_BYTES", 1000)
    assert "allows adapters of at most" in refused("bob/large")
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]
    assert not list(good.parent.glob("cache/models--bob*"))
    assert adopt("bob/large", token=None).status == "adopted"  # on one's own machine


def test_names_that_are_none_reach_nobody(hub, home):
    for name in ("", "x", "../x", "a/b/c", "a/b@../c", "http://x/y", "a" * 500, "a/b@" + "c" * 500):
        assert "can't be" in refused(name) or "is no branch" in refused(name)
    assert hub.seen == []


def test_private_and_gated_ones_come_with_the_visitors_own_sign_in_alone(hub, good, bases):
    ann, bob = hub.user("ann", "oauth"), hub.user("bob", "oauth")
    hub.add_model("ann/adapter", good, private=True)
    hub.add_model(BASE, bases["qwen3"], gated=True, readers=("ann",))
    assert "is not on the Hub, or it is private" in refused("ann/adapter")
    assert "is not on the Hub, or it is private" in refused("ann/adapter", bob)
    run = adopt("ann/adapter", token=ann)
    assert answered(run).isfinite().all()
    assert "private" in refused("ann/adapter", bob)  # though it is in the cache
    hub.add_model("ann/gated", good, gated=True, readers=("ann",))
    assert adopt("ann/gated", token=ann).status == "adopted"
    assert "'ann/gated' is gated: accept its terms" in refused("ann/gated", bob)  # though its description is open
    hub.add_model("bob/adapter", good)
    assert "'ann/base' is gated: accept its terms" in refused("bob/adapter", bob)
    assert not any(ann in path.read_text(errors="replace") for path in run.path.rglob("*") if path.is_file())


def test_labels_are_those_of_the_receipt_or_else_of_the_base_or_else_numbers(hub, bases, home):
    make(bases["qwen3"], KINDS["classification"], home / "made", num_labels=3)
    hub.add_model(BASE, bases["qwen3"])
    for told, labels in (
        (None, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"labels": ["red", "green"]}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"labels": "red"}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"labels": ["red", "green", "blue"]}, ["red", "green", "blue"]),
    ):
        if told:
            (home / "made" / "receipt.json").write_text(json.dumps(told))
        hub.add_model("bob/it", home / "made")
        assert adopt("bob/it", token=False).plan["labels"] == labels
    config = json.loads((bases["qwen3"] / "config.json").read_text()) | {"id2label": {0: "a", 1: "b", 2: "c"}}
    shutil.copytree(bases["qwen3"], home / "named")
    (home / "named" / "config.json").write_text(json.dumps(config))
    hub.add_model(BASE, home / "named")
    (home / "made" / "receipt.json").unlink()
    hub.add_model("bob/it", home / "made")
    assert adopt("bob/it", token=False).plan["labels"] == ["a", "b", "c"]


IN_WORKERS = """
import json, sys, time
from tuner.errors import TunerError
from tuner.ui import adopting
from tuner.ui.visitor import Visitor

for name in sys.argv[1:]:
    start = time.monotonic()
    try:
        run, secret = adopting.adopt(name, "none", Visitor("ann"))
        said = run.plan["adopted"]["adapter"]
    except TunerError as error:
        said = str(error)
    print(json.dumps([said, time.monotonic() - start]), flush=True)
"""


@pytest.mark.long
def test_a_visitors_adapter_is_read_in_a_process_that_can_be_ended(hub, good, tmp_path):
    hub.add_model("bob/good", good)
    change_config(good, lambda c: c.update(target_modules=ENDLESS))
    hub.add_model("bob/endless", good)
    env = hub.env(tmp_path / "home") | {"TUNER_RUNS": str(tmp_path / "runs"), "TUNER_CHECK_SECONDS": "2"}
    done = fresh.run(["-c", IN_WORKERS, "bob/good", "bob/endless"], ROOT, env=env)
    assert done.returncode == 0, done.stderr
    (one, _), (other, seconds) = map(json.loads, done.stdout.splitlines()[-2:])
    assert one == "bob/good"
    assert "Reading this adapter took longer than 2 seconds, so it was stopped" in other
    assert seconds < 8
    assert len(list((tmp_path / "runs").glob("[!.]*"))) == 1


FAULTS = [
    ("GET", "/api/models/bob/it"),
    ("HEAD", "adapter_config.json"),
    ("GET", "adapter_model.safetensors"),
    ("GET", "/api/models/ann/base"),
    ("GET", "resolve"),
]


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(("method", "part"), FAULTS)
def test_a_broken_connection_leaves_nothing_and_the_next_try_works(method, part, hub, good):
    hub.add_model("bob/it", good)
    hub.cut(method, part, times=40)
    assert "the connection to the Hub was lost" in refused("bob/it")
    hub.cuts.clear()
    run = adopt("bob/it", token=False)
    assert (run.adapter / WEIGHTS).read_bytes() == (good / WEIGHTS).read_bytes()


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("how", ["429", "500", "half", "cut"])
def test_each_request_for_an_adapter_fails_once_and_it_is_adopted_all_the_same(how, hub, good, monkeypatch):
    from huggingface_hub.constants import HF_HUB_CACHE

    hub.add_model("bob/it", good)
    cached = Path(HF_HUB_CACHE) / "models--bob--it"

    def adopted(number: int) -> list[tuple[str, str]]:
        shutil.rmtree(cached, ignore_errors=True)
        hub.seen.clear()
        if number:
            hub.fail(number, how)
        run = adopt("bob/it", token=False)
        assert (run.adapter / WEIGHTS).read_bytes() == (good / WEIGHTS).read_bytes()
        run.delete()
        return [(seen.method, seen.path) for seen in hub.seen if "bob/it" in seen.path]

    asked = adopted(0)
    assert len(asked) >= 4
    for number in range(1, len(asked) + 1):
        adopted(number)
