"""Rows of every format: which one is recognised, and what its rows become; the awkward cells by their row's number."""

import json

import pytest

from tuner.data import cells, formats, parse
from tuner.data.recognise import recognise
from tuner.errors import TunerError
from tuner.recipe import Data, Recipe
from tuner.tasks import CONVERSATION

CONTEXT = "Ada Lovelace wrote it in 1843. It was Lovelace who saw further."


def table(columns: list[str], *rows) -> parse.Table:
    return parse.Table("rows.csv", columns, [dict(zip(columns, row)) for row in rows])


def recognised(there: list[str], *rows, **settings) -> formats.Format:
    return recognise(table(there, *(rows or [there])), Data(**settings))


def normal(there: list[str], *rows, system=None, **settings) -> list[dict]:
    given = table(there, *rows)
    return formats.normalise(given, recognise(given, Data(**settings)), system)


def problems(there: list[str], *rows, **settings) -> str:
    with pytest.raises(TunerError) as caught:
        normal(there, *rows, **settings)
    return str(caught.value)


# -- which format it is


@pytest.mark.parametrize(
    ("columns", "name", "taken"),
    [
        (["id", "dialogue", "summary", "topic"], "prompt_completion", ["dialogue", "summary"]),
        (["text", "summary"], "prompt_completion", ["text", "summary"]),
        (["id", "Text", "Summary", "title"], "prompt_completion", ["Text", "Summary"]),
        (["question", "answer", "text"], "prompt_completion", ["question", "answer"]),
        (["text", "label"], "text_label", ["text", "label"]),
        (["label", "text", "label_text"], "text_label", ["text", "label"]),
        (["sentence", "label", "idx"], "text_label", ["sentence", "label"]),
        (["review", "sentiment"], "text_label", ["review", "sentiment"]),
        (["text", "sentiment"], "text_label", ["text", "sentiment"]),
        (["review", "label"], "text_label", ["review", "label"]),
        (["text", "category"], "text_label", ["text", "category"]),
        (["label", "title", "content"], "text_label", ["content", "label"]),
        (["message", "label"], "text_label", ["message", "label"]),
        (["text", "class"], "text_label", ["text", "class"]),
        (["content", "category"], "text_label", ["content", "category"]),
        (["Text", "LABEL"], "text_label", ["Text", "LABEL"]),
        (["text", "Label"], "text_label", ["text", "Label"]),
        (["text", "Sentiment"], "text_label", ["text", "Sentiment"]),
        (["tokens", "tags"], "tokens_tags", ["tokens", "tags"]),
        (["id", "tokens", "pos_tags", "chunk_tags", "ner_tags"], "tokens_tags", ["tokens", "ner_tags"]),
        (["words", "tags"], "tokens_tags", ["words", "tags"]),
        (["words", "ner"], "tokens_tags", ["words", "ner"]),
        (["tokens", "labels"], "tokens_tags", ["tokens", "labels"]),
        (["words", "labels"], "tokens_tags", ["words", "labels"]),
        (["text", "tokens", "ner_tags"], "tokens_tags", ["tokens", "ner_tags"]),
    ],
)
def test_formats_by_their_columns(columns, name, taken):
    format = recognised(columns)
    assert (format.name, list(format.columns.values())) == (name, taken)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["prompt", "completion", "label"], "prompt_completion"),
        (["prompt", "completion", "text", "label"], "prompt_completion"),
        (["prompt", "response", "label"], "prompt_completion"),
        (["question", "answer", "review", "sentiment"], "prompt_completion"),
        (["message", "reply", "label"], "prompt_completion"),
        (["instruction", "output", "text", "label"], "instruction"),
        (["messages", "text", "label"], "messages"),
        (["conversation", "summary"], "sharegpt"),
    ],
)
def test_what_is_written_for_an_answer_wins_over_a_label(columns, name):
    assert recognised(columns).name == name


