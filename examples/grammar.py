"""The small world of the tiny base model: an office whose people say the same things in two ways.

A slot holds fillers, each with casual wordings and one formal wording. A frame is something one says at work: casual
templates, one formal template, and casual answers to it. Rows pair a frame's casual and formal wording; the text for
pre-training never does. Two slots of each frame are its key: some pairs of key fillers are held out, and occur neither
in the training rows nor in the pre-training text.
"""

import random
import re
from itertools import product
from typing import NamedTuple

from words import CLOSERS, NAMES, OPENERS, SLOTS, Filler

SEED = 7
TRAIN_ROWS = 480
TEST_ROWS = 80
OPENER_SHARE, CLOSER_SHARE = 0.6, 0.4  # of the messages
ECHO_SHARE = 0.3  # of the answers
HELD_OUT_SHARE = 0.15  # of each key's pairs of fillers


class Frame(NamedTuple):
    """Something that one says at work."""

    key: tuple[str, str]  # the two slots whose pairs are held out
    mood: str  # which openers and closers suit it: "ask", "bad", "good"
    casual: tuple[str, ...]
    formal: str
    answers: tuple[str, ...]


class Message(NamedTuple):
    """A frame with its slots filled in, and its answers."""

    frame: str
    pair: tuple[str, str]  # formal wordings of the key fillers
    casual: str
    formal: str
    answers: tuple[str, str]  # to the casual wording, to the formal one


FIRST_TEST_ROW = Message(
    "absence, ill",
    ("I need to leave early", "child"),
    "yo i gotta bounce early tmrw cuz my kid is sick",
    "I need to leave early tomorrow because my child is unwell.",
    ("", ""),
)

FRAMES = {
    "absence, ill": Frame(
        ("act", "kin"),
        "bad",
        ("{act} {day} cuz my {kin} {ill}", "my {kin} {ill} so {act} {day}", "{act} {day}, my {kin} {ill}"),
        "{act} {day} because my {kin} {ill}.",
        (
            "oh no, hope ur {kin} feels better soon! we got u {day}",
            "aw poor thing, hug ur {kin} for me. dont worry about {day}",
        ),
    ),
    "absence, own": Frame(
        ("act", "own"),
        "bad",
        ("{act} {day} cuz {own}", "{own} so {act} {day}", "{own}, {act} {day}"),
        "{act} {day} because {own}.",
        ("ugh that sucks, {own}?! no worries, we got u {day}", "ouch, ok. ill tell the others u wont be around {day}"),
    ),
    "request": Frame(
        ("do", "doc"),
        "ask",
        ("{ask} {do} {doc} {due}",),
        "{ask} {do} {doc} {due}?",
        ("sure thing, ill {do} {doc} {due}", "on it! {doc} {due}, gotcha", "ugh, {due}? fine, gimme {doc}"),
    ),
    "reschedule": Frame(
        ("shift", "event"),
        "ask",
        ("lets {shift} {event} {slot} cuz {excuse}", "{excuse} so lets {shift} {event} {slot}"),
        "I propose that we {shift} {event} {slot} because {excuse}.",
        ("fine by me, {event} {slot} it is", "works for me! ill tell {dept} about {event}"),
    ),
    "call": Frame(
        ("clock", "doc"),
        "ask",
        ("u free {day} {clock} to chat about {doc}", "wanna talk {doc} {day} {clock}"),
        "Would you be available {day} {clock} to discuss {doc}?",
        ("yep, {day} {clock} works, lets chat about {doc}", "hmm, {clock} is tight but ok"),
    ),
    "apology, thing": Frame(
        ("slip", "doc"),
        "bad",
        ("soz i {slip} {doc}, {sorry}", "my bad, i {slip} {doc}. {sorry}"),
        "I apologise for {slip} {doc}. {sorry}",
        ("lol no biggie, {doc} can wait", "u {slip} {doc}?? its fine, dont sweat it"),
    ),
    "apology, event": Frame(
        ("snub", "event"),
        "bad",
        ("soz i {snub} {event}, {sorry}", "my bad, i {snub} {event}. {sorry}"),
        "I apologise for {snub} {event}. {sorry}",
        ("haha u {snub} {event}? legend", "its ok, {event} was boring anyway"),
    ),
    "complaint": Frame(
        ("gear", "fault"),
        "bad",
        ("{gear} {fault} again, {effect}", "omg {gear} {fault} again. {effect}"),
        "I wish to report that {gear} {fault} once more. {effect}",
        ("not {gear} again!! ill poke the it crowd", "lol {gear} {fault}? try kicking it"),
    ),
    "praise": Frame(
        ("laud", "doc"),
        "good",
        ("{hero} {laud} {doc}, {cheer}", "wow {hero} {laud} {doc}! {cheer}"),
        "{hero} {laud} {doc}. {cheer}",
        ("woohoo, {doc} turned out great!", "aw ty, made my day!", "yesss go team"),
    ),
    "follow-up": Frame(
        ("chase", "doc"),
        "ask",
        ("{chase} {doc} from {dept}",),
        "{chase} {doc} from {dept}.",
        ("hmm, ill poke {dept} about {doc}", "no clue, ask {dept}", "{doc}? still nothing, sry"),
    ),
    "delay": Frame(
        ("doc", "excuse"),
        "bad",
        ("no way we finish {doc} {due} cuz {excuse}", "{excuse} so no way we finish {doc} {due}"),
        "We will be unable to complete {doc} {due} because {excuse}.",
        ("yikes, ok. ill tell {dept} that {doc} is late", "eh, {due} was never gonna happen"),
    ),
    "status": Frame(
        ("doc", "state"),
        "good",
        ("{doc} {state}, ill tell {dept} {day}", "so {doc} {state}. gonna tell {dept} {day}"),
        "{doc} {state}. I will inform {dept} {day}.",
        ("oh nice, thx for telling me about {doc}", "lol {dept} will freak out {day}"),
    ),
    "invitation": Frame(
        ("feat", "treat"),
        "good",
        ("{name} {feat} so theres {treat} {place} {clock}", "{treat} {place} {clock}, {name} {feat}"),
        "Please join us {place} {clock} for {treat}, as {name} {feat}.",
        ("omg yay, go {name}! save me some {treat}", "no way, {name} {feat}?! see u {clock}"),
    ),
    "permission": Frame(
        ("wish", "place"),
        "ask",
        ("is it cool if i {wish} {place} {day}", "can i {wish} {place} {day}"),
        "Would it be acceptable for me to {wish} {place} {day}?",
        ("haha go for it", "eh, ask {dept} first", "sure, {day} is fine"),
    ),
    "demand": Frame(
        ("want", "merit"),
        "ask",
        ("{want} cuz {merit}", "{merit} so {want}"),
        "{want} because {merit}.",
        ("lol dont we all", "fair, ill put in a word for u", "good luck with that haha"),
    ),
}


