"""`tuner`: from recipe to merged model, for people and for programs."""

import json
import shutil
import signal
import subprocess
import sys

import fresh
import pytest
from conftest import LEARNS, ROOT, SMALL, in_order

from tuner import runs
from tuner.cli import main
from tuner.run_files import REPAIRS

SETTINGS = [word for key, value in (SMALL | LEARNS).items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def mine(finished, tmp_path, monkeypatch):
    """A copy of the finished run among this visitor's runs."""
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    return runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))


def printed(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, contextlib\nfrom tuner.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['train', '--help'])\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'gradio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "usage: tuner train" in out
    assert "--set" in out
    assert out.splitlines()[-1] == "[]"


def test_a_training_does_not_look_for_garbage_in_what_was_imported(mine, monkeypatch):
    frozen = []
    monkeypatch.setattr("gc.freeze", lambda: frozen.append("torch" in sys.modules))
    assert main(["train", str(mine.path)]) == 0
    assert frozen == [True]


def test_check_shows_what_a_recipe_would_do_and_trains_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "corporate", "--json"]) == 0
    plan = printed(capsys)
    assert plan["steps_per_epoch"] == -(-plan["rows"] // 16)
    assert {c["setting"] for c in plan["chosen"]} >= {"dtype", "batch_size", "target_modules", "learning_rate"}
    assert all(c["reason"] for c in plan["chosen"])
    assert not list(tmp_path.iterdir())
    assert main(["check", "corporate"]) == 0
    assert "steps per epoch" in capsys.readouterr().out


def test_a_file_of_rows_is_checked_and_trained_like_a_recipe(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"hey {i}", "completion": f"Good day, {i}."} for i in range(20)]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    tasks = "".join(json.dumps({"task": "formal", **row}) + "\n" for row in rows)  # `task` is also a setting
    (tmp_path / "lines.json").write_text(tasks)
    for name in ("sub/mine.jsonl", "list.json", "lines.json"):
        assert main(["check", name, "--json"]) == 0
        plan = printed(capsys)
        assert plan["rows"] + plan["heldout_rows"] == 20
    (tmp_path / "recipe.json").write_text(json.dumps({"data": {"source": "list.json", "heldout": 5}}))
    assert main(["check", "recipe.json", "--json"]) == 0
    assert printed(capsys)["heldout_rows"] == 5
    assert main(["train", "sub/mine.jsonl", "--out", "r", "--json", *SETTINGS, "--set", "budget.steps=2"]) == 0
    assert main(["check", "recipe.cfg"]) == 2


def test_a_plan_of_few_steps_carries_a_warning(capsys):
    rows = ["--set", "data.max_rows=80", "--set", "budget={epochs: 1}"]
    assert main(["check", "corporate", "--json", *rows]) == 0
    (warning,) = printed(capsys)["warnings"]
    assert "80 rows in batches of 16 make 5 steps" in warning


def test_the_whole_way_from_recipe_to_merged_model(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "corporate", "--out", "r", "--json", *SETTINGS]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert main(["evaluate", "r", "--json"]) == 0
    scores = printed(capsys)
    assert {"rougeL"} <= set(scores["base"]) & set(scores["adapter"])
    assert main(["chat", "r", "--prompt", "yo", "--json", "--max-new-tokens", "4"]) == 0
    answer = printed(capsys)
    assert {"base", "adapter", "merged"} <= set(answer)
    assert answer["merge_check"]["top1_agreement"] >= 0.99
    assert main(["merge", "r", "--json"]) == 0
    assert printed(capsys)["top1_agreement"] == answer["merge_check"]["top1_agreement"]
    assert {path.name for path in tmp_path.iterdir()} <= {"r", "runs"}


def test_the_same_command_again_resumes_the_run_and_another_recipe_is_refused(capsys, mine):
    assert main(["train", "corporate", "--out", str(mine.path), "--json", *SETTINGS]) == 0
    assert capsys.readouterr().out == ""
    assert main(["train", "corporate", "--out", str(mine.path), "--set", "seed=7"]) == 2
    assert "holds a run of a different recipe" in capsys.readouterr().err


def test_runs_lists_them_with_their_scores(capsys, mine):
    assert main(["runs", "--json"]) == 0
    (row,) = printed(capsys)["runs"]
    assert (row["id"], row["status"]) == ("mine", "finished")
    assert (row["method"], row["metric"]) == ("lora", "rougeL")
    assert set(row["scores"]) == {"base", "adapter"}
    assert main(["evaluate", "mine"]) == 0
    assert "held-out rows, the base model scores" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "is_private"), [((), True), (("--public",), False)])
