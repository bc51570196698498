"""What each command of the terminal asks for and prints: its options, its figures and its exit status."""

import io
import json
import re
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import in_order
from recorded import EVENTS, MERGED, PLAN, SCORES, recorded
from tables import CSV

from tuner import runs, terminal
from tuner.cli import main
from tuner.errors import TunerError
from tuner.experiments import experiment
from tuner.inference import generate, merge
from tuner.inference.generate import Sampling
from tuner.methods.registry import METHODS
from tuner.methods.spec import facts

SHIPPED = {"model.name": "tiny-office"}
UNPINNED = PLAN | {"revision": None}


def some_run(folder: Path, name: str = "run", settings: dict = SHIPPED, **files) -> runs.Run:
    """A run of this name in the folder, of which only the records are there."""
    run = recorded(folder / name, SHIPPED | settings, **{"plan": UNPINNED} | files)
    return run if name == "run" else runs.Run(run.path.rename(folder / name / name))


def printed(capsys) -> dict:
    """What was printed, as JSON."""
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """What models are asked to do, in place of doing it; each answers with its name and the last message."""
    told = []

    def load(adapters: dict, merged: dict) -> SimpleNamespace:
        told.append(("load", {name: run.path for name, run in adapters.items()}, merged))
        return SimpleNamespace(variants=["base", *adapters, *merged])

    def stream(loaded: SimpleNamespace, conversations: dict, sampling: Sampling):
        told.append(("ask", deepcopy(conversations), sampling))
        yield dict.fromkeys(conversations, "So")
        yield {variant: f"{variant}: {messages[-1]['content']}" for variant, messages in conversations.items()}

    monkeypatch.setattr("tuner.inference.variants.load_variants", load)
    monkeypatch.setattr(generate, "stream", stream)
    monkeypatch.setattr(merge, "merge", lambda run: told.append(("merge", run.path)) or MERGED)
    monkeypatch.setattr(
        merge, "merge_weighted", lambda shares, folder: told.append(({r.path: w for r, w in shares.items()}, folder))
    )
    return told


def test_a_run_is_asked_with_its_base_its_adapter_and_itself_merged(calls, tmp_path, capsys):
    run = some_run(tmp_path)
    assert main(["chat", str(run.path), "--prompt", "yo", "--json"]) == 0
    asked = {variant: [{"role": "user", "content": "yo"}] for variant in ("base", "adapter", "merged")}
    loading = ("load", {"adapter": run.path}, {"merged": run.merged})
    assert calls == [("merge", run.path), loading, ("ask", asked, Sampling())]
    told = capsys.readouterr()
    answers = {"base": "base: yo", "adapter": "adapter: yo", "merged": "merged: yo"}
    assert json.loads(told.out) == {"prompt": "yo", **answers, "merge_check": MERGED}
    assert told.err == ""


