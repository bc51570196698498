"""Pushes of the merged model, alone and with its adapter: loaded in a fresh process, replaced, and never half done."""

import re
import shutil
from pathlib import Path

import fresh
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tuner import cli, runs
from tuner.errors import TunerError
from tuner.hub.push import push
from tuner.inference.merge import merge
from tuner.recipe import EXAMPLES

BASE = "Qwen/Qwen3-0.6B"
LOAD = """
import json, re, sys, torch
card, place = json.load(sys.stdin)
loaded = {}
exec(re.search(r"```python\\n(.*?)\\n```", card, re.DOTALL)[1], loaded)
with torch.inference_mode():
    torch.save((dict(loaded["inputs"]), loaded["model"](**loaded["inputs"]).logits), place)
"""


@pytest.fixture(scope="module")
def merged(finished, tmp_path_factory) -> runs.Run:
    """A finished run with its merged model."""
    run = runs.Run(Path(shutil.copytree(finished.path, tmp_path_factory.mktemp("pushed") / "run")))
    merge(run)
    return run


@pytest.fixture
def named(merged, hub, tmp_path) -> runs.Run:
    """The same on a base model that the Hub has by name."""
    sha = hub.add_model(BASE, EXAMPLES / merged.recipe.model.name).sha
    run = runs.Run(Path(shutil.copytree(merged.path, tmp_path / "named")))
    run.write_text("recipe.yaml", run.recipe.with_settings({"model.name": BASE}).to_yaml())
    run.write_json("plan.json", run.plan | {"revision": sha})
    return run


@pytest.mark.parametrize("private", [True, False], ids=["private", "public"])
def test_a_merged_model_is_loaded_by_its_cards_own_lines(private, named, hub, tmp_path):
    import json

    token = hub.user("alice")
    url = push(named, "whole", "merged", token=token, private=private, endpoint=hub.url)
    repo = hub.repo("alice/whole")
    assert (url, repo.private, len(repo.commits)) == (f"{hub.url}/alice/whole", private, 2)
    card = repo.files["README.md"].decode()
    assert "adapter_config.json" not in repo.files
    assert "base_model_relation: finetune" in card
    assert "PeftModel" not in card
    place = str(tmp_path / "logits")
    env = hub.env(tmp_path / "home") | ({"HF_TOKEN": token} if private else {})
    loaded = fresh.run(["-c", LOAD], ROOT, json.dumps([card, place]), env)
    assert loaded.returncode == 0, loaded.stderr
    inputs, logits = torch.load(place)
    with torch.inference_mode():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(named.merged)(**inputs).logits, logits)


def test_both_are_pushed_each_in_one_commit_that_names_the_run_and_no_id(merged, hub):
    token = hub.user("alice")
    assert push(merged, "both", "both", token=token, endpoint=hub.url) == f"{hub.url}/alice/both"
    assert {name for _, name in hub.repos} == {"alice/both", "alice/both-base", "alice/both-merged"}
    commits = [seen.body for seen in hub.seen if "/commit/" in seen.path] if hasattr(hub.seen[0], "body") else []
    assert all(re.search(r"LoRA on tiny-office, ROUGE-L 0\.\d+ -> 0\.\d+ \(Tuner\)", f"{body}") for body in commits)
    for _, name in hub.repos:
        held = b"".join(hub.repo(name).files.values())
        assert merged.id.encode() + b"/" not in held
        assert len(hub.repo(name).commits) == 2
    adapter, whole = hub.repo("alice/both").files, hub.repo("alice/both-merged").files
    assert "adapter_model.safetensors" in adapter
    assert whole["model.safetensors"] == (merged.merged / "model.safetensors").read_bytes()
    assert b"convert_hf_to_gguf.py" in whole["README.md"]
    assert b"gguf-my-repo" in whole["README.md"]
    assert b"gguf" not in adapter["README.md"]
    push(merged, "both", "both", token=token, endpoint=hub.url)  # again, over what is there
    other = dict(whole) | {"recipe.yaml": b""}
    del other["receipt.json"]
    hub.repo("alice/both-merged").commit(other | {"model.safetensors": b"somebody's"})
    before = {name: hub.repo(name).sha for _, name in hub.repos}
    with pytest.raises(TunerError, match="both-merged already exists and holds another model"):
        push(merged, "both", "both", token=token, endpoint=hub.url)
    assert before == {name: hub.repo(name).sha for _, name in hub.repos}