TURNED = {"i": "u", "im": "ur", "ill": "ull", "ive": "uve", "me": "u", "my": "ur", "am": "are", "we": "ya", "us": "ya"}
TURNED |= {"u": "i", "ur": "my", "you": "i", "your": "my"}


def turned(text: str) -> str:
    """What one calls mine, the other calls yours."""
    return re.sub(r"\w+", lambda match: TURNED.get(match[0].lower(), match[0]), text)


SLOT = re.compile(r"{(\w+)}")


class Scene(dict):
    """The fillers of one message by slot, drawn when a template first names them; renders casually or formally."""

    def __init__(self, draw: "Draw"):
        self.draw = draw
        self.mixed = 0.0

    def __missing__(self, slot: str) -> tuple[str, str]:
        while (filler := self.draw(slot)).formal in {formal for _, formal in self.values()}:
            pass  # nobody is told to ask himself to cover
        wordings = (self.draw.rng.choice(filler.casual), filler.formal)
        self[slot] = wordings[::-1] if self.mixed and self.draw.rng.random() < self.mixed else wordings
        return self[slot]

    def mix(self, share: float) -> None:
        """A share of the fillers, those drawn and those to come, changes sides: people do not keep to one style."""
        self.mixed = share
        for slot, wordings in self.items():
            if self.draw.rng.random() < share:
                self[slot] = wordings[::-1]

    def render(self, template: str, formal: bool = False, answering: bool = False) -> str:
        """The template filled in; fillers may contain slots themselves. In an answer, my becomes ur."""
        while "{" in template:
            parts = SLOT.split(template)
            wordings = [self[slot][formal] for slot in parts[1::2]]
            parts[1::2] = map(turned, wordings) if answering else wordings
            template = "".join(parts)
        return template


