"""From a table to the tokens that are trained: recognising, normalising, splitting, rendering, tokenising, preview."""

import json
from itertools import groupby
from operator import itemgetter

import pytest
import tiny

from tuner.data import formats, parse
from tuner.data.chat import render_prompt, stop_ids
from tuner.data.encode import preview_pieces, tokenise
from tuner.data.recognise import recognise
from tuner.data.split import split_rows
from tuner.data.tokens import Tokenised, histogram
from tuner.errors import TunerError
from tuner.recipe import Data

USER, ANSWER = {"role": "user", "content": "hi, what's up?"}, {"role": "assistant", "content": "Good day."}
ROW = {"messages": [USER, ANSWER]}
TURNS = {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER, {**USER, "content": "bye"}, ANSWER]}
# Qwen3's way: a thought before the newest answer, none before earlier ones.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# DeepSeek's way: a thought is opened in the prompt, and gone once the answer is there.
OPENING = tiny.CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# Phi's way: an end token of its own, and the tokenizer's after the whole conversation.
TWO_ENDS = (
    "{% for m in messages %}{{ m['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHATML
PICTURES = (
    "{% for m in messages %}{{ m['role'] }}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tiny_tokenizer()


def table(columns: list[str], *rows, name="tickets.csv", **facts) -> parse.Table:
    return parse.Table(name, columns, [dict(zip(columns, row)) for row in rows], **facts)


def recognised(there: list[str], **settings) -> formats.Format:
    return recognise(table(there, there), Data(**settings))


def normal(there: list[str], *rows, system=None, **settings) -> list[dict]:
    given = table(there, *rows)
    return formats.normalise(given, recognise(given, Data(**settings)), system)


def problems(there: list[str], *rows, **settings) -> str:
    with pytest.raises(TunerError) as caught:
        normal(there, *rows, **settings)
    return str(caught.value)


def texts(row: dict, tokenizer) -> tuple[str, list[str]]:
    """A tokenised row's whole text, and its trained stretches."""
    pieces = [(piece["trained"], piece["text"]) for piece in preview_pieces("generation", row, tokenizer)]
    stretches = ["".join(text for _, text in group) for trained, group in groupby(pieces, itemgetter(0)) if trained]
    return "".join(text for _, text in pieces), stretches


def tokenise_chats(rows: list[dict], tokenizer, max_length: int, loss_on: str = "completion") -> Tokenised:
    return tokenise("generation", rows, tokenizer, max_length, loss_on)


# -- recognising


@pytest.mark.parametrize(
    ("columns", "name", "taken"),
    [
        (["prompt", "completion"], "prompt_completion", {"prompt": "prompt", "completion": "completion"}),
        (["id", "question", "answer"], "prompt_completion", {"prompt": "question", "completion": "answer"}),
        (["input", "output"], "prompt_completion", {"prompt": "input", "completion": "output"}),
        (["source", "target"], "prompt_completion", {"prompt": "source", "completion": "target"}),
        (["query", "response"], "prompt_completion", {"prompt": "query", "completion": "response"}),
        (["fname", "dialogue", "summary"], "prompt_completion", {"prompt": "dialogue", "completion": "summary"}),
        (["prompt", "response"], "prompt_completion", {"prompt": "prompt", "completion": "response"}),
        (["Prompt", "COMPLETION"], "prompt_completion", {"prompt": "Prompt", "completion": "COMPLETION"}),
        (["question", "answer", "source"], "prompt_completion", {"prompt": "question", "completion": "answer"}),
        (["instruction", "output"], "instruction", {"instruction": "instruction", "output": "output"}),
        (
            ["instruction", "context", "response", "category"],
            "instruction",
            {"instruction": "instruction", "input": "context", "output": "response"},
        ),
        (["messages", "prompt"], "messages", {"messages": "messages"}),
        (["conversations"], "sharegpt", {"conversations": "conversations"}),
        (["text", "context"], "text", {"text": "text"}),
    ],
)
def test_formats_by_their_columns(columns, name, taken):
    format = recognised(columns)
    assert (format.name, format.columns) == (name, taken)


def test_exact_names_win_over_look_alikes():
    format = recognised(["question", "answer", "prompt", "completion"])
    assert format.columns == {"prompt": "prompt", "completion": "completion"}
    assert format.reason == (
        'Reading "prompt" as prompt, "completion" as completion (prompt and completion), because the names match '
        'exactly. Not used: "question" and "answer".'
    )
    assert "because these names are commonly used" in recognised(["question", "answer"]).reason
    instruction = recognised(["instruction", "input", "output", "text"])
    assert instruction.columns == {"instruction": "instruction", "input": "input", "output": "output"}


def test_text_is_not_context():
    said = problems(["context"], ["a"])
    assert said.startswith('The columns of tickets.csv are not recognised: "context".')


def test_columns_that_are_missing_or_could_be_either():
    assert problems(["prompt"], ["a"]) == (
        'tickets.csv has "prompt" for the prompt, but no column for the completion. Its columns are "prompt". '
        'Add a column "completion".'
    )
    assert 'such as data.columns: {prompt: "prompt", completion: "reply to"}' in problems(["prompt", "reply to"], "ab")
    either = problems(["question", "answer", "input", "output"], "abcd")
    assert 'several ways: "question" and "answer" or "input" and "output". Map them by hand' in either
    assert "Name the columns in the first line (prompt and completion)" in problems(["a", "b"], "ab")
    assert "first line (instruction and output)" in problems(["a", "b"], "ab", format="instruction")


def test_columns_mapped_by_hand():
    format = recognised(["q", "text", "completion"], columns={"prompt": "q"})
    assert format.columns == {"prompt": "q", "completion": "completion"}
    assert "because you mapped them" in format.reason
    assert recognised(["a", "b"], columns={"text": "b"}).name == "text"
    assert recognised(["prompt", "completion"], format="text", columns={"text": "prompt"}).columns == {
        "text": "prompt"
    }
    assert "No column of tickets.csv is mapped to the completion" in problems(["q"], "a", columns={"prompt": "q"})
    both = problems(["q", "a"], "ab", columns={"prompt": "x", "banana": "a"})
    assert 'has no column \'x\' for the prompt. Its columns are "q" and "a".' in both
    assert 'no format has "prompt" and "banana" together.' in both


# -- normalising


def test_rows_become_messages():
    assert normal(["prompt", "completion"], [" a\n", 42]) == [
        {"messages": [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "42"}]}
    ]
    joined = normal(
        ["instruction", "input", "output"], "abc", ["a", "", "c"], ["a", None, "c"], ["a", float("nan"), "c"]
    )
    assert [row["messages"][0]["content"] for row in joined] == ["a\n\nb", "a", "a", "a"]
    assert normal(["text"], ["abc"]) == [{"text": "abc"}]
    sharegpt = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    roles = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    parts = [roles[0], {"role": "user", "content": [{"type": "text", "text": "a"}]}, roles[2]]
    assert normal(["conversations"], [sharegpt], [json.dumps(sharegpt)]) == [{"messages": roles}] * 2
    assert normal(["messages"], [roles], [parts]) == [{"messages": roles}] * 2


def test_a_system_prompt_comes_first_unless_the_row_has_one():
    rows = normal(["messages"], [ROW["messages"]], [TURNS["messages"]], system="Be brief.")
    brief = {"role": "system", "content": "Be brief."}
    assert [row["messages"] for row in rows] == [[brief, *ROW["messages"]], TURNS["messages"]]
    assert len(ROW["messages"]) == 2
    assert normal(["prompt", "completion"], "ab", system="Be brief.")[0]["messages"][0] == brief
    with pytest.raises(TunerError, match="Rows of plain text can't have a system prompt"):
        normal(["text"], ["a"], system="Be brief.")


def test_an_empty_completion_in_row_17():
    rows = [["a", "b"] for _ in range(20)]
    rows[16] = ["a", " "]
    assert problems(["prompt", "completion"], *rows) == (
        'Row 17 of tickets.csv has an empty "completion". Fill it in, or drop the row.'
    )
    given = table(["prompt", "completion"], *rows, lines=list(range(2, 22)))
    with pytest.raises(TunerError, match=r"Row 17 \(line 18\) of tickets\.csv has"):
        formats.normalise(given, recognise(given, Data()))


def test_nan_lists_and_other_things_that_are_no_text():
    cells = [float("nan"), None, ["a"], {"a": 1}, b"\x00", "NaN", *[""] * 18]
    said = problems(["prompt", "completion"], *([f"p{i}", cell] for i, cell in enumerate(cells)), ["", ""])
    assert 'Rows 1 and 6 of tickets.csv have no text in "completion" (NaN). Fill it in' in said
    assert 'Row 2 of tickets.csv has no text in "completion" (null).' in said
    assert 'Row 3 of tickets.csv has a list in "completion" where text belongs. Write it as one text' in said
    assert 'Row 4 of tickets.csv has an object in "completion"' in said
    assert 'Row 5 of tickets.csv has binary data in "completion"' in said
    assert "And 20 more problems of other kinds." in said
    said = problems(["prompt", "completion"], *([f"p{i}", ""] for i in range(17)), ["", "c"])
    assert 'Rows 1, 2, 3, 4, 5 and 12 more of tickets.csv have an empty "completion".' in said
    assert 'Row 18 of tickets.csv has an empty "prompt".' in said


def test_rows_that_lack_a_column_are_named():
    given = parse.Table("rows.jsonl", ["prompt", "completion"], [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    with pytest.raises(TunerError, match=r'Row 2 of rows\.jsonl has no "completion"'):
        formats.normalise(given, recognise(given, Data()))


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (
            [USER],
            'a conversation in "messages" that does not end with the assistant. Add the answer, or drop',
        ),
        ([ANSWER], 'a conversation in "messages" that does not begin with the user'),
        ([USER, USER, ANSWER], 'two messages in a row with the same role in "messages"'),
        ([USER, {"role": "system", "content": "s"}, ANSWER], 'a system message in the middle of "messages"'),
        (
            [USER, {"role": "tool", "content": "s"}],
            'a message with the role "tool" in "messages". The roles are',
        ),
        ([USER, {"role": "assistant", "content": ""}], 'an empty assistant message in "messages"'),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], "that is not all text"),
        ([], 'no messages in "messages"'),
        ("hello", 'no list of messages in "messages". Write it as [{"role": "user"'),
        ([["user", "hi"]], 'no list of messages in "messages"'),
        ("[" * 10_000, 'no list of messages in "messages"'),
    ],
)
def test_conversations_that_can_not_be_trained_on(turns, said):
    message = problems(["messages"], [ROW["messages"]], [turns])
    assert message.startswith("Row 2 of tickets.csv has ")
    assert said in message


