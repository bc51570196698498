"""Training on from an adapter: which weights it begins with, what is refused, and what is said of the scores."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from conftest import small_recipe
from hub_double import Hub
from safetensors.torch import load_file
from strange_adapters import BASE, IDS, ask_here, make
from tiny import tiny_model

from tuner import runs
from tuner.errors import TunerError
from tuner.hub.card_data import public_recipe
from tuner.methods import attach
from tuner.methods.registry import METHODS, resolve
from tuner.models.load import load_base
from tuner.models.shape import Base, shape_of
from tuner.planning import plan
from tuner.planning.adopt import adopt
from tuner.recipe import Model, Recipe
from tuner.runs import Run
from tuner.training.window import train


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "llama", "llama")


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.continues])
def test_every_method_that_can_be_continued_begins_with_the_saved_weights(name, llama, tmp_path):
    base, row = Base(llama, Model(name="llama", quantization="none")), METHODS[name]
    rank = {"method.rank": 4} if "rank" in row.settings else {}
    target = resolve(Recipe().with_settings({"method.name": name, **rank}), shape_of(base), base.row)

    def attached(seed: int) -> attach.Adapted:
        torch.manual_seed(seed)
        return attach.attach(load_base(base), row.configs(target)).eval()

    with torch.no_grad():
        model = attached(0)
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
        attach.save(model, tmp_path, "x/y")
        other = attached(1)
        assert not torch.equal(other(input_ids=IDS).logits, model(input_ids=IDS).logits)
        attach.begin_with(other, tmp_path)
        assert torch.equal(other(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.fixture
def own(finished, monkeypatch, tmp_path, no_estimates) -> Run:
    """A finished run among those that a page knows."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    return Run(Path(shutil.copytree(finished.path, tmp_path / "runs" / "own")))


def test_a_run_goes_on_from_an_earlier_one_by_its_id(own, tmp_path):
    settings = {"method__start_from": "own", "training__learning_rate": 1e-9, "training__keep": "last"}
    run = plan.prepare(small_recipe(**settings), local=False, token=False)
    shutil.rmtree(own.path)  # of which nothing else is needed
    list(train(run))
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (run.path / "start", run.adapter))
    assert before.keys() == after.keys()
    for key in before:
        torch.testing.assert_close(before[key], after[key], atol=1e-6, rtol=0)
    assert run.plan["start"].keys() == {"adapter", "revision", "sha256"}
    assert not any("trained on" in warning for warning in run.plan["warnings"])  # the same rows are held out
    assert "own" not in json.dumps(run.plan["start"]) + public_recipe(run).method.start_from
    assert run.read_json("evaluation.json")["base"]["rougeL"] >= 0


def test_an_interrupted_run_that_went_on_ends_with_the_same_adapter(own):
    settings = {"method__start_from": "own", "training__checkpoint_seconds": 0.001, "budget__steps": 6}
    whole, broken = (plan.prepare(small_recipe(**settings), local=False, token=False) for _ in range(2))
    list(train(whole))
    for event in (events := train(broken)):
        if event["event"] == "checkpoint" and event["step"] == 3:
            break
    events.close()
    assert not broken.is_trained
    list(train(Run(broken.path)))
    one, other = ((run.adapter / "adapter_model.safetensors").read_bytes() for run in (whole, broken))
    assert one == other


def test_held_out_rows_that_were_trained_on_before_are_counted(own):
    shutil.rmtree(own.data / "train")
    shutil.copytree(own.data / "heldout", own.data / "train")
    run = plan.check(small_recipe(method__start_from="own"), local=False, token=False)
    number = run.plan["heldout_rows"]
    (said,) = [warning for warning in run.plan["warnings"] if "trained on" in warning]
    assert f"The run that this one starts from was trained on {number} of {number} held-out rows, so the" in said
    shutil.rmtree(own.data / "train")
    run = plan.check(small_recipe(method__start_from="own"), local=False, token=False)
    assert any("Which rows the run that this one starts from was trained on is not" in w for w in run.plan["warnings"])


