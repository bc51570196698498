"""Plans for GPUs that nobody here has: what is granted, in which type, how many rows, and what is refused."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import mostly_long, small_recipe
from pretend_cards import A10G, GB, H100, H200_SLICE, RTX_PRO, T4, V100
from tiny import tiny_tokenizer

from tuner import gpu as gpu_door
from tuner.data.tokens import Tokenized
from tuner.errors import collect
from tuner.models.device import compute_dtype, gpu, gpu_memory
from tuner.models.shape import Base, shape_of
from tuner.planning import choices, forecast, memory, pace, plan
from tuner.planning.memory import BACKWARD_OPERATIONS, count_trainable, method_key
from tuner.recipe import Model
from tuner.runs import Run

# Of https://huggingface.co/Qwen: width, width of the MLP, layers, heads, whether the head is the embedding.
QWEN3 = {
    "Qwen3-0.6B": (1024, 3072, 28, 16, True),
    "Qwen3-1.7B": (2048, 6144, 28, 16, True),
    "Qwen3-8B": (4096, 12288, 36, 32, False),
}


def describe(folder: Path, name: str, layers: int) -> Path:
    """Write the configuration and a tokenizer of a model, but no weights; returns the folder."""
    from transformers import Qwen3Config

    width, mlp, _, heads, tied = QWEN3[name]
    Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=tied,
    ).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Folders of models that are only described."""
    return {name: describe(tmp_path_factory.mktemp(name, numbered=False), name, row[2]) for name, row in QWEN3.items()}


def described(folder: Path, **settings):
    """A recipe on a described model, and that model as a base."""
    recipe = small_recipe(model__name=folder.name, **settings)
    return recipe, Base(folder, recipe.model)


@pytest.mark.parametrize(("name", "billions"), [("Qwen3-0.6B", 0.596), ("Qwen3-1.7B", 1.72), ("Qwen3-8B", 8.19)])
def test_the_described_models_have_the_published_sizes(bases, name, billions):
    assert shape_of(described(bases[name])[1]).parameters / 1e9 == pytest.approx(billions, rel=0.002)


@pytest.mark.parametrize(
    ("card", "dtype"),
    [(T4, "float16"), (V100, "float16"), (A10G, "bfloat16"), (RTX_PRO, "bfloat16"), (H100, "bfloat16")],
)
def test_bfloat16_is_chosen_only_where_the_hardware_has_it(pretend, card, dtype):
    pretend(card)
    assert compute_dtype(Model())[0] == dtype
    assert compute_dtype(Model(dtype="float32")) == ("float32", "as given")


# -- what is granted


def test_on_zerogpu_plans_are_made_for_the_grant_and_not_for_the_card_in_the_table(pretend):
    pretend(RTX_PRO)
    assert gpu_memory() == 48 * GB
    assert gpu().multiprocessors == RTX_PRO.multiprocessors / 2
    pretend(H200_SLICE)  # which is a slice already
    assert (gpu_memory(), gpu().multiprocessors) == (H200_SLICE.memory, 60)
    pretend(RTX_PRO._replace(memory=40 * GB, multiprocessors=70))  # a smaller part than the documents say
    assert (gpu_memory(), gpu().multiprocessors) == (40 * GB, 70)
    pretend(RTX_PRO._replace(zero=False))  # one's own
    assert (gpu_memory(), gpu().multiprocessors) == (RTX_PRO.memory, 188)


def test_the_grants_are_those_of_the_cards_that_spaces_knows():
    from importlib.resources import files

    from tuner.models.device import GRANTS

    cards = {card["model"]: card for card in json.loads(files("spaces.zero").joinpath("configs.json").read_text())}
    divided = {name for name, card in cards.items() if card["xlarge_threshold"]}
    assert divided == set(GRANTS)
    for name, (size, multiprocessors) in GRANTS.items():
        assert cards[name]["xlarge_threshold"] < size <= cards[name]["memory"] / 2
        assert multiprocessors == cards[name]["sm_count"] / 2