# -- splitting

ROWS = [{"messages": [{"role": "user", "content": f"{i}"}, ANSWER]} for i in range(100)]


def in_order(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=ROWS.index)


def test_a_share_is_held_out_by_the_seed():
    once, again, other = (split_rows(ROWS, None, Data(), seed) for seed in (1, 1, 2))
    assert once == again
    assert once.heldout != other.heldout
    assert (len(once.train), len(once.heldout)) == (90, 10)
    assert sorted(map(str, once.train + once.heldout)) == sorted(map(str, ROWS))
    assert "10 of 100 rows were chosen by the seed (1)" in once.reason
    assert len(split_rows(ROWS[:5], None, Data(), 0).heldout) == 1


def test_held_out_rows_are_shuffled_and_the_rest_keep_their_order():
    parts = split_rows(ROWS, None, Data(heldout=40), 3)
    assert in_order(parts.heldout) != parts.heldout  # as only the first may be scored
    assert in_order(parts.train) == parts.train
    names = ["train"] * 60 + ["test"] * 40
    once, again, other = (split_rows(ROWS, names, Data(), seed).heldout for seed in (1, 1, 2))
    assert once == again != other
    assert in_order(once) == in_order(other) == ROWS[60:] != once


@pytest.mark.parametrize(
    ("rows", "heldout", "count"),
    [(100, 0.5, 50), (100, 0.99, 99), (26, 0.1, 3), (24, 0.1, 2), (4, 0.1, 1), (100, 1, 1), (100, 7, 7), (8, 7, 7)],
)
def test_how_many_are_held_out(rows, heldout, count):
    parts = split_rows(ROWS[:rows], None, Data(heldout=heldout), 0)
    assert (len(parts.train), len(parts.heldout)) == (rows - count, count)


