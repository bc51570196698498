"""Pushing with the real huggingface_hub client to a small Hub on loopback, loading back, and what errors say."""

import json
import re
import shutil
from pathlib import Path

import fresh
import pytest
from conftest import ROOT
from hub_double import Hub
from huggingface_hub import HfApi, ModelCard
from recorded import MERGED, PLAN, SCORES, recorded

from tuner import hub_errors, runs
from tuner.errors import TunerError
from tuner.hub.card import base_card, card
from tuner.hub.push import push
from tuner.recipe import EXAMPLES, Recipe

QWEN = "Qwen/Qwen3-0.6B"


@pytest.fixture
def shipped(finished, tmp_path) -> runs.Run:
    """A finished run of the shipped model, to do with as one likes."""
    return runs.Run(Path(shutil.copytree(finished.path, tmp_path / "shipped")))


@pytest.fixture
def named(shipped, hub, tmp_path) -> runs.Run:
    """A finished run whose base the Hub has by name: the shipped model's files, under another's name."""
    sha = hub.add_model(QWEN, EXAMPLES / shipped.recipe.model.name).sha
    run = runs.Run(Path(shutil.copytree(shipped.path, tmp_path / "named")))
    run.write_text("recipe.yaml", run.recipe.with_settings({"model.name": QWEN}).to_yaml())
    run.write_json("plan.json", run.plan | {"revision": sha})
    return run


def in_own_process(hub: Hub, home: Path, code: str, given: str = "", **env: str) -> None:
    """Run code in a fresh process whose Hub is ours: HF_ENDPOINT is read at import, so it can't be this process."""
    done = fresh.run(["-c", code], ROOT, given, hub.env(home) | env)
    assert done.returncode == 0, done.stderr


def refused(run: runs.Run, hub: Hub, repo: str = "x", **options) -> str:
    """What is said of a push that is refused."""
    with pytest.raises(TunerError) as caught:
        push(run, repo, endpoint=hub.url, **{"token": None} | options)
    return str(caught.value)


READ = """
import datasets
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tuner import hub_errors

def said(ask, name, **options):
    try:
        ask(name, **options)
    except Exception as error:
        return str(hub_errors.explain(error, f"the model '{name}'"))

name = "Qwen/Qwen3-0.6B"
sha = snapshot_download(name).rpartition("/")[2]
assert AutoConfig.from_pretrained(name, revision=sha).model_type == "llama"
assert AutoModelForCausalLM.from_pretrained(name).num_parameters() > 0
assert AutoTokenizer.from_pretrained(name).chat_template

assert datasets.get_dataset_config_names("a/rows") == ["en", "de"]
assert datasets.get_dataset_split_names("a/rows", "en") == ["train", "test"]
assert datasets.load_dataset("a/rows", "en", split="test").to_list() == [{"a": 2}]
assert list(datasets.load_dataset("a/rows", "de", split="train", streaming=True)) == [{"a": 3}]
assert datasets.load_dataset("a/plain")["train"].to_list() == [{"b": 1}]

hub_errors.PATIENCE = 0.3
hub_errors.limit_waiting()
for ask in (snapshot_download, AutoConfig.from_pretrained, datasets.load_dataset):
    assert "is not on the Hub" in said(ask, "a/nothing"), ask
    assert "is gated" in said(ask, "a/gated"), ask
    assert "no such revision" in said(ask, "a/plain" if ask is datasets.load_dataset else name, revision="v9"), ask
assert "is not on the Hub" in said(snapshot_download, "a/private")
assert "can't be a name on the Hub" in said(snapshot_download, "a/b/c")
assert "rejects this token" in said(snapshot_download, "a/plain", token="hf_wrong")
assert "did not answer in time" in said(snapshot_download, "a/slow")
assert "connection to the Hub was lost" in said(snapshot_download, "a/cut")
"""


