"""Customer-support conversations, their summaries, and the other text of that world for pre-training.

A case is what happened: who wrote, about which product and order, the problem, what was tried or turned down, and the
outcome. A conversation tells it in turns, with people and things that are beside the point; a summary tells it in one
or two sentences. The text for pre-training holds conversations, and notes on other cases, but never a conversation
and its summary.
"""

import random
from typing import NamedTuple

from examples.words import words

FIRST = words("""Amina Bruno Carla Dmitri Elif Farid Greta Hugo Ivana Jonas Kofi Leila Marco Nadia Oscar Petra Quentin
Rosa Samir Tilda Umar Vera Wendy Yusuf Zoe Agnes Boris Celia""")
LAST = words("""Abbott Becker Costa Dalton Emery Fischer Gupta Harlow Ibsen Jansen Kowal Lopez Moreau Nakata Olsen
Pereira Quist Romano Sato Tanaka Urban Vargas Weber Yilmaz Zeller""")
AGENTS = words("Alex Robin Sam Kim Noor Toni")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday")
COLOURS = words("red blue green black white yellow")
RELATIVES = words("sister brother neighbour mother friend cousin")
TEAMS = ["billing team", "delivery team", "repair team", "safety team"]

# What each kind of product may suffer: what a customer says / says = what a summary says.
PROBLEMS = {
    "kettle; coffee maker; steam iron; dishwasher": """
        there is a puddle under it every morning / water runs out at the bottom = leaks;
        the water in it stays cold / it never gets warm = does not heat up;
        all the lights in the flat go out when I plug it in / it blows the fuse each time = trips the fuse;
        there is a burning smell when it runs / it smells of burnt plastic = smells of burning""",
    "headset; radio; speaker; doorbell": """
        I cannot hear a thing from it / no sound comes out at all = gives no sound;
        there is a hiss behind every song / I hear nothing but noise = makes a hissing noise;
        I have to charge it every hour / it is flat again by noon = loses its charge quickly;
        my phone does not find it / it will not pair with anything = does not connect""",
    "tablet; camera; printer; alarm clock": """
        I press the button and nothing happens / it stays black whatever I do = does not switch on;
        it stops in the middle of everything / I cannot do anything on it after a minute = freezes;
        there is a line right across the glass / the glass had a split in it = has a cracked screen;
        it always says it is the first of January / it forgets what day it is = shows the wrong date""",
    "desk lamp; office chair; bookcase; bicycle": """
        it rocks like a boat / it leans to one side = wobbles;
        half of the bolts are not in the box / I found no screws for it = came without screws;
        there is a long mark down the front / somebody must have dragged it over stones = is scratched;
        it cries like a mouse at every move / the noise it makes wakes the baby = squeaks""",
}
ANY_PROBLEM = """
    it is not here yet, and I have waited for three weeks / the parcel did not come = never arrived;
    I see two payments on my card / you took the money two times = was charged twice;
    I wanted it in {colour} and I got {other} / the box says {colour}, but what is in it is {other} =
    came in {other} instead of {colour}"""

# What the agent does: what the agent says / says = what a summary says | what the customer calls it.
OUTCOMES = """
    A new one leaves our store today / I am putting a new one in the post = sent a replacement | a new one;
    You will have all of your money back by {day} / The full price goes back to your card on {day} =
    refunded the order | my money back;
    A technician will come to you on {day} / I have booked a visit by our technician for {day} =
    booked a repair for {day} | a repair;
    I have put {amount} euros on your account / Please take {amount} euros off your next order =
    gave a voucher of {amount} euros | a voucher;
    I am handing this to our {team}, who will ring you / Our {team} will call you about it =
    passed the case to the {team} | a call from somebody who knows;
    The two years of warranty are over, so I cannot do anything / I am afraid that the warranty has run out =
    declined because the warranty had ended |"""

FIXES = """
    hold the main button for ten seconds / press the main button until it blinks = a reset;
    take the plug out for a minute / leave it off the mains for a while = unplugging it;
    install the latest version of the software / let it load the new software = an update;
    wipe it with a dry cloth / give it a good wipe = cleaning it;
    look at page {page} of the manual and follow it / go through page {page} of the booklet =
    following page {page} of the manual"""