def test_a_split_that_exists_is_kept():
    names = ["train"] * 80 + ["test"] * 12 + ["validation"] * 8
    parts = split_rows(ROWS, names, Data(), 0)
    assert parts.train == ROWS[:80]
    assert in_order(parts.heldout) == ROWS[92:] != parts.heldout  # shuffled, as only the first may be scored
    assert parts.reason == 'Training on the split "train" (80 rows), holding out "validation" (8 rows).'
    assert in_order(split_rows(ROWS, names, Data(heldout_split="test"), 0).heldout) == ROWS[80:92]
    assert len(split_rows(ROWS, ["train"] * 100, Data(), 0).heldout) == 10


@pytest.mark.parametrize(
    ("names", "settings", "trained", "held"),
    [
        # Earlier names of held-out splits go before later ones, wherever they stand.
        ("test train validation", {}, "train", "validation"),
        ("train test dev val", {}, "train", "val"),
        ("train test eval", {}, "train", "eval"),
        ("train dev valid", {}, "train", "valid"),
        ("train test held-out", {}, "train", "held-out"),
        ("other training train test", {}, "train", "test"),
        ("test other training", {}, "training", "test"),
        ("test other another", {}, "other", "test"),
        ("one two", {}, "one", None),
        ("test validation", {}, "test", "validation"),
        ("validation test", {}, "validation", "test"),
        ("train validation test", {"split": "test"}, "test", "validation"),
        ("train validation test", {"split": "validation"}, "validation", "test"),
        ("train validation test", {"heldout_split": "test"}, "train", "test"),
        ("one two test", {"heldout_split": "one"}, "two", "one"),
        ("one two test", {"split": "two", "heldout_split": "one"}, "two", "one"),
    ],
)
def test_which_split_is_trained_on_and_which_held_out(names, settings, trained, held):
    cycle = names.split() * 100
    by_name = {name: [row for row, own in zip(ROWS, cycle) if own == name] for name in names.split()}
    parts = split_rows(ROWS, cycle[:100], Data(**settings), 0)
    if held:
        assert parts.train == by_name[trained]
        assert in_order(parts.heldout) == by_name[held]
    else:
        assert in_order(parts.train + parts.heldout) == by_name[trained]
        assert len(parts.heldout) == round(len(by_name[trained]) / 10)


