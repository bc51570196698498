"""An adapter of the Hub on the page, as an endpoint and in the terminal: it answers beside its base and one's runs."""

import json
from pathlib import Path

import peft
import pytest
from hub_double import Hub
from strange_adapters import BASE, ask_here, change_config, make
from tiny import tiny_model
from visitors_runs import ANN

from tuner import gpu, runs, runs_cleanup
from tuner.cli import main
from tuner.errors import TunerError
from tuner.hub.push import push
from tuner.inference import generate, merge
from tuner.inference.variants import load_variants
from tuner.models.shape import load_tokenizer
from tuner.planning import forecast
from tuner.ui import actions, adopting, home_api, ownership, playground_tab
from tuner.ui.visitor import ANYBODY, Visitor
from tuner.ui.wiring import with_list

GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4, "seed": 0}


@pytest.fixture
def home(hub: Hub, tmp_path, monkeypatch) -> Path:
    """Two adapters on the Hub, on one base, and folders for the cache and for runs."""
    ask_here(hub, tmp_path, monkeypatch)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    base = tiny_model(tmp_path / "base", "llama")
    hub.add_model(BASE, base)
    for name, layer in (("one", "q_proj"), ("two", "v_proj")):
        make(base, peft.LoraConfig(target_modules=[layer], task_type="CAUSAL_LM"), tmp_path / name)
        hub.add_model(f"bob/{name}", tmp_path / name)
    return tmp_path


def added(name: str, chosen: list[str], kept: dict | None, visitor: Visitor = ANN) -> list:
    """What the page shows at the end of an addition."""
    note, last = list(adopting._add(name, chosen, kept, visitor, playground_tab.update_runs))
    assert "Fetching the adapter" in note[3]
    return last


def test_adapters_answer_beside_each_other_and_their_base(home):
    kept, chosen, field, problem = added("bob/one", [], None)
    assert (field, problem, kept["shown"]) == ("", "", "")
    kept, chosen, *_ = added("bob/two", chosen["value"], kept)
    assert [title for title, _ in chosen["choices"]] == [f"bob/{n} on base, 16-bit, adopted" for n in ("two", "one")]
    one, two = chosen["value"]
    visitor = with_list(Visitor("bob"), kept)
    lineup = actions.lineup(chosen["value"], visitor)
    assert playground_tab._titles(lineup) == ["Base model", "bob/one", "bob/two"]
    turns = {v: [{"role": "user", "content": "hello"}] for v in lineup.variants}
    *_, answers = actions.chat(lineup, turns, visitor, **GREEDY)
    assert answers.keys() == {"base", one, two}
    assert ownership.is_owner(actions.open_run(one), visitor)
    assert not ownership.is_owner(actions.open_run(one), ANYBODY)


def test_another_version_of_the_base_is_told_by_its_commit_and_the_same_one_is_shared(hub, home):
    first = hub.repo(BASE).sha
    one = home_api.adopt("bob/one")["run"]
    hub.repo(BASE).commit(hub.repo(BASE).files | {"notes.txt": b"more"})
    two = home_api.adopt("bob/two")["run"]
    with pytest.raises(TunerError, match=f"ann/base at {first[:12]}, none, .*; ann/base at {hub.repo(BASE).sha[:12]}"):
        actions.lineup([one, two])
    change_config(home / "two", lambda c: c.update(revision=first))
    hub.add_model("bob/two", home / "two")
    assert actions.lineup([one, home_api.adopt("bob/two")["run"]]).variants[0] == "base"
    run = actions.open_run(one)
    run.write_text("recipe.yaml", run.recipe.with_settings({"model.revision": first}).to_yaml())
    assert actions.lineup([one, home_api.adopt("bob/two")["run"]]).variants[0] == "base"


def test_one_on_another_base_is_chosen_alone(hub, home):
    hub.add_model("ann/other", tiny_model(home / "other", "llama", seed=1))
    change_config(home / "two", lambda c: c.update(base_model_name_or_path="ann/other"))
    hub.add_model("bob/two", home / "two")
    kept, chosen, *_ = added("bob/one", [], None)
    kept, after, *_ = added("bob/two", chosen["value"], kept)
    assert len(after["value"]) == 1
    assert after["value"] != chosen["value"]
    assert len(kept["runs"]) == 2


def test_a_bad_one_changes_nothing_but_the_problem(home):
    *others, problem = added("bob/none", [], None)
    assert "&#x27;bob/none&#x27; is not on the Hub" in problem
    assert all(other == {"__type__": "update"} for other in others)
    assert list(runs.RUNS.glob("*")) == []
    with pytest.raises(TunerError, match="quantization: choose one of nf4, int8, none"):
        home_api.adopt("bob/one", "fp8")