@pytest.mark.parametrize(
    "columns",
    [
        ["text"],
        ["text", "context"],
        ["content", "title"],
        ["text", "labels"],
        ["text", "label_text"],
        ["text", "user", "target"],
        ["text", "prompt", "response"],
        ["text", "answer"],
    ],
)
def test_plain_text_yields_to_whole_rows_of_names_only(columns):
    format = recognised(columns)
    assert (format.name, list(format.columns)) == ("text", ["text"])


def test_a_choice_between_look_alikes_is_left_to_the_person():
    either = problems(["text", "sentiment", "category"], "abc")
    assert 'several ways: "text" and "sentiment" or "text" and "category". Map them by hand' in either
    assert 'such as data.columns: {text: "text", label: "sentiment"}' in either
    either = problems(["review", "sentence", "label"], "abc")
    assert '"sentence" and "label" or "review" and "label"' in either
    assert '"dialogue" and "summary" or "text" and "summary"' in problems(["dialogue", "text", "summary"], "abc")
    assert '"tokens" and "ner_tags" or "tokens" and "labels"' in problems(["tokens", "ner_tags", "labels"], "abc")
    assert recognised(["review", "sentiment", "text", "label"]).columns == {"text": "text", "label": "label"}
    assert recognised(["text", "label", "category"]).columns == {"text": "text", "label": "label"}


def test_half_of_a_format_is_told_what_is_missing():
    assert 'has "sentence" for the text, but no column for the label' in problems(["sentence"], "a")
    assert 'has "words" for the tokens, but no column for the tags' in problems(["words", "id"], "ab")
    said = problems(["premise", "hypothesis", "label"], "abc")
    assert 'has "label" for the label, but no column for the text' in said
    assert 'data.columns: {label: "label", text: "premise"}' in said


def test_labels_mapped_by_hand():
    format = recognised(["tweet", "mood"], columns={"text": "tweet", "label": "mood"})
    assert (format.name, format.columns) == ("text_label", {"text": "tweet", "label": "mood"})
    assert recognised(["tweet", "label"], columns={"text": "tweet"}).name == "text_label"
    assert recognised(["tweet", "mood"], columns={"text": "tweet"}).name == "text"
    assert recognised(["text", "label"], format="text").columns == {"text": "text"}
    assert recognised(["a", "b"], columns={"tokens": "a", "tags": "b"}).name == "tokens_tags"
    by_hand = {"question": "q", "context": "c", "answers": "a"}
    assert recognised(["q", "c", "a"], columns=by_hand).name == "squad"
    assert "No column of rows.csv is mapped to the text" in problems(["a", "b"], "ab", columns={"label": "b"})


# -- conversations

TURNS = {
    "system": ["system", "developer"],
    "user": ["user", "human"],
    "assistant": ["assistant", "gpt", "chatgpt", "model", "bot"],
}


@pytest.mark.parametrize(("role", "content"), [("role", "content"), ("from", "value")])
def test_who_speaks_has_many_names_and_three_parts(role, content):
    for asks in TURNS["user"]:
        for answers in TURNS["assistant"]:
            for instructs in TURNS["system"]:
                turns = [{role: r, content: f"{i}"} for i, r in enumerate([instructs, asks, answers, asks, answers])]
                assert normal(["conversations"], [turns])[0]["messages"] == [
                    {"role": r, "content": f"{i}"}
                    for i, r in enumerate(["system", "user", "assistant", "user", "assistant"])
                ]
    assert "tool" in problems(["conversations"], [[{role: "tool", content: "a"}]])


def test_parts_of_a_message_are_joined_in_their_order():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]
    assert normal(["messages"], [turns])[0]["messages"][0] == {"role": "user", "content": "a b"}


# -- text and label


def test_labels_become_text():
    labels = ["spam", " ham ", 3, 0, True, False, 1.0, -2.0, "1.0", "None"]
    rows = normal(["text", "label"], *([" a\n", label] for label in labels))
    assert [row["label"] for row in rows] == ["spam", "ham", "3", "0", "True", "False", "1", "-2", "1.0", "None"]
    assert rows[0] == {"text": " a\n", "label": "spam"}