def test_the_real_clients_read_from_the_double(hub, tmp_path):
    base = EXAMPLES / "tiny-office"
    hub.add_model(QWEN, base)
    for name, facts in {"gated": {"gated": True}, "private": {"private": True}, "slow": {}, "cut": {}}.items():
        hub.add_model(f"a/{name}", {"config.json": b"{}"}, **facts)
    configs = "- config_name: en\n  data_files:\n  - {split: train, path: en/train.jsonl}\n"
    configs += "  - {split: test, path: en/test.jsonl}\n- config_name: de\n  data_files: de/*.jsonl\n"
    rows = {"en/train.jsonl": b'{"a": 1}', "en/test.jsonl": b'{"a": 2}', "de/x.jsonl": b'{"a": 3}'}
    hub.add_dataset("a/rows", {"README.md": f"---\nconfigs:\n{configs}---\n".encode(), **rows})
    hub.add_dataset("a/plain", {"train.csv": b"b\n1\n"})
    hub.add_dataset("a/gated", {"train.csv": b"b\n1\n"}, gated=True)
    hub.stall("GET", "/a/slow/")
    hub.cut("GET", "/a/cut/")
    in_own_process(hub, tmp_path, READ)
    assert hub.tokens() == {None, "hf_wrong"}


LOAD = """
import re
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

adapter, base, *cards = sys.stdin.read().split("\\0")
local = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
for card in cards:
    loaded = {}
    exec(re.search(r"```python\\n(.*?)\\n```", card, re.DOTALL)[1], loaded)
    model, inputs = loaded["model"], loaded["inputs"]
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, local(**inputs).logits)
        with local.disable_adapter():
            assert not torch.equal(model(**inputs).logits, local(**inputs).logits)
"""


def test_the_cards_own_lines_load_a_push_back_in_a_fresh_process(hub, named, shipped, tmp_path):
    token = hub.user("alice")
    assert push(named, "bosses", token=token, endpoint=hub.url) == f"{hub.url}/alice/bosses"
    assert push(shipped, "alice/examples", token=token, endpoint=hub.url) == f"{hub.url}/alice/examples"
    cards = [hub.repo(f"alice/{name}").files["README.md"].decode() for name in ("bosses", "examples")]
    given = "\0".join([str(shipped.adapter), str(EXAMPLES / "tiny-office"), *cards])
    in_own_process(hub, tmp_path, LOAD, given, HF_TOKEN=token)