@pytest.mark.parametrize(
    ("what", "spoil", "said"),
    [("all", None, "'all' can't be pushed. Choose one of: adapter, merged, both."),
     ("merged", "unmerged", "is not merged yet. Merge it first."),
     ("both", "failed", "Merging changed the answers")],
)  # fmt: skip
def test_what_can_not_be_pushed_is_said_before_the_hub_is_asked(what, spoil, said, merged, hub, tmp_path):
    run = runs.Run(Path(shutil.copytree(merged.path, tmp_path / "run")))
    if spoil == "unmerged":
        shutil.rmtree(run.merged)
    if spoil == "failed":
        check = run.read_json("merge_check.json")
        run.write_json("merge_check.json", check | {"merge_failed": True, "merge_error": 3.0, "merge_tolerance": 0.1})
    with pytest.raises(TunerError) as caught:
        push(run, "x", what, token="hf_x", endpoint=hub.url, failed_merge=spoil == "failed")
    assert said in str(caught.value)
    assert not hub.seen


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("broken", range(1, 14))
def test_wherever_a_push_of_both_breaks_off_no_repository_is_left(broken, merged, hub):
    """Each of its writing requests in turn is cut off and then refused."""
    token = hub.user("alice")
    push(merged, "probe", "both", token=token, endpoint=hub.url)
    writes = [seen for seen in hub.seen if seen.method in ("POST", "PUT") and "delete" not in seen.path]
    for _, name in list(hub.repos):
        del hub.repos["models", name]
    hub.blobs.clear()
    hub.seen.clear()
    if broken > len(writes):
        pytest.fail(f"a push has {len(writes)} writing requests only") if broken == 1 else None
        return
    seen = writes[broken - 1]
    part = seen.path.replace("probe", "x")
    part = "/lfs/" if "/lfs/" in part else part
    hub.cut(seen.method, part, times=30)
    with pytest.raises(TunerError):
        push(merged, "x", "both", token=token, endpoint=hub.url)
    assert not hub.repos


def test_the_command_merges_first_and_pushes_both(finished, hub, tmp_path, monkeypatch, capsys):
    run = runs.Run(Path(shutil.copytree(finished.path, tmp_path / "run")))
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.user("alice"))
    assert cli.main(["push", str(run.path), "x", "--what", "both"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/alice/x"
    assert "alice/x-merged" in {name for _, name in hub.repos}


def test_a_push_to_a_new_branch_and_a_pull_request_leave_the_main_branch_as_it_was(merged, hub, tmp_path, capsys):
    token = hub.user("alice")
    options = {"token": token, "endpoint": hub.url}
    with pytest.raises(TunerError, match="alice/x does not exist yet, so there is nothing to make a branch of"):
        push(merged, "x", into="version-2", **options)
    assert not hub.repos
    push(merged, "x", **options)
    main, base = hub.repo("alice/x").sha, hub.repo("alice/x-base").sha
    changed = Path(shutil.copytree(merged.path, tmp_path / "changed"))
    weights = changed / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    for number in (1, 2):
        address = push(runs.Run(changed), "x", into="version-2", **options)
        repo = hub.repo("alice/x")
        assert address == f"{hub.url}/alice/x/commit/{repo.heads['version-2']}"
        address = push(runs.Run(changed), "x", into="pull request", **options)
        assert address == f"{hub.url}/alice/x/discussions/{number}"
    assert (repo.sha, hub.repo("alice/x-base").sha) == (main, base)
    assert list(repo.heads) == ["main", "version-2", "refs/pr/1", "refs/pr/2"]
    for head in ("version-2", "refs/pr/1"):
        assert repo.commits[repo.heads[head]]["adapter_model.safetensors"] == weights.read_bytes()


IN_ANOTHER_REVISION = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
repo, base, place = json.load(sys.stdin)
found = {}
for revision in ("main", "version-2", "refs/pr/1"):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), repo, revision=revision)
    ids = AutoTokenizer.from_pretrained(repo, revision=revision)("yo, gotta bounce", return_tensors="pt")
    with torch.inference_mode():
        found[revision] = model(**ids).logits