def test_a_push_is_private_unless_asked_otherwise(options, is_private, mine, hub, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.user("alice"))
    assert main(["push", "mine", "office", "--json", *options]) == 0
    *events, pushed = map(json.loads, capsys.readouterr().out.splitlines())
    assert pushed["url"] == f"{hub.url}/alice/office"
    assert {event["event"] for event in events} == {"push"}
    assert hub.repo("alice/office").private == is_private


def test_a_conversation_reads_from_the_terminal_until_it_ends(mine, tmp_path):
    command = ["-m", "tuner", "chat", str(mine.path), "--max-new-tokens", "4"]
    assert fresh.run(command, tmp_path, "yo\nthx\n").stdout.count("adapter") == 2


def test_scoring_resumes_in_the_terminal_where_it_was_left(mine, capsys):
    scores = mine.read_json("evaluation.json")
    (mine.path / "evaluation.json").unlink()
    answers = {str(i): {v: e[v] for v in ("base", "adapter")} for i, e in enumerate(scores["examples"][:3])}
    mine.write_json("answers.json", answers)
    assert main(["evaluate", "mine"]) == 0
    assert "3/12" in capsys.readouterr().err.replace(" ", "")
    resumed = mine.read_json("evaluation.json")
    # Which of the answers above were cut, and what they cost, their texts don't tell.
    unknown = {"cut": None, "costs": None}
    assert resumed | unknown == scores | unknown


