"""Tuner on a ZeroGPU Space, as far as that goes without a GPU: `make space`, in the environment that a Space gets.

`spaces` is the real one, and patches torch in the app's main process as it does on a Space. The platform is the stage,
the Hub is the double, and a worker's first moves on its card are left out, so that it computes on the CPU.
"""

import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import ROOT, plain
from gradio_client import Client
from gradio_client.client import Job
from hub_double import Hub
from served import Served, serve
from space_visitor import Visitor
from stage import Stage
from test_recipes import fill

from tuner.methods.registry import METHODS
from tuner.recipe import EXAMPLES, Method, Recipe

RECIPES = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))
SPACE = {"SPACE_ID": "tuner/tuner", "SPACE_HOST": "tuner-tuner.hf.space", "SYSTEM": "spaces"}
SPACE |= {"OAUTH_CLIENT_ID": "tuner", "OAUTH_CLIENT_SECRET": "secret", "OAUTH_SCOPES": "openid profile"}
# Options of the interpreter that change nothing: a process that is not forked from the tests' server of libraries.
OF_ITS_OWN = ("-u",)
ENDPOINTS = {"check", "preview", "train", "resume", "status", "stop", "runs", "delete", "chat", "merge", "push"}
# Traces through our own code, what our log says, and what `spaces` says. Gradio's event loops leave traces, too.
BROKEN = re.compile(r'/tuner/\S+", line |unexpected error| broke$|platform failed|Low-level CUDA|\(ZeroGPU\)')
SHORT = {
    "training.batch_size": 8,
    "budget": {"steps": 6},
    "evaluation.rows": 4,
    "evaluation.max_new_tokens": 8,
}
# One for each base model and task that Tuner brings.
MESSAGES = {
    "corporate": "need that asap",
    "support": "Customer: Hi, my heater stays cold.",
    "reviews": "I like this old heater.",
    "entities": "Agnes Yilmaz works in Berlin.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For runs, logs and what is downloaded."""
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    """A Hub with the models and datasets of the shipped recipes in small."""
    hub = Hub()
    fill(hub, folder)
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """The platform."""
    with Stage() as stage:
        yield stage


@pytest.fixture(scope="module")
def environment(hub: Hub, stage: Stage, folder: Path) -> dict[str, str]:
    """The variables of a Space."""
    return SPACE | {"OPENID_PROVIDER_URL": hub.url} | asks(hub, folder) | stage.environment


@pytest.fixture(scope="module")
def space(environment: dict[str, str], folder: Path) -> Iterator[Served]:
    """The app on a Space, whose workers do without a card."""
    with serve(folder / "runs", (str(ROOT / "tests/on_space.py"),), **environment) as url:
        yield url


@pytest.fixture(scope="module")
def elsewhere(hub: Hub, folder: Path) -> Iterator[Client]:
    """A visitor of the app off ZeroGPU, with the same libraries."""
    with serve(folder / "elsewhere", OF_ITS_OWN, **asks(hub, folder)) as url:
        yield Client(url, verbose=False)


@pytest.fixture
def say(capsys: pytest.CaptureFixture) -> Callable[[str], None]:
    """Prints a line of what was seen, whatever is captured."""
    began = time.monotonic()

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line} ({time.monotonic() - began:.0f} s)", end="", flush=True)

    return say


def asks(hub: Hub, folder: Path) -> dict[str, str]:
    """The variables of a process that asks this Hub."""
    names = ("HF_", "TRANSFORMERS_", "NO_PROXY")
    return {key: value for key, value in hub.env(folder / "home").items() if key.startswith(names)}


def broken(url: Served) -> list[str]:
    """The lines of the app's log that tell of a fault."""
    return [line for line in url.log.read_text().splitlines() if BROKEN.search(line)]


def test_the_environment_is_a_spaces(say):
    front = (ROOT / "README.md").read_text()
    assert torch.version.cuda, "torch is built without CUDA, which `spaces` can't patch"
    assert tuple(map(int, version("torch").split(".")[:2])) <= (2, 11)
    assert f"sdk_version: {version('gradio')}" in front
    say(f"Python {platform.python_version()}, torch {torch.__version__}, spaces {version('spaces')}")


def test_the_app_starts_as_a_space_starts_it(environment, folder, say):
    with serve(folder / "started", OF_ITS_OWN, **environment) as url:
        page = Visitor(url)
        assert {handler["api_name"] for handler in page.handlers} >= ENDPOINTS
        page.fire(None, "load")
        assert "What will happen" in page.values[page.find(elem_id="card")]
        say("app.py answers, and shows the plan of the first example")
        assert not broken(url)


