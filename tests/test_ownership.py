"""Whose run it is: by its secret, by the account, or nobody's; and what a browser remembers of its runs."""

import json
import time
from dataclasses import replace
from itertools import product

import pytest
from conftest import plain
from visitors_runs import ANN, copied, profile_of, request_of, with_events
from wires import BuiltPage

from tuner import runs
from tuner.errors import TunerError
from tuner.runs import create
from tuner.ui import actions, api, ownership, run_queue, train_tab, wiring
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor, with_secret

pytest_plugins = ["page_fixtures"]
START, CLOSED = {"event": "start", "step": 0, "steps": 9}, {"event": "end", "reason": "window", "step": 4}


def test_the_secret_or_the_account_makes_an_owner_and_nothing_else_does(mine):
    secret = ownership.claim(mine, replace(ANN, session="a browser"))
    elsewhere = Visitor("another browser", "203.0.113.7", "ann")
    assert ownership.is_owner(mine, with_secret(ANYBODY, "mine", secret))
    assert ownership.is_owner(mine, elsewhere)
    for visitor in (
        ANYBODY,
        Visitor("a browser", ANN.address),  # the same browser, not signed in any more
        replace(elsewhere, account="bob"),
        with_secret(ANYBODY, "mine", ""),
        with_secret(ANYBODY, "other", secret),
        with_secret(ANYBODY, "mine", secret[:-1]),
        with_secret(ANYBODY, "mine", "\ud800"),
        with_secret(ANYBODY, "mine", json.loads((mine.path / ownership.FILE).read_text())["secret"]),  # the hash
    ):
        assert not ownership.is_owner(mine, visitor)
        with pytest.raises(TunerError, match="Only the run's owner"):
            actions.own_run("mine", visitor)


def test_whoever_takes_up_an_accounts_freed_name_does_not_own_its_runs(mine):
    """The account that was renamed still does: the Hub's id of an account stays, its name may become another's."""

    def visitor(account: str, username: str) -> Visitor:
        request, *_ = request_of(ANYBODY)
        return for_visitor(lambda visitor: visitor)(request, None, profile_of(account, username))

    ownership.claim(mine, visitor("id-1", "ann"))
    assert ownership.is_owner(mine, visitor("id-1", "ann-was-renamed"))
    assert not ownership.is_owner(mine, visitor("id-2", "ann"))
    assert not ownership.is_owner(mine, visitor("id-2", "id-1"))
    mine.write_json(ownership.FILE, {"secret": "", "account": "ann"})  # as before ids were kept
    assert not ownership.is_owner(mine, visitor("id-2", "ann"))


def test_a_thousand_wrong_secrets_take_no_time(mine):
    began = time.process_time()
    assert not any(ownership.is_owner(mine, with_secret(ANYBODY, "mine", f"guess {n}")) for n in range(1000))
    assert time.process_time() - began < 1


def test_whoever_was_not_signed_in_shares_no_run_with_others_who_are_not(mine):
    ownership.claim(mine, ANYBODY)
    assert not ownership.is_owner(mine, ANYBODY)
    assert not ownership.is_owner(mine, replace(ANYBODY, account="None"))


def test_the_secret_is_in_no_file_and_in_no_text_about_the_visitor(mine):
    secret = ownership.claim(mine, ANN)
    assert not [file for file in mine.path.rglob("*") if file.is_file() and secret in file.read_text(errors="ignore")]
    assert secret not in repr(with_secret(ANN, "mine", secret))
    assert secret not in json.dumps(api.status("mine")) + json.dumps(api.runs(["mine"]))


def test_a_run_of_a_terminal_or_with_a_damaged_owner_is_for_looking_and_chatting(mine, root):
    create(mine.recipe, path=root / "terminal")
    for secret in ("", "None", "x"):
        with pytest.raises(TunerError) as caught:
            actions.delete("terminal", with_secret(ANN, "terminal", secret))
        assert caught.value.problems == (ownership.LINK_ONLY,)
    damaged = "Run mine: its owner.json is damaged. Nobody can change or delete the run any more."
    for text, told in {"{": damaged, "[]": damaged, '{"secret": 7, "account": ["ann"]}': "", "{}": ""}.items():
        mine.write_text(ownership.FILE, text)
        assert not ownership.is_owner(mine, ANN)
        card, _, *buttons = train_tab.panel("mine", ANN)
        assert (told or ownership.LINK_ONLY) in plain(card)
        assert [button["visible"] for button in buttons] == [False, False, False, True, False, True, True]
        assert actions.lineup(["mine"], ANN).variants == ["base", "adapter"]
    assert actions.open_run("mine").status == "finished"