HELLOS = "Hello. / Hi there. / Good morning. / Good evening. / Hello, I need help. / Hi, I have a problem."
SORRY = "I am sorry to hear that. / Oh dear. / That should not happen. / Thank you for telling us. / I see."
FAILED = "I did that, and it is just the same. / That changed nothing. / Done, but no luck. / It made no difference."
WORKED = "Wonderful, now it works! / That did it! / It is fine now. / You are a wizard, all is well again!"
THANKS = "Thank you. / Thanks, that is kind. / All right, thanks. / Good, goodbye. / Fine, I will wait. / Okay then."
ASIDES = """
    My {relative} {friend} has the same one and is happy with it. / I bought it for my {relative} {friend}. /
    My old {thing} never gave me any trouble. / The {thing} that I bought with it is fine. /
    I already spoke to {friend} in your shop. / I have been a customer for {years} years."""


class Case(NamedTuple):
    name: str
    product: str
    number: str
    problem: tuple[str, str]  # as said, as summed up
    turn: str  # "plain", "worked", "failed", "refused"
    fix: tuple[str, str]
    offer: tuple[str, str]
    wanted: str  # what the customer calls the outcome
    outcome: tuple[str, str]
    facts: dict[str, str]


def choices(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("/")]


def table(text: str) -> list[tuple[list[str], str]]:
    """Reads `said / said = summed up; ...`."""
    rows = [entry.partition("=") for entry in text.split(";")]
    return [(choices(said), " ".join(summed.split())) for said, _, summed in rows]


BY_PRODUCT = {
    product.strip(): table(problems) + table(ANY_PROBLEM)
    for products, problems in PROBLEMS.items()
    for product in products.split(";")
}
FIX_TABLE, OUTCOME_TABLE = table(FIXES), table(OUTCOMES)


def case(rng: random.Random) -> Case:
    colour, other = rng.sample(COLOURS, 2)
    product, thing = rng.sample(list(BY_PRODUCT), 2)
    facts = {
        "colour": colour,
        "other": other,
        "thing": thing,
        "day": rng.choice(DAYS),
        "amount": str(rng.randrange(5, 100, 5)),
        "team": rng.choice(TEAMS),
        "page": str(rng.randrange(2, 60)),
        "relative": rng.choice(RELATIVES),
        "friend": rng.choice(FIRST),
        "years": str(rng.randrange(2, 12)),
        "agent": rng.choice(AGENTS),
    }

    def drawn(entry: tuple[list[str], str]) -> tuple[str, str]:
        return rng.choice(entry[0]).format(**facts), entry[1].format(**facts)

    problem, fix = drawn(rng.choice(BY_PRODUCT[product])), drawn(rng.choice(FIX_TABLE))
    first, second = rng.sample(OUTCOME_TABLE, 2)
    turn = rng.choices(["plain", "worked", "failed", "refused"], [35, 15, 25, 25])[0]
    if turn == "refused":  # nobody refuses, or asks for, a refusal
        first, second = rng.sample(OUTCOME_TABLE[:-1], 2)
    outcome, called = drawn(first), first[1].partition("|")[2].strip()
    name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    number = str(rng.randrange(1000, 10000))
    return Case(name, product, number, problem, turn, fix, drawn(second), called, outcome, facts)


def part(summed: str, place: int = 0) -> str:
    return summed.split("|")[place].strip()