def test_a_push_is_one_private_commit_of_just_what_is_needed(hub, named, finished, capfd, caplog):
    token = hub.user("alice")
    (named.adapter / "training_args.bin").write_bytes(b"a pickle")
    push(named, "bosses", token=token, endpoint=hub.url)
    repo = hub.repo("alice/bosses")
    assert repo.private
    assert len(repo.commits) == 2  # the one that made it, and ours
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    ours = {"adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.yaml", "evaluation.json"}
    ours |= {"curve.png", "receipt.json"}
    assert set(repo.files) - {".gitattributes", "chat_template.jinja"} == ours | tokenizer
    assert repo.files["adapter_model.safetensors"] == (finished.adapter / "adapter_model.safetensors").read_bytes()
    config = json.loads(repo.files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (QWEN, hub.repo(QWEN).sha)
    assert Recipe.from_yaml(repo.files["recipe.yaml"].decode()) == named.recipe
    assert json.loads(repo.files["evaluation.json"]) == named.read_json("evaluation.json")
    # The token went to the Hub alone, and not to the storage, whose addresses are signed.
    assert hub.tokens("/api/") == {token}
    assert hub.tokens("/lfs/") - {None} <= {token}
    assert [s.token for s in hub.seen if s.method == "PUT"] == [None]
    output = capfd.readouterr()
    assert token not in output.out + output.err + caplog.text
    assert not any(token.encode() in path.read_bytes() for path in named.path.rglob("*") if path.is_file())


def test_what_is_pushed_names_no_place_on_this_machine(hub, named, tmp_path, monkeypatch):
    token = hub.user("alice")
    secret = tmp_path / "home" / "jane" / "tickets.csv"
    named.write_text("recipe.yaml", named.recipe.with_settings({"data.source": str(secret)}).to_yaml())
    named.write_json("plan.json", named.plan | {"data": {"origin": "own", "revision": None}})
    config = named.read_json("adapter/adapter_config.json")
    named.write_json("adapter/adapter_config.json", config | {"base_model_name_or_path": str(tmp_path / "base")})
    push(named, "bosses", token=token, endpoint=hub.url)
    files = hub.repo("alice/bosses").files
    for place in ("tickets", str(tmp_path), str(Path.home()), str(ROOT), "jane", named.id + "/", token):
        assert not [name for name, content in files.items() if place.encode() in content], place


def test_pushing_again_replaces_and_takes_away_what_is_stale(hub, named):
    token = hub.user("alice")
    push(named, "bosses", token=token, endpoint=hub.url)
    (named.adapter / "chat_template.jinja").write_text("{{ messages }}")
    push(named, "alice/bosses", token=token, endpoint=hub.url)
    assert hub.repo("alice/bosses").files["chat_template.jinja"] == b"{{ messages }}"
    (named.adapter / "chat_template.jinja").unlink()
    push(named, "alice/bosses", token=token, endpoint=hub.url)
    assert "chat_template.jinja" not in hub.repo("alice/bosses").files
    assert "adapter_model.safetensors" in hub.repo("alice/bosses").files


def test_a_shipped_base_is_pushed_beside_its_adapter(hub, shipped):
    token = hub.user("alice")
    push(shipped, "examples", token=token, private=False, endpoint=hub.url)
    base, adapter = hub.repo("alice/examples-base"), hub.repo("alice/examples")
    assert not base.private
    assert not adapter.private
    weights = (EXAMPLES / "tiny-office" / "model.safetensors").read_bytes()
    assert base.files["model.safetensors"] == weights
    assert json.loads(adapter.files["adapter_config.json"])["base_model_name_or_path"] == "alice/examples-base"
    assert ModelCard(adapter.files["README.md"].decode()).data.base_model == "alice/examples-base"
    # Another push to the same name finds its own base there; somebody's other model of that name is left alone.
    push(shipped, "examples", token=token, private=False, endpoint=hub.url)
    hub.add_model("alice/other-base", {"model.safetensors": b"years of work"})
    assert "holds another model" in refused(shipped, hub, "other", token=token, private=False)
    assert ("models", "alice/other") not in hub.repos


def test_bad_requests_are_refused_together_before_the_hub_is_asked(hub, shipped):
    shutil.rmtree(shipped.adapter)
    problems = refused(shipped, hub, "my model!")
    assert "'my model!' can't be a repository's name" in problems
    assert "has no adapter yet" in problems
    assert "There is no token" in problems
    for name in ("a/b/c", "-x", "x.git", "a--b", "", "x" * 95):
        assert "can't be a repository's name" in refused(shipped, hub, name)
    shipped.adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.bin"):
        (shipped.adapter / name).write_bytes(b"{}")
    assert "a pickle, which nobody should have to load" in refused(shipped, hub)
    with shipped.training():
        assert "still in training" in refused(shipped, hub)
    assert not hub.seen


def test_tokens_that_will_not_do(hub, named):
    cases = {
        "hf_wrong": "rejects this token",
        hub.user("alice", "read"): "may only read",
        hub.user("alice", "fineGrained", scopes={"alice": ["repo.content.read"]}): "may not write to alice/x",
        hub.user("alice", "fineGrained", scopes={"alice/other": ["repo.write"]}): "may not write to alice/x",
    }
    for token, wanted in cases.items():
        assert wanted in refused(named, hub, token=token)
    mine = hub.user("alice", orgs=("acme",))
    assert "'bob' is neither you (alice)" in refused(named, hub, "bob/x", token=mine)
    assert not [s for s in hub.seen if s.method != "GET"]
    push(named, "acme/x", token=mine, endpoint=hub.url)
    push(named, "x", token=hub.user("alice", "oauth"), endpoint=hub.url)
    # A scope may be the account or, where it exists, the repository alone.
    for scope in ("alice", "alice/y"):
        token = hub.user("alice", "fineGrained", scopes={scope: ["repo.write"]})
        push(named, "alice/y", token=token, endpoint=hub.url)


def test_repositories_that_will_not_do(hub, named):
    token = hub.user("alice")
    hub.refused.add("alice/admin")
    assert "this name is reserved" in refused(named, hub, "admin", token=token)
    hub.add_model("alice/x", {"README.md": b"mine"})
    assert "already exists and is public, but this push would be private" in refused(named, hub, token=token)
    hub.add_model("alice/big", {"model.safetensors": b"years of work"}, private=True)
    assert "holds another model (model.safetensors)" in refused(named, hub, "big", token=token)
    assert hub.repo("alice/x").files == {"README.md": b"mine"}
    hub.full = True
    assert "storage limit reached" in refused(named, hub, "full", token=token)


def test_a_broken_connection_loses_nothing_and_the_next_push_goes_through(hub, named, monkeypatch):
    token = hub.user("alice")
    before = {path: path.read_bytes() for path in named.path.rglob("*") if path.is_file()}
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    hub.cut("POST", "/commit/", 3)
    assert "connection to the Hub was lost" in refused(named, hub, token=token)
    assert ("models", "alice/x") not in hub.repos
    hub.cut("PUT", "/lfs/")  # the client itself tries this again
    push(named, "x", token=token, endpoint=hub.url)
    assert "adapter_model.safetensors" in hub.repo("alice/x").files
    monkeypatch.setattr(hub_errors, "PATIENCE", 0.3)
    hub.stall("GET", "/api/whoami")
    assert "did not answer in time" in refused(named, hub, token=token)
    hub.close()
    assert refused(named, hub, token=token) == (
        "The push to 'x': the Hub can't be reached. Nothing is lost; check your network and try again. The run is "
        "unchanged."
    )
    assert {path: path.read_bytes() for path in named.path.rglob("*") if path.is_file()} == before


def test_the_card_tells_what_the_run_tells(hub, named, shipped):
    text = card(named, "alice/bosses")
    data = ModelCard(text).data
    scores = named.read_json("evaluation.json")
    assert (data.base_model, data.library_name, data.pipeline_tag) == (QWEN, "peft", "text-generation")
    assert {"tuner", "lora", "sft"} <= set(data.tags)
    assert data.eval_results[0].metric_value == scores["adapter"]["rougeL"]
    HfApi(endpoint=hub.url)._validate_yaml(text)
    for part, settings in named.recipe.model_dump().items():
        for name, value in settings.items() if isinstance(settings, dict) else []:
            assert value is None or value == {} or f"| {part}.{name} |" in text
    for name, value in named.plan["settings"].items():
        assert not isinstance(value, float) or str(value) in text, name
    for example in scores["examples"][:2]:
        assert example["prompt"] in text
        assert example["adapter"] in text
    assert f"{scores['base']['rougeL']:.3f} ({scores['base']['rougeL_low']:.3f}" in text
    assert "corporate.jsonl" in text
    # A card without a repository is a preview, and a shipped base then has no name on the Hub.
    assert ModelCard(card(shipped)).data.base_model is None


def test_the_card_says_what_was_not_measured_and_keeps_strange_text_apart(named):
    (named.path / "evaluation.json").unlink()
    (named.path / "events.jsonl").unlink()
    settings = {"data.source": "knkarthick/dialogsum", "name": "x\n# y", "data.system": "a|b\n<script>"}
    named.write_text("recipe.yaml", named.recipe.with_settings(settings).to_yaml())
    named.write_json("plan.json", named.plan | {"data": {"origin": "hub", "revision": None}})
    text = card(named)
    assert "Held-out scores: not measured" in text
    assert "time: not measured, device: not measured" in text
    assert ModelCard(text).data.datasets == ["knkarthick/dialogsum"]
    assert ModelCard(text).data.eval_results is None
    assert "<script>" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "\n# y" not in text.partition("\n---\n")[2]
    row = {"prompt": "```\n# a heading?", "reference": "r", "base": "````", "adapter": "a"}
    named.write_json(
        "evaluation.json",
        {"rows": 1, "base": {"loss": 2.0}, "adapter": {"loss": 1.0}, "gain": None, "examples": [row]},
    )
    text = card(named)
    assert "````text\n```\n# a heading?\n````" in text
    assert "`````text\n````\n`````" in text
    assert "| not measured | not measured |" in text


@pytest.fixture
def light(tmp_path) -> runs.Run:
    """A run on a model of the Hub, of which only what is pushed is there; its weights are a few bytes."""
    run = recorded(tmp_path, config={"r": 7, "base_model_name_or_path": "/root/base", "revision": "old"})
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return run


def on_the_shipped_model(run: runs.Run) -> runs.Run:
    """The same run on a base model that is pushed as well."""
    run.write_text("recipe.yaml", run.recipe.with_settings({"model.name": "tiny-office"}).to_yaml())
    return run


def test_just_the_adapters_own_files_are_pushed(hub, light):
    token = hub.user("alice")
    tokenizer = {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
        "added_tokens.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
    }  # fmt: skip
    for name in (*tokenizer, "README.md", "optimizer.pt", "notes.md", "vocab.json.bak"):
        (light.adapter / name).write_text(name)
    (light.adapter / "second").mkdir()
    light.write_json("adapter/second/adapter_config.json", {"k": "ä", "base_model_name_or_path": "/root/base"})
    (light.adapter / "second" / "adapter_model.safetensors").write_bytes(b"more weights")
    light.write_text("recipe.yaml", light.recipe.with_settings({"model.revision": "v2"}).to_yaml())
    assert push(light, " alice/x\n", token=token, endpoint=hub.url) == f"{hub.url}/alice/x"
    files = dict(hub.repo("alice/x").files)
    assert {name: files.pop(name).decode() for name in tokenizer} == {name: name for name in tokenizer}
    del files[".gitattributes"]
    assert files.pop("README.md").decode() == card(light, "alice/x", has_curve=True)
    assert files.pop("curve.png").startswith(b"\x89PNG")
    assert files.pop("recipe.yaml").decode() == light.recipe.to_yaml()
    assert json.loads(files.pop("receipt.json"))["adapter"]["adapter_model.safetensors"] is None  # it is none
    assert files.pop("adapter_model.safetensors") == b"weights"
    assert files.pop("second/adapter_model.safetensors") == b"more weights"
    base = {"base_model_name_or_path": "Qwen/Qwen3-0.6B", "revision": "c0ffee"}
    assert json.loads(files.pop("adapter_config.json")) == {"r": 7} | base
    second = files.pop("second/adapter_config.json").decode()
    assert json.loads(second) == {"k": "ä"} | base
    assert second.startswith('{\n  "k": "ä",\n')
    assert second.endswith("}\n")
    assert json.loads(files.pop("evaluation.json")) == SCORES
    assert not files
    # Without scores and plan: no scores, and the revision of the recipe.
    (light.path / "evaluation.json").unlink()
    light.write_json("plan.json", PLAN | {"revision": None})
    push(light, "y", token=token, endpoint=hub.url)
    files = hub.repo("alice/y").files
    assert "evaluation.json" not in files
    assert json.loads(files["adapter_config.json"])["revision"] == "v2"


def test_beside_a_shipped_base_the_adapter_names_the_copy_and_no_revision(hub, light):
    push(on_the_shipped_model(light), "x", token=hub.user("alice"), endpoint=hub.url)
    shipped = {path.name: path.read_bytes() for path in (EXAMPLES / "tiny-office").iterdir()}
    copy = hub.repo("alice/x-base")
    assert copy.private
    card_of_base = {"README.md": base_card("tiny-office", "alice/x").encode()}
    assert {name: data for name, data in copy.files.items() if name != ".gitattributes"} == shipped | card_of_base
    files = hub.repo("alice/x").files
    assert files["README.md"].decode() == card(light, "alice/x", "alice/x-base", has_curve=True)
    config = {"r": 7, "base_model_name_or_path": "alice/x-base", "revision": None}
    assert json.loads(files["adapter_config.json"]) == config


def test_a_push_leaves_what_is_not_its_own_but_no_old_tokenizer(hub, light):
    there = {"notes.md": b"mine", "vocab.txt": b"old", "merges.txt": b"old", "adapter_model.safetensors": b"old"}
    hub.add_model("alice/x", there, private=True)
    (light.adapter / "merges.txt").write_bytes(b"new")
    push(light, "x", token=hub.user("alice"), endpoint=hub.url)
    files = hub.repo("alice/x").files
    assert (files["notes.md"], files["merges.txt"]) == (b"mine", b"new")
    assert "vocab.txt" not in files
    assert files["adapter_model.safetensors"] == b"weights"


def test_both_repositories_are_checked_before_either_is_written(hub, light):
    hub.add_model("alice/x", {"pytorch_model.bin": b"years of work"}, private=True)
    said = refused(on_the_shipped_model(light), hub, token=hub.user("alice"))
    assert said == "alice/x already exists and holds another model (pytorch_model.bin). Choose another name."
    assert {name for _, name in hub.repos} == {"alice/x"}
    assert not [seen for seen in hub.seen if seen.method != "GET"]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".pth", ".pkl", ".gguf", ".h5", ".onnx"])
