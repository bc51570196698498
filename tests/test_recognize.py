"""Which format a table is in, what each of its columns is, and the message if that is unclear."""

import pytest
from conftest import keep_only
from tables import problems, recognized, table

from tuner.data import cells, formats
from tuner.recipe import Data, Recipe
from tuner.tasks import CONVERSATION


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
def test_formats_and_roles_by_their_columns(columns, name, taken):
    format = recognized(columns)
    assert (format.name, format.columns) == (name, taken)


def test_exact_names_win_over_look_alikes():
    format = recognized(["question", "answer", "prompt", "completion"])
    assert format.columns == {"prompt": "prompt", "completion": "completion"}
    assert format.reason == (
        'Reading "prompt" as prompt, "completion" as completion (prompt and completion), because the names match '
        'exactly. Not used: "question" and "answer".'
    )
    assert "because these names are commonly used" in recognized(["question", "answer"]).reason
    instruction = recognized(["instruction", "input", "output", "text"])
    assert instruction.columns == {"instruction": "instruction", "input": "input", "output": "output"}


def test_of_columns_that_differ_in_capitals_and_spaces_alone_the_first_is_read():
    format = recognized(["Prompt", "PROMPT", "completion ", "Completion"])
    assert format.columns == {"prompt": "Prompt", "completion": "completion "}
    assert 'Not used: "PROMPT" and "Completion".' in format.reason


def test_text_is_not_context():
    message = problems(["context"], ["a"])
    assert message.startswith('The columns of rows.csv are not recognized: "context".')


def test_columns_that_are_missing_or_could_be_either():
    assert problems(["prompt"], ["a"]) == (
        'rows.csv has "prompt" for the prompt, but no column for the completion. Its columns are "prompt". '
        'Add a column "completion".'
    )
    assert 'such as data.columns: {prompt: "prompt", completion: "reply to"}' in problems(["prompt", "reply to"], "ab")
    either = problems(["question", "answer", "input", "output"], "abcd")
    assert 'several ways: "question" and "answer" or "input" and "output". Map them by hand' in either
    assert "Name the columns in the first line (prompt and completion)" in problems(["a", "b"], "ab")
    assert "first line (instruction and output)" in problems(["a", "b"], "ab", format="instruction")


def test_columns_mapped_by_hand():
    format = recognized(["q", "text", "completion"], columns={"prompt": "q"})
    assert format.columns == {"prompt": "q", "completion": "completion"}
    assert "because you mapped them" in format.reason
    assert recognized(["a", "b"], columns={"text": "b"}).name == "text"
    assert recognized(["prompt", "completion"], format="text", columns={"text": "prompt"}).columns == {
        "text": "prompt"
    }
    assert "No column of rows.csv is mapped to the completion" in problems(["q"], "a", columns={"prompt": "q"})
    both = problems(["q", "a"], "ab", columns={"prompt": "x", "banana": "a"})
    assert 'has no column \'x\' for the prompt. Its columns are "q" and "a".' in both
    assert 'no format has "prompt" and "banana" together.' in both


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
    format = recognized(columns)
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
    assert recognized(columns).name == name


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
    format = recognized(columns)
    assert (format.name, list(format.columns)) == ("text", ["text"])


def test_a_choice_between_look_alikes_is_left_to_the_person():
    either = problems(["text", "sentiment", "category"], "abc")
    assert 'several ways: "text" and "sentiment" or "text" and "category". Map them by hand' in either
    assert 'such as data.columns: {text: "text", label: "sentiment"}' in either
    either = problems(["review", "sentence", "label"], "abc")
    assert '"sentence" and "label" or "review" and "label"' in either
    assert '"dialogue" and "summary" or "text" and "summary"' in problems(["dialogue", "text", "summary"], "abc")
    assert '"tokens" and "ner_tags" or "tokens" and "labels"' in problems(["tokens", "ner_tags", "labels"], "abc")
    assert recognized(["review", "sentiment", "text", "label"]).columns == {"text": "text", "label": "label"}
    assert recognized(["text", "label", "category"]).columns == {"text": "text", "label": "label"}


def test_half_of_a_format_is_told_what_is_missing():
    assert 'has "sentence" for the text, but no column for the label' in problems(["sentence"], "a")
    assert 'has "words" for the tokens, but no column for the tags' in problems(["words", "id"], "ab")
    message = problems(["premise", "hypothesis", "label"], "abc")
    assert 'has "label" for the label, but no column for the text' in message
    assert 'data.columns: {text: "premise", label: "label"}' in message