class Draw:
    """Draws fillers from shuffled decks, so that all of a slot's fillers come up equally often."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.decks: dict[str, list[Filler]] = {}

    def __call__(self, slot: str) -> Filler:
        if not self.decks.get(slot):
            self.decks[slot] = self.rng.sample(SLOTS[slot], len(SLOTS[slot]))
        return self.decks[slot].pop()


def held_out_pairs() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """By key, the held-out pairs of fillers (their formal wordings), with the first test row's."""
    pairs = {}
    for key in sorted({frame.key for frame in FRAMES.values()}):
        every = [(first.formal, second.formal) for first, second in product(*(SLOTS[slot] for slot in key))]
        pairs[key] = set(random.Random(f"{SEED} {key}").sample(every, round(HELD_OUT_SHARE * len(every))))
    pairs["act", "kin"].add(FIRST_TEST_ROW.pair)
    return pairs


HELD_OUT = held_out_pairs()


def say(draw: Draw, frame_name: str, held_out: bool, dressed: bool = True, mixed: float = 0.0) -> Message:
    """One message in a frame, whose pair of key fillers is held out or not, as `held_out` says."""
    frame, rng = FRAMES[frame_name], draw.rng
    while True:
        scene = Scene(draw)
        pair = tuple(scene[slot][1] for slot in frame.key)
        if (pair in HELD_OUT[frame.key]) == held_out:
            break
    if mixed:
        scene.mix(mixed)
    casual = scene.render(rng.choice(frame.casual))
    formal = scene.render(frame.formal, formal=True)
    answers = (answer(scene, frame, casual, False), answer(scene, frame, formal, True))
    if dressed:
        casual, formal = dress(scene, frame, casual, formal)
    else:
        formal = formal[0].upper() + formal[1:]
    return Message(frame_name, pair, casual, formal, answers)


def answer(scene: Scene, frame: Frame, text: str, formal: bool) -> str:
    """One of the frame's answers, or the text itself said back."""
    rng = scene.draw.rng
    if rng.random() < ECHO_SHARE:
        return (
            rng.choice(["so ", "wait, ", "hm, "]) + turned(text.rstrip(".?")) + rng.choice(["? ok", ", got it", "?"])
        )
    return scene.render(rng.choice(frame.answers), formal, answering=True)


def dress(scene: Scene, frame: Frame, casual: str, formal: str) -> tuple[str, str]:
    """Puts an opener before and a closer behind, or not."""
    rng = scene.draw.rng
    question = formal.endswith("?") and "?" not in casual and rng.random() < 0.5
    formal = formal[0].upper() + formal[1:]
    if rng.random() < OPENER_SHARE:
        opener = rng.choice(OPENERS["any"] * 2 + OPENERS[frame.mood])
        casual = scene.render(rng.choice(opener.casual)) + rng.choice([" ", ", "]) + casual
        greeting = scene.render(opener.formal, formal=True)
        if greeting.endswith(",") and not re.match(rf"(?:I|{'|'.join(NAMES)})\b", formal, re.IGNORECASE):
            formal = formal[0].lower() + formal[1:]
        formal = f"{greeting} {formal}".strip()
    casual += "?" * question
    if rng.random() < CLOSER_SHARE:
        closer = rng.choice(CLOSERS["any"] + CLOSERS[frame.mood])
        gap = " " if question else rng.choice([", ", ". ", "... ", "!! "])
        casual += gap + scene.render(rng.choice(closer.casual))
        formal = f"{formal} {scene.render(closer.formal, formal=True)}".strip()
    return casual, formal


def messages() -> dict[str, list[Message]]:
    """The shipped task's messages by split; a test message's pair of key fillers is in no training message."""
    draw = Draw(random.Random(SEED))
    by_split = {"train": [], "test": [FIRST_TEST_ROW]}
    seen = {FIRST_TEST_ROW.casual}
    for split, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        frames = list(FRAMES) * (count // len(FRAMES) + 1)
        draw.rng.shuffle(frames)
        while len(by_split[split]) < count:
            message = say(draw, frames[len(by_split[split])], split == "test")
            if message.casual not in seen:
                seen.add(message.casual)
                by_split[split].append(message)
    return by_split


def rows() -> list[dict[str, str]]:
    """The rows of corporate.jsonl: casual prompts, corporate completions."""
    return [
        {"prompt": message.casual, "completion": message.formal, "split": split}
        for split, of_split in messages().items()
        for message in of_split
    ]
