"""Whose token a request to the Hub carries, and that the cache of downloads tells and gives nothing to strangers."""

import json
from pathlib import Path

import fresh
import pytest
from conftest import ROOT
from hub_double import Hub, Repo

from tuner.recipe import EXAMPLES

BASE = EXAMPLES / "tiny-office"
ROWS = (EXAMPLES / "corporate.jsonl").read_bytes()

# One process that asks as several people: a line of JSON for each question, with a folder's name or the problems.
ASK = """
import json, os, sys
from huggingface_hub import constants
from tuner.data import sources
from tuner.errors import TunerError
from tuner.models import fetch
from tuner.recipe import Data, Model, Recipe
from tuner.ui import actions
from tuner.ui.visitor import Visitor

def check(name, token, **given):
    recipe = Recipe().with_settings({"model.name": name, "budget.steps": 2, **given})
    return actions.check(recipe, visitor=Visitor(token=token or None))["revision"]

ASKS = {
    "fetch": lambda name, token, **given: fetch.fetch_model(Model(name=name, **given), token=token).name,
    "check": check,
    "local": lambda name, token: actions.is_local(Recipe().with_settings({"model.name": name})),
    "rows": lambda name, token: len(sources.read(Data(source=name), local=False, token=token).rows),
    "offline": lambda name, token: setattr(constants, "HF_HUB_OFFLINE", True),
    # Before the process starts that checks.
    "most": lambda name, token: os.environ.update(TUNER_MAX_BILLION_PARAMETERS=str(int(name) / 1e9)),
}
for line in sys.stdin:
    verb, name, token, given = json.loads(line)
    try:
        print(json.dumps(ASKS[verb](name, token, **given)))
    except TunerError as error:
        print(json.dumps(list(error.problems)))
"""