def test_no_weights_of_others_are_replaced_whatever_their_format(suffix, hub, light):
    hub.add_model("alice/x", {f"theirs{suffix}": b"years of work"}, private=True)
    assert f"holds another model (theirs{suffix})" in refused(light, hub, token=hub.user("alice"))


def test_a_second_part_is_replaced_only_by_a_second_part(hub, light):
    token, there = hub.user("alice"), {"second/adapter_model.safetensors": b"old"}
    hub.add_model("alice/x", there, private=True)
    assert "holds another model (second/adapter_model.safetensors)" in refused(light, hub, token=token)
    (light.adapter / "second").mkdir()
    light.write_json("adapter/second/adapter_config.json", {})
    (light.adapter / "second" / "adapter_model.safetensors").write_bytes(b"new")
    push(light, "x", token=token, endpoint=hub.url)
    assert hub.repo("alice/x").files["second/adapter_model.safetensors"] == b"new"


def test_a_base_model_of_the_same_name_is_compared_by_its_content(hub, light):
    weights = (EXAMPLES / "tiny-office" / "model.safetensors").read_bytes()
    another = weights[:-1] + bytes([weights[-1] ^ 1])  # of the same size
    token, base = hub.user("alice"), {"README.md": b"old", "model.safetensors": another}
    hub.add_model("alice/x-base", base, private=True)
    said = refused(on_the_shipped_model(light), hub, token=token)
    assert said == "alice/x-base already exists and holds another model (model.safetensors). Choose another name."
    base["model.safetensors"] = weights
    hub.add_model("alice/x-base", base, private=True)
    push(light, "x", token=token, endpoint=hub.url)
    assert hub.repo("alice/x-base").files["README.md"] != b"old"