def conversation(case: Case, rng: random.Random) -> str:
    """The case in three to six turns."""

    def pick(text: str) -> str:
        return rng.choice(choices(text)).format(**case.facts)

    said, article = case.problem[0], "an" if case.product[0] in "aeiou" else "a"
    about = rng.choice(
        [
            f"It is about my {case.product}: {said}.",
            f"I bought {article} {case.product}, and {said}.",
            f"My {case.product} is the matter: {said}.",
        ]
    )
    who = rng.choice(
        [
            f"I am {case.name}, order {case.number}.",
            f"My name is {case.name} and the order is {case.number}.",
            f"{case.name}. Order number {case.number}.",
        ]
    )
    aside = f" {pick(ASIDES)}" if rng.random() < 0.5 else ""
    after = {"worked": pick(WORKED), "failed": pick(FAILED), "plain": pick(THANKS)}
    after["refused"] = f"No, I would rather have {case.wanted}."
    advice = {"plain": f"{case.outcome[0]}.", "refused": f"{case.offer[0]}."}.get(case.turn, f"Please {case.fix[0]}.")
    lines = [f"{pick(HELLOS)} {about}{aside}"]
    if rng.random() < 0.6:
        lines += [f"{pick(SORRY)} {case.facts['agent']} here. May I have your name and your order number?", who]
        lines += [f"Thank you. {advice}", after[case.turn]]
    else:
        lines[0] = rng.choice([f"{lines[0]} {who}", f"{pick(HELLOS)} {who} {about}{aside}"])
        lines += [f"{pick(SORRY)} {advice}", after[case.turn]]
    if case.turn in ("failed", "refused"):
        lines.append(f"{pick('I understand. / Of course. / Let me see. / Very well.')} {case.outcome[0]}.")
    if len(lines) < 6 and lines[-1] == after[case.turn] and case.turn == "worked":
        lines.append(pick("I am glad. / Good to hear. / Have a nice day."))
    return "\n".join(f"{'Agent' if place % 2 else 'Customer'}: {line}" for place, line in enumerate(lines))


def summary(case: Case) -> str:
    head = f"{case.name} reported that the {case.product} of order {case.number} {case.problem[1]}."
    did = part(case.outcome[1])
    fix = case.fix[1][0].upper() + case.fix[1][1:]
    return {
        "plain": f"{head} The agent {did}.",
        "worked": f"{head} {fix} solved it.",
        "failed": f"{head} {fix} did not help, so the agent {did}.",
        "refused": f"{head} The customer turned down {part(case.offer[1], 1)}, so the agent {did}.",
    }[case.turn]


def rows(seed: int, count: int) -> list[dict[str, str]]:
    rng, found = random.Random(f"support {seed}"), {}
    while len(found) < count:
        one = case(rng)
        found[conversation(one, rng)] = summary(one)
    return [{"dialogue": dialogue, "summary": told} for dialogue, told in found.items()]


def task(rng: random.Random) -> tuple[str, str]:
    """An exercise in copying for pre-training, from one conversation or one note: what goes in, what comes out."""
    kind = rng.random()
    if kind < 0.35:  # a note from its words, some of them lost, out of order
        note = summary(case(rng))
        small = {"The", "the", "that", "so", "of", "a", "was", "did", "not", "agent", "customer", "reported"}
        kept = [word for word in note.replace(".", "").split() if word not in small or rng.random() < 0.3]
        if rng.random() < 0.5:
            cuts = sorted(rng.sample(range(1, len(kept)), min(3, len(kept) - 1)))
            pieces = [kept[a:b] for a, b in zip([0, *cuts], [*cuts, len(kept)])]
            rng.shuffle(pieces)
            kept = [word for piece in pieces for word in piece]
        return f"Write out: {' '.join(kept)}", note
    text = conversation(one := case(rng), rng)
    lines = [line.partition(": ")[2] for line in text.split("\n")]
    if kind < 0.55:  # the sentence with a word in it
        sentences = [sentence.strip(".!?") for line in lines for sentence in line.replace("? ", ". ").split(". ")]
        sentence = rng.choice([sentence for sentence in sentences if len(sentence.split()) > 3])
        return f"Find {rng.choice(sentence.split())}: {text}", sentence + "."
    if kind < 0.75:  # what is what
        facts = {"Customer": one.name, "Order": one.number, "Product": one.product}
        keys = rng.sample(list(facts), rng.choice([1, 2, 3]))
        return f"{', '.join(keys)}: {text}", ", ".join(facts[key] for key in keys)
    if kind < 0.85:
        place = rng.choice(["first", "second", "third", "last"])
        return f"Say the {place} turn: {text}", lines[{"first": 0, "second": 1, "third": 2, "last": -1}[place]]
    return text, ""  # spans of it are to be taken out
