"""Sentences about people, companies, places and dates, with BIO tags.

Many words are a first name and a town (Paris), a surname and a firm (Hunter) or a month and a name (May), so that only
the words around them tell. Sentences without any entity use the same words.
"""

import random

from examples.words import words

TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-DATE", "I-DATE")

PLACE_NAMES = words("Paris Jordan Chelsea Austin Florence Sydney Georgia Charlotte Victoria Dallas Madison Lincoln")
MONTH_NAMES = words("May April June August")
FIRST = words("Anna Omar Lena Tomas Ingrid Ravi Mei Pavel Sofia Kwame Yara Nils") + PLACE_NAMES + MONTH_NAMES
SHARED_LAST = words("Baker Hunter Marsh Wells Holland York Banks Winter March Summit Field Lincoln")
LAST = words("Novak Okafor Lindgren Haddad Castro Moretti Petrov Tanaka") + SHARED_LAST
PLACES = words("Oslo Lima Nairobi Kyoto Ghent Porto Wells Holland York") + PLACE_NAMES
FIRMS = words("Orbit Lumen Quarry Verity Hunter Baker Marsh Winter Summit Field Holland Wells Lincoln Victoria Austin")
MONTHS = words("January February March July October December") + MONTH_NAMES
DAYS = words("Monday Tuesday Wednesday Thursday Friday Sunday")

# {P} person, {P1} by one name, {O} firm, {L} place, {D} date after a preposition of its own, {M} month or day.
TEMPLATES = """
{P1} said that she was tired / {P1} told her brother a secret / {P} was born in {L} / {P} moved to {L} in {M} /
{P1} and {P1} got married in {L} / the mayor of {L} met {P} / {P} works for {O} / {O} hired {P} in {M} /
{O} opened a shop in {L} / {O} will close its plant in {L} in {M} / shares of {O} fell on {D} /
{O} said that sales rose in {M} / a spokesman for {O} declined to comment / {P} , who runs {O} , flew to {L} /
the train from {L} to {L} was late on {D} / it rained in {L} on {D} / we spent {M} in {L} / I met {P1} in {L} /
I will write to {P1} in {M} / {P1} loves {L} in {M} / the streets of {L} were empty / {O} bought {O} in {M} /
{P} left {O} on {D} / {P1} lives in {L} with her aunt / the bank lent {O} two million / {L} is warm in {M} /
{L} has a new bridge / {L} lies on a river / {P1} has a new bicycle / {O} has a new boss / {P1} laughed and sat down /
on {D} {P1} called her mother / in {M} {O} cut forty jobs / in {L} {P1} found a job / the shop of {P} burned down /
{M} was dry in {L} / the factory that {O} built near {L} is noisy / {P1} fixed the roof / {O} sued {O} /
people in {L} vote on {D} / the lawyers of {O} wrote to {P} / dear {P1} , come to {L} / she asked {P1} about {O} /
the flight to {L} leaves on {D} / the contract between {O} and {O} ends in {M} / {P} was ill until {M} /
since {M} {P} has led {O} / {P1} is nine years old / {O} makes chairs / {L} is north of {L}"""
PLAIN = """
they march through the field / we may leave before the winter / may I come in / the baker sold his last bread /
the hunter waited in the marsh / the wells on the field were dry / the banks of the river are green /
he told them to march on / the summit was cold / I may be late / winter came early / field trips are fun /
the old baker may stay at home / nobody went near the marsh"""
FIRM_ENDS = words("Foods Motors Bank Airways Press Group Systems")
PLACE_STARTS = words("New North Port Lake West")


def choices(text: str) -> list[str]:
    """Wordings separated by slashes."""
    return [" ".join(part.split()) for part in text.split("/")]


TEMPLATE_LIST, PLAIN_LIST = choices(TEMPLATES), choices(PLAIN)


def entity(rng: random.Random, slot: str) -> tuple[str, str]:
    """The words and the type of an entity for a slot."""
    kind = rng.random()
    if slot == "P1":
        return rng.choice(FIRST), "PER"
    if slot == "P":
        first, last = rng.choice(FIRST), rng.choice(LAST)
        return (f"{first} {last}" if kind < 0.6 else last if kind < 0.75 else first), "PER"
    if slot == "O":
        if kind < 0.5:
            return rng.choice(FIRMS), "ORG"
        if kind < 0.7:
            return f"{rng.choice(SHARED_LAST)} & {rng.choice(LAST)}", "ORG"
        if kind < 0.8:
            return rng.choice([f"Bank of {rng.choice(PLACES)}", f"University of {rng.choice(PLACES)}"]), "ORG"
        return f"{rng.choice(FIRMS + PLACES)} {rng.choice(FIRM_ENDS)}", "ORG"
    if slot == "L":
        place = rng.choice(PLACES)
        return (f"{rng.choice(PLACE_STARTS)} {place}" if kind < 0.2 else place), "LOC"
    month, day, year = rng.choice(MONTHS), str(rng.randrange(1, 29)), str(rng.randrange(1990, 2030))
    if slot == "D":
        return rng.choice([rng.choice(DAYS), f"{day} {month}", f"{month} {day}", f"{day} {month} {year}"]), "DATE"
    return rng.choice([month, month, f"{month} {year}", f"early {month}", year]), "DATE"


def clause(rng: random.Random) -> tuple[list[str], list[str]]:
    """The tokens of a clause and their tags."""
    template = rng.choice(PLAIN_LIST if rng.random() < 0.12 else TEMPLATE_LIST)
    tokens, tags = [], []
    for word in template.split():
        if word[0] != "{":
            tokens.append(word)
            tags.append("O")
            continue
        text, kind = entity(rng, word[1:-1])
        tokens += text.split()
        tags += [f"{'I' if place else 'B'}-{kind}" for place in range(len(text.split()))]
    return tokens, tags


def sentence(rng: random.Random) -> tuple[list[str], list[str]]:
    """One clause, or two."""
    tokens, tags = clause(rng)
    if rng.random() < 0.45:
        more, more_tags = clause(rng)
        link = rng.choice([[",", "and"], [",", "but"], [";"], [",", "while"], ["because"]])
        tokens, tags = [*tokens, *link, *more], [*tags, *["O"] * len(link), *more_tags]
    return [tokens[0][0].upper() + tokens[0][1:], *tokens[1:], "."], [*tags, "O"]


def rows(seed: int, count: int) -> list[dict[str, list[str]]]:
    """Rows of entities.jsonl, no two with the same tokens."""
    rng, sentences = random.Random(f"entities {seed}"), {}
    while len(sentences) < count:
        tokens, tags = sentence(rng)
        sentences[tuple(tokens)] = tags
    return [{"tokens": list(tokens), "tags": tags} for tokens, tags in sentences.items()]


def text(rng: random.Random) -> str:
    """For pre-training: two or three sentences."""
    return " ".join(" ".join(sentence(rng)[0]) for _ in range(rng.choice([1, 2, 3])))
