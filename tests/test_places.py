"""Places that addresses share: who is served next, and what is kept for those who come new."""

import asyncio
from collections import Counter

import pytest

from tuner.errors import TunerError
from tuner.places import NOBODY, Asker, Places

MOST = {"all": 4, "session": 2, "address": 3}


class Line:
    """Places with their visitors: `served` are those who have one, in order."""

    def __init__(self, *joined: str, **asked: int):
        self.places, self.served, self.tickets = Places(MOST, asked), [], {}
        for name in joined:
            self.join(name)

    def join(self, name: str) -> None:
        """Somebody asks; the name's first letter is the address, its second the session there."""
        asker = Asker(name[:2], name[:1])
        self.tickets[name] = self.places.join(asker, lambda: self.served.append(name))

    def leave(self, *names: str) -> None:
        """They leave the line, or end."""
        for name in names:
            self.places.leave(self.tickets.pop(name))
            self.served = [other for other in self.served if other != name]


def test_an_address_has_three_places_at_most_and_a_session_two():
    assert Line("aa1", "aa2", "aa3").served == ["aa1", "aa2"]
    assert Line("aa1", "ab1", "ac1", "ad1").served == ["aa1", "ab1", "ac1"]


def test_the_last_place_is_for_who_has_none():
    line = Line("aa1", "ab1", "ba1", "bb1", "ac1")
    assert line.served == ["aa1", "ab1", "ba1"]
    line.join("ca1")
    assert line.served == ["aa1", "ab1", "ba1", "ca1"]
    line.leave("aa1")
    assert line.served == ["ab1", "ba1", "ca1"]


def test_next_is_the_address_with_the_fewest_that_waited_longest_and_then_such_a_session():
    line = Line("aa1", "ab1", "ba1", "ca1", "aa2", "ac1", "bb1", "bc1")
    assert line.served == ["aa1", "ab1", "ba1", "ca1"]
    line.leave("ca1", "ab1")  # of a and b, who have one each, a was served first: its page that has none is next
    assert line.served == ["aa1", "ba1", "ac1"]
    line.leave("aa1", "ac1")
    assert line.served == ["ba1", "bb1", "aa2"]


def test_however_two_addresses_flood_a_third_waits_for_one_to_end_at_most_and_soon_for_none():
    line = Line(*(f"{address}{session}{number}" for number in range(9) for address in "ab" for session in "abcdef"))
    assert Counter(name[0] for name in line.served) == {"a": 2, "b": 1} or len(line.served) == 4
    for ended in range(30):
        line.join(f"c{ended % 7}x")
        if f"c{ended % 7}x" not in line.served:
            assert not ended  # only at first, while one address has what it took when it was alone
            line.leave(line.served[0])
        assert f"c{ended % 7}x" in line.served
        line.leave(f"c{ended % 7}x")
        line.leave(line.served[ended % len(line.served)])


def test_of_many_addresses_that_flood_none_is_served_twice_before_who_comes_new():
    line = Line(*(f"{address}a{number}" for number in range(9) for address in "abcdef"))
    assert [name[0] for name in line.served] == ["a", "b", "c", "d"]
    line.join("na1")
    order = []
    for _ in range(7):
        line.leave(line.served[0])
        order.append(line.served[-1][0])
    assert order == ["e", "f", "n", "a", "b", "c", "d"]


def test_who_asks_for_too_much_is_refused_and_what_ended_or_left_the_line_counts_no_longer():
    line = Line("aa1", "aa2", "aa3", "ab1", session=3, address=4)
    for name in ("aa4", "ac1"):
        with pytest.raises(TunerError, match="many checks at once"):
            line.join(name)
    line.leave("aa3")  # which had no place yet
    line.join("ac1")
    line.leave("aa1")
    line.join("ad1")
    line.leave("aa2", "ab1", "ac1", "ad1")
    assert not line.served
    places = line.places
    assert not places._waiting + places._served + list(places._busy) + list(places._latest)


def test_who_is_not_known_is_not_counted():
    line = Line()
    for _ in range(5):
        line.places.join(NOBODY, lambda: line.served.append("nobody"))
    assert line.served == ["nobody"] * 4
    line = Line()
    for session in "ab":
        line.places.join(Asker(session), lambda: line.served.append("at home"))
        line.places.join(Asker("", "203.0.113.7"), lambda: line.served.append("without a page"))
    assert len(line.served) == 4 - 1  # the last one is kept


def test_whoever_gives_up_waiting_is_forgotten():
    line = Line("aa1", "ba1", "ca1", "da1")
    with pytest.raises(TunerError, match="busy checking what others"), line.places.hold(Asker("e", "e"), 0.01):
        pass
    assert not line.places._waiting


def test_no_thread_waits_for_a_place_that_is_awaited():
    line = Line("aa1", "ba1", "ca1", "da1")

    async def ask(who: str) -> None:
        async with line.places.hold_async(Asker(who, who)):
            line.served.append(who)

    async def visit() -> None:
        mine, given_up = asyncio.create_task(ask("me")), asyncio.create_task(ask("she"))
        await asyncio.sleep(0)
        assert len(line.places._waiting) == 2
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert len(line.places._waiting) == 1
        await asyncio.to_thread(line.leave, "aa1")
        await asyncio.wait_for(mine, 20)

    asyncio.run(visit())
    assert line.served == ["ba1", "ca1", "da1", "me"]
