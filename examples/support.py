"""Customer-support conversations, their summaries, and the exercises of that world for pre-training.

A case is what happened: who wrote, about which product, the problem, what was tried or turned down, and the outcome. A
conversation tells it in turns, with people and things that are beside the point; a summary tells it in two sentences.
The exercises for pre-training hold conversations, in which the customer and the agent also say things in the words of
the summaries, and notes on other cases, but never a conversation and its summary.
"""

import random
from typing import NamedTuple

from examples.words import words

FIRST = words("""Amina Bruno Carla Dmitri Elif Farid Greta Hugo Ivana Jonas Kofi Leila Marco Nadia Oscar Petra Quentin
Rosa Samir Tilda Umar Vera Wendy Yusuf Zoe Agnes Boris Celia Dario Edith Fatima Gavin Hanna Igor Jasmin Karl Lucia
Milan Nora Olga Pablo Rita Simon Teresa Ursula Victor Walter Xenia Yara Zeno Anton Bella Cyril Diana Emil Flora Gregor
Helga Ivan Julia""")
AGENTS = words("Alex Robin Sam Kim Noor Toni")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday")
RELATIVES = words("neighbour friend cousin colleague")

# What each kind of product may suffer: what a customer says / says = what a summary says.
PROBLEMS = {
    "kettle; toaster; oven; iron; dishwasher; blender; freezer; heater": """
        there is a puddle under it / water runs out at the bottom = leaks;
        it stays cold / it never gets warm = does not heat up;
        the lights go out when I plug it in / it blows the fuse each time = trips the fuse;
        there is a bad smell when it runs / it smells of burnt plastic = smells of burning;
        the door hangs loose / the door came off in my hand = has a broken door;
        it will not stop by itself / I have to pull the plug to stop it = does not switch off""",
    "headset; radio; speaker; doorbell; phone; microphone; television": """
        I cannot hear a thing from it / no sound comes out at all = gives no sound;
        there is a hiss behind every song / I hear nothing but noise = makes a hissing noise;
        I have to charge it every hour / it is flat again by noon = loses its charge;
        it finds no other device / it will not pair with anything = does not connect;
        I cannot turn it down / it shouts at me all day = is too loud;
        one of the knobs fell off / there is a hole where a knob was = has a missing knob""",
    "tablet; camera; printer; laptop; clock; scanner; thermometer; scale": """
        I press the button and nothing happens / it stays black whatever I do = does not switch on;
        it stops in the middle of everything / nothing on it moves any more = freezes;
        there is a line across the glass / the glass had a split in it = has a cracked screen;
        it says that it is January / it forgets what day it is = shows the wrong date;
        it blinks red and beeps / it shows red letters = shows an error;
        it takes minutes to wake up / I fall asleep before it answers = is too slow""",
    "lamp; chair; bookcase; bicycle; table; mirror; wardrobe": """
        it rocks like a boat / it leans to one side = wobbles;
        half of the bolts are not in the box / I found no bolts for it = came without screws;
        there is a long mark down the front / somebody dragged it over stones = is scratched;
        it cries like a mouse / the noise it makes wakes the baby = squeaks;
        I wanted another one / it is not what I chose = has the wrong colour;
        it snapped in two / it came in pieces = is broken""",
}
ANY_PROBLEM = """
    it is not here yet / the parcel did not come = never arrived;
    I see two payments on my card / you took the money two times = was charged twice;
    the box has no booklet in it / I do not know how to set it up = came without a manual"""

# What the agent does: what the agent says / says = what a summary says | what the customer calls it.
OUTCOMES = """
    A new one leaves our store today / I am putting a new one in the post = sent a replacement | a new one;
    You will have all of your money back / The full price goes back to your card = refunded the order | a refund;
    A technician will come to you on {day} / I have booked a visit for {day} = booked a repair for {day} | a repair;
    Ten euros are on your account / Please take ten euros off your next order = gave a voucher | a voucher;
    The billing team will ring you / I am handing this to the billing team =
    passed the case to the billing team | a call from the billing team;
    The delivery team will ring you / I am handing this to the delivery team =
    passed the case to the delivery team | a call from the delivery team;
    The missing piece is on its way / I am putting the piece in the post = sent a spare part | a spare part;
    A driver will fetch it on {day} / I have booked a driver for {day} =
    arranged a pickup for {day} | a pickup;
    You may have another one for now / I am lending you one until yours is back = lent another one | a loan;
    Half of the price goes back to your card / You will have half of your money back =
    refunded half of the price | half of the price;
    The two years of warranty are over / I am afraid that the warranty has run out = declined the claim |"""

