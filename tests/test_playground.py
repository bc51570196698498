"""The playground: which runs it offers, what a choice of runs changes, and what each column sends and shows."""

import json
from collections.abc import Iterator
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import in_order, plain
from visitors_runs import ANN, CHECK, copied, with_events

from tuner.errors import TunerError
from tuner.runs import create
from tuner.tasks import TASKS
from tuner.ui import actions, conversation, playground_tab
from tuner.ui.actions import Lineup

pytest_plugins = ["page_fixtures"]
SKIP = gr.skip()
NO_RUN = "No run is chosen. Choose one, or train one first."


@pytest.fixture(scope="module")
def tab():
    with gr.Blocks():
        return playground_tab.build(gr.BrowserState())


def turns(*texts: str) -> list[dict]:
    """A conversation that a user began."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def choose(tab, *given) -> dict:
    """What changes when the runs' owner chooses."""
    return playground_tab.choose_runs(tab, *given, visitor=ANN)


def answers(chosen: list[str], *given) -> Iterator[list]:
    """What the runs' owner sees while the models answer."""
    return playground_tab._answer(chosen, None, *given, visitor=ANN)


def hidden(update: dict) -> bool:
    return update["visible"] is False


def test_runs_are_offered_in_the_visitors_order_with_rows_base_and_status(mine, root):
    copied("qwerty", name=None, model__name="owner/big", model__quantization="int8", method__name="qlora")
    with_events(copied("stopped", name="short"), {"event": "end", "reason": "stopped", "step": 3})
    copied("example")
    copied("broken").write_text("recipe.yaml", "method: [")
    create(mine.recipe, path=root / "untrained")
    visitor = {"runs": ["stopped", "gone", "broken", "qwerty", "untrained"]}
    assert playground_tab.choices(visitor["runs"]) == [
        ("short · corporate stop on tiny-office, 4-bit (NF4), stopped", "stopped"),
        ("qlora · corporate qwer on big, 8-bit", "qwerty"),
        ("corporate · example on tiny-office, 4-bit (NF4)", "example"),
    ]
    assert [run for _, run in playground_tab.choices([])] == ["example"]


def test_the_chosen_runs_that_exist_stay_chosen_and_else_the_first_is(mine):
    copied("other")
    visitor = {"runs": ["mine", "other"]}
    for chosen, value in (
        (["other", "mine"], ["other", "mine"]),
        (["gone", "other"], ["other"]),
        ("other", ["other"]),
        (["gone"], ["mine"]),
        ([], ["mine"]),
        (None, ["mine"]),
    ):
        assert playground_tab.update_runs(visitor, chosen)["value"] == value
    linked = playground_tab.update_runs({"runs": ["mine"]}, "other")  # a run opened by its link
    assert (linked["value"], [run for _, run in linked["choices"]]) == (["other"], ["mine", "other"])
    assert playground_tab.update_runs(None)["value"] == []


