"""Every method at settings that are tiny, huge or no divisor of the model's width: `check` refuses them in a sentence,
or they train, save and load again. Nothing fails in between.

With TUNER_MATRIX=1 all combinations; otherwise a few.
"""

import json
import os
from collections import Counter

import pytest
from tiny import DECODER, FAMILIES, GROUPED, tiny_model

from tuner import recipe
from tuner.data import sources
from tuner.errors import TunerError
from tuner.evaluation.answers import evaluate
from tuner.methods.registry import METHODS
from tuner.planning import plan
from tuner.recipe import Recipe
from tuner.training.window import train

# 48 and 96 channels, and 60 and 90, of which neither 7 nor 16 is a divisor. GPT-2's positions are learned: there are
# 512, and no virtual token can have another.
WIDE = {"hidden_size": 60, "intermediate_size": 90, "num_attention_heads": 6, "head_dim": 10}
BASES = {
    "llama": FAMILIES["llama"],
    "llama60": ("LlamaForCausalLM", {**DECODER, **GROUPED, **WIDE, "tie_word_embeddings": True}),
    "gpt2": FAMILIES["gpt2"],
}
VALUES = {"rank": (1, 3, 7, 300, 1000), "virtual_tokens": (1, 512), "bottleneck": (1, 1000), "layers": (1, 200)}
ROWS = [{"prompt": f"hello {n}", "completion": f"good day {n}"} for n in range(12)]
TABLE = sources.read_pasted("\n".join(map(json.dumps, ROWS)))

Case = tuple[str, str, str, int]  # base, method, setting and its value


ALL = [
    (base, name, setting, value)
    for base in BASES
    for name, row in METHODS.items()
    for setting, values in VALUES.items()
    if setting in row.settings
    for value in values
]
QUICK = [  # what depends on whether the rank divides a width or exceeds it, and one of each other setting
    ("llama60", "oft", "rank", 7),
    ("llama60", "lokr", "rank", 1000),
    ("llama60", "miss", "rank", 7),
    ("llama", "hra", "rank", 300),
    ("llama", "adalora", "rank", 1),
    ("llama60", "randlora", "rank", 7),
    ("llama60", "prompt_tuning", "virtual_tokens", 1),
    ("llama", "bottleneck", "bottleneck", 1000),
    ("llama", "oft", "rank", 1),
    ("llama60", "upper_layers", "layers", 200),
]
REFUSED = [
    ("llama", "boft", "rank", 7),
    ("llama60", "boft", "rank", 300),
    ("llama", "shira", "rank", 300),
    ("llama", "miss", "rank", 1000),
    ("llama", "prompt_tuning", "virtual_tokens", 512),
    ("gpt2", "prefix_tuning", "virtual_tokens", 512),
]


# What one test walks through: a few; or of all combinations so many that several processes share them evenly.
WALKS: dict[str, list[Case]] = {}
for case in ALL if "TUNER_MATRIX" in os.environ else []:
    WALKS.setdefault("{0}-{2}-{3}".format(*case), []).append(case)
WALKS = WALKS or {"a few": QUICK}


@pytest.fixture(scope="module", autouse=True)
def bases(tmp_path_factory):
    """Tiny models of these widths, in place of the shipped examples."""
    folder = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        for name, family in BASES.items():
            patch.setitem(FAMILIES, name, family)
            tiny_model(folder / name, name)
        patch.setattr(recipe, "EXAMPLES", folder)
        yield


def extreme(base: str, method: str, setting: str, value: int) -> Recipe:
    settings = {
        "model": {"name": base, "quantization": "none" if method != "qlora" else "nf4"},
        "method": {"name": method, setting: value},
        "budget": {"steps": 2},
        "data": {"heldout": 2},
        "evaluation": {"rows": 1, "max_new_tokens": 1, "loss_every": 0},
    }
    return Recipe.parse(settings)


def outcome(case: Case, path) -> str:
    """ "refused" in a sentence, or "trained", saved and loaded again; anything else fails."""
    _, method, setting, value = case
    try:
        run = plan.prepare(extreme(*case), TABLE, path=path)
    except TunerError as refusal:
        (problem,) = refusal.problems
        places = {f"method.{setting}: {METHODS[method].title}", f"method.name: {METHODS[method].title}"}
        assert problem.startswith(tuple(places)), problem
        assert problem.startswith("method.name") or str(value) in problem, problem
        assert "Choose" in problem or "Leave it out" in problem, problem
        assert not path.exists()
        return "refused"
    list(train(run))
    assert run.status == "finished"
    before = run.read_json("evaluation.json")["adapter"]["loss"]
    list(evaluate(run))  # from what was saved
    assert run.read_json("evaluation.json")["adapter"]["loss"] == pytest.approx(before, rel=1e-3)
    return "trained"


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[1]}-{case[3]}-on-{case[0]}")
def test_what_cannot_be_attached_or_run_is_refused_before_anything_is_spent(case, tmp_path):
    assert outcome(case, tmp_path / "run") == "refused"


def test_the_ranks_that_a_refusal_names_divide_the_inputs_of_every_layer():
    with pytest.raises(TunerError, match=r"Choose one of 1, 2, 3, 5, 6, 10, 15, 30\."):
        plan.check(extreme("llama60", "boft", "rank", 7), TABLE)
    assert plan.check(extreme("llama60", "boft", "rank", 30), TABLE).plan["trainable_parameters"] > 0


@pytest.mark.timeout(3600)
@pytest.mark.long
@pytest.mark.parametrize("cases", WALKS.values(), ids=WALKS)
def test_any_method_at_an_extreme_setting_is_refused_in_a_sentence_or_trains_saves_and_loads(tmp_path, cases):
    counts: Counter = Counter()
    failures = []
    for case in cases:
        try:
            counts[f"{case[2]} {case[3]}", outcome(case, tmp_path / "-".join(map(str, case)))] += 1
        except Exception as error:  # the walk goes on, so that one run of the test shows all that is wrong
            failures.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
    settings = dict.fromkeys(setting for setting, _ in counts)
    print("", *(f"{s}: {counts[s, 'trained']} trained, {counts[s, 'refused']} refused" for s in settings), sep="\n")
    assert not failures, "\n".join(failures)
    assert counts.total() == len(cases)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_and_the_longest_row_fit_into_the_context_together(method, tmp_path):
    rows = [{"prompt": f"hello {n}", "completion": "good day " * (400 if n % 2 else 1)} for n in range(8)]
    table = sources.read_pasted("\n".join(map(json.dumps, rows)))
    wanted = extreme("gpt2", method, "virtual_tokens", 32)
    run = plan.prepare(wanted, table, path=tmp_path / "run")
    assert run.plan["settings"]["max_length"] == 512 - 32
    assert run.plan["truncated_rows"] > 0
    list(train(run))
    assert run.status == "finished"
    with pytest.raises(TunerError, match=r"data\.max_length: 481 tokens do not fit .* at most 480"):
        plan.check(wanted.with_settings({"data.max_length": 481}), table)