def test_off_zerogpu_memory_is_what_others_leave_and_what_was_free_before_a_training_of_ours(pretend, monkeypatch):
    import torch

    def hold(others: int, ours: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *args: (H100.memory - others - ours, H100.memory))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *args: ours)

    pretend(H100)
    hold(others=30 * GB, ours=0)
    assert gpu_memory() == H100.memory - 30 * GB
    hold(others=10 * GB, ours=5 * GB)  # models that are kept for chat
    assert gpu_memory() == H100.memory - 10 * GB
    hold(others=60 * GB, ours=5 * GB)  # a training in a process of its own
    assert gpu_memory() == H100.memory - 10 * GB


def test_a_gpu_that_is_lost_to_this_process_is_planned_for_as_it_was_last_seen(pretend, monkeypatch):
    import torch

    def lost(*arguments):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    pretend(H100)
    with monkeypatch.context() as broken:
        broken.setattr(torch.cuda, "mem_get_info", lost)
        assert gpu_memory() == H100.memory
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *args: (30 * GB, H100.memory))
    assert gpu_memory() == 30 * GB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    assert gpu_memory() == 30 * GB


@pytest.mark.parametrize(
    ("card", "peak"),
    [(T4, 65.1e12), (A10G, 140e12), (H100, 1070e12), (RTX_PRO._replace(zero=False, clock=2_617_000), 503.8e12)],
)
def test_speed_is_a_share_of_the_data_sheets_peak(pretend, card, peak):
    pretend(card)
    assert pace.device_speed() == pytest.approx(0.15 * peak, rel=0.01)


def test_half_a_card_has_half_its_speed(pretend):
    pretend(RTX_PRO)
    half = pace.device_speed()
    pretend(RTX_PRO._replace(zero=False))
    assert pace.device_speed() == 2 * half


# -- plans


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Callable[..., memory.Trace]:
    """Traces the forward pass of a model with so many layers and rows, each once."""
    trace = memory._trace

    @cache
    def short(name: str, layers: int, rows: int, model, *others) -> memory.Trace:
        folder = describe(tmp_path_factory.mktemp("short"), name, layers)
        return trace(Base(folder, model), *others[:2], rows, *others[2:])

    return short


@pytest.fixture(params=["extrapolated", pytest.param("whole", marks=pytest.mark.long)])
def traced(request, short, monkeypatch) -> None:
    """Forward passes through whole models; or for a quick test through one and two layers, with one and two rows."""
    if request.param == "whole":
        return

    def extrapolate(base, method, dtype, rows, *others) -> memory.Trace:
        layers = QWEN3[base.model.name][2]
        # Each kind of 16 bits needs as many bytes.
        arguments = (base.model.model_copy(update={"dtype": "auto"}), method, "bfloat16", *others)
        one, two = ([short(base.model.name, n, r, *arguments).saved for r in (1, 2)] for n in (1, 2))
        shallow, deep = (first + (rows - 1) * (second - first) for first, second in (one, two))
        return memory.Trace(shallow + (layers - 1) * (deep - shallow), 10_000)

    monkeypatch.setattr(memory, "_trace", extrapolate)