def test_each_option_of_a_chat_has_its_effect(calls, tmp_path, capsys):
    run = some_run(tmp_path, settings={"method.name": "prompt_tuning"})  # which can't be merged
    options = ["--system", "Be brief.", "--temperature", "0.75", "--top-p", "0.5", "--max-new-tokens", "7"]
    assert main(["chat", str(run.path), "--prompt", "yo", *options, "--seed", "3"]) == 0
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "yo"}]
    sampling = Sampling(temperature=0.75, top_p=0.5, max_new_tokens=7, seed=3)
    asked = ("ask", dict.fromkeys(("base", "adapter"), messages), sampling)
    assert calls == [("load", {"adapter": run.path}, {}), asked]
    told = capsys.readouterr()
    assert told.err == "Loading and merging...\n"
    assert in_order(told.out, "base", "base: yo", "adapter", "adapter: yo")
    assert main(["chat", str(run.path), "--prompt", "yo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"prompt", "base", "adapter"}


def test_a_conversation_goes_on_with_each_models_answers_until_nothing_is_said(calls, tmp_path, capsys, monkeypatch):
    said, out = iter(["yo ", " thx", "  ", "never read"]), []

    def read(prompt: str) -> str:
        assert prompt == "you> "
        out.append(capsys.readouterr().out)
        return next(said)

    monkeypatch.setattr("builtins.input", read)
    run = some_run(tmp_path, settings={"method.name": "prompt_tuning"})
    assert main(["chat", str(run.path), "--system", "Be brief.", "--json"]) == 0
    first, second = (conversations for kind, conversations, _ in calls if kind == "ask")
    for variant in ("base", "adapter"):
        system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "yo"}
        assert first[variant] == [system, user]
        answer = {"role": "assistant", "content": f"{variant}: yo"}
        assert second[variant] == [system, user, answer, {"role": "user", "content": "thx"}]
    assert next(said) == "never read"
    answered = [{"prompt": said, "base": f"base: {said}", "adapter": f"adapter: {said}"} for said in ("yo", "thx")]
    assert [json.loads(line) for line in "".join(out).splitlines()] == answered
    assert main(["chat", str(run.path), "--prompt", ""]) == 0
    assert len(calls) == 4  # loading twice, and two questions


def test_several_runs_are_asked_under_names_that_tell_them_apart(calls, tmp_path, capsys, monkeypatch):
    one, other, same, base = (some_run(tmp_path / f, n) for f, n in zip("abcd", ("one", "two", "one", "base")))
    for opened, names in (
        ([one, other], ["one", "two"]),
        ([one, same], [str(one.path), str(same.path)]),
        ([one, base], [str(one.path), str(base.path)]),
    ):
        calls.clear()
        assert main(["chat", *(str(run.path) for run in opened), "--prompt", "yo", "--json"]) == 0
        assert calls[0] == ("load", dict(zip(names, [run.path for run in opened], strict=True)), {})
        assert list(printed(capsys)) == ["prompt", "base", *names]
    monkeypatch.chdir(one.path.parent)
    assert main(["chat", one.path.name, str(same.path), "--prompt", "yo", "--json"]) == 0
    assert list(printed(capsys)) == ["prompt", "base", str(one.path), str(same.path)]


def test_a_merge_says_where_the_model_is_and_how_it_agrees(calls, tmp_path, capsys):
    run = some_run(tmp_path)
    assert main(["merge", str(run.path), "--json"]) == 0
    assert printed(capsys) == {"merged": str(run.merged), **MERGED}
    assert main(["merge", str(run.path)]) == 0
    assert capsys.readouterr().out == f"{terminal.merge_check(run.merged, MERGED)}\n"
    assert calls == [("merge", run.path)] * 2


def test_a_weighted_merge_gives_each_run_its_weight(calls, tmp_path, capsys):
    opened = [some_run(tmp_path / folder, name) for folder, name in zip("abc", ("one", "two", "one"))]
    paths, out = [run.path for run in opened], tmp_path / "sum"
    command = ["merge", *map(str, paths[:2]), "--out", str(out)]
    assert main([*command, "--weights", "0.7, -0.25", "--json"]) == 0
    assert printed(capsys) == {"merged": str(out), "shares": {"one": 0.7, "two": -0.25}}
    assert main(["merge", *map(str, paths), *command[3:]]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert calls == [(dict(zip(paths, (0.7, -0.25))), out), (dict.fromkeys(paths, 1 / 3), out)]
    same = paths[0], paths[2]
    assert main(["merge", *map(str, same), "--out", str(out), "--json"]) == 0
    assert printed(capsys)["shares"] == {str(path): 0.5 for path in same}


WEIGHTS = {
    "--weights 0.7: got 1 for 2 runs. Give one weight per run.": ["--weights", "0.7", "--out", "sum"],
    "--weights 1,2,3: got 3 for 2 runs. Give one weight per run.": ["--weights", "1,2,3", "--out", "sum"],
    "--weights 1;2: these are not numbers. Separate them by commas, as in 0.7,0.3.": [
        "--weights", "1;2", "--out", "sum"
    ],
    "A weighted merge needs a folder to write to. Add --out FOLDER.": ["--weights", "1,2"],
}  # fmt: skip


@pytest.mark.parametrize("sentence", WEIGHTS)
def test_weights_that_do_not_fit_are_a_sentence_with_what_was_given(sentence, calls, tmp_path, capsys):
    opened = [str(some_run(tmp_path / folder).path) for folder in "ab"]
    assert main(["merge", *opened, *WEIGHTS[sentence]]) == 2
    assert capsys.readouterr().err == f"tuner: {sentence}\n"
    assert not calls


def test_runs_of_one_name_on_different_bases_are_not_merged(tmp_path, capsys):
    opened = [some_run(tmp_path / "a"), some_run(tmp_path / "b", settings={"model.quantization": "int8"})]
    assert main(["merge", *(str(run.path) for run in opened), "--out", str(tmp_path / "sum")]) == 2
    assert "different bases" in capsys.readouterr().err


def test_training_prints_the_plan_the_events_and_the_verdict(tmp_path, capsys, monkeypatch):
    run = some_run(tmp_path, scores=None)
    events = [EVENTS[0], {"event": "heartbeat"}, EVENTS[4] | {"tokens_per_second": 9.0}, EVENTS[6]]

    def train(given: runs.Run):
        assert given.path == run.path
        yield from events
        run.write_json("evaluation.json", SCORES)

    monkeypatch.setattr("tuner.training.window.train", train)
    assert main(["train", str(run.path), "--json"]) == 0
    told = capsys.readouterr()
    assert [json.loads(line) for line in told.out.splitlines()] == [events[0], *events[2:]]
    assert told.err == ""
    assert main(["train", str(run.path)]) == 0
    told = capsys.readouterr()
    assert told.out == f"run {run.path}\n{terminal.plan_text(UNPINNED)}\n{terminal.verdict(SCORES)}\n"
    assert "36/40" in told.err
    given = str(shutil.copy(run.path / "recipe.yaml", tmp_path))
    assert main(["train", given, "--out", str(run.path)]) == 0
    assert capsys.readouterr().out.startswith(f"run {run.path}\n")

    def interrupted(given: runs.Run):
        yield events[0]
        raise KeyboardInterrupt

    monkeypatch.setattr("tuner.training.window.train", interrupted)
    for mode in ([], ["--json"]):
        assert main(["train", str(run.path), *mode]) == 130
        told = capsys.readouterr()
        assert f"\ntuner: stopped. To resume: tuner train {run.path}\n" in told.err
        assert "It helped" not in told.out


def test_a_program_reads_each_event_and_each_answer_at_once(calls, tmp_path, monkeypatch):
    written, lines = io.BytesIO(), []
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written))

    def train(given: runs.Run):
        for event in EVENTS[:3]:
            yield event
            lines.append(written.getvalue().count(b"\n"))

    def read(prompt: str) -> str:
        lines.append(written.getvalue().count(b"\n"))
        return "yo" if len(lines) < 6 else ""

    monkeypatch.setattr("tuner.training.window.train", train)
    monkeypatch.setattr("builtins.input", read)
    run = str(some_run(tmp_path).path)
    assert main(["train", run, "--json"]) == 0
    assert main(["chat", run, "--json"]) == 0
    assert lines == [1, 2, 3, 3, 4, 5]