@pytest.mark.parametrize(("private", "is_private"), [(True, False), (False, True)])
def test_a_repository_stays_as_private_as_it_is(private, is_private, hub, light):
    hub.add_model("alice/x", {}, private=is_private)
    current, requested = ("private", "public") if is_private else ("public", "private")
    assert refused(light, hub, token=hub.user("alice"), private=private) == (
        f"alice/x already exists and is {current}, but this push would be {requested}. Push it as {current}, change "
        f"the repository at {hub.url}/alice/x/settings, or choose another name."
    )
    push(light, "x", token=hub.user("alice"), private=is_private, endpoint=hub.url)
    assert hub.repo("alice/x").private == is_private


def test_a_run_that_can_not_be_pushed_says_what_to_do(hub, light):
    token = hub.user("alice")
    config, weights = light.adapter / "adapter_config.json", light.adapter / "adapter_model.safetensors"
    light.write_json("plan.json", PLAN | {"model_folder": "/home/jane/my-model"})
    assert refused(light, hub, token=token) == (
        "The base model 'my-model' is a folder on this machine, so nobody else could load the adapter. Push that "
        "model to the Hub first, then train with its name there."
    )
    with runs.Run(light.path).training():
        assert refused(light, hub, token=token) == (
            "Run run is still in training. Wait until it ends, or stop it: what it learned is kept."
        )
    weights.rename(light.adapter / "adapter_model.bin")
    assert refused(light, hub, token=token) == (
        "The adapter of run run is a pickle, which nobody should have to load. Convert it to safetensors."
    )
    (light.adapter / "adapter_model.bin").unlink()
    no_adapter = "Run run has no adapter yet. Train it first."
    assert refused(light, hub, token=token) == no_adapter
    weights.write_bytes(b"weights")
    config.unlink()
    assert refused(light, hub, token=token) == no_adapter
    assert not hub.seen