def test_labels_mapped_by_hand():
    format = recognized(["tweet", "mood"], columns={"text": "tweet", "label": "mood"})
    assert (format.name, format.columns) == ("text_label", {"text": "tweet", "label": "mood"})
    assert recognized(["tweet", "label"], columns={"text": "tweet"}).name == "text_label"
    assert recognized(["tweet", "mood"], columns={"text": "tweet"}).name == "text"
    assert recognized(["text", "label"], format="text").columns == {"text": "text"}
    assert recognized(["a", "b"], columns={"tokens": "a", "tags": "b"}).name == "tokens_tags"
    by_hand = {"question": "q", "context": "c", "answers": "a"}
    assert recognized(["q", "c", "a"], columns=by_hand).name == "squad"
    assert "No column of rows.csv is mapped to the text" in problems(["a", "b"], "ab", columns={"label": "b"})


def test_an_unknown_format_is_refused_with_the_nearest_and_all():
    message = problems(["text"], ["a"], format="sharegtp")
    assert message.startswith("data.format: there is no format 'sharegtp'. Did you mean 'sharegpt'? Set it to auto,")
    assert all(name in message for name in formats.FORMATS)
    assert "Did you mean" not in problems(["text"], ["a"], format="parquet")


@pytest.mark.usefixtures("no_estimates")
def test_a_new_format_is_one_row(monkeypatch):
    """Rows of a quiz: recognized, read, trained on and offered on the page, by a row of FORMATS alone."""
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
        assert checked.split.heldout[0]["messages"][0]["content"].startswith("Guess: what is ")
    assert "quiz" in [name for _, name in fields.component("data.format", Recipe()).choices]
    assert "quiz" in problems(["text"], ["a"], format="nothing")


# -- every sentence

MAPPED = "because you mapped them."
COMMON = "because these names are commonly used for it."
FOLDED = "because the names match apart from capitals and spaces."


@pytest.mark.parametrize(
    ("columns", "settings", "reason"),
    [
        (
            ["Instruction", "In-Put", "Input", "OUTPUT"],
            {},
            'Reading "Instruction" as instruction, "Input" as input, "OUTPUT" as output (instruction, input and '
            f'output), {FOLDED} Not used: "In-Put".',
        ),
        (
            ["words", "Ner-Tags", "id", "pos"],
            {},
            'Reading "words" as tokens, "Ner-Tags" as tags (tokens and their tags), '
            f'{COMMON} Not used: "id" and "pos".',
        ),
        (
            ["prompt", "answer", "Chat History"],
            {},
            'Reading "prompt" as prompt, "answer" as completion (prompt and completion), '
            f'{COMMON} Not used: "Chat History".',
        ),
        (
            ["a", "b", "input", "c"],
            {"columns": {"output": "a", "input": "c", "instruction": "b"}},
            'Reading "b" as instruction, "c" as input, "a" as output (instruction, input and output), '
            f'{MAPPED} Not used: "input".',
        ),
        (
            ["a", "b", "context"],
            {"columns": {"output": "a", "instruction": "b"}},
            'Reading "b" as instruction, "context" as input, "a" as output (instruction, input and output), '
            "because you mapped them.",
        ),
        (
            ["chat"],
            {"columns": {"conversations": "chat"}},
            f'Reading "chat" as conversations (ShareGPT conversations), {MAPPED}',
        ),
        (
            ["messages", "split"],
            {},
            'Reading "messages" as messages (OpenAI conversations), because the names match exactly. '
            'Not used: "split".',
        ),
        (
            ["label", "text"],
            {},
            'Reading "text" as text, "label" as label (text and its label), because the names match exactly.',
        ),
        (
            [" Text ", "n"],
            {},
            f'Reading " Text " as text (plain text), {FOLDED} Not used: "n".',
        ),
        (
            ["prompt", "Prompt"],
            {"columns": {"prompt": "Prompt", "completion": "prompt"}},
            f'Reading "Prompt" as prompt, "prompt" as completion (prompt and completion), {MAPPED}',
        ),
    ],
)
def test_what_is_read_and_why(columns, settings, reason):
    assert recognized(columns, **settings).reason == reason


ROLES = (
    "messages: messages, tools, system; sharegpt: conversations, tools, system; "
    "instruction: instruction, input, output, system, history, reasoning, tools; "
    "prompt_completion: prompt, completion, system, history, reasoning, tools; "
    "squad: question, context, answers; tokens_tags: tokens, tags; text_label: text, label; text: text."
)
NAMES = "messages, sharegpt, instruction, prompt_completion, squad, tokens_tags, text_label or text."