def test_max_rows_are_picked_by_the_seed_and_count_for_either_split():
    names = ["train"] * 80 + ["validation"] * 20
    few, again, other = (split_rows(ROWS, names, Data(max_rows=10), seed) for seed in (0, 0, 1))
    assert few == again
    assert (len(few.train), len(few.heldout)) == (10, 10)
    assert few.train != other.train
    assert few.train == in_order(few.train) != ROWS[:10]
    assert in_order(few.heldout) != ROWS[80:90]
    assert "10 of 80 rows" in few.reason
    for most, count in ((79, 79), (80, 80), (81, 80)):
        assert len(split_rows(ROWS, names, Data(max_rows=most), 0).train) == count
    alone = split_rows(ROWS, None, Data(max_rows=20), 0)
    assert (len(alone.train), len(alone.heldout)) == (18, 2)


def test_splits_that_can_not_be_had():
    for rows, names, settings, said in (
        (ROWS[:3], None, {}, "only 3 rows, and some must be held out. Give at least 4"),
        (ROWS, None, {"heldout": 100}, "data.heldout: 100 of 100 rows can't be held out"),
        (ROWS, None, {"heldout_split": "test"}, "has no splits, so 'test' can't be held out"),
        (ROWS, ["a"] * 100, {"split": "b"}, "has no split 'b'. Set it to one of: a."),
        (ROWS, ["a"] * 100, {"heldout_split": "a"}, "can't be both trained on and held out"),
    ):
        with pytest.raises(TunerError) as caught:
            split_rows(rows, names, Data(**settings), 0)
        assert said in str(caught.value)