def test_the_same_recipe_again_resumes_its_run_as_it_was_prepared_and_another_is_refused(
    tmp_path, capsys, monkeypatch
):
    run, trained = some_run(tmp_path), []
    monkeypatch.setattr("tuner.training.window.train", lambda given: (event for event in trained.append(given) or ()))
    again = ["train", str(shutil.copy(run.path / "recipe.yaml", tmp_path)), "--out", str(run.path), "--json"]
    assert main(again) == 0
    (resumed,) = trained
    assert (resumed.path, resumed.plan) == (run.path, UNPINNED)
    assert main([*again, "--set", "seed=7"]) == 2
    assert capsys.readouterr().err == (
        f"tuner: {run.path} holds a run of a different recipe. Choose another folder, or delete that run.\n"
    )
    assert len(trained) == 1


def test_scores_are_printed_as_they_are_kept_and_made_only_where_there_are_none(tmp_path, capsys, monkeypatch):
    def evaluate(given: runs.Run):
        yield {"event": "evaluating", "row": 0, "rows": 7}
        made.append(given.path)
        given.write_json("evaluation.json", SCORES)

    made, run = [], some_run(tmp_path, scores=None)
    monkeypatch.setattr("tuner.evaluation.answers.evaluate", evaluate)
    for mode in (["--json"], []):
        (run.path / "evaluation.json").unlink(missing_ok=True)
        assert main(["evaluate", str(run.path), *mode]) == 0
        assert ("0/7" in capsys.readouterr().err) == (not mode)
    assert made == [run.path] * 2
    assert main(["evaluate", str(run.path), "--json"]) == 0
    assert printed(capsys) == SCORES
    assert main(["evaluate", str(run.path)]) == 0
    assert capsys.readouterr().out == f"{terminal.verdict(SCORES)}\n"
    assert made == [run.path] * 2


