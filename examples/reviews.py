"""Product reviews with a label, and longer ones without for pre-training.

Whether a word is praise depends on the thing: a fan should be quiet, a speaker should not. It may be negated, or
conceded, and then what comes after "but" or "still" decides. Where good and bad even out, or the text holds
only facts, the review is neutral.
"""

import random

from examples.words import words

LABELS = ("positive", "negative", "neutral")

# thing: part good bad, part good bad ...; the part "it" is the thing itself.
THINGS = """
fan: motor quiet loud, base steady wobbly, it small bulky; speaker: sound loud quiet, bass deep thin, it steady wobbly;
lamp: light bright dim, arm firm loose; night light: light dim bright, plug firm loose;
tent: fabric thick thin, floor dry damp, it light heavy; winter blanket: it heavy light, fabric soft rough;
knife: blade sharp blunt, handle firm loose; baby spoon: edge blunt sharp, it light heavy;
chilli sauce: taste hot mild, texture thick thin; mattress: middle firm soft, cover soft rough;
cushion: middle soft firm, it thick thin; ice box: inside cold warm, lid firm loose;
heater: air warm cold, motor quiet loud"""

# Singular events, good and bad.
GOOD = """it worked at once / it survived a fall / my whole family uses it / nothing broke / it has not let me down /
I have yet to find a fault / it did not fail once / it does more than the box says / I did not need the manual /
everybody asks me where I got it / it never gave me trouble"""
BAD = """it broke within a week / it stopped working / half of the parts were missing / it let me down /
nothing worked / I have yet to see it work / it did not last a month / it does less than the box says /
nobody here wants to use it / the seam came apart / it never did what I wanted"""
FACTS = """it came in a brown box / I bought it in {month} / it stands in the {room} / I use it on {day} /
my {relative} has one, too / it replaces an old one / it comes in two sizes / the manual has {number} pages /
it took {number} days to get here / I have had it for {number} weeks / the box holds one {thing} and a manual"""
GOOD_END = """I would buy it again / I would not give it back / it is worth every cent / I have no complaints /
I do not regret it / I can only recommend it / it has a place in my heart / I could not ask for more /
I ordered a second one / no other {thing} comes close"""
BAD_END = """I would not buy it again / I gave it back / it is not worth a cent / I have nothing but complaints /
I regret it / I cannot recommend it / it has a place in the bin / I had asked for more than that /
I ordered another make / any other {thing} does better"""
EVEN_END = """it is neither good nor bad / I could take it or leave it / it is an average {thing} / it evens out /
I have no strong feelings about it / it does its job and no more / I am in two minds about it / it is as one expects /
I may or may not buy it again / there are better ones and worse ones"""

SLOTS = {
    "month": words("January February April June October December"),
    "room": words("kitchen garage bedroom hall office"),
    "day": words("Mondays Sundays Fridays weekends"),
    "relative": words("mother brother aunt neighbour boss"),
    "number": words("two three four five six eight ten twelve"),
}


def choices(text: str) -> list[str]:
    """Wordings separated by slashes."""
    return [" ".join(part.split()) for part in text.split("/")]


def things() -> dict[str, list[tuple[str, str, str]]]:
    """The parts of each thing, with a word of praise and one of blame for each."""
    by_thing = {}
    for entry in THINGS.split(";"):
        thing, _, parts = entry.partition(":")
        by_thing[thing.strip()] = [tuple(part.split()) for part in parts.split(",")]
    return by_thing


BY_THING = things()