def test_what_is_adopted_is_neither_trained_scored_merged_nor_pushed(home, capsys):
    told = home_api.adopt("bob/one", visitor=ANN)
    run = actions.open_run(told["run"])
    owner = Visitor(secrets={run.id: told["secret"]})
    assert told["model"] == BASE
    assert not actions.can_merge(run)
    assert not merge.is_mergeable(run)
    for deed, said in (
        (lambda: actions.resume(run.id, owner), "nothing to train or to score"),
        (lambda: actions.merge(run.id, owner), "merges what was trained with it"),
        (lambda: actions.push(run.id, "ann/x", True, owner), "is on the Hub already, as bob/one"),
        (lambda: actions.download(run.id, "adapter", owner), "is on the Hub already, as bob/one"),
    ):
        with pytest.raises(TunerError, match=said):
            deed()
    for command in ("train", "evaluate"):
        assert main([command, str(run.path)]) == 2
        assert "nothing to train or to score" in capsys.readouterr().err
    actions.delete(run.id, owner)
    assert list(runs.RUNS.glob("*")) == []


def test_they_make_room_as_other_runs_do(home):
    run = actions.open_run(home_api.adopt("bob/one", visitor=ANN)["run"])
    assert runs_cleanup.make_room(limit=0) == [run.id]


def test_in_the_terminal_a_name_of_the_hub_is_as_good_as_a_run(home, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    assert main(["chat", "bob/one", "bob/two", "--prompt", "hello", "--max-new-tokens", "4", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert answers.keys() == {"prompt", "base", "bob--one", "bob--two"}
    assert not runs.RUNS.exists() or list(runs.RUNS.glob("*")) == []
    assert main(["chat", "bob/none", "--prompt", "hello"]) == 2
    assert "'bob/none' is not on the Hub" in capsys.readouterr().err
    assert main(["chat", "nowhere", "--prompt", "hello"]) == 2
    assert "There is no run 'nowhere'" in capsys.readouterr().err


def test_a_conversation_goes_through_the_template_that_the_adapter_came_with(hub, home, monkeypatch):
    marked = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|endoftext|>{% endfor %}"
    marked += "{% if add_generation_prompt %}<answer>{% endif %}"
    (home / "one" / "chat_template.jinja").write_text(marked)
    (home / "two" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": marked.replace("<answer>", "<reply>")}]})
    )
    for name in ("one", "two"):
        hub.add_model(f"bob/{name}", home / name)
    lineup = actions.lineup([home_api.adopt(f"bob/{name}")["run"] for name in ("one", "two")])
    asked, chat = [], gpu.chat
    monkeypatch.setattr(
        gpu, "chat", lambda *given, **options: asked.append((given, options)) or chat(*given, **options)
    )
    turns = {v: [{"role": "user", "content": "hello"}] for v in lineup.variants}
    *_, answers = actions.chat(lineup, turns, **GREEDY)
    ((_, _, texts), options), (base, one, two) = asked[0], lineup.variants
    assert texts[base].startswith("<|im_start|>user")
    assert (texts[one], texts[two]) == ("<user>hello<|endoftext|><answer>", "<user>hello<|endoftext|><reply>")
    ends = load_tokenizer(home / "base").convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert set(options["ends"]) == set(ends)
    loaded = load_variants(lineup.adapters)  # as in a terminal
    assert [generate._prompt(loaded, v, turns[v]) for v in loaded.variants] == [texts[v] for v in loaded.variants]
    assert set(generate._ends(loaded, loaded.variants)) == set(ends)
    assert answers.keys() == texts.keys()


def test_what_was_pushed_from_here_answers_as_its_run(hub, home, finished):
    token = hub.user("alice")
    push(finished, "bosses", token=token, endpoint=hub.url)  # private, as is the base that goes with it
    precision = finished.recipe.model.quantization
    visitor = Visitor("alice", token=token)
    with pytest.raises(TunerError, match="is not on the Hub, or it is private"):
        home_api.adopt("alice/bosses", precision)
    run = actions.open_run(home_api.adopt("alice/bosses", precision, visitor)["run"])
    texts = []
    for each in (finished, run):
        loaded = load_variants({"adapter": each})
        turns = {v: [{"role": "user", "content": "yo whats up"}] for v in loaded.variants}
        *_, answers = generate.stream(loaded, turns, generate.Sampling(max_new_tokens=24))
        texts.append(answers)
    assert texts[0] == texts[1]
    assert texts[0]["base"] != texts[0]["adapter"]
    assert 0 < forecast.chat_seconds(run, 0, 24) < 600
    assert not any(token in path.read_text(errors="replace") for path in runs.RUNS.rglob("*") if path.is_file())