def test_plain_text_is_scored_by_its_perplexity_in_the_terminal(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Report {i} is with the manager."}) + "\n" for i in range(40)))
    settings = ["--set", f"data.source={rows}", "--set", "budget.steps=2", "--set", "training.batch_size=4"]
    assert main(["train", "corporate", "--out", str(tmp_path / "run"), *settings]) == 0
    (tmp_path / "run/evaluation.json").unlink()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "in perplexity and the adapter" in capsys.readouterr().out


def test_an_interrupted_run_says_how_to_resume_it(tmp_path):
    folder = tmp_path / "run"
    command = ["-m", "tuner", "train", "corporate", "--out", str(folder), "--json", *SETTINGS]
    with fresh.start([*command, "--set", "budget.steps=100000"], ROOT, stderr=subprocess.PIPE) as process:
        next(line for line in process.stdout if '"step"' in line and json.loads(line)["event"] == "step")
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"To resume: tuner train {folder}" in error
    assert "Traceback" not in error
    assert runs.Run(folder).status == "stopped"


BAD = {
    "no such recipe": (["check", "nowhere"], "There is no recipe 'nowhere'"),
    "no such run": (["evaluate", "nowhere"], "There is no run 'nowhere'"),
    "rank 0": (["check", "corporate", "--set", "method.rank=0"], "method.rank: 0"),
    "a fast learning rate": (["check", "corporate", "--set", "training.learning_rate=fast"], '"fast" is not a number'),
    "an unknown layer": (
        ["check", "corporate", "--set", "method.target_modules=[q_prj]"],
        'tiny-office has no layer "q_prj". It has down_proj',
    ),
    "an unknown method": (["check", "corporate", "--set", "method.name=magic"], "Choose one of lora"),
    "a missing file": (["check", "corporate", "--set", "data.source=nope.csv"], "There is no file 'nope.csv'"),
    "a setting without a value": (["check", "corporate", "--set", "seed"], "such as budget.steps=100"),
    "a value that is not YAML": (["check", "corporate", "--set", "data.columns=["], "not valid YAML"),
    "a Hub name without network": (["check", "corporate", "--set", "model.name=a/b"], "'a/b'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_status_2_and_a_sentence(case, capsys):
    command, says = BAD[case]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_problems_of_model_method_and_data_come_together(capsys, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,completion\n" + "hi,hello\n" * 16 + "bye,\n" + "hi,hello\n" * 3)
    wrong = ["--set", f"data.source={rows}", "--set", "method.target_modules=[q_prj]"]
    assert main(["check", "corporate", "--json", *wrong]) == 2
    problems = printed(capsys)["problems"]
    assert any("q_prj" in p for p in problems)
    assert any("ow 17" in p and '"completion"' in p for p in problems)


def test_a_bad_request_leaves_nothing_behind(tmp_path, capsys):
    assert main(["train", "corporate", "--out", str(tmp_path / "r"), "--set", "data.source=nope.csv"]) == 2
    assert not (tmp_path / "r").exists()


def test_an_unexpected_error_is_a_sentence_in_the_terminal_and_its_traceback_is_in_the_run(mine, tmp_path):
    (mine.path / "evaluation.json").unlink()
    shutil.rmtree(mine.data / "heldout")
    (mine.data / "heldout").write_text("not a folder")
    ended = fresh.run(["-m", "tuner", "train", str(mine.path)], tmp_path)
    assert ended.returncode == 2
    assert in_order(ended.stderr, "tuner: Run mine failed", "error.log")
    assert "Traceback" not in ended.stderr + ended.stdout
    assert "Traceback" in (mine.path / "error.log").read_text()


@pytest.mark.parametrize("inside", ["", "run", "deep/run"])
def test_a_file_in_the_place_of_the_runs_folder_is_a_sentence(inside, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / inside
    assert main(["train", "corporate", "--out", str(folder), *SETTINGS]) == 2
    assert in_order(capsys.readouterr().err, f"{folder} can't be", "Choose another folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("option", [["--set", "budget.steps=5"], ["--out", "other"]])
def test_a_run_is_resumed_with_its_own_settings(option, mine, capsys):
    assert main(["train", str(mine.path), *option]) == 2
    assert in_order(capsys.readouterr().err, f"{mine.path} is a run", option[0], "can't be used", "recipe.yaml")


def test_a_run_named_like_a_shipped_recipe_does_not_hide_it(mine, monkeypatch, capsys):
    monkeypatch.chdir(mine.path.parent)
    mine.path.rename("corporate")
    assert main(["train", "corporate", "--out", "corporate", "--json", *SETTINGS]) == 0


DAMAGES = {  # file, what it holds (None: it is missing), commands that need it
    "no plan": ("plan.json", None, ["train", "chat", "train --json"]),
    "half a plan": ("plan.json", '{"format": 2, "st', ["train", "chat"]),
    "an empty plan": ("plan.json", "", ["train"]),
    "a plan without settings": ("plan.json", '{"format": 2}', ["train"]),
    "a plan that is a list": ("plan.json", "[]", ["chat"]),
    "half a score": ("evaluation.json", '{"rows": 4, "ba', ["train", "evaluate"]),
    "half an adapter": ("adapter/adapter_config.json", '{"peft_t', ["chat"]),
    "an empty recipe": ("recipe.yaml", "", ["train", "chat"]),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_run_is_named_with_its_file_and_what_to_do(case, mine, capsys):
    name, text, commands = DAMAGES[case]
    damage(mine, name, text)
    for command in commands:
        assert main([*command.split(), str(mine.path), *(["--prompt", "yo"] if command == "chat" else [])]) == 2
        (problem,) = capsys.readouterr().err.splitlines()[-1:]
        assert in_order(problem, "tuner: Run mine", name)
        assert in_order(problem, name, "tuner" if name in REPAIRS else "Train")


@pytest.mark.parametrize("case", [case for case in DAMAGES if "plan" in case])
def test_the_advice_for_a_damaged_plan_prepares_the_run_again(case, mine, capsys):
    name, text, _ = DAMAGES[case]
    plan = mine.read_json(name)
    damage(mine, name, text)
    assert main(["train", "corporate", "--out", str(mine.path), "--json", *SETTINGS]) == 0
    assert runs.Run(mine.path).plan.keys() == plan.keys()


@pytest.mark.parametrize("case", [case for case in DAMAGES if case != "half an adapter"])
def test_a_damaged_run_does_not_hide_the_others(case, mine, finished, capsys):
    damaged = runs.Run(shutil.copytree(finished.path, mine.path.parent / "broken"))
    name, text, _ = DAMAGES[case]
    damage(damaged, name, text)
    assert main(["runs", "--json"]) == 0
    listed = {row["id"]: row for row in printed(capsys)["runs"]}
    assert listed["mine"]["status"] == "finished"
    assert listed["mine"]["scores"]
    assert listed["broken"]["status"] == "damaged"
    assert listed["mine"].keys() == listed["broken"].keys()
    assert main(["runs"]) == 0
    assert in_order(capsys.readouterr().out, "broken", "damaged", "Run broken", name)


def damage(run: runs.Run, name: str, text: str | None) -> None:
    """Leave the run's file as a kill or a full disk would."""
    if text is None:
        (run.path / name).unlink()
    else:
        (run.path / name).write_text(text)