def test_a_link_holder_gets_a_merged_model_only_once_it_is_merged(mine, models):
    assert actions.lineup(["mine"]).variants == ["base", "adapter"]
    api.merge("mine", visitor=ANN)
    mine.merged.mkdir()
    assert actions.lineup(["mine"]).variants == ["base", "adapter", "merged"]
    copied("example")
    assert actions.lineup(["example"]).variants == ["base", "adapter", "merged"]


def test_only_its_owner_starts_a_runs_next_window_by_watching(mine, monkeypatch):
    started = []
    monkeypatch.setattr(run_queue, "start", lambda run, visitor, event: started.append((run.id, visitor.session)))
    with_events(mine, START, CLOSED)
    train_tab._tick("mine", {"runs": {"mine": "wrong"}, "shown": "mine"}, visitor=Visitor("bob"))
    assert started == []
    train_tab._tick("mine", None, visitor=ANN)
    assert started == [("mine", "ann")]


def test_an_owners_link_spends_nothing_until_its_opener_presses_resume(mine, monkeypatch):
    secret, built, started = ownership.claim(mine, Visitor("mallory")), BuiltPage(has_oauth=False), []
    monkeypatch.setattr(run_queue, "start", lambda run, visitor, event: started.append((visitor.session, event)))
    monkeypatch.setattr(actions, "_fetch_base", lambda *given: None)
    with_events(mine, START, CLOSED)
    arrive, tick = built.function("page.load"), built.function("train.timer.tick")
    alice = request_of(Visitor("alice", account="alice"))
    kept, link = {"runs": {}, "shown": ""}, {"run": "mine", "secret": secret}
    for opened in (link, {}, link):  # then the browser remembers the secret
        shown, kept, *panel = arrive(kept | {"opened": opened}, *alice)
        for card, _, _, _, resume, *_ in (panel, tick(shown, kept, "", *alice)):
            assert ownership.BY_LINK in plain(card)
            assert resume["visible"]
        assert started == []
    kept, *_ = built.function("train.resume.click")("mine", kept, *alice)
    assert started.pop() == ("alice", {"event": "queued"})
    assert kept == {"runs": {"mine": secret}, "shown": "mine"}
    with_events(mine, START, CLOSED)
    for opened in (link, {}):
        shown, kept, card, *_ = arrive(kept | {"opened": opened}, *alice)
        tick(shown, kept, "", *alice)
        assert started.pop() == ("alice", {"event": "continued"})
        assert ownership.BY_LINK not in plain(card)


def test_a_resume_that_fails_makes_no_run_of_an_owners_link_go_on_by_itself(mine):
    secret, built = ownership.claim(mine, Visitor("mallory")), BuiltPage(has_oauth=False)
    kept = {"runs": {"mine": f"{wiring.BY_LINK}{secret}"}, "shown": "mine"}
    for trigger, place in (("train.resume.click", 0), ("mine.resume.click", 2)):  # it has finished
        assert built.function(trigger)("mine", kept, *request_of(Visitor("alice")))[place] == kept


@pytest.mark.parametrize("trigger", ["train.resume.click", "mine.resume.click"])
def test_a_resume_of_one_run_of_an_owners_link_lets_no_other_go_on_by_itself(mine, monkeypatch, trigger):
    built, kept = BuiltPage(has_oauth=False), {"runs": {}, "shown": "mine"}
    monkeypatch.setattr(run_queue, "start", lambda *given: None)
    monkeypatch.setattr(actions, "_fetch_base", lambda *given: None)
    for run in (mine, copied("other")):
        kept["runs"][run.id] = f"{wiring.BY_LINK}{ownership.claim(run, Visitor('mallory'))}"
        with_events(run, START, CLOSED)
    outputs = built.function(trigger)("mine", kept, *request_of(Visitor("alice")))
    after = wiring.with_list(ANYBODY, next(value for value in outputs if isinstance(value, dict) and "runs" in value))
    assert after.by_link == {"other"}
    assert after.secrets == wiring.with_list(ANYBODY, kept).secrets


