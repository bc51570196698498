"""A whole visit to the page of somebody who is logged in at the Hub: no request ever carries the owner's token."""

from pathlib import Path

import pytest
from conftest import ROOT, SMALL
from gradio_client import Client
from gradio_client.exceptions import AppError
from hub_double import Hub
from served import serve

from tuner.recipe import EXAMPLES, Recipe

pytestmark = pytest.mark.long

BASE = EXAMPLES / "tiny-office"
REAL = ("-u",)  # a Python of its own, which reads the Hub's settings as on a Space


def recipe(model: str, source: str) -> str:
    """A recipe of a few steps."""
    return Recipe.load("corporate").with_settings(SMALL | {"model.name": model, "data.source": source}).to_yaml()


def visit(client: Client, model: str, source: str) -> dict[str, str]:
    """Check, preview, train, chat and merge; the run's id and its secret."""
    wanted = recipe(model, source)
    assert "plan" in client.predict(wanted, api_name="/check"), client.predict(wanted, api_name="/check")
    assert "rows" in client.predict(wanted, api_name="/preview")
    run, *events = client.submit(wanted, api_name="/train")
    assert events[-1]["event"] == "evaluation", events
    mine = {"run": run["run"], "secret": run["secret"]}
    *_, answers = client.submit(**mine, message="yo", max_new_tokens=4, api_name="/chat")
    assert answers.keys() == {"base", "adapter", "merged"}
    assert client.predict(**mine, api_name="/merge")["tokens"] > 0
    return mine


def test_no_request_of_a_whole_visit_carries_a_token_of_the_owner(hub: Hub, tmp_path: Path):
    in_environment, in_file = hub.user("owner"), hub.user("owner")
    alice, bob = hub.user("alice", "oauth"), hub.user("bob", "oauth")
    rows = (EXAMPLES / "corporate.jsonl").read_bytes()
    hub.add_model("owner/secret", BASE, private=True)
    hub.add_model("meta/gated", BASE, gated=True, readers=("alice", "owner"))
    hub.add_model("meta/open", BASE)
    hub.add_dataset("meta/rows", {"train.jsonl": rows})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(in_file)
    env = hub.env(tmp_path / "home") | {"HF_TOKEN": in_environment, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    with serve(tmp_path / "runs", REAL, **env) as url:
        signed_in, anonymous = Client(url, oauth_token=alice, verbose=False), Client(url, verbose=False)
        run = visit(signed_in, "meta/gated", "meta/rows")
        job = anonymous.submit(recipe("meta/gated", "meta/rows"), api_name="/train")
        assert [*job] == []
        with pytest.raises(AppError, match=r"accept its terms at https://huggingface\.co/meta/gated, then sign in"):
            job.result()
        for client in (signed_in, anonymous):
            refused = client.predict(recipe("owner/secret", "meta/rows"), api_name="/check")
            assert "or it is private" in refused["problems"][0]
        assert signed_in.predict(**run, repository="my-adapter", api_name="/push") == f"{hub.url}/alice/my-adapter"
        other = visit(anonymous, "meta/open", "meta/rows")
        with pytest.raises(AppError, match="There is no token"):
            anonymous.predict(**other, repository="my-adapter", api_name="/push")
        assert anonymous.predict(**other, repository="typed", token=bob, api_name="/push") == f"{hub.url}/bob/typed"
    assert hub.tokens() == {None, alice, bob}
    assert hub.tokens("meta/gated") == {None, alice}