def test_labels_that_are_none():
    cells = [None, float("nan"), "", " ", ["a"], {"a": 1}, 0.5]
    said = problems(["text", "label"], ["a", "b"], *(["a", cell] for cell in cells[:4]))
    assert 'Row 2 of rows.csv has no text in "label" (null). Fill it in, or drop the row.' in said
    assert 'Row 3 of rows.csv has no text in "label" (NaN).' in said
    assert 'Rows 4 and 5 of rows.csv have an empty "label".' in said
    said = problems(["text", "label"], *(["a", cell] for cell in cells[4:]))
    assert 'Row 1 of rows.csv has a list in "label" where text belongs.' in said
    assert 'Row 2 of rows.csv has an object in "label" where text belongs.' in said
    assert 'Row 3 of rows.csv has a fraction in "label" where a label belongs. Write labels as words or' in said
    assert 'Row 1 of rows.csv has a fraction in "label"' in problems(["text", "label"], ["a", float("inf")])
    assert 'no text in "text"' in problems(["text", "label"], [None, "a"])


def test_rows_that_lack_the_label_are_named():
    given = parse.Table("rows.jsonl", ["text", "label"], [{"text": "a", "label": 1}, {"text": "a"}])
    with pytest.raises(TunerError, match=r'Row 2 of rows\.jsonl has no "label"'):
        formats.normalise(given, recognise(given, Data()))


# -- tokens and tags


@pytest.mark.parametrize(
    ("tokens", "tags"),
    [
        (["Ada", "wrote"], ["PER", "O"]),
        ('["Ada", "wrote"]', '["PER", "O"]'),
        ("Ada wrote", "PER O"),
        ("  Ada\twrote\n", ["PER", "O"]),
    ],
)
def test_tokens_and_tags_as_lists_json_or_words(tokens, tags):
    assert normal(["tokens", "tags"], [tokens, tags]) == [{"tokens": ["Ada", "wrote"], "tags": ["PER", "O"]}]


def test_tokens_and_tags_of_other_kinds_become_text():
    rows = normal(["words", "ner_tags"], [[1843, "nan"], [0, 1.0]], ['["a", 2]', "[3, 4]"], ["1843", "7"])
    assert [row["tokens"] for row in rows] == [["1843", "nan"], ["a", "2"], ["1843"]]
    assert [row["tags"] for row in rows] == [["0", "1"], ["3", "4"], ["7"]]


def test_brackets_are_words_too():
    sentences = ["[ laughs ]", "[1] a b [2]", "[CLS] a [SEP] b", "[Applause]", "[ ] x", '" [ a ]']
    rows = normal(["tokens", "tags"], *([text, " ".join("O" * len(text.split()))] for text in sentences))
    assert [row["tokens"] for row in rows] == [text.split() for text in sentences]


@pytest.mark.parametrize("printed", ["['Ada', 'wrote']", "['Ada' 'wrote']", "[0 1]", "[PER, O]", '["Ada", "wrote"'])
def test_lists_as_python_prints_them_are_refused_and_not_cut_at_blanks(printed):
    said = problems(["tokens", "tags"], [["Ada", "wrote"], printed])
    assert 'Row 1 of rows.csv has a list in "tags" that is not JSON. Write it as ["Ada", "wrote"], in double' in said


def test_each_token_has_one_tag():
    good = ["a b", "O O"]
    said = problems(["tokens", "tags"], good, ["a b", "O"], good, ["a b", "O"], ["a", "O O"])
    assert "Rows 2 and 4 of rows.csv have 2 tokens and 1 tag. Give every token one tag." in said
    assert "Row 5 of rows.csv has 1 token and 2 tags." in said


