"""That the attack would notice what falls; and its short form."""

import os
import threading
import time

import attack
import attack_cases
import attack_http
import pytest
from attack import Tally
from attack_cases import ACCEPT, REFUSE, Case
from attack_requests import Answer
from attack_watch import OtherVisitor, Stalls
from served import ROOT

from tuner.recipe import Recipe

SERVER_PATH = str(ROOT / "tuner/runs.py")


def case(expect: str | None = None, **given) -> Case:
    return Case("recipe", 7, "a recipe", expect, "check", given)


def violations(tmp_path, answer: Answer, asked: Case) -> list[str]:
    tally = Tally(tmp_path, secrets=(str(ROOT / "tuner"), "canary"))
    tally.judge(asked, answer)
    return [kind for kind, _, _ in tally.violations]


@pytest.mark.parametrize(
    ("outcome", "text", "expect", "found"),
    [
        (REFUSE, "seed: 'x' is not a whole number. Give a whole number.", REFUSE, []),
        (ACCEPT, '{"plan": {"steps": 2}}', ACCEPT, []),
        (ACCEPT, '{"plan": {"steps": 2}}', REFUSE, ["wrongly accepted"]),
        (REFUSE, "No.", ACCEPT, ["wrongly refused"]),
        (REFUSE, 'Traceback (most recent call last):\n  File "x.py", line 3', None, ["traceback shown"]),
        (REFUSE, f"{SERVER_PATH} is no run", None, ["server path shown"]),
        (ACCEPT, "the canary", None, ["secret shown"]),
        (REFUSE, "'list' object has no attribute 'get'", None, ["raw error shown"]),
        (REFUSE, "Something unexpected went wrong (error 1f).", None, ["unexpected error"]),
        ("fault", "", REFUSE, ["unexpected error"]),
    ],
)
def test_an_answer_that_shows_what_it_must_not_is_a_violation(outcome, text, expect, found, tmp_path):
    assert violations(tmp_path, Answer(outcome, text), case(expect)) == found


def test_what_the_attacker_wrote_may_come_back(tmp_path):
    refusal = Answer(REFUSE, f"'{SERVER_PATH}' is no run")
    assert violations(tmp_path, refusal, case(recipe=SERVER_PATH)) == []
    assert violations(tmp_path, refusal, case(recipe="runs.py")) == ["server path shown"]


def test_the_same_seed_tries_the_same_cases():
    first, again = (attack.chosen(attack.INSIDE, 200, seed=5) for _ in range(2))
    assert [repr(c) for c in first] == [repr(c) for c in again]
    assert repr(attack.chosen(attack.INSIDE, 3000, seed=5)) != repr(attack.chosen(attack.INSIDE, 3000, seed=6))
    assert attack.only(first[3].name, seed=5) == [first[3]]


def test_every_family_has_cases_that_must_be_refused_and_five_thousand_are_planned():
    cases = attack.chosen(attack.INSIDE, 5000, 0) + attack.chosen(attack.OUTSIDE, 5000, 0)
    assert len(cases) >= 5000
    planted = {c.family for c in cases if c.expect == REFUSE}
    assert {"recipe", "name", "file", "model", "endpoint", "link", "origin", "path", "http-name"} <= planted
    assert {c.family for c in cases if c.expect == ACCEPT} >= {"recipe", "name", "file", "model", "endpoint", "link"}


def test_every_setting_of_a_recipe_is_attacked():
    parts = {name: field.annotation for name, field in Recipe.model_fields.items()}
    settings = {
        f"{name}.{leaf}" if hasattr(kind, "model_fields") else name
        for name, kind in parts.items()
        for leaf in getattr(kind, "model_fields", [""])
    }
    tried = {*attack_cases.NUMBERS, *attack_cases.TEXTS, *attack_cases.CHOICES, *attack_cases.NAMED_IN_A_RECIPE}
    assert settings - tried == {"data.columns", "method.target_modules"}  # which DOCUMENTS has


def test_a_wait_is_what_the_machine_was_not_slow_by(tmp_path):
    tally = Tally(tmp_path)
    tally.flights.append((100.0, 103.0, case()))
    wait = {"what": "page", "at": 100.5, "answered": True}
    waits = [wait | {"took": 0.9, "stalled": 0.0}, wait | {"took": 2.5, "stalled": 2.0}]
    assert attack.judge_waits(waits, tally) == 0.9
    assert not tally.violations
    attack.judge_waits(
        [wait | {"took": 2.5, "stalled": 0.2}, wait | {"took": 0.1, "stalled": 0, "answered": False}], tally
    )
    assert [kind for kind, _, _ in tally.violations] == ["other visitor waited", "other visitor was not served"]
    assert "recipe/7" in tally.violations[0][2]


def test_stalls_are_counted_from_a_second_before_a_wait():
    stalls = Stalls()
    stalls.late = [(10.0, 0.5), (11.5, 0.25), (14.0, 1.0)]
    assert stalls.between(12, 13) == 0.25


def test_an_app_that_does_not_answer_serves_nobody():
    stop, visitor = threading.Event(), OtherVisitor("http://127.0.0.1:9/", os.getpid())
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    waits = visitor.watch(stop)
    assert waits
    assert not any(wait["answered"] for wait in waits)
    assert time.monotonic() - started < 5


def test_the_tables_name_every_endpoint():
    import gradio as gr

    from tuner.ui import api, compare_api, home_api

    with gr.Blocks() as blocks:
        api.build()
        compare_api.build()
        home_api.build()
    assert {f.api_name for f in blocks.fns.values()} == attack_http.ENDPOINTS.keys()


@pytest.mark.long
def test_a_short_attack_finds_nothing():
    """`make attack` with few cases, of every family, without HTTP and over it."""
    cases = attack.chosen(attack.INSIDE, 80, seed=0) + attack.chosen(attack.OUTSIDE, 200, seed=0)
    names = [*(case.name for case in cases if case.family != "link"), "link"]  # all that is tried on another's run
    only = ["--only", ",".join(names), "--processes", "1", "--seconds", "250"]
    tally = attack.run(attack.parser().parse_args(only))
    assert sum(tally.tried.values()) >= 150
    assert tally.tried.keys() == attack.INSIDE.keys() | attack.OUTSIDE.keys()
    assert tally.planted[REFUSE] >= 30
    assert tally.planted[ACCEPT] >= 50
    assert tally.violations == []
