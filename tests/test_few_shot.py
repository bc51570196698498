"""The base model with examples in its prompt: which rows it is shown, how they are written, and what is scored."""

import json
import random
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from conftest import small_recipe, timed
from tables import table
from test_answers import Clock, Speaker, ask, loaded
from tiny import tiny_model

from tuner import runs
from tuner.data.chat import token_count
from tuner.errors import TunerError
from tuner.evaluation import answers, groups
from tuner.evaluation.answers import evaluate
from tuner.evaluation.results import ROWS
from tuner.inference import generate
from tuner.inference.generate import Answer
from tuner.models.device import device_type
from tuner.models.fetch import base_of
from tuner.models.load import shared_base
from tuner.models.shape import load_tokenizer
from tuner.planning import few_shot, forecast, pace, plan
from tuner.planning.answering import answer_limit
from tuner.planning.few_shot import VARIANTS, YOURS, Example, most_similar
from tuner.planning.pace import EXAMPLES_PACE, EXAMPLES_TOKENS, PACES, pace_key, recall, remember
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.training.window import train

ROLES = ("user", "assistant")
REAL_LOOK = pace.cpu_look  # before tests get a steady one


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch, no_estimates):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A chat model and an encoder-decoder, of 512 tokens."""
    folder = tmp_path_factory.mktemp("bases")
    return {family: str(tiny_model(folder / family, family)) for family in ("llama", "t5", "bart")}


def pairs(number: int, words: int = 1):
    return table(["prompt", "completion"], *[(f"ask {i} {'word ' * words}", f"told {i}") for i in range(number)])


def prepared(tmp_path, rows=None, **settings) -> Run:
    settings = {"evaluation__few_shot": "auto", "data__max_rows": None, "data__heldout": 4, **settings}
    return plan.prepare(small_recipe(**settings), rows or pairs(20), path=tmp_path / "run")


def chosen(run: Run) -> tuple:
    """How many examples the plan has, and why."""
    return next((c["value"], c["reason"]) for c in run.plan["chosen"] if c["setting"] == "examples in the prompt")


# -- which examples, and how they are written


def test_all_prompts_have_the_same_examples_or_those_most_like_them(tmp_path, folders):
    words = ["apple", "banana", "cherry", "damson", "elder"]
    cells = [(f"{word * 3} {i}", f"a fruit {word} {i}") for word in words for i in range(5)]
    run = prepared(tmp_path, table(["prompt", "completion"], *cells), model__name=folders["llama"], data__heldout=5,
                   evaluation__few_shot=2, evaluation__rows=5, data__system="Name it.")  # fmt: skip
    heldout = run.heldout()
    questions = {row["messages"][-1]["content"] for row in heldout}
    shown = run.plan["prompting"]["messages"]
    assert [turn["role"] for turn in shown] == ["system", *ROLES, *ROLES, "user"]
    assert (shown[0]["content"], shown[-1]["content"]) == ("Name it.", YOURS)
    assert not questions & {turn["content"] for turn in shown}  # never a held-out row
    for row in heldout:
        question = row["messages"][-1]["content"]
        same, similar = row["few_shot"], row["few_shot_similar"]
        before, asked, after = same.rpartition(question)
        assert asked
        assert before.count("<|im_start|>user") == 3
        assert all(turn["content"] in before for turn in shown[:-1])
        assert after == row["text"].rpartition(question)[2]  # where the answer begins
        fruit = question.split()[0]
        assert similar.count(fruit) == 3, "two examples of the same fruit, and the question"
    assert len({row["few_shot"].rpartition(row["messages"][-1]["content"])[0] for row in heldout}) == 1
    assert (run.plan["prompting"]["examples"], run.plan["prompting"]["fewest"]) == (2, 2)
    again = prepared(tmp_path / "again", table(["prompt", "completion"], *cells), model__name=folders["llama"],
                     data__heldout=5, evaluation__few_shot=2, evaluation__rows=5, data__system="Name it.")  # fmt: skip
    assert again.heldout() == heldout


@pytest.mark.parametrize("script", ["apple banana", "яблоко груша", "苹果香蕉樱桃", "แอปเปิลกล้วย", "تفاح موز"])
def test_the_nearest_example_is_the_last_in_every_script(script):
    examples = [Example(text, "x") for text in ("12345", script[: len(script) // 2], script, "67890")]
    assert most_similar([script], examples, 2) == [[examples[1], examples[2]]]


def test_what_all_rows_begin_with_does_not_hide_what_differs(monkeypatch):
    monkeypatch.setattr(few_shot, "CHARACTERS", 120)
    head = "Summarize the following conversation in one sentence, please.\n\n"
    examples = [Example(head + text, "x") for text in ("about trains and planes", "about cats and dogs", "about tea")]
    assert most_similar([head + "dogs and cats, about"], examples, 1) == [[examples[1]]]


def test_comparing_is_bounded_by_the_characters_of_the_held_out_prompts_as_well(monkeypatch):
    monkeypatch.setattr(few_shot, "CHARACTERS", 100)
    examples = [Example("one two " + text, "x") for text in ("abcdef", "ghijkl")]
    asked = "one two ghi"
    assert most_similar([asked] * 2, examples, 1) == [[examples[1]]] * 2
    # Of as many prompts as there are characters one of each is read, which is the same in all.
    assert most_similar(["two" + asked] * 100, examples, 1) == [[examples[0]]] * 100


@pytest.mark.long
def test_rows_of_thousands_of_characters_need_no_memory_for_each_pair_of_them():
    draw = random.Random(0)
    examples = [Example("".join(map(chr, draw.choices(range(0x4E00, 0x9FFF), k=500))), "x") for _ in range(400)]
    most_similar(["warm"], examples[:2], 1)
    tracemalloc.start()
    try:
        assert most_similar([examples[7].question[:50]], examples, 1) == [[examples[7]]]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 40e6  # a vocabulary of these would be several times that


def test_a_question_that_lacks_what_all_rows_begin_with_is_compared_whole():
    # An encoder-decoder's examples begin with the system prompt, the question that is looked up does not.
    examples = [few_shot.Example(f"Answer in one word.\n{text}", "x") for text in ("a blue sky", "the red apple")]
    ((nearest,),) = few_shot.most_similar(["a red apple"], examples, 1)
    assert nearest == examples[1]


def test_rows_without_anything_to_compare_and_equal_rows_are_examples_too(tmp_path, folders):
    assert most_similar(["?"], [Example("a", "x"), Example("b", "y")], 1) == [[Example("a", "x")]]
    assert most_similar(["same"], [Example("same", "x"), Example("same", "y")], 2)[0]
    rows = table(["prompt", "completion"], *[(f"ask {i % 3}", "yes") for i in range(20)])
    run = prepared(tmp_path, rows, model__name=folders["llama"])
    assert chosen(run) == (3, "there are only 3 rows to choose from")


def test_an_encoder_decoder_reads_examples_and_question_as_one_text(tmp_path, folders):
    run = prepared(tmp_path, model__name=folders["t5"], evaluation__few_shot=2)
    text = run.plan["prompting"]["text"]
    *examples, question = text.split("\n\n")
    assert question == YOURS
    assert [example.split("\n")[1].startswith("told ") for example in examples] == [True, True]
    for row in run.heldout():
        assert row["few_shot"] == text.replace(YOURS, row["text"])


def test_examples_are_single_exchanges_and_earlier_turns_of_a_question_stay(tmp_path, folders):
    def talk(number: int, turns: int) -> dict:
        said = [{"role": ROLES[i % 2], "content": f"turn {number}.{i}"} for i in range(2 * turns)]
        return {"messages": said}

    lines = [talk(i, 1 + i % 2) for i in range(20)]
    from tuner.data.sources import read_pasted

    rows = read_pasted("\n".join(map(json.dumps, lines)))
    run = prepared(tmp_path, rows, model__name=folders["llama"], evaluation__few_shot=3)
    for turn in run.plan["prompting"]["messages"][:-1]:
        assert int(turn["content"].split()[1].split(".")[0]) % 2 == 0
    longer = next(row for row in run.heldout() if len(row["messages"]) == 3)
    assert all(turn["content"] in longer["few_shot"] for turn in longer["messages"])
    assert longer["few_shot"].count("<|im_start|>user") == 5


# -- how many


def test_so_many_examples_as_are_cheap_to_read_or_as_the_recipe_says(tmp_path, folders, monkeypatch):
    short = prepared(tmp_path / "1", pairs(40), model__name=folders["t5"])
    assert chosen(short) == (8, "they show what is wanted, and are still cheap to read")
    monkeypatch.setattr(few_shot, "TOKENS", 130)
    long = prepared(tmp_path / "2", pairs(40, 8), model__name=folders["t5"])
    number, reason = chosen(long)
    assert 1 < number < 8
    assert reason == "more would have over 130 tokens to be read for each answer"
    tokenizer = load_tokenizer(folders["t5"])
    for row in long.heldout():
        added = [token_count(row[variant], tokenizer) - token_count(row["text"], tokenizer) for variant in VARIANTS]
        assert max(added) <= 130
    given = prepared(tmp_path / "3", pairs(40, 8), model__name=folders["t5"], evaluation__few_shot=12)
    assert chosen(given) == (12, "as given")
    assert given.plan["prompting"]["fewest"] == 12
    more = prepared(tmp_path / "4", pairs(9), model__name=folders["t5"], evaluation__few_shot=32)
    assert chosen(more) == (5, "there are only 5 rows to choose from")


def test_prompts_that_would_not_fit_the_context_get_fewer_and_the_farthest_go_first(tmp_path, folders):
    cells = [(f"ask {i} " + "word " * (60 if i % 2 else 2), f"told {i}") for i in range(30)]
    run = prepared(tmp_path, table(["prompt", "completion"], *cells), model__name=folders["llama"],
                   evaluation__few_shot=10)  # fmt: skip
    tokenizer, sizes = load_tokenizer(folders["llama"]), []
    for row in run.heldout():
        sizes += [token_count(row[variant], tokenizer) for variant in VARIANTS]
    assert max(sizes) <= 512 - run.plan["settings"]["max_new_tokens"]
    assert 1 <= run.plan["prompting"]["fewest"] < run.plan["prompting"]["examples"] <= 10
    prompter = few_shot.Prompter(run.recipe, base_of(run), run.plan["settings"], tokenizer)
    examples = [Example(f"shown {i} " + "word " * 15, "yes") for i in range(10)]
    text, number = prompter.fitted(run.heldout()[0], examples, False)
    assert 1 < number < 10
    assert [example.question in text for example in examples] == [False] * (10 - number) + [True] * number


REFUSES = (
    "{% if messages|length > 6 %}{{ raise_exception('three exchanges at most') }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def no_examples(tmp_path, rows, **settings) -> str:
    """Why a run has no examples in its prompts; it can be trained and scored all the same."""
    run = prepared(tmp_path, rows, **settings)
    assert not any(variant in row for row in run.heldout() for variant in VARIANTS)
    number, reason = chosen(run)
    why = run.plan["prompting"]["why_not"]
    assert (number, reason) in [(0, why[0].lower() + why[1:].rstrip(".")), (0, "as given")] or number
    return why


def test_runs_without_examples_say_why_in_a_sentence(tmp_path, folders):
    model = {"model__name": folders["llama"]}
    long = table(["prompt", "completion"], *[(f"ask {i} " + "zq " * 400, f"told {i}") for i in range(12)])
    assert no_examples(tmp_path / "1", pairs(20), **model, evaluation__few_shot=0) == few_shot.OFF
    assert no_examples(tmp_path / "2", long, **model) == few_shot.TOO_LONG
    empty = table(["prompt", "completion"], *[(f"ask {i}", " ") for i in range(12)])
    with pytest.raises(TunerError):  # nothing to learn, whatever the prompt
        prepared(tmp_path / "3", empty, **model)


def test_a_template_that_refuses_examples_fails_no_run(tmp_path):
    base = tiny_model(tmp_path / "base")
    (base / "chat_template.jinja").write_text(REFUSES)
    run = prepared(tmp_path, model__name=str(base))
    why = run.plan["prompting"]["why_not"]
    assert why.startswith("Prompts can't have examples. The model's chat template refuses these messages")
    *_, last = train(run)
    assert last["event"] == "evaluation"
    assert run.read_json("evaluation.json")["prompting"] == {"why_not": why}
    assert "few_shot" not in run.read_json("evaluation.json")


def test_rows_of_tools_and_classes_and_plain_text_have_no_examples(tmp_path, folders):
    prompter = SimpleNamespace(
        recipe=small_recipe(evaluation__few_shot="auto"), base=SimpleNamespace(row=SimpleNamespace(generates=True))
    )
    calling = {"messages": [{"role": r, "content": "x"} for r in ROLES], "tools": [{"type": "function"}]}
    assert few_shot.choose(prompter, [calling], [calling]).why_not == few_shot.TOOLS
    assert few_shot.choose(prompter, [{"text": "a"}], [{"text": "b"}]) is None
    text = table(["text"], *[(f"once upon {i}",) for i in range(20)])
    assert "prompting" not in prepared(tmp_path / "1", text, model__name=folders["llama"]).plan


# -- answering and scoring


class Prompted(Speaker):
    """Answers every prompt by its last word, at one second a prompt; the adapter in capitals."""

    def answer(self, loaded, active, variants, conversations, sampling, longest, stop=None) -> list[Answer]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in conversations]
        self.asked.append((variants, texts))
        self.now += float(len(texts))
        if self.clock and len(self.asked) > self.batches:
            self.clock.reason = self.clock.later
        said = [text.split()[-1] for text in texts]
        return [
            Answer(s.upper() if v == "adapter" else s, read=len(t.split()), written=2)
            for v, s, t in zip(variants, said, texts, strict=True)
        ]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """A run of twelve held-out prompts with their examples, whose losses are known."""
    mine = prepared(tmp_path, pairs(40), data__heldout=16, evaluation__rows=12, evaluation__few_shot=1)
    rows = mine.heldout()
    for i, row in enumerate(rows):
        row |= {"text": f"q{i} own{i}", "few_shot": f"long example q{i} same{i}", "reference": f"OWN{i}"}
        row["few_shot_similar"] = f"another long example q{i} own{i}"
        row["messages"][-1]["content"] += "long " * (20 - i)  # those drawn first are the longest
    mine.write_text("data/heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(answers, "row_losses", lambda *args: ([1.0] * len(args[2]), [1] * len(args[2])))
    return mine


@pytest.fixture
def speak(monkeypatch):
    def made(*args) -> Prompted:
        speaking = Prompted(*args)
        monkeypatch.setattr(answers.generate, "answer", speaking.answer)
        monkeypatch.setattr(answers, "time", speaking)
        return speaking

    return made


TOGETHER, IN_TURN = (("base", "adapter"),), (("base",), ("adapter",))
BOTH = pytest.mark.parametrize("groups", [TOGETHER, IN_TURN], ids=["together", "in turn"])


@BOTH
def test_the_base_answers_with_examples_as_well_and_each_variant_has_its_score_and_cost(run, speak, groups):
    speaking = speak()
    *_, last = evaluate(run, loaded(*groups))
    scores = run.read_json("evaluation.json")
    assert {v: scores[v]["exact_match"] for v in ("base", *VARIANTS, "adapter")} == {
        "base": 0.0, "few_shot": 0.0, "few_shot_similar": 0.0, "adapter": 1.0,
    }  # fmt: skip
    assert [set(variants) for variants, _ in speaking.asked][-1] == {"base"}  # with the adapter off
    assert [len(texts) for _, texts in speaking.asked] == ([24] if groups == TOGETHER else [12, 12]) + [24]
    assert scores["costs"] == {
        "base": {"prompt_tokens": 2.0, "answer_tokens": 2.0, "seconds": 1.0},
        "few_shot": {"prompt_tokens": 4.0, "answer_tokens": 2.0, "seconds": 1.0},
        "few_shot_similar": {"prompt_tokens": 5.0, "answer_tokens": 2.0, "seconds": 1.0},
        "adapter": {"prompt_tokens": 2.0, "answer_tokens": 2.0, "seconds": 1.0},
    }
    assert scores["prompting"] == run.plan["prompting"]
    assert "short" not in scores
    assert last["costs"] == scores["costs"]
    lines = [json.loads(line) for line in (run.path / ROWS).read_text().splitlines()]
    assert len(lines) == 12
    assert {line["few_shot_similar"] for line in lines} == {f"own{i}" for i in range(12)}
    for i, line in enumerate(lines):  # in order, with each score
        assert (line["reference"], line["adapter"], line["few_shot"]) == (f"OWN{i}", f"OWN{i}", f"same{i}")
        assert (line["adapter_rougeL"], line["few_shot_rougeL"]) == (1.0, 0.0)
    assert scores["examples"][3]["few_shot_similar"] == "own3"
    assert {(pair["of"], pair["over"]) for pair in scores["pairs"]} >= {("adapter", "few_shot"), ("few_shot", "base")}
    paces = recall(runs.RUNS / PACES, pace_key(device_type(), run.recipe))
    assert (paces["seconds_per_answer"], paces[EXAMPLES_PACE], paces[EXAMPLES_TOKENS]) == (2.0, 2.0, 4.5)


@BOTH
@pytest.mark.parametrize("batches", [1, 2, 3])
def test_scoring_goes_on_in_the_next_window_with_those_who_have_not_answered(run, speak, monkeypatch, groups, batches):
    monkeypatch.setattr(answers, "BATCH", 5)
    speak()
    list(evaluate(run, loaded(*groups)))
    whole, rows = run.read_json("evaluation.json"), (run.path / ROWS).read_text()
    (run.path / "evaluation.json").unlink()
    (run.path / ROWS).unlink()
    clock = Clock("stopped")
    first = speak(clock, batches)
    assert list(evaluate(run, loaded(*groups), clock))[-1]["event"] == "unscored"
    assert not (run.path / ROWS).exists()
    kept = run.read_json("answers.json") or {}
    second = speak()
    list(evaluate(Run(run.path), loaded(*groups)))
    assert (run.read_json("evaluation.json"), (run.path / ROWS).read_text()) == (whole, rows)
    answered = sum(len([v for v in row if v in ("base", "adapter", *VARIANTS)]) for row in kept.values())
    assert sum(len(texts) for _, texts in second.asked) == 4 * 12 - answered
    assert first.asked


def test_answers_and_prompts_of_an_earlier_version_are_scored_without_examples(run, speak):
    ask(run, [f"q{i} own{i}" for i in range(16)])
    run.write_json("plan.json", {key: value for key, value in run.plan.items() if key != "prompting"})
    run.write_json("answers.json", {str(i): {"base": "old", "adapter": "re old"} for i in range(5)})
    mine, speaking = Run(run.path), speak()
    list(evaluate(mine, loaded(*TOGETHER)))
    scores = mine.read_json("evaluation.json")
    assert not {"few_shot", "prompting", "short"} & scores.keys()
    assert sum(len(texts) for _, texts in speaking.asked) == 2 * 7
    assert scores["costs"]["base"]["seconds"] == 1.0  # of those that were measured


def test_prompts_with_examples_are_read_a_few_at_a_time(run, speak, monkeypatch):
    monkeypatch.setattr(groups, "MOST_BYTES", {device_type(): 150})  # two rows
    speaking = speak()
    list(evaluate(run, loaded(*TOGETHER)))
    sizes = [len(texts) for variants, texts in speaking.asked if set(variants) == {"base"}]
    assert sum(sizes) == 24
    assert max(sizes) <= 6


class Closing:
    """A window that is over after so many seconds of a speaker's clock."""

    def __init__(self, speaking: Prompted, seconds: float):
        self.speaking, self.end = speaking, speaking.now + seconds

    @property
    def left(self) -> float:
        return self.end - self.speaking.now

    @property
    def reason(self) -> str | None:
        return "window" if self.left < 0 else None

    def is_set(self) -> bool:
        return self.reason is not None