def test_a_repositorys_name_may_have_as_many_characters_as_its_base_leaves(hub, light):
    no_token = (
        "There is no token, so the Hub does not know who you are. On the page, sign in. In a terminal, create a token "
        "with write access at https://huggingface.co/settings/tokens and set HF_TOKEN, or run `hf auth login`."
    )
    for name in ("x" * 89, f"alice/{'x' * 89}", "a.b_c-1"):
        assert refused(light, hub, name) == no_token
    for name in ("x" * 90, "x.", "x-"):
        assert refused(light, hub, name) == (
            f"'{name}' can't be a repository's name. Give name or owner/name: letters, digits, '-', '_' and '.', at "
            "most 89 characters, no '--' or '..', no '-' or '.' at either end, and no '.git' at the end."
            f"\n{no_token}"
        )
    assert not hub.seen


def test_what_a_token_lacks_is_said_for_each_repository(hub, light):
    def said(repo: str, *, role: str = "fineGrained", **account) -> str:
        return refused(light, hub, repo, token=hub.user("alice", role, **account))

    assert said("bob/x", role="write", orgs=("acme",)) == (
        "'bob' is neither you (alice) nor an organization that your token can access. Push to alice/x, or use a token "
        "for that organization."
    )
    assert said("x", role="read") == (
        "Your token may only read. Create one with write access at https://huggingface.co/settings/tokens."
    )
    denied = (
        "Your fine-grained token may not write to {}. Give it 'Write access to contents of all repos' under alice at "
        "https://huggingface.co/settings/tokens, or use a token with write access."
    )
    for scopes in ({"acme": ["repo.write"]}, {"alice": ["repo.content.read"]}):
        assert said("x", scopes=scopes) == denied.format("alice/x")
    on_the_shipped_model(light)
    assert said("x") == denied.format("alice/x-base and alice/x")
    assert said("x", scopes={"alice/x": ["repo.write", "repo.content.read"]}) == denied.format("alice/x-base")
    assert said("x", scopes={"alice/x-base": ["repo.write"]}) == denied.format("alice/x")
    assert "Push to alice/x, or" in said("bob/x")
    # A scope on one repository of an organization, which the token's owner is no member of.
    assert said("acme/x", scopes={"acme/other": ["repo.write"]}) == (
        denied.format("acme/x-base and acme/x").replace("under alice", "under acme")
    )
    assert not [seen for seen in hub.seen if seen.method != "GET"]
    both = {"acme/x": ["repo.write"], "acme/x-base": ["repo.write"]}
    for name in both:
        hub.add_model(name, {})
    token = hub.user("alice", "fineGrained", scopes=both)
    push(light, "acme/x", token=token, private=False, endpoint=hub.url)
    assert "adapter_model.safetensors" in hub.repo("acme/x").files


