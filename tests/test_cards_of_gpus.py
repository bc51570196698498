"""Plans for GPUs that nobody here has: what is granted, in which type, how many rows, and what is refused."""

import json
from pathlib import Path

import pytest
from conftest import small_recipe
from pretend_cards import A10G, H100, H200_SLICE, RTX_PRO, T4, V100
from tiny import tiny_tokenizer

from tuner.models.device import compute_dtype, gpu, gpu_memory
from tuner.models.shape import Base, shape_of
from tuner.planning import forecast, pace
from tuner.recipe import Model
from tuner.runs import Run

# Of https://huggingface.co/Qwen: width, width of the MLP, layers, heads, whether the head is the embedding.
QWEN3 = {
    "Qwen3-0.6B": (1024, 3072, 28, 16, True),
    "Qwen3-1.7B": (2048, 6144, 28, 16, True),
    "Qwen3-8B": (4096, 12288, 36, 32, False),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Folders of models that are only described: a configuration and a tokenizer, no weights."""
    from transformers import Qwen3Config

    folders = {}
    for name, (width, mlp, layers, heads, tied) in QWEN3.items():
        folders[name] = tmp_path_factory.mktemp(name)
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
        ).save_pretrained(folders[name])
        tiny_tokenizer().save_pretrained(folders[name])
    return folders


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
    assert gpu_memory() == 48 * 10**9
    assert gpu().multiprocessors == RTX_PRO.multiprocessors / 2
    pretend(H200_SLICE)  # which is a slice already
    assert (gpu_memory(), gpu().multiprocessors) == (H200_SLICE.memory, 60)
    pretend(RTX_PRO._replace(memory=40 * 10**9, multiprocessors=70))  # a smaller part than the documents say
    assert (gpu_memory(), gpu().multiprocessors) == (40 * 10**9, 70)
    pretend(RTX_PRO._replace(zero=False))  # one's own
    assert (gpu_memory(), gpu().multiprocessors) == (RTX_PRO.memory, 188)


def test_the_grants_are_those_of_the_cards_that_spaces_knows():
    from importlib.resources import files

    from tuner.models.device import GRANTS

    cards = {card["model"]: card for card in json.loads(files("spaces.zero").joinpath("configs.json").read_text())}
    divided = {name for name, card in cards.items() if card["xlarge_threshold"]}
    assert divided == set(GRANTS)
    for name, (memory, multiprocessors) in GRANTS.items():
        assert cards[name]["xlarge_threshold"] < memory <= cards[name]["memory"] / 2
        assert multiprocessors == cards[name]["sm_count"] / 2


def test_off_zerogpu_memory_is_what_others_leave_and_what_was_free_before_a_training_of_ours(pretend, monkeypatch):
    import torch

    def hold(others: int, ours: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *args: (H100.memory - others - ours, H100.memory))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *args: ours)

    pretend(H100)
    gb = 10**9
    hold(others=30 * gb, ours=0)
    assert gpu_memory() == H100.memory - 30 * gb
    hold(others=10 * gb, ours=5 * gb)  # models that are kept for chat
    assert gpu_memory() == H100.memory - 10 * gb
    hold(others=60 * gb, ours=5 * gb)  # a training in a process of its own
    assert gpu_memory() == H100.memory - 10 * gb


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