def ask(hub: Hub, home: Path, *questions: tuple, **env: str) -> list:
    """The answers to questions, each (verb, name, token) and perhaps settings, in one process whose Hub is `hub`."""
    lines = [json.dumps([*question, {}][:4]) for question in questions]
    done = fresh.run(["-c", ASK], ROOT, "\n".join(lines), hub.env(home) | env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def people(hub: Hub) -> dict[str, str]:
    """Tokens: the Space's owner has one on the machine, two visitors have signed in."""
    return {"owner": hub.user("owner"), "alice": hub.user("alice", "oauth"), "bob": hub.user("bob", "oauth")}


def test_no_visitor_trains_on_what_only_the_spaces_owner_or_another_visitor_may_read(hub, people, tmp_path):
    hub.add_model("owner/secret", BASE, private=True)
    sha = hub.add_model("alice/secret", BASE, private=True).sha
    public = hub.add_model("alice/open", BASE).sha
    hub.add_dataset("owner/rows", {"train.jsonl": ROWS}, private=True)
    hub.add_dataset("alice/rows", {"train.jsonl": ROWS}, private=True)
    alice, bob = people["alice"], people["bob"]
    before = [
        ("check", "owner/secret", False), ("check", "owner/secret", bob), ("rows", "owner/rows", bob),
        ("local", "alice/secret", False), ("local", "alice/open", False),
    ]  # fmt: skip
    here = [("check", "alice/secret", alice), ("rows", "alice/rows", alice), ("check", "alice/open", False)]
    again = [
        ("check", "alice/secret", bob), ("check", "alice/secret", False),
        ("fetch", "alice/secret", bob, {"revision": sha}), ("rows", "alice/rows", bob),
        ("local", "alice/secret", alice), ("local", "alice/open", False),
        ("check", "alice/nothing", bob), ("check", "alice/secret", alice),
    ]  # fmt: skip
    away = [
        ("offline", "", False), ("fetch", "alice/secret", bob), ("fetch", "alice/secret", alice),
        ("fetch", "alice/open", False), ("fetch", "alice/open", False, {"revision": public}),
        ("fetch", "alice/open", bob),
    ]  # fmt: skip
    questions = [*before, *here, *again, *away]
    answers = iter(ask(hub, tmp_path, *questions, HF_TOKEN=people["owner"]))
    hidden = "'{}' is not on the Hub, or it is private and this page does not ask for access to private repositories"
    for name in ("owner/secret", "owner/secret", "owner/rows"):
        assert hidden.format(name) in next(answers)[0]
    assert [next(answers), next(answers)] == [False, False]
    assert [next(answers), next(answers) > 10, next(answers)] == [sha, True, public]
    for name in ("alice/secret", "alice/secret", "alice/secret", "alice/rows"):
        assert hidden.format(name) in next(answers)[0]
    # Whether it is in the cache can't be told.
    assert [next(answers), next(answers)] == [False, True]
    assert hidden.format("alice/nothing") in next(answers)[0]
    assert next(answers) == sha
    assert next(answers) is None
    # Out of the Hub's reach, only what everybody may read.
    for _ in range(2):
        assert "HF_HUB_OFFLINE is set" in next(answers)[0]
    assert [*answers] == [public] * 3
    assert hub.tokens() == {None, alice, bob}


def test_a_model_that_is_no_longer_public_is_no_longer_had_from_the_cache(hub, people, tmp_path):
    model = hub.add_model("alice/open", BASE)
    assert ask(hub, tmp_path, ("fetch", "alice/open", False), ("local", "alice/open", False)) == [model.sha, True]
    # It was fetched as what was listed: the branch may have moved, and its name in the cache would tell of it.
    assert {seen.path.split("/")[4] for seen in hub.seen if "/resolve/" in seen.path} == {model.sha}
    assert not [*tmp_path.rglob("refs")]
    model.private = True
    # A stranger's question is enough, and what the Hub then says is final even if it can't be asked any more.
    questions = [("fetch", "alice/open", False), ("local", "alice/open", False)]
    refused, local, _, away = ask(hub, tmp_path, *questions, ("offline", "", False), ("fetch", "alice/open", False))
    assert "or it is private" in refused[0]
    assert local is False
    assert "HF_HUB_OFFLINE is set" in away[0]


@pytest.mark.parametrize("setting", ["private", pytest.param("gated", marks=pytest.mark.long)])
def test_whoever_may_still_read_a_model_that_was_closed_does_not_open_it_to_others(setting, hub, people, tmp_path):
    model, alice = hub.add_model("alice/open", BASE, readers=("alice",)), people["alice"]
    expired = ("fetch", "alice/open", "hf_expired")
    fetched, told = ask(hub, tmp_path, ("fetch", "alice/open", False), expired)
    assert fetched == model.sha
    assert "the Hub rejects your sign-in" in told[0]
    setattr(model, setting, True)
    here = [("local", "alice/open", False), ("fetch", "alice/open", alice), ("local", "alice/open", False)]
    away = [("offline", "", False), ("fetch", "alice/open", False)]
    *answers, _, refused = ask(hub, tmp_path, *here, *away)
    assert answers == [True, model.sha, False]
    assert "HF_HUB_OFFLINE is set" in refused[0]


def test_whoever_may_see_that_a_private_model_exists_gets_its_files_only_if_the_hub_lets_them(
    hub, tmp_path, monkeypatch
):
    facts = Repo.as_json  # which do not tell that there is more to ask for
    monkeypatch.setattr(Repo, "as_json", lambda *given: facts(*given) | {"gated": False})
    alice, bob = (hub.user(name, "oauth", orgs=("acme",)) for name in ("alice", "bob"))
    sha = hub.add_model("acme/secret", BASE, private=True, gated=True, readers=("alice",)).sha
    mine, refused = ask(hub, tmp_path, ("fetch", "acme/secret", alice), ("fetch", "acme/secret", bob))
    assert mine == sha
    assert "accept its terms" in refused[0]


def test_a_gated_model_says_where_to_accept_its_terms_and_opens_to_who_has(hub, people, tmp_path):
    sha = hub.add_model("meta/gated", BASE, gated=True, readers=("alice",)).sha
    hub.add_dataset("meta/rows", {"train.jsonl": ROWS}, gated=True, readers=("alice",))
    bob, alice = people["bob"], people["alice"]
    asks = [("fetch", "meta/gated", token) for token in (bob, False, None, alice, bob, False)]
    asks += [("local", "meta/gated", bob), ("rows", "meta/rows", bob), ("rows", "meta/rows", alice)]
    answers = ask(hub, tmp_path, *asks)
    page = "The model 'meta/gated' is gated: accept its terms at https://huggingface.co/meta/gated, then "
    here = [page + "sign in on this page as the account that accepted them, and try again."]
    own = [page + "try again with your token (HF_TOKEN, or `hf auth login`)."]
    # What alice has downloaded is not there for bob.
    assert answers[:7] == [here, here, own, sha, here, here, False]
    assert "accept its terms at https://huggingface.co/datasets/meta/rows, then sign in" in answers[7][0]
    assert answers[8] > 10


def test_what_can_not_be_trained_here_is_refused_before_a_byte_of_weights_is_fetched(hub, tmp_path):
    files = {path.name: path.read_bytes() for path in BASE.iterdir()}
    config = {"config.json": files["config.json"]}
    hub.add_model("a/large", files | {f"model-{i}.safetensors": files["model.safetensors"] for i in range(3)})
    hub.add_model("a/many", files | {f"{i}.json": b"{}" for i in range(600)})
    hub.add_model("a/pickle", config | {"pytorch_model.bin": b"\x80"})
    hub.add_model("a/adapter", config | {"adapter_config.json": b"{}", "model.safetensors": b""})
    hub.add_model("a/nothing", {"README.md": b""})
    size = len(files["model.safetensors"])
    says = {
        "a/large": "of weights, and this page allows models of at most",
        "a/many": "files, with",
        "a/pickle": "has no safetensors weights",
        "a/adapter": "is an adapter, not a base model",
        "a/nothing": "holds no model (no config.json)",
    }
    questions = [("check", name, False) for name in says]
    answers = ask(hub, tmp_path, ("most", str(size // 2), False), *questions)
    for (name, sentence), answer in zip(says.items(), answers[1:]):
        assert sentence in answer[0], (name, answer)
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]


def test_a_download_that_the_disk_has_no_room_for_is_not_begun(hub, tmp_path):
    hub.add_model("a/model", BASE)
    code = ASK.replace("def check", "fetch.models_cleanup.free_disk = lambda path: 2**30 + 1000\ndef check", 1)
    line = json.dumps(["fetch", "a/model", None, {}])
    done = fresh.run(["-c", code], ROOT, line, hub.env(tmp_path))
    assert "of this machine's disk are free for it" in done.stdout, done.stderr
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]


def test_a_dataset_takes_no_rows_from_elsewhere(hub, tmp_path):
    (tmp_path / "secret.jsonl").write_bytes(ROWS)
    others = [f"{tmp_path}/*.jsonl", "../*/train.jsonl", "hf://datasets/a/other/train.jsonl", f"{hub.url}/x.jsonl"]
    cards = [f"configs:\n- config_name: default\n  data_files: {json.dumps(place)}\n" for place in others]
    cards += [f"configs:\n- config_name: default\n  data_files:\n  - {{split: train, path: [a.jsonl, {others[0]}]}}\n"]
    cards += [f"configs:\n- config_name: default\n  data_dir: {tmp_path}\n"]
    for number, card in enumerate(cards):
        hub.add_dataset(f"a/d{number}", {"README.md": f"---\n{card}---\n".encode(), "train.jsonl": ROWS})
    hub.add_dataset("a/yaml", {".huggingface.yaml": cards[0].encode(), "train.jsonl": ROWS})
    hub.add_dataset("a/broken", {"README.md": b"---\n[\n---\n", "train.jsonl": ROWS})
    names = [*(f"a/d{number}" for number in range(len(cards))), "a/yaml", "a/broken"]
    *answers, broken = ask(hub, tmp_path, *(("rows", name, False) for name in names))
    for name, answer in zip(names, answers):
        assert "takes its rows from elsewhere than its own files" in answer[0], name
    assert "is damaged" in broken[0]
    assert not [seen for seen in hub.seen if "x.jsonl" in seen.path or "a/other" in seen.path]


PINNED = """
import json, shutil, sys
from pathlib import Path
from huggingface_hub import constants
from tuner import runs
from tuner.errors import TunerError
from tuner.models.fetch import base_of
from tuner.planning import plan
from tuner.recipe import Recipe
from tuner.ui import actions
from tuner.ui.visitor import Visitor

alice, bob = sys.argv[1:]
recipe = Recipe.load("corporate").with_settings({"model.name": "alice/secret", "budget.steps": 2})
run = plan.prepare(recipe, local=False, token=alice)
said = []

def ask(token):
    try:
        actions._fetch_base(run, Visitor(token=token))
        said.append(base_of(run).folder.name)
    except TunerError as error:
        said.append(str(error))

for token in (bob, None):
    ask(token)
shutil.rmtree(constants.HF_HUB_CACHE)
for token in (bob, None, alice, bob):
    ask(token)
print(json.dumps([run.plan["revision"], *said]))
"""


def test_a_prepared_run_goes_on_from_the_cache_and_without_it_with_the_token_of_who_asks(hub, people, tmp_path):
    pinned = hub.add_model("alice/secret", BASE, private=True).sha
    env = hub.env(tmp_path / "home") | {"TUNER_RUNS": str(tmp_path / "runs"), "HF_TOKEN": people["owner"]}
    done = fresh.run(["-c", PINNED, people["alice"], people["bob"]], ROOT, env=env)
    assert done.returncode == 0, done.stderr
    revision, *here, bobs, anonymous, alices, then = json.loads(done.stdout)
    assert (revision, here) == (pinned, [pinned, pinned])
    for refused in (bobs, anonymous):
        assert "'alice/secret' is not on the Hub, or it is private" in refused
    assert (alices, then) == (pinned, pinned)
    assert hub.tokens("alice/secret") == {None, people["alice"], people["bob"]}
