"""Training rows and held-out rows: by the data's own splits, or by the seed."""

from collections import Counter

import pytest

from tuner.data.split import heldout_size, split_rows
from tuner.errors import TunerError
from tuner.recipe import Data

ANSWER = {"role": "assistant", "content": "Good day."}
ROWS = [{"messages": [{"role": "user", "content": f"{i}"}, ANSWER]} for i in range(100)]


def in_order(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=ROWS.index)


def test_a_share_is_held_out_by_the_seed():
    once, again, other = (split_rows(ROWS, None, Data(), seed) for seed in (1, 1, 2))
    assert once == again
    assert once.heldout != other.heldout
    assert (len(once.train), len(once.heldout)) == (84, 16)
    assert sorted(map(str, once.train + once.heldout)) == sorted(map(str, ROWS))
    assert "16 of 100 rows were drawn with the seed (1)" in once.reason
    assert len(split_rows(ROWS[:5], None, Data(), 0).heldout) == 1


@pytest.mark.parametrize(
    ("rows", "heldout"),
    [(4, 1), (5, 1), (9, 2), (30, 6), (50, 10), (59, 12), (60, 16), (160, 16), (170, 17), (640, 64), (20_000, 2000),
     (100_000, 2000)],
)  # fmt: skip
def test_a_fifth_of_few_rows_is_held_out_sixteen_of_sixty_and_a_tenth_of_many(rows, heldout):
    assert heldout_size(rows, "auto") == heldout
    assert heldout_size(rows, 7) == 7
    assert heldout_size(rows, 0.5) == round(rows / 2)


def labeled(**counts: int) -> list[dict]:
    return [{"text": f"{label} {i}", "label": label} for label, rows in counts.items() for i in range(rows)]


@pytest.mark.parametrize("seed", range(5))
def test_each_label_has_its_share_of_the_held_out_rows(seed):
    parts = split_rows(labeled(a=90, b=60, c=10), None, Data(), seed)
    held = Counter(row["label"] for row in parts.heldout)
    assert held.total() == 16
    assert (held["a"], held["b"], held["c"]) == (9, 6, 1)
    assert parts.warnings == ()
    assert parts.heldout != sorted(parts.heldout, key=lambda row: row["label"])
    assert split_rows(labeled(a=90, b=60, c=10), None, Data(), seed + 1).heldout != parts.heldout


def test_any_rows_of_a_label_may_be_held_out_together():
    def drawn(seed: int) -> frozenset:
        return frozenset(row["text"] for row in split_rows(labeled(a=50, b=50), None, Data(), seed).heldout)

    assert len({drawn(seed) for seed in range(20)}) == 20


def test_labels_on_one_side_alone_are_named():
    rows = labeled(a=5, b=3) + labeled(a=2, c=2, d=1)
    parts = split_rows(rows, ["train"] * 8 + ["test"] * 5, Data(), 0)
    assert parts.warnings[-2:] == (
        "No training row has the labels c, d, so 3 held-out rows can't be answered right.",
        "No held-out row has the label b: the scores say nothing about this.",
    )
    many = [{"tokens": ["x"], "tags": [f"t{i}"]} for i in range(9)] + [{"tokens": ["y"], "tags": ["t0"]}]
    (warning,) = split_rows(many, ["train"] * 9 + ["test"], Data(), 0).warnings
    assert warning.startswith("No held-out row has the labels t1, t2, t3, t4, t5 and 3 more:")


def test_the_seed_of_the_data_draws_the_held_out_rows_whatever_the_runs_own_seed_is():
    own = split_rows(ROWS, None, Data(), 5)
    assert own == split_rows(ROWS, None, Data(seed=5), 1) == split_rows(ROWS, None, Data(seed=5), 2)
    assert split_rows(ROWS, None, Data(seed=0), 5) != own


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
    assert len(split_rows(ROWS, ["train"] * 100, Data(), 0).heldout) == 16


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
        assert len(parts.heldout) == round(len(by_name[trained]) / 5)  # of 50


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
    assert (len(alone.train), len(alone.heldout)) == (16, 4)