def test_prompts_on_both_sides_are_counted():
    parts = split_rows([*ROWS, *ROWS], ["train"] * 100 + ["test"] * 100, Data(), 0)
    assert parts.warnings[0].startswith("100 of 100 held-out rows")
    assert split_rows(ROWS, None, Data(), 0).warnings == ()


def said(user: str, answer: str = "Yes.", system: str = "") -> dict:
    first = [{"role": "system", "content": system}] if system else []
    return {"messages": [*first, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


FOLLOWED_UP = {"messages": [*said("other")["messages"], *said("0")["messages"]]}


@pytest.mark.parametrize(
    ("trained", "held", "leaks"),
    [
        ([said(f"{i}") for i in range(8)], [said("1", "No."), said("2"), said("9")], 2),  # whatever the answer is
        ([said(f"{i}", system="A.") for i in range(8)], [said("1", system="B."), said("2"), said("9")], 2),
        ([said(f"{i}") for i in range(8)], [FOLLOWED_UP], 0),  # the same last turn of another conversation
        ([FOLLOWED_UP] * 4, [FOLLOWED_UP], 1),
        ([{"text": "a", "label": "x"}] * 4, [{"text": "a", "label": "y"}, {"text": "b", "label": "x"}], 1),
        ([{"tokens": ["a"], "tags": ["O"]}] * 4, [{"tokens": [word], "tags": ["B"]} for word in "ab"], 1),
        (
            [{"question": "q", "context": "c", "answer": "c", "start": 0}] * 4,
            [{"question": q, "context": c, "answer": "", "start": -1} for q, c in ("qc", "rc", "qd")],
            1,
        ),
    ],
)  # fmt: skip
def test_what_counts_as_the_same_prompt(trained, held, leaks):
    names = ["train"] * len(trained) + ["test"] * len(held)
    warnings = split_rows([*trained, *held], names, Data(), 0).warnings
    assert [warning.split()[:3] for warning in warnings] == [[f"{leaks}", "of", f"{len(held)}"]] * bool(leaks)


# -- rendering and tokenising


@pytest.mark.parametrize("template", [tiny.CHATML, THINKING, OPENING, TWO_ENDS, NO_END, None])
def test_training_sees_the_prompt_that_generation_sees(template):
    tokenizer = tiny.tiny_tokenizer(template)
    for row in (ROW, TURNS):
        prompt = render_prompt(row["messages"][:-1], tokenizer)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        trained = tokenise_chats([row], tokenizer, 1000).rows[0]
        assert trained["input_ids"][: len(ids)] == ids
        answer = trained["labels"][len(ids) :]
        assert answer == trained["input_ids"][len(ids) :]
        assert tokenizer.decode(answer).startswith("Good day.")
        assert answer[-1] in stop_ids(tokenizer)


def test_answers_and_their_end_are_trained_and_nothing_else(tokenizer):
    whole, trained = texts(tokenise_chats([TURNS], tokenizer, 1000).rows[0], tokenizer)
    assert whole == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi, what's up?<|im_end|>\n"
        "<|im_start|>assistant\nGood day.<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n"
        "<|im_start|>assistant\nGood day.<|im_end|>"
    )
    assert trained == ["Good day.<|im_end|>", "Good day.<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "trained"),
    [
        (THINKING, ["Good day.<|im_end|>"]),
        (OPENING, ["Good day.<|im_end|>"]),
        (TWO_ENDS, ["Good day.<|endoftext|>", "Good day.<|endoftext|>"]),
        (NO_END, ["Good day.\n", "Good day.\n<|im_end|>"]),
        (None, ["Good day.<|im_end|>", "Good day.<|im_end|>"]),
    ],
)
def test_templates_of_other_houses(template, trained):
    tokenizer = tiny.tiny_tokenizer(template)
    assert texts(tokenise_chats([TURNS], tokenizer, 1000).rows[0], tokenizer)[1] == trained


def test_without_a_template_prompt_and_answer_are_lines():
    tokenizer = tiny.tiny_tokenizer(None)
    assert render_prompt(ROW["messages"][:-1], tokenizer) == "hi, what's up?\n"
    assert texts(tokenise_chats([ROW], tokenizer, 1000).rows[0], tokenizer)[0] == "hi, what's up?\nGood day.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (tiny.CHATML, ["<|im_end|>"]),
        (TWO_ENDS, ["<|im_end|>", "<|endoftext|>"]),
        (NO_END, ["<|im_end|>"]),
        (None, ["<|im_end|>"]),
        (tiny.CHATML.replace("<|im_end|>", "[a mark of several tokens]"), ["<|im_end|>"]),
    ],
)
def test_what_ends_an_answer(template, ends):
    tokenizer = tiny.tiny_tokenizer(template)
    assert stop_ids(tokenizer) == tokenizer.convert_tokens_to_ids(ends)