def test_tokens_that_are_none():
    good = ["a b", "O O"]
    said = problems(["tokens", "tags"], [None, "O"], ["", "O"], [[], []], [{"a": 1}, "O"], good)
    assert 'Row 1 of rows.csv has no text in "tokens" (null)' in said
    assert 'Row 2 of rows.csv has an empty "tokens"' in said
    assert 'Row 3 of rows.csv has an empty list in "tokens"' in said
    assert 'Row 3 of rows.csv has an empty list in "tags"' in said
    assert 'Row 4 of rows.csv has an object in "tokens"' in said
    said = problems(["tokens", "tags"], [["a", ""], good[1]], [["a", ["b"]], good[1]], [["a", "b"], ["O", None]])
    assert 'Row 1 of rows.csv has an empty "words of tokens"' in said
    assert 'Row 2 of rows.csv has a list in "words of tokens" where text belongs' in said
    assert 'Row 3 of rows.csv has no text in "words of tags" (null)' in said


# -- question, context and answer

SQUAD = ["id", "title", "context", "question", "answers"]


def squad(*answers, columns=("question", "context", "answers"), context=CONTEXT, **settings) -> list[dict]:
    return normal(list(columns), *(["Who?", context, answer] for answer in answers), **settings)


def given(text: list, start: list) -> dict:
    return {"text": text, "answer_start": start}


def test_squad_by_its_own_answers():
    cells = given(["Ada"], [0])
    for answers in (cells, json.dumps(cells)):
        format = recognised(SQUAD, ["1", "t", CONTEXT, "Who?", answers])
        assert (format.name, list(format.columns)) == ("squad", ["question", "context", "answers"])
    assert recognised([*SQUAD, "answer"], ["1", "t", "c", "q", cells, "a"]).name == "squad"
    assert recognised(SQUAD, ["1", "t", "c", "q", None], ["1", "t", "c", "q", cells]).name == "squad"


def test_an_answer_that_may_not_be_in_its_context_is_generated_unless_asked_otherwise():
    for columns in (["question", "context", "answer"], ["question", "passage", "answer"]):
        assert recognised(columns).name == "prompt_completion"
        assert recognised(columns, format="squad").columns["answers"] == "answer"
    asked = normal(["question", "passage", "answer"], ["Who?", CONTEXT, "Ada"], format="squad")
    assert asked == [{"question": "Who?", "context": CONTEXT, "answer": "Ada", "start": 0}]
    texts = problems(["question", "context", "answers"], ["Who?", CONTEXT, "Ada"])
    assert 'has "question" for the prompt, but no column for the completion' in texts
    assert squad("Ada", format="squad")[0]["answer"] == "Ada"
    instruction = recognised(["instruction", "context", "response", "question", "answer"])
    assert instruction.columns == {"instruction": "instruction", "input": "context", "output": "response"}


def test_answers_have_their_place_in_the_context():
    second = CONTEXT.rindex("Lovelace")
    answers = [
        given(["Lovelace", "Ada"], [second, 0]),  # as given
        json.dumps(given(["Lovelace"], [second])),
        given(["Lovelace"], [second - 1]),  # given wrongly
        given(["Lovelace"], [-1]),
        given(["Lovelace"], [9_999]),
        given(["Lovelace"], ["4"]),
        given(["Lovelace"], []),
        {"text": ["Lovelace"]},
        " Lovelace\n",
    ]
    rows = squad(*answers, format="squad")
    assert [row["start"] for row in rows] == [second, second, 4, 4, 4, 4, 4, 4, 4]
    assert all(row["context"][row["start"] :].startswith(row["answer"]) for row in rows)
    assert squad(given(["東京"], [0]), context="🗼 東京")[0]["start"] == 2
    assert squad(given(["Ada"], [0]))[0]["start"] == 0
    assert squad(given(["further."], [CONTEXT.index("further.")]))[0]["start"] == len(CONTEXT) - len("further.")


def test_a_question_is_one_line_and_its_context_is_kept_as_it_is():
    row = normal(["question", "context", "answers"], [" Who\n wrote ", " by\n Ada ", given(["Ada"], [5])])
    assert row == [{"question": "Who wrote", "context": " by\n Ada ", "answer": "Ada", "start": 5}]