def test_splits_that_can_not_be_had():
    for rows, names, settings, expected in (
        (ROWS[:3], None, {}, "only 3 rows, and some must be held out. Give at least 4"),
        (ROWS, None, {"heldout": 100}, "data.heldout: 100 of 100 rows can't be held out"),
        (ROWS, None, {"heldout_split": "test"}, "has no splits, so 'test' can't be held out"),
        (ROWS, ["a"] * 100, {"split": "b"}, "has no split 'b'. Set it to one of: a."),
        (ROWS, ["a"] * 100, {"heldout_split": "a"}, "can't be both trained on and held out"),
    ):
        with pytest.raises(TunerError) as caught:
            split_rows(rows, names, Data(**settings), 0)
        assert expected in str(caught.value)


def test_prompts_on_both_sides_are_counted():
    parts = split_rows([*ROWS, *ROWS], ["train"] * 100 + ["test"] * 100, Data(), 0)
    assert parts.warnings[0].startswith("100 of 100 held-out rows")
    assert split_rows(ROWS, None, Data(), 0).warnings == ()


def chat(user: str, answer: str = "Yes.", system: str = "") -> dict:
    first = [{"role": "system", "content": system}] if system else []
    return {"messages": [*first, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


FOLLOWED_UP = {"messages": [*chat("other")["messages"], *chat("0")["messages"]]}


@pytest.mark.parametrize(
    ("trained", "held", "leaks"),
    [
        ([chat(f"{i}") for i in range(8)], [chat("1", "No."), chat("2"), chat("9")], 2),  # whatever the answer is
        ([chat(f"{i}", system="A.") for i in range(8)], [chat("1", system="B."), chat("2"), chat("9")], 2),
        ([chat(f"{i}") for i in range(8)], [FOLLOWED_UP], 0),  # the same last turn of another conversation
        ([FOLLOWED_UP] * 4, [FOLLOWED_UP], 1),
        ([{"text": "a", "label": "x"}] * 4, [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], 1),
        ([{"tokens": ["a"], "tags": ["B"]}] * 4, [{"tokens": [word], "tags": ["B"]} for word in "ab"], 1),
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


# -- every sentence


def words(call, *args) -> str:
    with pytest.raises(TunerError) as caught:
        call(*args)
    return str(caught.value)


def test_what_is_said_of_rows_that_can_not_be_divided():
    too_few = "and some must be held out. Give at least 4 rows, preferably hundreds."
    assert words(split_rows, ROWS[:1], None, Data(), 0) == f"There is only 1 row, {too_few}"
    assert words(split_rows, ROWS[:3], None, Data(), 0) == f"There are only 3 rows, {too_few}"
    assert len(split_rows(ROWS[:4], None, Data(), 0).train) == 3
    assert words(split_rows, ROWS, None, Data(source="a/b", heldout_split="val"), 0) == (
        "data.heldout_split: a/b has no splits, so 'val' can't be held out. Leave the setting out."
    )
    many = ROWS * 15
    assert words(split_rows, many, None, Data(heldout=1600), 0) == (
        "data.heldout: 1,600 of 1,500 rows can't be held out. Hold out fewer."
    )
    assert words(split_rows, many, None, Data(heldout=1200, max_rows=1200), 0) == (
        "data.heldout: 1,200 of 1,200 rows can't be held out. Hold out fewer."
    )
    assert words(split_rows, ROWS, ["x", "y"] * 50, Data(source="a/b", split="z"), 0) == (
        "data.split: a/b has no split 'z'. Set it to one of: x, y."
    )


LEAKS = "a prompt that is also trained on, so the scores will look too good. Drop the duplicates."


def test_what_is_said_of_rows_that_were_divided():
    many = [chat(f"{n}") for n in range(3000)]
    names = ["train"] * 1800 + ["test"] * 1200
    assert split_rows(many, names, Data(), 7).reason == (
        'Training on the split "train" (1,800 rows), holding out "test" (1,200 rows).'
    )
    few = split_rows(many, names, Data(max_rows=1500), 7)
    assert few.reason == (
        'Training on the split "train" (1,500 rows), holding out "test" (1,200 rows). Only 1,500 of 1,800 rows are '
        "used (data.max_rows)."
    )
    assert "Only" not in split_rows(many, names, Data(max_rows=1800), 7).reason
    one = split_rows(many[:5], ["train"] + ["test"] * 4, Data(max_rows=3), 7)
    assert one.reason == 'Training on the split "train" (1 row), holding out "test" (3 rows).'
    one = split_rows(many[:5], ["train"] * 4 + ["test"], Data(), 7)
    assert one.reason == 'Training on the split "train" (4 rows), holding out "test" (1 row).'
    assert split_rows(many, None, Data(heldout=1100, max_rows=2500), 7).reason == (
        "1,100 of 2,500 rows were drawn with the seed (7): there is no split to hold out. Only 2,500 of 3,000 rows "
        "are used (data.max_rows)."
    )
    assert split_rows(many[:10], None, Data(), 7).reason == (
        "2 of 10 rows were drawn with the seed (7): there is no split to hold out."
    )
    assert split_rows(many[:5], None, Data(), 7).reason.startswith("1 of 5 rows was drawn")
    # A split by name that is none: all rows are of it.
    assert len(split_rows(ROWS, None, Data(split="anything"), 7).train) == 84


def test_what_is_said_of_prompts_on_both_sides():
    many = [chat(f"{n}") for n in range(2000)]
    (warning,) = split_rows([*many, *many[:1300]], ["train"] * 2000 + ["test"] * 1300, Data(), 0).warnings
    assert warning == f"1,300 of 1,300 held-out rows have {LEAKS}"
    (warning,) = split_rows([*many[:4], *many[3:6]], ["train"] * 4 + ["test"] * 3, Data(), 0).warnings
    assert warning == f"1 of 3 held-out rows has {LEAKS}"
    (warning,) = split_rows([*many[:4], many[3]], ["train"] * 4 + ["test"], Data(), 0).warnings
    assert warning == f"1 of 1 held-out row has {LEAKS}"
    # Case and spacing make no other prompt.
    parts = split_rows([chat("Say  hi"), *many[:3], chat("say\nHI ")], ["train"] * 4 + ["test"], Data(), 0)
    assert parts.warnings == (f"1 of 1 held-out row has {LEAKS}",)
    assert (parts.repeated, split_rows(many, None, Data(), 0).repeated) == (1, 0)
    # Rows of one split, and plain text.
    (warning,) = split_rows([chat("a")] * 40, None, Data(heldout=30), 0).warnings
    assert warning == f"30 of 30 held-out rows have {LEAKS}"
    texts = [{"text": text} for text in "abcdea"]
    (warning,) = split_rows(texts, ["train"] * 4 + ["test"] * 2, Data(), 0).warnings
    assert warning.startswith("1 of 2 held-out")


def test_held_out_rows_of_a_split_are_as_many_as_the_recipe_allows_and_drawn_anew():
    names = ["train"] * 30 + ["test"] * 70
    parts = split_rows(ROWS, names, Data(max_rows=50), 5)
    assert (len(parts.train), len(parts.heldout)) == (30, 50)
    assert parts.train == ROWS[:30]
    assert {str(row) for row in parts.heldout} <= {str(row) for row in ROWS[30:]}
    assert len({str(row) for row in parts.heldout}) == 50
    other = split_rows(ROWS, names, Data(max_rows=50), 6)
    assert {str(row) for row in parts.heldout} != {str(row) for row in other.heldout}