@pytest.mark.parametrize("seconds", [11, 17, 27, 39])
def test_near_its_end_a_window_reads_no_more_prompts_than_it_has_time_for(run, speak, monkeypatch, seconds):
    monkeypatch.setattr(answers, "BATCH", 4)
    speaking = speak()
    window = Closing(speaking, seconds)
    list(evaluate(run, loaded(*TOGETHER), window))
    assert -2.5 < window.left < 2.5  # one row has two prompts, each of which takes a second
    assert max(len(texts) for _, texts in speaking.asked) == 8  # in time, all four rows
    list(evaluate(Run(run.path), loaded(*TOGETHER)))
    assert run.read_json("evaluation.json")["rows"] == 12


def test_prompts_with_examples_that_need_too_much_memory_are_left_out_with_words(run, speak, monkeypatch):
    speaking = speak()

    def answer(loaded, active, variants, conversations, *arguments, **named) -> list[Answer]:
        if any("example" in str(text) for text in conversations):
            sizes.append(len(conversations) // 2)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return speaking.answer(loaded, active, variants, conversations, *arguments, **named)

    sizes: list[int] = []
    monkeypatch.setattr(answers.generate, "answer", answer)
    list(evaluate(run, loaded(*TOGETHER)))
    scores = run.read_json("evaluation.json")
    assert sizes == [12, 6, 3, 1]
    assert (scores["rows"], scores["prompting"]) == (12, {"why_not": answers.NO_MEMORY})
    assert not {*VARIANTS} & scores.keys()


# -- seconds


def limited(run: Run, seconds: float) -> Run:
    run.write_text("recipe.yaml", run.recipe.with_settings({"evaluation.seconds": seconds}).to_yaml())
    return Run(run.path)


@pytest.mark.parametrize(
    ("seconds", "rows", "has_examples"),
    [
        (1000, 12, True),  # there is time for all
        (44, 11, True),  # ten rows take 40 s, and one more 4
        (40, 10, True),
        (15, 10, False),  # base and adapter alone take 20 s, and fewer rows would say nothing
        (1, 10, False),
    ],
)
def test_as_many_rows_are_scored_as_there_is_time_for_and_never_the_short_ones_only(
    run, speak, seconds, rows, has_examples
):
    speak()
    mine = limited(run, seconds)
    list(evaluate(mine, loaded(*TOGETHER)))
    scores = mine.read_json("evaluation.json")
    assert scores["rows"] == rows
    assert ("few_shot" in scores) == has_examples
    assert scores.get("short") == (None if rows == 12 else {"asked": 12, "seconds": seconds})
    lines = [json.loads(line) for line in (mine.path / ROWS).read_text().splitlines()]
    assert [line["reference"] for line in lines] == [f"OWN{i}" for i in range(rows)]  # as they were drawn
    if not has_examples:
        assert scores["prompting"]["why_not"].startswith("There was no time to answer with examples in the prompt")


def test_time_that_was_spent_in_an_earlier_window_counts(run, speak):
    mine, clock = limited(run, 44), Clock("window")
    speak(clock, 2)
    list(evaluate(mine, loaded(*TOGETHER), clock))
    speak()
    list(evaluate(Run(mine.path), loaded(*TOGETHER)))
    assert mine.read_json("evaluation.json")["rows"] == 11


def test_the_plan_says_how_many_rows_there_is_time_for(tmp_path, folders):
    def planned(**settings) -> plan.Checked:
        recipe = small_recipe(evaluation__rows=64, data__max_rows=200, data__heldout=64, **settings)
        for name in "ab":
            paces = {"seconds_per_answer": 1.0, EXAMPLES_PACE: 3.0}
            remember(runs.RUNS / PACES, pace_key(device_type(), recipe), paces, name)
        return plan.check(recipe)

    whole = planned(evaluation__few_shot=4)
    assert (whole.plan["scored_rows"], whole.plan["forecast"]["has_examples"]) == (64, True)
    assert not [w for w in whole.plan["warnings"] if "evaluation.seconds" in w]
    some = planned(evaluation__few_shot=4, evaluation__seconds=100)
    assert (some.plan["scored_rows"], some.plan["forecast"]["has_examples"]) == (25, True)
    assert some.plan["forecast"]["scoring"] < whole.plan["forecast"]["scoring"]
    (warning,) = [w for w in some.plan["warnings"] if "evaluation.seconds" in w]
    assert warning.startswith("About 25 of 64 held-out rows will be scored, the first in a drawn order")
    few = planned(evaluation__few_shot=4, evaluation__seconds=30)
    assert (few.plan["scored_rows"], few.plan["forecast"]["has_examples"]) == (30, False)
    assert "too few to try examples in the prompt on 10 rows" in few.plan["warnings"][-1]
    none = planned(evaluation__few_shot=0, evaluation__seconds=2)
    assert none.plan["scored_rows"] == 10
    assert len([w for w in none.plan["warnings"] if "evaluation.seconds" in w]) == 1


# -- real runs


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_real_run_answers_with_examples_and_tells_what_they_cost(tmp_path, folders, family):
    run = prepared(tmp_path, pairs(30), model__name=folders[family], data__heldout=10, evaluation__rows=10,
                   evaluation__few_shot=3, budget__steps=2)  # fmt: skip
    *_, last = train(run)
    assert last["event"] == "evaluation"
    scores, tokenizer = run.read_json("evaluation.json"), load_tokenizer(folders[family])
    rows = run.heldout()
    for variant, key in (("base", "text"), ("few_shot", "few_shot"), ("few_shot_similar", "few_shot_similar")):
        ends = 0 if family == "llama" else tokenizer.num_special_tokens_to_add()
        read = sum(token_count(row[key], tokenizer) + ends for row in rows) / len(rows)
        assert scores["costs"][variant]["prompt_tokens"] == pytest.approx(read, abs=0.01)
        assert 0 < scores["costs"][variant]["answer_tokens"] <= 8
    assert scores["prompting"]["examples"] == 3
    assert len((run.path / ROWS).read_text().splitlines()) == 10
    again = Run(run.path)
    again.write_text("stop", "")
    assert again.read_json("evaluation.json") == scores


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_base_answers_with_examples_and_not_the_adapter(tmp_path, folders, family):
    run = prepared(tmp_path, pairs(30), model__name=folders[family], data__heldout=4, evaluation__rows=4,
                   evaluation__few_shot=3, budget__steps=4, training__learning_rate=0.5)  # fmt: skip
    list(train(run))
    kept = [json.loads(line) for line in (run.path / ROWS).read_text().splitlines()]
    assert all(row["adapter"] != row["base"] for row in kept)
    sampling = generate.Sampling(max_new_tokens=answer_limit(run), ends=tuple(run.plan["end_tokens"]))
    model, tokenizer = shared_base(base_of(run)), load_tokenizer(folders[family])
    for variant in VARIANTS:
        written = generate.generate(model, tokenizer, [row[variant] for row in run.heldout()], sampling)
        assert [row[variant] for row in kept] == [answer.text for answer in written]


def test_training_again_forgets_the_rows_of_an_earlier_adapter(tmp_path, folders):
    run = prepared(tmp_path, model__name=folders["llama"], budget__steps=1, evaluation__few_shot=0)
    run.write_text(ROWS, "{}\n")
    seen = [(run.path / ROWS).exists() for event in train(run) if event["event"] == "end"]
    assert seen == [False]


# -- estimates


def planned_seconds(**settings) -> float:
    """The estimate of answers alone."""
    settings = {"data.max_rows": 160, "data.heldout": 64} | {k.replace("__", "."): v for k, v in settings.items()}
    checked = plan.check(Recipe.load("corporate").with_settings(settings)).plan
    with_losses = checked["forecast"]["scoring"] - forecast.KEEPING_SECONDS
    rows = -(-checked["scored_rows"] // checked["settings"]["batch_size"])
    return with_losses - rows * checked["forecast"]["a_step"]


def test_an_estimate_grows_with_the_examples_also_after_an_earlier_run():
    none, two, eight = (planned_seconds(evaluation__few_shot=number) for number in (0, 2, 8))
    assert none < two < eight
    key = pace_key(device_type(), Recipe.load("corporate"))
    for run in "ab":
        paces = {"seconds_per_answer": 0.1, EXAMPLES_PACE: 0.5, EXAMPLES_TOKENS: 350.0}
        remember(runs.RUNS / PACES, key, paces, run)
    assert planned_seconds(evaluation__few_shot=0) == pytest.approx(64 * 0.1, rel=0.01)
    assert planned_seconds(evaluation__few_shot=8) == pytest.approx(64 * 0.6, rel=0.2)
    assert 64 * 0.2 < planned_seconds(evaluation__few_shot=2) < 64 * 0.4


@timed
@pytest.mark.long
@pytest.mark.parametrize("example", ["corporate", "support"])
def test_the_answers_of_the_shipped_examples_take_as_long_as_estimated(example, monkeypatch):
    monkeypatch.setattr(pace, "cpu_look", REAL_LOOK)
    settings = {"budget.steps": 1, "evaluation.loss_every": 0, "evaluation.rows": 32}
    recipe = Recipe.load(example).with_settings(settings)
    for _ in range(3):  # cold, and then by the pace of the runs before
        monkeypatch.setattr(pace, "_looked", None)
        run = plan.prepare(recipe)
        list(train(run))
        answered = [json.loads(line) for line in (run.path / ROWS).read_text().splitlines()]
        costs = run.read_json("evaluation.json")["costs"]
        seconds = len(answered) * sum(cost["seconds"] for cost in costs.values())
        losses = -(-32 // run.plan["settings"]["batch_size"]) * run.plan["forecast"]["a_step"]
        estimate = run.plan["forecast"]["scoring"] - forecast.KEEPING_SECONDS - losses
        # On a quiet machine 1.5 is enough; here, other tests run beside it.
        assert seconds / 2 < estimate < 2 * seconds