def test_questions_without_an_answer():
    rows = squad(given([], []), json.dumps(given([], [])), {"text": []})
    assert rows == [{"question": "Who?", "context": CONTEXT, "answer": "", "start": -1}] * 3


def test_answers_that_are_none():
    cells = [given(["Grace"], [0]), given(["Ada"], [0]), "Hopper", None, ""]
    said = problems(["question", "context", "answers"], *(["Who?", CONTEXT, cell] for cell in cells))
    assert "Rows 1 and 3 of rows.csv have an answer that does not occur in its context. Copy it from the" in said
    assert 'Row 4 of rows.csv has no text in "answers" (null)' in said
    assert 'Row 5 of rows.csv has an empty "answers"' in said
    cells = [["Ada"], {"text": "Ada"}, given([""], [0]), given([None], [0])]
    said = problems(["question", "context", "answers"], *(["Who?", CONTEXT, cell] for cell in cells))
    assert 'Row 1 of rows.csv has a list in "answers" where text belongs' in said
    assert 'Row 2 of rows.csv has no list of texts in "answers". Write it as {"text": ["..."], "answer_start"' in said
    assert 'Row 3 of rows.csv has an empty "answers"' in said
    assert 'Row 4 of rows.csv has no text in "answers" (null)' in said


# -- all of them


@pytest.mark.parametrize(
    ("columns", "row", "title"),
    [
        (["text"], ["a"], "plain text"),
        (["text", "label"], ["a", "b"], "text and its label"),
        (["tokens", "tags"], ["a", "b"], "tokens and their tags"),
        (["question", "context", "answers"], ["Who?", CONTEXT, given([], [])], "question, context and answer"),
    ],
)
def test_a_system_prompt_has_a_place_in_conversations_only(columns, row, title):
    with pytest.raises(TunerError) as caught:
        normal(columns, row, system="Be brief.")
    assert str(caught.value) == f"Rows of {title} can't have a system prompt. Leave data.system out."
    assert normal(columns, row, system="")


def test_every_format_has_a_spelling_for_each_part():
    for shape in formats.FORMATS.values():
        assert recognise(table(list(shape.spellings[0]), shape.spellings[0]), Data(format=shape.name)).row is shape
        assert {len(spelling) for spelling in shape.spellings + shape.whole} == {len(shape.roles)}
        assert shape.optional or len(set(shape.spellings)) == len(shape.spellings)


def test_an_unknown_format_is_refused_with_the_nearest_and_all():
    said = problems(["text"], ["a"], format="sharegtp")
    assert said.startswith("data.format: there is no format 'sharegtp'. Did you mean 'sharegpt'? Set it to auto, or")
    assert all(name in said for name in formats.FORMATS)
    assert "Did you mean" not in problems(["text"], ["a"], format="parquet")


def test_a_new_format_is_one_row(monkeypatch):
    """Rows of a quiz: recognised, read, trained on and offered on the page, by a row of FORMATS alone."""
    from tuner.planning import plan
    from tuner.ui import fields

    row = formats.FormatRow(
        name="quiz",
        title="a riddle and its solution",
        becomes=CONVERSATION,
        roles={"riddle": cells.read_text, "solution": cells.read_text},
        spellings=(("riddle", "solution"),),
        build=lambda texts: formats.exchange(texts["solution"], f"Guess: {texts['riddle']}"),
    )
    monkeypatch.setitem(formats.FORMATS, "quiz", row)
    rows = table(["riddle", "solution"], *([f"what is {n}?", f"it is {n}"] for n in range(20)))
    for settings in ({}, {"format": "quiz"}, {"columns": {"riddle": "riddle"}}):
        checked = plan.check(Recipe(data=Data(heldout=2, **settings)), rows)
        assert (checked.format.name, checked.plan["task"]) == ("quiz", "generation")
        assert checked.heldout_rows[0]["messages"][0]["content"].startswith("Guess: what is ")
    assert "quiz" in [name for _, name in fields.component("data.format", Recipe()).choices]
    assert "quiz" in problems(["text"], ["a"], format="nothing")