torch.save(found, place)
"""


def test_a_branch_and_a_pull_request_are_loaded_by_plain_peft_in_a_fresh_process(named, hub, tmp_path):
    import json

    token = hub.user("alice")
    push(named, "x", token=token, endpoint=hub.url)
    changed = runs.Run(Path(shutil.copytree(named.path, tmp_path / "changed")))
    tensors = load_file(changed.adapter / "adapter_model.safetensors")
    save_file({name: 3 * tensor for name, tensor in tensors.items()}, changed.adapter / "adapter_model.safetensors")
    for into in ("version-2", "pull request"):
        push(changed, "x", into=into, token=token, endpoint=hub.url)
    place = str(tmp_path / "logits")
    env = hub.env(tmp_path / "home") | {"HF_TOKEN": token}
    loaded = fresh.run(["-c", IN_ANOTHER_REVISION], ROOT, json.dumps(["alice/x", BASE, place]), env)
    assert loaded.returncode == 0, loaded.stderr
    found = torch.load(place)
    assert torch.equal(found["version-2"], found["refs/pr/1"])
    assert not torch.allclose(found["main"], found["version-2"])


def test_a_stranger_opens_a_pull_request_where_it_may_only_read(named, hub):
    hub.add_model("bob/x", {"README.md": b"bob's"})
    token = hub.user("alice")
    with pytest.raises(TunerError, match="'bob' is neither you"):
        push(named, "bob/x", private=False, token=token, endpoint=hub.url)
    push(named, "bob/x", into="pull request", private=False, token=token, endpoint=hub.url)
    assert hub.repo("bob/x").files == {"README.md": b"bob's"}
    assert "adapter_model.safetensors" in hub.repo("bob/x").commits[hub.repo("bob/x").heads["refs/pr/1"]]


@pytest.mark.parametrize("name", ["", "..", "refs/heads/x", "a b", "-x"])
def test_a_branch_that_can_not_be_is_said_before_the_hub_is_asked(name, merged, hub):
    with pytest.raises(TunerError, match="can't be a branch's name"):
        push(merged, "x", into=name, token="hf_x", endpoint=hub.url)
    assert not hub.seen


def test_how_much_was_sent_is_told_after_each_file(merged, hub):
    told = []
    push(merged, "x", "both", token=hub.user("alice"), endpoint=hub.url, tell=told.append)
    sent = [event["sent"] for event in told]
    assert sent == sorted(sent)
    assert sent[-1] == told[0]["bytes"] > (merged.merged / "model.safetensors").stat().st_size
    assert {"model.safetensors", "adapter_model.safetensors"} <= {event["file"] for event in told}


def test_a_hub_that_wants_to_be_left_alone_for_an_hour_is_not_waited_for(merged, hub, monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("hub_wire.RETRY_AFTER", "3600")
    token = hub.user("alice")
    for part in range(1, 12):
        hub.repos.clear()
        hub.blobs.clear()
        hub.fail(part, "429")
        with pytest.raises(TunerError, match="too many requests to the Hub"):
            push(merged, "x", token=token, endpoint=hub.url)
        assert not hub.repos
    assert max(waited, default=0) < 60