def test_one_run_is_shown_with_its_adapter_and_merged_model(tab, mine):
    changed = choose(tab, ["mine"], [], "", None)
    assert changed[tab.shown] == ["mine"]
    titles = ["Base model", "Adapter", "Merged model"]
    for column, title in zip(tab.columns, titles):
        assert (changed[column]["label"], changed[column]["visible"]) == (title, True)
    assert hidden(changed[tab.columns[3]])
    assert "label" not in changed[tab.columns[3]]
    lines = (mine.data / "heldout.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["messages"][-1]["content"] for line in lines]
    assert changed[tab.examples]["samples"] == [[prompt] for prompt in prompts[:6]]
    assert "when the merged model first answers" in changed[tab.check]
    assert changed[tab.check_fold]["visible"] is True
    assert (changed[tab.reference], changed[tab.problem]) == ("", "")
    assert "value" not in changed[tab.prompt]
    mine.write_json("merge_check.json", CHECK)
    assert "99.0%" in choose(tab, ["mine"], [], "", None)[tab.check]


def test_a_run_that_cant_be_merged_has_no_merged_column_and_says_why(tab, root):
    copied("soft", method__name="prefix_tuning")
    changed = choose(tab, ["soft"], ["other"], "", None)
    assert [column["visible"] for column in map(changed.get, tab.columns)] == [True, True, False, False]
    assert "Prefix tuning can't be merged into this base model" in plain(changed[tab.check])
    assert changed[tab.check_fold]["visible"] is True


def test_several_runs_are_shown_by_their_names_in_the_order_they_were_chosen(tab, mine):
    rows = [{"messages": turns("earlier", "an answer", f"last {i}"), "reference": "x"} for i in range(2)]
    other = copied("other", name="second", seed=4)
    other.write_text("data/heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    changed = choose(tab, ["other", "mine"], ["other"], "", None)
    assert changed[tab.examples]["samples"] == [["last 0"], ["last 1"]]
    labels = [changed[column].get("label") for column in tab.columns]
    assert labels == ["Base model", "second · corporate othe", "corporate · mine", None]
    assert [changed[column]["visible"] for column in tab.columns] == [True, True, True, False]
    assert changed[tab.check] == ""
    assert hidden(changed[tab.check_fold])
    # The held-out rows are those of the first run, so the reference that is shown stays while that run does.
    assert changed[tab.reference] == SKIP
    assert choose(tab, ["mine", "other"], ["other"], "", None)[tab.reference] == ""
    copied("third", seed=5)
    three = choose(tab, ["mine", "other", "third"], ["mine"], "", None)
    assert [three[column]["visible"] for column in tab.columns] == [True] * 4


def test_without_a_choice_the_columns_of_one_run_are_shown_and_it_says_what_to_do(tab, mine):
    changed = choose(tab, [], ["mine"], "", None)
    assert changed[tab.shown] == []
    assert plain(changed[tab.problem]).strip() == "Choose a run. If there is none yet, train one first."
    assert changed[tab.examples]["samples"] == []
    assert [changed[column].get("label") for column in tab.columns] == ["Base model", "Adapter", "Merged model", None]
    assert hidden(changed[tab.check_fold])
    assert changed[tab.system]["visible"] is True
    # An empty choice is no choice that is shown already.
    assert tab.shown in choose(tab, [], [], "", None)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_shows_the_controls_that_it_uses(tab, root, task):
    copied("run", task)
    changed = choose(tab, ["run"], [], "", None)
    assert changed[tab.system]["visible"] == TASKS[task].chats
    assert changed[tab.sampling_fold]["visible"] == TASKS[task].generates
    assert changed[tab.prompt]["placeholder"] == TASKS[task].placeholder


def test_the_last_prompt_comes_back_for_another_choice_of_runs_but_not_over_a_typed_one(tab, mine):
    column = turns("the first prompt", "its answer", "the last prompt", "another answer")
    for first, prompt, value in (
        (column, "", "the last prompt"),
        (column, None, "the last prompt"),
        (column, "  ", "the last prompt"),
        (column[:3], "", "the last prompt"),  # still unanswered
        (column, "half a prompt", None),
        ([], "", None),
        (None, "", None),
    ):
        changed = choose(tab, ["mine"], [], prompt, first)
        assert changed[tab.prompt].get("value") == value


def test_a_choice_that_changes_nothing_leaves_the_conversation(tab, mine):
    assert choose(tab, ["mine"], ["mine"], "", None) == {tab.problem: ""}
    changed = choose(tab, ["gone"], ["mine"], "", None)
    assert list(changed) == [tab.problem]
    assert "There is no run 'gone'" in plain(changed[tab.problem])


def test_an_example_gives_the_last_question_of_its_row_and_its_reference(mine):
    rows = [{"messages": turns(f"q{i}", f"a{i}", f"last {i}"), "reference": f"answer <{i}>"} for i in range(8)]
    mine.write_text("data/heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for index, row in ((0, 0), ([2, 0], 2), ([5], 5)):
        prompt, reference, system, *columns = playground_tab._use_example(
            ["mine", "gone"], SimpleNamespace(index=index)
        )
        assert (system, columns) == (SKIP, [turns(f"q{row}", f"a{row}")] * 4)
        assert prompt == f"last {row}"
        assert "Reference" in reference
        assert plain(reference).split() == ["Reference", "answer", f"<{row}>"]
    (mine.data / "heldout.jsonl").unlink()
    assert playground_tab._heldout(mine) == []


def use(run, row: dict) -> list:
    """What a click on the second of two examples gives, of which the first has a system prompt."""
    first = {"messages": [{"role": "system", "content": "be brief"}, *turns("q")], "reference": "r"}
    lines = [json.dumps(each | {"reference": "r"}) for each in (first, row)]
    run.write_text("data/heldout.jsonl", "\n".join(lines))
    prompt, _, *rest = playground_tab._use_example([run.id], SimpleNamespace(index=1))
    return [prompt, *rest]


def test_a_chat_about_an_example_begins_with_what_is_scored(mine):
    kind = [{"role": "system", "content": "be kind"}]
    thoughtful = [turns("q")[0], {**turns("q", "a")[1], "reasoning_content": "t"}, *turns("last")]
    assert use(mine, {"messages": kind + thoughtful}) == ["last", "be kind", *[turns("q", "a")] * 4]
    assert use(mine, {"messages": turns("last")}) == ["last", "", *[[]] * 4]  # not that of the row before
    called = [*turns("q", "a"), {"role": "tool", "content": "42"}]
    assert use(mine, {"messages": called, "tools": []}) == ["42", "", *[turns("q", "a")] * 4]
    assert use(mine, {"messages": [*called, *turns("", "a")[1:], *turns("last")]}) == ["last", "", *[[]] * 4]
    joining = copied("joining")
    joining.write_json("plan.json", mine.plan | {"task": "seq2seq"})
    assert use(joining, {"messages": kind + turns("q", "a", "last")}) == ["be kind\nq\na\nlast", *[SKIP] * 5]
    assert use(joining, {"messages": turns("q", "a", "last"), "text": "cut to fit"})[0] == "cut to fit"


def test_sending_empties_the_prompt_and_offers_to_stop():
    prompt, pending, send, stop, problem, sent = playground_tab._begin(" hi ", ["mine"], "", 4)
    assert (prompt, pending, problem, sent) == ("", " hi ", "", 5)
    assert (send["visible"], stop["visible"]) == (False, True)
    for typed, chosen, pending, told in (
        ("hi", [], "", NO_RUN),
        ("hi", None, None, NO_RUN),
        ("", ["mine"], "", "The prompt is empty. Write one first."),
        ("  \n", ["mine"], "", "The prompt is empty. Write one first."),
        (None, ["mine"], None, "The prompt is empty. Write one first."),
        ("hi", ["mine"], "earlier", "An answer is being written."),
    ):
        *others, problem, sent = playground_tab._begin(typed, chosen, pending, 4)
        assert [*others, sent] == [SKIP] * 5
        assert told in plain(problem)


def test_when_answering_ends_the_prompt_comes_back_only_after_a_problem():
    note, problem = '<div class="t-note">Loading</div>', '<div class="t-problems">It broke.</div>'
    for typed, shown, restored, message in (
        ("", problem, "hi", SKIP),
        ("new", problem, SKIP, SKIP),
        ("", "", SKIP, SKIP),
        ("", None, SKIP, SKIP),
        ("", note, "hi", ""),  # stopped before the first answer
    ):
        prompt, pending, send, stop, now = playground_tab._end("hi", typed, shown)
        assert (prompt, pending, now) == (restored, "", message)
        assert (send["visible"], stop["visible"]) == (True, False)
        assert playground_tab._fail("hi", typed, shown)[0] == (typed or "hi")


def test_each_column_goes_on_with_its_own_conversation_and_shows_its_own_answers(mine, models):
    before = [turns("hello", f"hi from {number}") for number in range(3)]
    given = [*before, turns("not", "shown")]
    # temperature, top-p, length, seed
    updates = list(answers(["mine"], "more?", "Be brief.", 0.5, 0.25, 7, 3, *given))
    ((adapters, merged, conversations, sampling),) = models.asked
    assert {variant: run.id for variant, run in adapters.items()} == {"adapter": "mine"}
    assert merged == {"merged": mine.merged}
    system = {"role": "system", "content": "Be brief."}
    for number, variant in enumerate(("base", "adapter", "merged")):
        assert conversations[variant] == [system, *before[number], {"role": "user", "content": "more?"}]
    assert sampling == {"temperature": 0.5, "top_p": 0.25, "max_new_tokens": 7, "seed": 3}
    first, *streamed = updates
    assert len(streamed) == 2
    for number in range(3):
        assert first[number] == [*before[number], {"role": "user", "content": "more?"}]
    assert plain(first[4]).strip() == "Merging the adapter into the 16-bit base and checking the result …"
    assert first[5] == SKIP
    for part, update in zip(models.parts, streamed):
        for number, variant in enumerate(("base", "adapter", "merged")):
            answer = {"role": "assistant", "content": f"{part} from {variant}"}
            assert update[number] == [*before[number], {"role": "user", "content": "more?"}, answer]
        assert update[3:5] == [SKIP, ""]
        assert in_order(update[5], "99.0%", "0.125", "87.5%", "2.5")
    *_, again = [next(answers(["mine"], "x", None, 0, 1, 7, None, *[[]] * 4))]
    assert plain(again[4]).strip() == "Loading the models …"


def test_without_a_system_prompt_and_a_seed_there_are_no_empty_ones(mine, models):
    for system in ("", "  ", None):
        list(answers(["mine"], "x", system, 0, 1, 7, None, *[None] * 4))
        _, _, conversations, sampling = models.asked.pop()
        assert conversations["adapter"] == turns("x")
        assert sampling["seed"] == 0


def test_models_that_do_not_chat_see_each_text_on_its_own_and_say_when_they_find_nothing(root, models):
    copied("labels", "classification", method__name="prompt_tuning", method__rank="auto", model__name="tiny-reader")
    models.parts = [""]
    before = turns("earlier", "positive")
    lineup = Lineup({"adapter": actions.open_run("labels")}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions, "lineup", lambda chosen, visitor: lineup)
        *_, last, final = answers(["labels"], "now", "Be brief.", 0, 1, 7, 0, before, before, [], [])
    assert models.asked[0][2] == {"base": turns("now"), "adapter": turns("now")}
    assert [column[-1]["content"] for column in last[:2]] == ["", ""]
    for column in final[:2]:
        assert column == [*before, *turns("now", "(nothing)")]
    assert final[2:5] == [SKIP, SKIP, ""]
    assert "Prompt tuning can't be merged" in plain(final[5])


def test_an_answer_that_fails_leaves_the_earlier_turns_and_names_the_problem(mine, models):
    models.fails = TunerError("The GPU was taken away.")
    before = turns("hello", "hi")
    *_, last = answers(["mine"], "x", "", 0, 1, 7, 0, before, before, [*before, *turns("open")], [])
    assert last[:4] == [before, before, before, []]
    assert "The GPU was taken away." in plain(last[4])
    assert last[5] == SKIP
    assert list(answers(["mine"], "", "", 0, 1, 7, 0, before, [], [], [])) == [[SKIP] * 6]


def test_what_stayed_without_an_answer_is_not_asked_again():
    unanswered = [
        *turns("one", "an answer"),
        {"role": "user", "content": "again"},
        {"role": "user", "content": "more"},
    ]
    assert conversation.until_answered(unanswered) == turns("one", "an answer")
    assert conversation.until_answered(None) == conversation.until_answered([]) == []


def test_a_prompt_as_long_as_a_book_is_refused_and_not_kept():
    allowed, refused = (playground_tab._begin("x" * (100_000 + more), ["mine"], "", 0) for more in (0, 1))
    assert (len(allowed[1]), allowed[4]) == (100_000, "")
    assert refused[1] == SKIP
    assert "more than 100,000 characters" in plain(refused[4])