def refused(**settings) -> str:
    """What is said of a recipe, as a visitor reads it."""
    with pytest.raises(TunerError) as caught:
        plan.check(small_recipe(**settings), local=False, token=False)
    return "\n".join(caught.value.problems)


OTHERS = {
    "no run": ({"start_from": "gone"}, "method.start_from: There is no run 'gone'"),
    "a path": ({"start_from": "../own"}, "method.start_from: There is no run '../own'"),
    "a whole path": ({"start_from": "/etc/passwd"}, "method.start_from: There is no run '/etc/passwd'"),
    "another rank": ({"rank": 8}, "'own' was trained with r 4, and this recipe has 8. Set method.rank to 4."),
    "another alpha": ({"alpha": 16}, "'own' was trained with lora_alpha 32, and this recipe has 16. Set method.alpha"),
    "other layers": ({"target_modules": ["q_proj"]}, "and this recipe trains q_proj. Set method.target_modules to ["),
    "another method": ({"name": "dora"}, "'own' is LoRA, and this recipe trains DoRA. Set method.name to lora."),
    "no file of all": (
        {"name": "p_tuning", "rank": "auto"},
        "P-tuning can't be continued: its file does not hold all that it trains.",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_does_not_fit_is_refused_with_what_to_change(other, own):
    settings, sentence = OTHERS[other]
    assert sentence in refused(**{f"method__{k}": v for k, v in ({"start_from": "own"} | settings).items()})
    assert sorted(path.name for path in runs.RUNS.iterdir()) == ["own"]


def test_a_run_on_another_base_for_another_task_or_without_an_adapter_is_refused(own, tmp_path):
    recipe = own.recipe
    own.write_text("recipe.yaml", recipe.with_settings({"model.name": "tiny-reader"}).to_yaml())
    assert "was trained on tiny-reader, and this recipe's base model is tiny-office" in refused(
        method__start_from="own"
    )
    own.write_text("recipe.yaml", recipe.to_yaml())
    own.write_json("plan.json", own.plan | {"task": "classification", "labels": ["a", "b"]})
    assert "was trained for text classification, and these rows are for text" in refused(method__start_from="own")
    (own.adapter / "adapter_config.json").unlink()
    assert "run own has no adapter yet" in refused(method__start_from="own")


def test_a_run_goes_on_from_an_adapter_of_the_hub(hub: Hub, llama, own, tmp_path, monkeypatch):
    ask_here(hub, tmp_path, monkeypatch)
    hub.add_model(BASE, llama)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=32, task_type="CAUSAL_LM")
    make(llama, config, tmp_path / "made")
    sha = hub.add_model("bob/it", tmp_path / "made").sha
    given = {"model__name": BASE, "model__quantization": "none", "method__target_modules": ["q_proj", "v_proj"]}
    for name in ("bob/it", f"bob/it@{sha}", adopt("bob/it", token=False).id):
        recipe = small_recipe(**given, method__start_from=name)
        run = plan.prepare(recipe, local=False, token=False)
        assert run.plan["start"] | {"sha256": ""} == {"adapter": "bob/it", "revision": sha, "sha256": ""}
        assert any("was trained on is not known here" in warning for warning in run.plan["warnings"])
        assert public_recipe(run).method.start_from == f"bob/it@{sha}"
        started = (run.path / "start" / "adapter_model.safetensors").read_bytes()
        assert started == (tmp_path / "made" / "adapter_model.safetensors").read_bytes()
    list(train(run))
    assert run.ending == "finished"
    others = {"method__rank": 8, "method__target_modules": ["q_proj"], "model__name": "tiny-office"}
    assert "'bob/it' was trained on ann/base, and this recipe's base model is tiny-office. Set model.name" in refused(
        **given | others, method__start_from="bob/it"
    )
    fewer = given | {"method__target_modules": ["q_proj"]}
    assert "is on the layers q_proj, v_proj, and this recipe trains q_proj." in refused(
        **fewer, method__start_from="bob/it"
    )
    assert "The adapter 'bob/gone' is not on the Hub" in refused(**given, method__start_from="bob/gone")