def test_rows_keep_their_order_however_many_are_tokenised_at_a_time(tokenizer, monkeypatch):
    rows = [ROW, TURNS, {"text": "thank you"}, TURNS, {"messages": [{**USER, "content": "thx"}, ANSWER]}]
    alone = [tokenise_chats([row], tokenizer, 1000) for row in rows]
    together = tokenise_chats(rows, tokenizer, 1000)
    monkeypatch.setattr("tuner.data.encode.CHUNK", 2)
    chunked = tokenise_chats(rows, tokenizer, 1000)
    assert chunked.rows == together.rows == [row for one in alone for row in one.rows]
    assert chunked.lengths == together.lengths == [length for one in alone for length in one.lengths]
    assert together.total_tokens == sum(together.lengths)


def test_loss_on_all_and_plain_text(tokenizer):
    for row in (ROW, TURNS):
        everything = tokenise_chats([row], tokenizer, 1000, loss_on="all").rows[0]
        assert everything["labels"] == everything["input_ids"]
        assert everything["input_ids"] == tokenise_chats([row], tokenizer, 1000).rows[0]["input_ids"]
    row = tokenise_chats([{"text": "Good day."}], tokenizer, 1000).rows[0]
    assert row["labels"] == row["input_ids"]
    assert row["input_ids"][-1] == tokenizer.eos_token_id


def test_a_tokenizer_that_begins_every_text_with_a_token():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tiny_tokenizer(None)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    for row in (ROW, {"text": "Good day."}):
        ids = tokenise_chats([row], tokenizer, 1000).rows[0]["input_ids"]
        assert [ids[0], ids.count(tokenizer.bos_token_id)] == [tokenizer.bos_token_id, 1]
    whole = tokenise_chats([LONG_PROMPT], tokenizer, 10_000).rows[0]
    cut = tokenise_chats([LONG_PROMPT], tokenizer, 64).rows[0]
    for key in ("input_ids", "labels"):
        assert cut[key] == [whole[key][0], *whole[key][-63:]]
    assert cut["input_ids"][0] == tokenizer.bos_token_id


def test_borders_that_tokens_would_cross_are_kept():
    tokenizer = tiny.tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    row = {"messages": [{"role": "user", "content": "rep"}, {"role": "assistant", "content": "ort"}]}
    prompt = tokenizer("rep")["input_ids"]
    assert tokenizer("report")["input_ids"][: len(prompt)] != prompt
    trained = tokenise_chats([row], tokenizer, 1000).rows[0]
    assert trained["input_ids"] == [*prompt, *tokenizer("ort<|im_end|>")["input_ids"]]
    assert trained["labels"] == [-100] * len(prompt) + trained["input_ids"][len(prompt) :]
    twice = {"messages": [*row["messages"], *row["messages"]]}
    assert texts(tokenise_chats([twice], tokenizer, 1000).rows[0], tokenizer)[1] == ["ort", "ort<|im_end|>"]