@pytest.mark.parametrize(
    ("columns", "settings", "sentences"),
    [
        (
            ["größe", "b"],
            {},
            [
                'The columns of rows.csv are not recognized: "größe" and "b". Name the columns in the first line '
                '(prompt and completion), or map them: data.columns: {prompt: "größe", completion: "b"}.'
            ],
        ),
        (
            ["a"],
            {},
            [
                'The columns of rows.csv are not recognized: "a". Name the columns in the first line '
                '(text), or map them: data.columns: {text: "a"}.'
            ],
        ),
        (
            ["a", "b", "c", "d"],
            {"format": "squad"},
            [
                'The columns of rows.csv are not recognized: "a", "b", "c" and "d". Name the columns in the first '
                "line (question and context and answers), or map them: "
                'data.columns: {question: "a", context: "b", answers: "c"}.'
            ],
        ),
        (
            ["x", "Question", "y", "z"],
            {"format": "squad"},
            [
                'rows.csv has "Question" for the question, but no column for the context and the answers. Its columns '
                'are "x", "Question", "y" and "z". Map them by hand, such as '
                'data.columns: {question: "Question", context: "x", answers: "y"}.'
            ],
        ),
        (
            ["question", "passage"],
            {"format": "squad"},
            [
                'rows.csv has "question" and "passage" for the question and the context, but no column for the '
                'answers. Its columns are "question" and "passage". Add a column "answers".'
            ],
        ),
        (
            ["input", "prompt"],
            {},
            [
                'rows.csv has "prompt" for the prompt, but no column for the completion. Its columns are "input" and '
                '"prompt". Map them by hand, such as data.columns: {prompt: "prompt", completion: "input"}.'
            ],
        ),
        (
            ["question", "answer", "query", "response"],
            {},
            [
                'The columns of rows.csv can be read in several ways: "question" and "answer" or "query" and '
                '"response". Map them by hand, such as data.columns: {prompt: "question", completion: "answer"}.'
            ],
        ),
        (
            ["q", "a"],
            {"columns": {"prompt": "x", "banana": "y"}},
            [
                'rows.csv has no column \'x\' for the prompt. Its columns are "q" and "a".',
                'rows.csv has no column \'y\' for the banana. Its columns are "q" and "a".',
                f'data.columns: no format has "prompt" and "banana" together. The formats are: {ROLES}',
            ],
        ),
        (
            ["q", "a"],
            {"format": "text", "columns": {"prompt": "q"}},
            ['data.columns: no format has "prompt" together. The formats are: text: text.'],
        ),
        (
            ["q", "a"],
            {"columns": {"context": "q"}},
            [
                "No column of rows.csv is mapped to the question and the answers. "
                'Its columns are "q" and "a". Add what is missing to data.columns.'
            ],
        ),
        (
            ["q", "a"],
            {"format": "sharegtp"},
            [f"data.format: there is no format 'sharegtp'. Did you mean 'sharegpt'? Set it to auto, or to {NAMES}"],
        ),
        (
            ["q", "a"],
            {"format": "parquet"},
            [f"data.format: there is no format 'parquet'. Set it to auto, or to {NAMES}"],
        ),
    ],
)
def test_what_is_said_of_columns_that_can_not_be_told(monkeypatch, columns, settings, sentences):
    names = NAMES.strip(".").replace(" or ", ", ").split(", ")
    keep_only(monkeypatch, formats.FORMATS, names)
    assert problems(columns, columns, **settings).split("\n") == sentences


@pytest.mark.parametrize(
    ("columns", "name", "used"),
    [
        ("chat", "messages", "chat"),
        ("conversation", "sharegpt", "conversation"),
        ("instruction context response", "instruction", "instruction context response"),
        ("response instruction", "instruction", "instruction response"),
        ("text response instruction", "instruction", "instruction response"),
        ("document summary", "prompt_completion", "document summary"),
        ("article summary", "prompt_completion", "article summary"),
        ("reply message", "prompt_completion", "message reply"),
        ("assistant user", "prompt_completion", "user assistant"),
        ("prompt summary", "prompt_completion", "prompt summary"),
        ("question target", "prompt_completion", "question target"),
        ("tokens ner", "tokens_tags", "tokens ner"),
        ("words ner_tags", "tokens_tags", "words ner_tags"),
        ("sentence class", "text_label", "sentence class"),
        ("review category", "text_label", "review category"),
        ("message sentiment", "text_label", "message sentiment"),
        ("content label", "text_label", "content label"),
        ("content", "text", "content"),
        ("Content", "text", "Content"),
    ],
)
def test_every_common_name_is_known(columns, name, used):
    format = recognized(columns.split())
    assert (format.name, list(format.columns.values())) == (name, used.split())


def test_a_role_that_was_not_mapped_gets_the_column_of_its_own_name_only():
    by_hand = {"prompt": "q"}
    assert recognized(["q", "a", "completion"], columns=by_hand).columns == by_hand | {"completion": "completion"}
    assert "is mapped to the completion." in problems(["q", "answer"], "ab", columns=by_hand)
    # The first format that gets all of its columns.
    assert recognized(["t", "label"], columns={"text": "t"}).name == "text_label"
    assert recognized(["t", "labels"], columns={"text": "t"}).name == "text"


def test_rows_of_a_question_are_found_by_any_of_their_answers():
    names, answers = ["question", "context", "answers"], {"text": ["c"], "answer_start": [0]}
    assert recognized(names, ["q", "c", answers], ["q", "c", "a"]).name == "squad"
    assert recognized(names, ["q", "c", "a"], ["q", "c", answers]).name == "squad"
    assert "no column for the completion" in problems(names, ["q", answers, "c"])