@pytest.mark.parametrize("remembered", ["right", "right, by link", "wrong", "wrong, by link", "none", "not listed"])
def test_an_owners_link_replaces_no_secret_that_is_right_and_marks_no_run_that_is_the_visitors(mine, remembered):
    secret, arrive = ownership.claim(mine, ANN), BuiltPage(has_oauth=False).function("page.load")
    texts, (how, _, mark) = {"right": secret, "wrong": "garbage"}, remembered.partition(", ")
    before = {} if how == "not listed" else {"mine": f"{wiring.BY_LINK if mark else ''}{texts.get(how, '')}"}
    for account, given in product(("ann", None), ("right", "wrong", "none")):
        sent = {"runs": before, "shown": "", "opened": {"run": "mine", "secret": texts.get(given, "")}}
        kept = arrive(sent, *request_of(Visitor("a browser", account=account)))[1]
        visitor = wiring.with_list(ANYBODY, kept)
        assert ownership.is_owner(mine, visitor) == ("right" in (how, given)), (account, given)  # once signed out, too
        comes_by_link = bool(mark) if how == "right" or given != "right" else True
        assert bool(visitor.by_link) == (comes_by_link and not account), (account, given)
        assert ("mine" in kept["runs"]) == bool(account or before or given == "right"), (account, given)


def test_an_owners_link_gives_all_rights_at_once(mine):
    secret, alice = ownership.claim(mine, Visitor("mallory")), Visitor("alice")
    alice = wiring.with_list(alice, {"runs": {"mine": f"{wiring.BY_LINK}{secret}"}})
    assert ownership.is_owner(mine, alice)
    actions.delete("mine", alice)
    assert not mine.path.exists()


@pytest.mark.parametrize(
    ("kept", "listed"),
    [
        ({"runs": ["b", "a"], "shown": "a"}, {"b": "", "a": ""}),  # of a page that kept no secrets
        ({"runs": {"b": "x", "a": ""}, "shown": "a"}, {"b": "x", "a": ""}),
        ({"runs": [["a"], None, "c"], "shown": ["a"]}, {"c": ""}),
        ({"runs": {"a": 7}, "shown": 7}, {"a": ""}),
        ({"runs": "abc"}, {}),
        ([], {}),
        ("x", {}),
        (None, {}),
    ],
)
def test_what_a_browser_sends_is_read_in_every_form(kept, listed):
    assert wiring.remembered(kept)["runs"] == listed
    assert list(wiring.remembered(kept)["runs"]) == list(listed)
    assert isinstance(wiring.remembered(kept)["shown"], str)
    assert list(wiring.with_run(kept, "new", "s")["runs"].items()) == [("new", "s"), *listed.items()]


def test_a_browsers_list_is_bounded_and_a_run_that_comes_again_keeps_its_secret():
    kept = {"runs": {f"run{number}": "s" for number in range(2000)}}
    assert len(wiring.remembered(kept)["runs"]) == wiring.MOST_LISTED
    assert wiring.with_run({"runs": {"a": "old", "b": ""}}, "a", "") == {"runs": {"a": "old", "b": ""}, "shown": "a"}
    assert wiring.with_run({"runs": {"b": "", "a": ""}}, "a", "new")["runs"] == {"a": "new", "b": ""}


def test_an_owner_who_opens_a_run_elsewhere_has_it_in_the_list_and_a_link_holder_has_not(mine):
    secret, built = ownership.claim(mine, ANN), BuiltPage(has_oauth=False)
    arrive = built.function("page.load")
    for visitor, given, listed in (
        (ANYBODY, secret, {"mine": f"{wiring.BY_LINK}{secret}"}),
        (ANYBODY, "", {}),
        (ANYBODY, "wrong", {}),
        (ANN, "", {"mine": ""}),
    ):
        kept = {"runs": {}, "shown": "", "opened": {"run": "mine", "secret": given}}
        shown, browser, *_ = arrive(kept, *request_of(visitor))
        assert (shown, browser) == ("mine", {"runs": listed, "shown": "mine"})
    for opened in (None, [], {"run": ["mine"]}, {"run": "../mine", "secret": 7}):
        assert arrive({"opened": opened}, *request_of(ANN))[0] == ""


def test_more_runs_than_a_list_holds_are_not_looked_up(root):
    with pytest.raises(Exception, match="501 ids are too many"):
        api.runs([f"run{number}" for number in range(wiring.MOST_LISTED + 1)])
    assert api.runs(["gone"]) == []
    assert not list(runs.RUNS.iterdir())