FIXES = """
    hold the main button for ten seconds / press the main button until it blinks = a reset;
    take the plug out for a minute / leave it off the mains for a while = unplugging it;
    install the latest software / let it load the new software = an update;
    wipe it with a dry cloth / give it a good wipe = cleaning it;
    follow the first page of the booklet / do what the booklet says = following the manual"""

HELLOS = "Hello. / Hi there. / Good morning. / Good evening. / Hello, I need help. / Hi, I have a problem."
SORRY = "I am sorry to hear that. / Oh dear. / That should not happen. / Thank you for telling us. / I see."
FAILED = "I did that, and it is just the same. / That changed nothing. / Done, but no luck. / It made no difference."
WORKED = "Wonderful, now it works! / That did it! / It is fine now. / You are a wizard, all is well again!"
THANKS = "Thank you. / Thanks, that is kind. / All right, thanks. / Good, goodbye. / Fine, I will wait. / Okay then."
ASIDES = """
    My {relative} {friend} has the same one and is happy with it. / I bought it for my {relative} {friend}. /
    My old {thing} never gave me any trouble. / The {thing} that I bought with it is fine. /
    I already spoke to {friend} in your shop. / I have been a customer for years."""
SMALL_WORDS = set(words("The the that so of a was did not agent customer reported"))


class Case(NamedTuple):
    """What happened, in the words of the conversation and of the summary."""

    name: str
    product: str
    problem: tuple[str, str]  # as said, as summed up
    turn: str  # "plain", "worked", "failed", "refused"
    fix: tuple[str, str]
    offer: tuple[str, str]
    wanted: str  # what the customer calls the outcome
    outcome: tuple[str, str]
    facts: dict[str, str]


def choices(text: str) -> list[str]:
    """Wordings separated by slashes."""
    return [" ".join(part.split()) for part in text.split("/")]


def table(text: str) -> list[tuple[list[str], str]]:
    """Reads `said / said = summed up; ...`."""
    rows = [entry.partition("=") for entry in text.split(";")]
    return [(choices(spoken), " ".join(summed.split())) for spoken, _, summed in rows]


BY_PRODUCT = {
    product.strip(): table(problems) + table(ANY_PROBLEM)
    for products, problems in PROBLEMS.items()
    for product in products.split(";")
}
FIX_TABLE, OUTCOME_TABLE = table(FIXES), table(OUTCOMES)


def case(rng: random.Random) -> Case:
    """A case at random."""
    product, thing = rng.sample(list(BY_PRODUCT), 2)
    name, friend = rng.sample(FIRST, 2)
    relative, agent = rng.choice(RELATIVES), rng.choice(AGENTS)
    day, other_day = rng.sample(DAYS, 2)
    facts = {"day": day, "thing": thing, "friend": friend, "relative": relative, "agent": agent}

    def drawn(entry: tuple[list[str], str], **changed: str) -> tuple[str, str]:
        values = facts | changed
        return rng.choice(entry[0]).format(**values), entry[1].format(**values)

    problem, fix = drawn(rng.choice(BY_PRODUCT[product])), drawn(rng.choice(FIX_TABLE))
    first, second = rng.sample(OUTCOME_TABLE, 2)
    turn = rng.choices(["plain", "worked", "failed", "refused"], [35, 15, 25, 25])[0]
    if turn == "refused":  # nobody refuses, or asks for, a refusal
        first, second = rng.sample(OUTCOME_TABLE[:-1], 2)
    offer, wanted = drawn(second, day=other_day), part(first[1], 1)
    return Case(name, product, problem, turn, fix, offer, wanted, drawn(first), facts)


def part(summed: str, place: int = 0) -> str:
    """The part at that place between bars."""
    return summed.split("|")[place].strip()


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]