def planned(folder: Path, length: int, **settings) -> SimpleNamespace:
    """The settings and the estimate of a run on so long rows, and why it is refused."""
    recipe, base = described(folder, training__batch_size="auto", method__rank="auto", **settings)
    row = {"input_ids": [7] * length, "labels": [-100] * (length // 2) + [7] * (length - length // 2)}
    rows = Tokenized([row] * 64, [length] * 64, length, 0)
    chosen = {name: value for name, (value, _) in choices.choose(recipe, shape_of(base), 64).items()}
    estimate = choices.fit(recipe, base, chosen, rows, 16, count_trainable(base, method_key(recipe)))
    problems = []
    with collect(problems):
        forecast.check_memory(estimate, recipe, chosen["batch_size"])
    return SimpleNamespace(
        **chosen, estimate=estimate, problems=problems, rows=0 if problems else chosen["batch_size"]
    )


CARDS = {"T4": T4, "A10G": A10G, "RTX PRO, large": RTX_PRO, "H100": H100}  # by memory


@pytest.mark.parametrize("name", mostly_long(["Qwen3-0.6B", "Qwen3-8B"], "Qwen3-8B"))
def test_each_card_gets_its_type_its_batch_and_its_refusals(traced, bases, pretend, name):
    for quantization in ("nf4", "none"):
        before = 0
        for title, card in CARDS.items():
            pretend(card)
            got = planned(bases[name], 1024, model__quantization=quantization)
            parts, usable = dict(got.estimate["memory"]), got.estimate["available"] * forecast.USABLE
            total = parts.pop("total")
            refused = got.problems[0] if got.problems else ""
            needed = f"{forecast.gigabytes(total)} of {forecast.gigabytes(got.estimate['available'])}"
            print(f"{title:15} {name:11} {quantization:5} {got.dtype:9} {got.rows:2} rows  {needed:20} {refused}")
            assert got.dtype == ("float16" if card is T4 else "bfloat16")
            assert got.estimate["available"] == (48 * GB if card is RTX_PRO else card.memory)
            assert total == sum(parts.values())
            assert (total <= usable) == (not refused)
            assert got.rows >= before
            before = got.rows
        assert before > 0  # on the largest card everything can be trained


def test_a_model_that_a_card_cannot_hold_is_refused_with_what_would_fit(traced, bases, pretend):
    pretend(T4)
    (problem,) = planned(bases["Qwen3-8B"], 512, model__quantization="none").problems
    # Of as few rows as possible, since their number was left open.
    assert re.match(r"Qwen3-8B needs about 2\d\.\d GB of memory for 1 row per step \(weights 15\.3 GB, ", problem)
    assert problem.endswith(
        "and the device has 14.9 GB. Choose 4-bit precision (model.quantization: nf4), shorter rows (data.max_length) "
        "or a smaller base model."
    )
    assert planned(bases["Qwen3-8B"], 512, model__quantization="nf4").rows == 1
    # The way out that remains for rows twice as long.
    (problem,) = planned(bases["Qwen3-8B"], 1024, model__quantization="nf4").problems
    assert problem.endswith("Choose shorter rows (data.max_length) or a smaller base model.")


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_full_fine_tuning_of_eight_billion_parameters_is_refused_everywhere(traced, bases, pretend, card):
    pretend(card)
    full = planned(bases["Qwen3-8B"], 1024, model__quantization="none", method__name="full")
    assert full.estimate["memory"]["adapter"] == 16 * shape_of(described(bases["Qwen3-8B"])[1]).parameters
    assert full.problems


# -- the host's time


def test_a_small_models_step_on_a_gpu_takes_as_long_as_the_host_needs_to_launch_it(pretend, monkeypatch):
    pretend(RTX_PRO)
    monkeypatch.setattr(forecast, "step_operations", lambda *args: 2000)
    estimate = plan.check(small_recipe(budget__steps=300)).plan["forecast"]
    a_step = pace.STEP_SECONDS + 2000 * pace.LAUNCH_SECONDS
    assert estimate["a_step"] == pytest.approx(a_step)
    assert estimate["training"] == pytest.approx(estimate["start_up"] + 300 * a_step, rel=1e-4)
    large = 1000 * pace.device_speed() * a_step
    assert pace.step_seconds(large, 2000, 1, None) == pytest.approx(1000 * a_step)


def test_three_hundred_steps_of_the_shipped_model_are_not_promised_in_a_second(pretend, tmp_path):
    pretend(RTX_PRO)
    run = plan.prepare(small_recipe(budget__steps=300), path=tmp_path / "run")
    estimate = run.plan["forecast"]
    assert 300 * pace.STEP_SECONDS < estimate["training"] < 60
    assert estimate["memory"]["context"] > 0
    assert gpu_door.seconds_needed(run) > 1.2 * estimate["training"] + estimate["scoring"]


def test_an_earlier_runs_pace_does_not_promise_small_batches_faster_than_the_host_launches_them(pretend):
    pretend(RTX_PRO)
    earlier = {"seconds_per_token": 1e-4, "seconds_per_step": 0.16}  # at 1600 tokens a step
    launched = pace.STEP_SECONDS + 2000 * pace.LAUNCH_SECONDS
    assert pace.step_seconds(1e9, 2000, 1600, earlier) == pytest.approx(0.16)
    assert pace.step_seconds(1e9, 2000, 100, earlier) == pytest.approx(launched)
    # A host that was seen to be faster than assumed.
    assert pace.step_seconds(1e9, 2000, 100, earlier | {"seconds_per_step": 0.02}) == pytest.approx(0.02)


def test_a_method_that_is_not_traced_has_its_operations_estimated_from_the_layers(pretend):
    pretend(RTX_PRO)
    estimate = plan.check(small_recipe(method__name="shira", method__rank="auto")).plan["forecast"]
    operations = 4 * pace.LAYER_OPERATIONS * (1 + BACKWARD_OPERATIONS)
    assert estimate["memory"] is None
    assert estimate["a_step"] == pytest.approx(pace.STEP_SECONDS + operations * pace.LAUNCH_SECONDS, rel=1e-5)


# -- windows for chats


@pytest.fixture
def trained(bases, tmp_path, monkeypatch):
    """Makes a run on one of the models, as far as its recipe and plan go."""

    def make(name: str, **settings) -> Run:
        recipe, base = described(bases[name], **settings)
        monkeypatch.setattr(forecast, "base_of", lambda run: base)
        run = Run(tmp_path / name)
        run.path.mkdir(exist_ok=True)
        run.write_text("recipe.yaml", recipe.to_yaml())
        return run

    return make


def test_a_chat_is_given_time_for_its_base_the_merged_models_and_every_token(trained, pretend):
    pretend(RTX_PRO)
    seconds = {name: forecast.chat_seconds(trained(name), 0, 96) for name in QWEN3}
    print({name: round(value, 1) for name, value in seconds.items()})
    assert seconds["Qwen3-0.6B"] < seconds["Qwen3-1.7B"] < seconds["Qwen3-8B"]
    run = trained("Qwen3-8B")
    shape = shape_of(forecast.base_of(run))
    read, linear = 2 * shape.parameters / forecast.READ_SPEED, sum(a * b for _, a, b in shape.linear_layers)
    token = 36 * pace.LAYER_OPERATIONS * pace.LAUNCH_SECONDS
    base = forecast.LOAD_SECONDS + read + linear / forecast.QUANTIZE_SPEED["cuda"]
    assert seconds["Qwen3-8B"] == pytest.approx(base + 96 * token)
    # The 8 billion alone take longer to load than any chat was given before.
    assert forecast.chat_seconds(run, 1, 96) == pytest.approx(base + forecast.LOAD_SECONDS + read + 2 * 96 * token)
    assert forecast.chat_seconds(run, 1, 96) > 30
    assert forecast.chat_seconds(run, 2, 0) == pytest.approx(base + 2 * (forecast.LOAD_SECONDS + read))
    unquantized = trained("Qwen3-8B", model__quantization="none")
    assert forecast.chat_seconds(unquantized, 0, 0) == pytest.approx(forecast.LOAD_SECONDS + read)


def test_adapters_that_cannot_share_a_batch_answer_in_turn(trained, pretend):
    pretend(RTX_PRO)
    lora, turns = trained("Qwen3-0.6B"), trained("Qwen3-1.7B", method__name="ia3", method__rank="auto")
    tokens = {}
    for run in (lora, turns):
        base = forecast.chat_seconds(run, 0, 0)
        tokens[run] = [forecast.chat_seconds(run, 0, 100, adapters=n) - base for n in (1, 2)]
    one = 100 * 28 * pace.LAYER_OPERATIONS * pace.LAUNCH_SECONDS
    assert tokens[lora] == pytest.approx([one, one])
    assert tokens[turns] == pytest.approx([2 * one, 3 * one])