def test_the_list_of_runs_has_a_row_of_facts_for_each(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    accuracy = {"metric": "accuracy", "base": {"accuracy": 0.25}, "adapter": {"accuracy": 0.75}}
    listed = {
        "old": {key: value for key, value in SCORES.items() if key != "metric"},
        "labels": SCORES | accuracy | {"gain": {"accuracy": 0.5, "low": 0.25, "high": 0.625}},
        "loss": {"rows": 0, "gain": None, "base": {"loss": 2.5}, "adapter": {"loss": 1.25}},
        "new": None,
    }
    for name, scores in listed.items():
        run = recorded(tmp_path / "made", SHIPPED | {"method.name": "ia3", "data.source": "x.csv"}, scores=scores)
        run.path.rename(tmp_path / name)
    assert main(["runs", "--json"]) == 0
    rows = {row.pop("id"): row for row in printed(capsys)["runs"]}
    common = {"status": "stopped", "model": "tiny-office", "data": "x.csv", "method": "ia3", "problems": []}
    nothing = {"metric": None, "scores": None}
    assert rows == {
        "old": common | {"metric": "rougeL", "scores": {"base": 0.1234, "adapter": 0.4567}},
        "labels": common | {"metric": "accuracy", "scores": {"base": 0.25, "adapter": 0.75}},
        "loss": common | nothing,
        "new": common | nothing,
    }


def test_the_methods_are_listed_with_their_facts(capsys):
    assert main(["methods", "--json"]) == 0
    assert printed(capsys)["methods"] == json.loads(json.dumps([facts(row) for row in METHODS.values()]))
    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    assert in_order(told, "what it trains", "reparameterization", "lora", "LoRA", "full", "more", "vera")


def test_a_comparison_has_what_is_asked_for(tmp_path, capsys, monkeypatch):
    asked = []

    def create(request, folder):
        asked.append((request, folder))
        raise TunerError("Enough.")

    monkeypatch.setattr(experiment, "create", create)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 5\n")
    command = ["compare", str(recipe), "--set", "data.max_rows=9"]
    for words in (
        ["--methods", "lora, ia3", "--seconds", "4.5"],
        ["--search", "6", "--total-seconds", "60", "--json"],
        ["--seeds", "4", "--set", "seed=6"],
    ):
        assert main([*command, *words]) == 2
    assert capsys.readouterr().err == "tuner: Enough.\n" * 3
    methods, search, seeds = (request for request, folder in asked if folder == tmp_path)
    assert {request.recipe.data.max_rows for request, _ in asked} == {9}
    assert ([c.label for c in methods.candidates], methods.seconds) == (["lora", "ia3"], 4.5)
    assert (search.kind, search.trials, search.seconds, search.total_seconds) == ("search", 6, 10, 60)
    assert (seeds.kind, seeds.seeds, seeds.seconds) == ("seeds", [6, 7, 8, 9], None)


@pytest.mark.parametrize(
    ("variable", "stored", "owner"),
    [("alice", "bob", "alice"), ("", "bob", "bob"), (None, "bob", "bob"), (None, None, None)],
)
def test_a_push_uses_the_token_that_is_set_or_else_the_stored_one(
    variable, stored, owner, tmp_path, hub, monkeypatch, capsys
):
    tokens = {name: hub.user(name) for name in ("alice", "bob")}
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: tokens.get(stored))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if variable is not None:
        monkeypatch.setenv("HF_TOKEN", tokens.get(variable, ""))
    run = some_run(tmp_path, settings={"model.name": "a/b"})
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    assert main(["push", str(run.path), "office"]) == (0 if owner else 2)
    assert capsys.readouterr().out == (f"{hub.url}/{owner}/office\n" if owner else "")
    assert {name for _, name in hub.repos} == ({f"{owner}/office"} if owner else set())


def test_a_recipes_own_folder_is_where_its_rows_are_looked_for(tmp_path, monkeypatch, capsys):
    folder, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
    (folder / "rows.csv").write_text(CSV)
    (folder / "mine.yaml").write_text("data: {source: rows.csv, heldout: 2}\nbudget: {steps: 3}\n")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr("tuner.training.window.train", lambda run: (event for event in ()))
    assert main(["check", "../recipes/mine.yaml", "--json"]) == 0
    plan = printed(capsys)
    assert (plan["rows"], plan["heldout_rows"]) == (6, 2)
    assert main(["train", "../recipes/mine.yaml", "--json"]) == 0
    (run,) = runs.list_runs()
    assert run.plan["rows"] == 6


