"""Numbers with their nouns."""

import pytest

from tuner.words import count


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 steps"), (1, "1 step"), (1.0, "1 step"), (0.5, "0.5 steps"), (1.5, "1.5 steps"), (2, "2 steps"),
     (1200, "1,200 steps"), (2400.0, "2,400 steps"), (1200.5, "1,200.5 steps")],
)  # fmt: skip
def test_one_of_a_thing_is_singular_and_nothing_else_is(number, words):
    assert count(number, "step") == words