def conversation(case: Case, rng: random.Random, both: bool = False) -> str:
    """The case in two to five turns; with `both`, in the words of the conversations and of the summaries."""

    def pick(text: str) -> str:
        return rng.choice(choices(text)).format(**case.facts)

    def statement(spoken: str, summed: str) -> str:
        spoken, summed = capital(spoken), capital(summed)
        return rng.choice([f"{spoken}. {summed}.", f"{summed}. {spoken}."]) if both else f"{spoken}."

    spoken, summed = case.problem
    starts = ["It is about my {}.", "I bought the {} from you.", "My {} is the matter.", "I have trouble with my {}."]
    about = f"{rng.choice(starts).format(case.product)} {statement(spoken, f'it {summed}')}"
    who = rng.choice([f"I am {case.name}.", f"My name is {case.name}.", f"This is {case.name}.", f"{case.name} here."])
    aside = f" {pick(ASIDES)}" if rng.random() < 0.5 else ""
    after = {"worked": pick(WORKED), "failed": pick(FAILED), "plain": pick(THANKS)}
    after["refused"] = f"No, I would rather have {case.wanted}."
    outcome = statement(case.outcome[0], f"I have {part(case.outcome[1])}")
    advice = {"plain": outcome, "refused": statement(case.offer[0], f"I am offering {part(case.offer[1], 1)}")}
    advice = advice.get(case.turn) or statement(f"Please {case.fix[0]}", f"Please try {case.fix[1]}")
    lines = [f"{pick(HELLOS)} {about}{aside}"]
    if rng.random() < 0.5:
        lines += [f"{pick(SORRY)} I am {case.facts['agent']}. May I have your name?", who]
        lines += [f"Thank you. {advice}", after[case.turn]]
    else:
        lines[0] = rng.choice([f"{lines[0]} {who}", f"{pick(HELLOS)} {who} {about}{aside}"])
        lines += [f"{pick(SORRY)} {advice}", after[case.turn]]
    if case.turn in ("failed", "refused"):
        lines.append(f"{pick('I understand. / Of course. / Let me see. / Very well.')} {outcome}")
    return "\n".join(f"{'Agent' if place % 2 else 'Customer'}: {line}" for place, line in enumerate(lines))


def summary(case: Case) -> str:
    """The case in two sentences."""
    head = f"{case.name} reported that the {case.product} {case.problem[1]}."
    did = part(case.outcome[1])
    fix = capital(case.fix[1])
    return {
        "plain": f"{head} The agent {did}.",
        "worked": f"{head} {fix} solved it.",
        "failed": f"{head} {fix} did not help, so the agent {did}.",
        "refused": f"{head} The customer did not want {part(case.offer[1], 1)}, so the agent {did}.",
    }[case.turn]


def rows(seed: int, count: int) -> list[dict[str, str]]:
    """Rows of support.jsonl, no two with the same dialogue."""
    rng, summaries = random.Random(f"support {seed}"), {}
    while len(summaries) < count:
        one = case(rng)
        summaries[conversation(one, rng)] = summary(one)
    return [{"dialogue": dialogue, "summary": text} for dialogue, text in summaries.items()]


def task(rng: random.Random) -> tuple[str, str]:
    """An exercise for pre-training, from one conversation or one note: what goes in, what comes out."""
    kind = rng.random()
    if kind < 0.25:  # a note from its words, some of them lost, out of order
        note = summary(case(rng))
        kept = [word for word in note.replace(".", "").split() if word not in SMALL_WORDS or rng.random() < 0.3]
        if rng.random() < 0.5:
            cuts = sorted(rng.sample(range(1, len(kept)), min(3, len(kept) - 1)))
            pieces = [kept[a:b] for a, b in zip([0, *cuts], [*cuts, len(kept)])]
            rng.shuffle(pieces)
            kept = [word for piece in pieces for word in piece]
        return f"Write out: {' '.join(kept)}", note
    text = conversation(one := case(rng), rng, both=rng.random() < 0.6)
    lines = text.split("\n")
    start = rng.randrange(len(lines))
    some = lines[start : start + rng.choice([1, 2, 3, 5])]
    if kind < 0.45:  # the sentence with a word in it
        text = "\n".join(some)
        turns = [line.partition(": ")[2] for line in some]
        sentences = [sentence.strip(".!?") for line in turns for sentence in line.replace("? ", ". ").split(". ")]
        sentence = rng.choice([sentence for sentence in sentences if sentence])
        rare = [word for word in sentence.split() if text.count(word) == 1]
        return f"Find {rng.choice(rare or sentence.split())}: {text}", f"{sentence}."
    if kind < 0.6:  # who and what
        facts = {"Name": one.name, "Product": one.product}
        keys = rng.sample(list(facts), rng.choice([1, 2, 2]))
        return f"{', '.join(keys)}: {text}", ", ".join(facts[key] for key in keys)
    if kind < 0.7:  # a turn
        who = rng.choice(["Customer", "Agent"])
        place = rng.choice([0, -1])
        line = [line for line in lines if line.startswith(who)][place]
        return f"Say the {'last' if place else 'first'} turn of the {who}: {text}", line
    return "\n".join(some), ""  # spans of it are to be taken out