@pytest.mark.parametrize("name", RECIPES)
def test_every_method_gets_a_plan_or_the_same_refusal_as_elsewhere(name, space, elsewhere, say):
    visitor, refused, plans = Client(space, verbose=False), {}, []
    for method in METHODS:
        wanted = Recipe.load(name).model_copy(update={"method": Method(name=method)}).to_yaml()
        answer = visitor.predict(recipe=wanted, api_name="/check")
        if "plan" in answer:
            plans.append(answer["plan"])
        else:
            # PEFT's exceptions are refusals, too. Only what torch can't do unpatched either may be refused.
            expected = elsewhere.predict(recipe=wanted, api_name="/check").get("problems")
            assert answer["problems"] == expected, (name, method)
            refused[method] = answer["problems"]
    assert plans
    dtypes = {plan["settings"]["dtype"] for plan in plans}
    say(f"{name}: check: {len(plans)} plans in {', '.join(dtypes)}, {len(refused)} refusals as off ZeroGPU")
    say(f"{name}: {shown_on_the_page(space, name)}")


def shown_on_the_page(space: str, name: str) -> str:
    """What the page shows of the recipe before a run: its rows, its plan, and what each method would cost."""
    recipe, page = Recipe.load(name), Visitor(space)
    assert len(page.client.predict(recipe.to_yaml(), None, "", api_name="/preview")["rows"]) == 3
    card, preview, methods, fetch = (page.find(elem_id=name) for name in ("card", "preview", "methods", "fetch"))
    page.values[page.find(elem_id="yaml")] = recipe.to_yaml()
    page.fire(page.find(elem_id="apply"), "click")
    if is_remote := page.visible[fetch]:
        page.fire(fetch, "click")
    assert "What will happen" in page.values[card], plain(page.values[card])
    if is_remote:
        return "rows and plan"  # the page shows the rest once both model and rows are on this machine
    for label in ("What the model will see", "Compare all methods"):
        page.fire(page.find(label=label), "expand")
    assert "t-problems" not in page.values[preview] + page.values[methods], plain(page.values[preview])
    assert page.values[preview].count("t-tokens") == 3, plain(page.values[preview])
    buttons = re.findall(r"<button.*?</button>", page.values[methods], re.DOTALL)
    assert len(buttons) == len(METHODS)
    for button in buttons:
        assert " disabled" in button or "training</i>" in button, button
    return f"rows, plan and {page.values[methods].count('training</i>')} methods compared"


def streamed(job: Job) -> list:
    """All that a job says. Raises what it is refused with, which would otherwise look like an early end."""
    parts = list(job)
    job.result()
    return parts


@pytest.mark.parametrize(("name", "message"), MESSAGES.items())
def test_a_run_goes_the_whole_way_through_a_forked_worker(name, message, space, stage, hub, say):
    visitor, page = Client(space, verbose=False), Visitor(space)
    recipe = Recipe.load(name).with_settings(SHORT).to_yaml()
    run, *events = streamed(visitor.submit(recipe=recipe, api_name="/train"))
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 6
    assert all(map(math.isfinite, losses))
    status = visitor.predict(run=run["run"], api_name="/status")
    assert (status["phase"], status["evaluation"]["rows"]) == ("finished", 4), status
    ticks = [handler for handler in page.handlers if [event for _, event in handler["targets"]] == ["tick"]]
    (tick,) = (handler for handler in ticks if page.find(elem_id="card") in handler["outputs"])
    page.values[tick["inputs"][0]] = run["run"]
    page.fire(None, "tick")
    assert 'data-phase="finished"' in page.values[page.find(elem_id="card")]
    own = {"run": run["run"], "secret": run["secret"]}
    ask = {**own, "message": message, "max_new_tokens": 8}
    *_, answers = streamed(visitor.submit(**ask, api_name="/chat"))
    assert list(answers) == ["base", "adapter", "merged"]
    assert visitor.predict(**own, api_name="/merge")["top1_agreement"] >= 0.99
    push = {"repository": f"reader/{name}", "token": hub.user("reader"), "api_name": "/push"}
    assert visitor.predict(**own, **push) == f"{hub.url}/reader/{name}"
    pushed = hub.repo(f"reader/{name}").files
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= pushed.keys()
    say(f"{name}: trained in {run['plan']['settings']['dtype']}, scored, shown, merged, chatted with and pushed")
    assert {window.how for window in stage.windows} == {"released"}


def test_runs_of_two_methods_answer_side_by_side(space, say):
    visitor = Client(space, verbose=False)
    recipe = Recipe.load("corporate").with_settings(SHORT).model_copy(update={"method": Method(name="bitfit")})
    run, *_ = streamed(visitor.submit(recipe=recipe.to_yaml(), api_name="/train"))
    # Whether biases can be merged, and whether two runs share a base, is decided before a window opens.
    for runs, variants in (
        (run["run"], ["base", "adapter"]),
        (f"{run['run']},example", ["base", run["run"], "example"]),
    ):
        ask = {"run": runs, "message": MESSAGES["corporate"], "max_new_tokens": 8}
        *_, answers = streamed(visitor.submit(**ask, api_name="/chat"))
        assert list(answers) == variants
    say("BitFit and the shipped run answer side by side")


def test_nothing_reached_the_card_or_broke_in_the_log(space):
    assert not broken(space)