def test_a_scope_may_be_without_a_name_and_an_account_without_organizations(light, hub, monkeypatch):
    scoped = [{"entity": {"type": "user"}, "permissions": ["repo.write"]}]
    token = {"role": "fineGrained", "fineGrained": {"scoped": scoped}}
    monkeypatch.setattr(HfApi, "whoami", lambda api: {"name": "alice", "auth": {"accessToken": token}})
    assert "may not write to alice/x. Give it" in refused(light, hub, token="hf_x")
    assert "'bob' is neither you (alice)" in refused(light, hub, "bob/x", token="hf_x")


def test_an_unexpected_error_of_a_push_is_a_sentence_and_is_logged(hub, light, monkeypatch, caplog):
    def fail(api) -> dict:
        raise ValueError("a bug of the client")

    monkeypatch.setattr(HfApi, "whoami", fail)
    assert refused(light, hub, "alice/x", token="hf_x") == (
        "The push to 'alice/x' failed with an unexpected error (ValueError). The run is unchanged: try again, or "
        "upload its adapter folder yourself."
    )
    assert "push to alice/x" in caplog.text
    assert "a bug of the client" in caplog.text


def test_a_run_whose_merge_failed_is_pushed_only_with_consent(named, hub):
    check = MERGED | {"merge_failed": True, "merge_error": 3.0, "merge_tolerance": 0.1}
    named.write_json("merge_check.json", check)
    token = hub.user("alice")
    said = refused(named, hub, token=token)
    assert said.startswith("Merging changed the answers: the most likely token is the adapter's for 98.8% of")
    assert said.endswith(
        "To push the adapter all the same, tick 'Push it although merging failed' on the page, or use --failed-merge "
        "in a terminal."
    )
    assert not hub.seen
    assert push(named, "x", token=token, failed_merge=True, endpoint=hub.url).endswith("/alice/x")
    assert "Merging changed the answers" in hub.repo("alice/x").files["README.md"].decode()
    named.write_json("merge_check.json", check | {"merge_failed": False})
    push(named, "y", token=token, endpoint=hub.url)