def test_settings_are_yaml_behind_the_first_equals_sign_and_the_last_one_counts(monkeypatch, capsys):
    seen, checked = [], SimpleNamespace(plan=PLAN)
    monkeypatch.setattr("tuner.planning.plan.check", lambda recipe, base: seen.append(recipe) or checked)
    pairs = ["seed=5", "data.system=a=b", "method.target_modules=[q_proj, v_proj]", "budget.epochs=1.5", "seed=7"]
    command = ["check", "corporate", "--json", *(word for pair in pairs for word in ("--set", pair))]
    assert main(command) == 0
    (recipe,) = seen
    assert (recipe.seed, recipe.data.system, recipe.method.target_modules) == (7, "a=b", ["q_proj", "v_proj"])
    assert (recipe.budget.epochs, recipe.budget.steps) == (1.5, None)
    assert printed(capsys) == PLAN
    assert main(["check", "corporate"]) == 0
    assert capsys.readouterr().out == f"{terminal.plan_text(PLAN)}\n"
    for pair, sentence in {
        "seed": "--set seed: '=' is missing. Give a setting and its value, such as budget.steps=100.",
        "seed=[": "--set seed=[: the value is not valid YAML. Check its brackets and quotes.",
    }.items():
        assert main(["check", "corporate", "--set", pair]) == 2
        assert capsys.readouterr().err == f"tuner: {sentence}\n"
    assert len(seen) == 2


def test_the_status_tells_a_request_that_can_not_work_from_an_interruption(monkeypatch, capsys):
    def fail(error: BaseException):
        def listed() -> list:
            raise error

        return listed

    problems = ["The first.", "The second."]
    for mode, out in (([], ""), (["--json"], json.dumps({"event": "error", "problems": problems}) + "\n")):
        monkeypatch.setattr(runs, "list_runs", fail(TunerError(*problems)))
        assert main(["runs", *mode]) == 2
        assert capsys.readouterr() == (out, "tuner: The first.\ntuner: The second.\n")
        monkeypatch.setattr(runs, "list_runs", fail(KeyboardInterrupt()))
        assert main(["runs", *mode]) == 130
        assert capsys.readouterr() == ("", "")
    assert str(TunerError(*problems)) == "The first.\nThe second."
    for command in ([], ["compare"], ["magic"], ["push", "x"], ["chat"]):
        with pytest.raises(SystemExit) as refusal:
            main(command)
        assert refusal.value.code == 2
        assert "usage: tuner" in capsys.readouterr().err


SAMPLING = "[--temperature TEMPERATURE] [--top-p TOP_P] [--max-new-tokens MAX_NEW_TOKENS] [--seed SEED]"
USAGES = {
    "check": "[--set KEY=VALUE] recipe",
    "train": "[--out RUN] [--set KEY=VALUE] recipe",
    "evaluate": "run",
    "chat": f"[--prompt PROMPT] [--system SYSTEM] {SAMPLING} run [RUN ...]",
    "merge": "[--weights WEIGHTS] [--out FOLDER] run [RUN ...]",
    "push": "[--what WHAT] [--data-name DATA_NAME] [--branch BRANCH | --pull-request] [--public] [--failed-merge] "
    "run repo",
    "download": "[--what WHAT] [--out FILE] run",
    "import": "[--out RUN] file",
    "reproduce": "[--revision REVISION] [--data FILE] [--out RUN] [--anyway] export",
    "verify": "[--revision REVISION] [--merged MODEL] [--server URL] [--model MODEL] [--api-key-env NAME] export",
    "runs": "",
    "methods": "",
    "compare": "[--methods METHODS] [--search TRIALS] [--seeds NUMBER] [--seconds SECONDS] "
    "[--total-seconds SECONDS] [--out FOLDER] [--set KEY=VALUE] THING [THING ...]",
}


def test_every_command_and_each_of_its_options_is_explained(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")

    def helped(*command: str) -> tuple[str, dict[str, str]]:
        """The usage, and the meaning of each command or option."""
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        assert end.value.code == 0
        out = capsys.readouterr().out
        usage, *lines = re.sub(r"\n {9,}", "  ", out).splitlines()  # the meaning of a long name is below it
        rows = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if line.startswith("  "))
        return usage, {name: meaning for name, (meaning,) in ((name, rest or [""]) for name, *rest in rows)}

    usage, listed = helped()
    assert usage == "usage: tuner [-h] COMMAND ..."
    assert [name for name in listed if name not in ("COMMAND", "-h, --help")] == list(USAGES)
    for name, options in USAGES.items():
        usage, meanings = helped(name)
        assert usage == f"usage: tuner {name} [-h] [--json] {options}".rstrip()
        assert listed[name]
        assert all(meanings.values()), (name, meanings)