def test_templates_that_refuse():
    with pytest.raises(TunerError, match=r"chat template refuses these messages \(no system role\)"):
        tokenise_chats([TURNS], tiny.tiny_tokenizer(NO_SYSTEM), 1000)
    with pytest.raises(TunerError, match="leaves out plain text"):
        tokenise_chats([ROW], tiny.tiny_tokenizer(PICTURES), 1000)


# -- rows longer than the context

COUNTED = " ".join(map(str, range(1000, 1100)))  # so that each place can be told from the others
LONG_PROMPT = {"messages": [{"role": "user", "content": f"please {COUNTED}"}, ANSWER]}
LONG_ANSWER = {"messages": [USER, {"role": "assistant", "content": f"thank you {COUNTED}"}]}


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays_whole(tokenizer):
    done = tokenise_chats([ROW, LONG_PROMPT], tokenizer, 80)
    whole = tokenise_chats([LONG_PROMPT], tokenizer, 10_000).rows[0]
    assert done.rows[1] == {key: part[-80:] for key, part in whole.items()}
    assert texts(done.rows[1], tokenizer)[1] == ["Good day.<|im_end|>"]
    assert (done.truncated, done.cut_answers, done.lost_tokens) == (1, 0, done.lengths[1] - 80)
    assert done.warning == (
        f"1 of 2 rows is longer than 80 tokens, by up to {done.lost_tokens:,}, and loses {done.lost_tokens:,} tokens, "
        f"from the beginning of the prompt first. Set data.max_length to {done.lengths[1]:,} to keep them whole, "
        "if memory allows."
    )
    assert tokenise_chats([ROW], tokenizer, 1000).warning is None


def test_a_long_answer_loses_its_end_and_keeps_some_prompt(tokenizer):
    both = {"messages": [LONG_PROMPT["messages"][0], LONG_ANSWER["messages"][1]]}
    done = tokenise_chats([ROW, LONG_ANSWER, both], tokenizer, 80)
    whole = tokenise_chats([LONG_ANSWER, both], tokenizer, 10_000).rows
    prompts = [row["labels"].count(-100) for row in whole]
    assert prompts[0] > 20  # tokens of a prompt that are kept: a quarter of 80
    for cut, row, prompt in zip(done.rows[1:], whole, prompts):
        assert cut == {key: part[prompt - 20 : prompt + 60] for key, part in row.items()}
    assert done.cut_answers == 2
    assert " 2 of them lose the end of their answer" in done.warning
    assert done.trained_tokens == sum(label != -100 for row in done.rows for label in row["labels"])


def test_every_row_keeps_something_to_train_on(tokenizer):
    for length in range(8, 60):
        for loss_on in ("completion", "all"):
            for row in tokenise_chats(
                [ROW, TURNS, LONG_PROMPT, {"text": "thank you"}], tokenizer, length, loss_on
            ).rows:
                assert len(row["input_ids"]) == len(row["labels"]) <= length
                assert set(row["labels"]) != {-100}


def test_no_answer_that_fits_is_refused(tokenizer):
    with pytest.raises(TunerError, match=r"None of 2 answers fits into 64 tokens \(data\.max_length\)"):
        tokenise_chats([LONG_ANSWER, LONG_ANSWER], tokenizer, 64)


def test_histogram():
    assert histogram([]) == []
    assert histogram([5, 5, 5]) == [(5, 5, 3)]
    assert histogram([1, 2, 9, 10], bins=5) == [(1, 2, 2), (3, 4, 0), (5, 6, 0), (7, 8, 0), (9, 10, 2)]
