"""A run that comes to a page: whose it is, on what base it may go on, and what it may cost here."""

import json
from pathlib import Path

import fresh
import pytest
from conftest import ROOT, small_recipe
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from served import serve
from test_import_run import changed, entry, put
from tiny import tiny_model

from tuner import runs
from tuner.errors import TunerError
from tuner.hub import download, import_run
from tuner.methods import config_check
from tuner.methods.registry import METHODS, resolve
from tuner.models.shape import Base, shape_of
from tuner.planning import forecast, imported, plan
from tuner.planning.memory import attach_on_meta, method_key
from tuner.recipe import EXAMPLES, Model
from tuner.training.window import train

MIB = 2**20


def zipped(run: runs.Run, folder: Path) -> Path:
    archive, name = download.package(run, "run")
    (folder / name).write_bytes(b"".join(archive.read()))
    return folder / name


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The zip of a run on the shipped base that was stopped at step 2 of 4."""
    folder = tmp_path_factory.mktemp("stopped")
    settings = {"model__name": "tiny-office", "budget__steps": 4}
    settings |= {"evaluation__rows": 2, "evaluation__max_new_tokens": 4}
    training = train(run := plan.prepare(small_recipe(**settings), path=folder / "run"))
    next(event for event in training if event.get("event") == "step" and event["step"] == 2)
    training.close()
    return zipped(runs.Run(run.path), folder)


def test_a_run_comes_to_the_page_and_goes_on_as_its_visitors_own(stopped, tmp_path):
    with serve(tmp_path / "runs") as address:
        client = Client(address, verbose=False)
        brought = client.predict(handle_file(str(stopped)), api_name="/import_run")
        status = client.predict(brought["run"], api_name="/status")
        assert status["status"] == "stopped"
        with pytest.raises(AppError, match="Only the run's owner"):
            client.predict(brought["run"], "", api_name="/resume")
        events = list(client.submit(brought["run"], brought["secret"], api_name="/resume"))
        assert next(event["step"] for event in events if event.get("event") == "start") in (2, 3)
        assert client.predict(brought["run"], api_name="/status")["status"] == "finished"
        spoiled = changed(stopped, tmp_path, **{"recipe.yaml": entry("name: tiny-office", "name: /etc")})
        with pytest.raises(AppError, match="can't be a model's name"):
            client.predict(handle_file(str(spoiled)), api_name="/import_run")
        held = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
        assert held == {"example", brought["run"]}


BRING = """
import json, sys
from pathlib import Path
from tuner import runs
from tuner.errors import TunerError
from tuner.hub import download
from tuner.recipe import Recipe
from tuner.ui import checking, take_home
from tuner.ui.visitor import Visitor

alice, bob = (Visitor(token=token) for token in sys.argv[1:3])
recipe = Recipe().with_settings({"model.name": "alice/secret", "budget.steps": 2})
archive, name = download.package(checking.write_run(recipe, visitor=alice), "run")
Path(name).write_bytes(b"".join(archive.read()))
before = {path.name for path in runs.RUNS.iterdir()}
for visitor in (bob, Visitor(token=None), alice):
    try:
        print(json.dumps(take_home.import_run(name, visitor)[0].recipe.model.name))
    except TunerError as error:
        left = {path.name for path in runs.RUNS.iterdir()} - before
        print(json.dumps([list(error.problems), sorted(left)]))
"""


def test_a_zip_opens_no_model_that_its_bringer_may_not_read(hub, tmp_path):
    """The model is in this machine's cache by then, and the zip names its very commit."""
    hub.add_model("alice/secret", EXAMPLES / "tiny-office", private=True)
    tokens = [hub.user(name, "oauth") for name in ("alice", "bob")]
    env = hub.env(tmp_path) | {"TUNER_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}
    done = fresh.run(["-c", BRING, *tokens], tmp_path, None, env)
    assert done.returncode == 0, done.stderr
    bobs, nobodys, alices = map(json.loads, done.stdout.splitlines())
    for problems, left in (bobs, nobodys):
        assert "alice/secret" in problems[0]
        assert "is not on the Hub" in problems[0]
        assert left == []
    assert alices == "alice/secret"


@pytest.fixture
def brought(stopped, tmp_path):
    def bring(**parts) -> runs.Run:
        return import_run.import_run(changed(stopped, tmp_path, **parts), tmp_path / "run")

    return bring


def refusal(run: runs.Run) -> str:
    with pytest.raises(TunerError) as refused:
        imported.check_here(run, False)
    return str(refused.value)


def test_a_run_gets_this_machines_forecast(brought, monkeypatch):
    run = brought(**{"plan.json": put(forecast=None)})
    imported.check_here(run, False)
    assert runs.Run(run.path).plan["forecast"]["training"] > 0


def test_an_adapter_that_is_larger_than_its_recipe_says_is_refused(brought):
    run = brought(**{"adapter/adapter_config.json": put(r=1000, lora_alpha=3)})
    assert "not as its recipe says: lora_alpha, r differ" in refusal(run)


def test_rows_with_tokens_that_the_base_lacks_are_refused(brought):
    from datasets import Dataset

    run = brought()
    Dataset.from_list([{"input_ids": [1, 10**6], "labels": [1, 2]}]).save_to_disk(str(run.data / "train"))
    assert "1,000,000" in refusal(run) or "1000000" in refusal(run)


def test_the_bounds_of_a_page_count_for_a_run_that_comes_to_it(brought, monkeypatch):
    run = brought()
    monkeypatch.setattr(forecast, "MAX_SECONDS", 0.001)
    monkeypatch.setattr(forecast, "MAX_TOKENS", 10)
    said = refusal(run)
    assert "would not finish" in said
    assert "at most 10" in said


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    folder = tiny_model(tmp_path_factory.mktemp("base") / "llama", "llama")
    return Base(folder, Model(name="llama", quantization="none"), "generation", ())


@pytest.mark.parametrize("name", METHODS)
def test_what_each_method_writes_passes_and_a_larger_one_does_not(name, base):
    from tuner.methods import attach

    row = METHODS[name]
    recipe = small_recipe(model__name="llama", model__quantization="none", method__name=name)
    if row.needs_storage:
        configs = row.configs(resolve(recipe, shape_of(base), base.row))
    else:
        configs = attach.configs(attach_on_meta(base, method_key(recipe)))
    for config in configs:
        saved = written(config)
        assert config_check.problem(saved) is None
        assert config_check.different(saved, config) == []
        numbers = [key for key, value in saved.items() if type(value) is int and key not in config_check.TOLD]
        for number in numbers:
            assert config_check.problem(saved | {number: 10**9})
            assert config_check.different(saved | {number: 7777}, config) == [number]


def written(config) -> dict:
    """What an adapter's configuration file holds of it."""
    if hasattr(config, "to_dict"):
        return json.loads(json.dumps(config.to_dict(), default=list))
    return {"native": type(config).__name__, **vars(config)}