class Reviewer:
    """Says things about one product."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.thing = rng.choice(list(BY_THING))
        self.used: set[str] = set()

    def pick(self, text: str) -> str:
        """A phrase that was not used yet, filled in."""
        phrase = self.rng.choice([phrase for phrase in choices(text) if phrase not in self.used])
        self.used.add(phrase)
        drawn = {slot: self.rng.choice(fillers) for slot, fillers in SLOTS.items()}
        return phrase.format(thing=self.thing, **drawn)

    def quality(self, good: bool) -> str | None:
        """What a part that was not mentioned yet is, or is not."""
        left = [entry for entry in BY_THING[self.thing] if entry[0] not in self.used]
        if not left:
            return None
        part, praise, blame = self.rng.choice(left)
        self.used.add(part)
        subject = "it" if part == "it" else f"the {part}"
        right, wrong = (praise, blame) if good else (blame, praise)
        if self.rng.random() < 0.5:
            return f"{subject} is {self.rng.choice(['', '', 'very ', 'really ', 'always '])}{right}"
        no = self.rng.choice(["not", "never", "not at all"])
        return f"{subject} is {no} {wrong}"

    def clause(self, good: bool) -> str:
        """A statement of one mind."""
        quality = self.quality(good) if self.rng.random() < 0.5 else None
        return quality or self.pick(GOOD if good else BAD)

    def end(self, good: bool) -> str:
        """A verdict."""
        return self.pick(GOOD_END if good else BAD_END)

    def sides(self, good: bool) -> str:
        """Both sides, of which one weighs more."""
        minor, major = self.clause(not good), self.clause(good)
        return self.rng.choice(
            [
                f"{minor}, but {major}",
                f"{minor}, but {self.end(good)}",
                f"{minor}. Still, {self.end(good)}",
            ]
        )

    def sentence(self, label: str) -> str:
        """A sentence that earns the label."""
        if label == "neutral":
            first, second = self.clause(side := self.rng.random() < 0.5), self.clause(not side)
            return self.rng.choice(
                [
                    f"{first} and {second}, so {self.pick(EVEN_END)}",
                    f"{first}. {second}. All in all, it evens out",
                    self.pick(FACTS),
                    f"{self.pick(FACTS)} and {self.pick(FACTS)}",
                    self.pick(EVEN_END),
                ]
            )
        good = label == "positive"
        return self.sides(good) if self.rng.random() < 0.4 else self.clause(good)


def written(parts: list[str]) -> str:
    """The parts as sentences, with capitals and full stops."""
    sentences = [sentence for part in parts for sentence in part.split(". ")]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def review(rng: random.Random, label: str, length: int = 0) -> str:
    """One to three sentences; with a length, that many parts and a verdict."""
    reviewer = Reviewer(rng)
    parts = [reviewer.sentence(label)]
    for _ in range(length - 1):
        parts.append(reviewer.sentence(label) if label == "neutral" else reviewer.clause(label == "positive"))
    closing = EVEN_END if label == "neutral" else GOOD_END if label == "positive" else BAD_END
    if length or rng.random() < 0.3:
        parts.append(reviewer.pick(closing))
    if rng.random() < 0.3:
        parts.insert(rng.randrange(len(parts)), reviewer.pick(FACTS))
    text = written(parts)
    if reviewer.thing in text:
        return text
    if text.startswith("It ") and not text.startswith("It evens"):
        return f"The {reviewer.thing} {text[3:]}"  # it is named, as what is good depends on it
    return rng.choice(["My new {}: ", "About the {}: ", "We got the {}. "]).format(reviewer.thing) + text


def rows(seed: int, count: int) -> list[dict[str, str]]:
    """Rows of reviews.jsonl, the same number of each label."""
    rng, reviews = random.Random(f"reviews {seed}"), {}
    while len(reviews) < count:
        label = LABELS[len(reviews) % len(LABELS)]
        text = review(rng, label)
        if text.count(". ") < 3:
            reviews.setdefault(text, label)
    pairs = list(reviews.items())
    rng.shuffle(pairs)
    return [{"text": text, "label": label} for text, label in pairs]


def text(rng: random.Random) -> str:
    """For pre-training: longer, with a verdict, which a reader who has understood the rest can guess."""
    return review(rng, rng.choice(LABELS), rng.choice([1, 1, 2, 2, 3]))
