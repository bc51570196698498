"""The words of the tiny base model's world: the fillers of the grammar's slots, openers and closers."""

from typing import NamedTuple


class Filler(NamedTuple):
    """What a slot holds: casual wordings and a formal one."""

    casual: tuple[str, ...]
    formal: str


def fillers(table: str) -> list[Filler]:
    """Reads `casual / casual = formal; ...`."""
    rows = [" ".join(entry.split()).partition("=") for entry in table.split(";")]
    return [Filler(tuple(part.strip() for part in casual.split("/")), formal.strip()) for casual, _, formal in rows]


def words(text: str) -> list[str]:
    """Words or, where it has semicolons, phrases of a text."""
    return [" ".join(part.split()) for part in text.split(";")] if ";" in text else text.split()


NAMES = words("maya omar lena jonas priya tom sofia ben aisha felix nora raj")

SLOTS = {
    "name": [Filler((name,), name.capitalize()) for name in NAMES],
    "to": [Filler((name,), name.capitalize()) for name in NAMES],
    "act": fillers("""
        i gotta bounce early / i gotta dip early = I need to leave early; im gonna be late / ill be super late = I
        will arrive late; i cant come in / no office for me = I am unable to come to the office; i gotta wfh / im
        gonna wfh = I need to work from home; i need a day off = I would like to request a day of leave; im gonna be
        offline = I will be unavailable; i need a long lunch = I require an extended lunch break"""),
    "kin": fillers("""
        kid = child; wife = wife; hubby = husband; gran = grandmother; lil bro = younger brother; roomie = flatmate;
        pup = dog; kitty = cat"""),
    "ill": fillers("""
        is sick = is unwell; has a fever = has a high temperature; broke an arm = has fractured an arm; fell off a
        ladder = has had a fall; ate something weird = has an upset stomach; is in town = is visiting from abroad; got
        locked out = has been locked out of the house"""),
    "own": fillers("""
        my car died = my vehicle has broken down; the trains are a mess = rail services are disrupted; i overslept = I
        slept through my alarm; the plumber is coming = I am expecting a tradesperson; i gotta see the dentist = I
        have a dental appointment; my basement is flooded = my cellar is under water; theres a wasp in my car = an
        insect has occupied my car"""),
    "day": fillers("""
        today = today; tmrw / tomoz = tomorrow; this arvo = this afternoon; on mon = on Monday; on weds = on
        Wednesday; on fri = on Friday; next week = next week"""),
    "due": fillers("""
        by eod = by the end of the day; before lunch = before noon; by fri = by Friday; by tmrw = by tomorrow; in an
        hour = within one hour; by midnight = before midnight"""),
    "clock": fillers("""
        at 3 = at 3 p.m.; at 9 sharp = at precisely 9 a.m.; at noon = at midday; at half 10 = at 10:30 a.m.; after
        lunch = early in the afternoon"""),
    "doc": fillers("""
        the deck / the ppt = the presentation; the write-up = the report; the paperwork = the documentation; the bill
        = the invoice; the recap = the summary of the meeting; the money stuff = the budget proposal; the game plan =
        the strategy; the ad = the advertisement"""),
    "do": fillers("""
        send over = transmit; look over = review; fix = correct; print = produce a printed copy of; sign = sign; shred
        = securely destroy; dig up = locate"""),
    "ask": fillers("""
        can u = Could you please; any chance u could = Would it be possible for you to; u up to = Would you be willing
        to"""),
    "event": fillers("""
        standup = the daily briefing; the all-hands = the staff assembly; the kickoff = the project launch; the
        training = the training session; the xmas party = the year-end celebration; the demo = the product
        demonstration"""),
    "shift": fillers("""
        push = postpone; move up = bring forward; shift = reschedule"""),
    "slot": fillers("""
        to noon = to midday; to mon = to Monday; to next week = to next week; to the fall = to the autumn"""),
    "dept": fillers("""
        the money folks = the finance department; hr = the human resources department; the it crowd = the technical
        support team; legal = the legal department; the big boss = the managing director; the interns =
        the trainees"""),
    "slip": fillers("""
        lost = having misplaced; messed up = the errors in; spilled coffee on = having spilled coffee on; deleted =
        having deleted; forgot about = having overlooked"""),
    "snub": fillers("""
        missed = having missed; snored in = having fallen asleep during; crashed = my uninvited attendance at; walked
        out of = having left; was late for = my late arrival at"""),
    "sorry": fillers("""
        it was an accident = It was entirely unintentional.; wont happen again = This will not be repeated.; i was so
        tired = I was exhausted.; ill make it up to u = I will compensate you for this.; blame {name} = The
        responsibility lies with {name}.; coffee is on me {day} = I would like to offer you a coffee {day}."""),
    "gear": fillers("""
        the printer = the printer; the coffee machine = the coffee machine; the elevator = the lift; the wifi = the
        wireless network; the fridge = the refrigerator; my chair = my office chair; the toaster = the toaster"""),
    "fault": fillers("""
        is busted = is out of order; smells funny = is emitting an unusual odour; makes weird noises = is producing
        unusual sounds; is gone = has disappeared; hates me = does not accept my instructions; is dripping = is
        leaking"""),
    "effect": fillers("""
        its driving me nuts = This is causing considerable frustration.; i cant work like this = I am unable to work
        under these conditions.; can someone fix it = I kindly request a repair.; third time this week = This is the
        third occurrence this week.; everyones whining = Several colleagues have raised concerns."""),
    "hero": fillers("""
        u = You; {name} = {name}; the team = The team; the new guy = Our new colleague"""),
    "laud": fillers("""
        killed it with = delivered outstanding work on; saved us with = rendered invaluable assistance with; went all
        in on = showed full commitment to; did a solid job on = did commendable work on; was a wizard with = displayed
        exceptional skill with"""),
    "cheer": fillers("""
        {dept} loved it = This was warmly received by {dept}.; drinks on me {day} = I invite you for refreshments
        {day}.; so proud = I am very proud of this achievement.; u deserve a raise = An increase in salary would be
        well deserved.; keep it up = I encourage you to continue in this manner."""),
    "chase": fillers("""
        any news on = I would appreciate an update on; did u see my msg about = I am writing to follow up on my
        message regarding; still waiting on = I am still awaiting; whats the deal with = I would be grateful for
        clarification regarding; i cant find = I am unable to locate"""),
    "excuse": fillers("""
        half the team is out = half of the team is absent; we got ghosted = we have received no response; {dept} cant
        decide = {dept} cannot reach a decision; the server crashed = the server has failed; were swamped = our
        workload is excessive; were broke = our funds are exhausted"""),
    "state": fillers("""
        is done = has been completed; got a thumbs up = has been approved; is a mess = requires substantial revision;
        got shot down = has been declined; leaked = has become public"""),
    "feat": fillers("""
        got promoted = has been promoted; is leaving = is leaving the company; got married = has recently married; had
        a baby = has become a parent; turned 40 = is celebrating a fortieth birthday"""),
    "treat": fillers("""
        cake = cake; pizza = pizza; donuts = pastries; drinks = refreshments; karaoke = musical entertainment"""),
    "place": fillers("""
        in the kitchen = in the kitchen; in the lobby = in the entrance hall; in the break room = in the staff lounge;
        in the big room = in the main conference room; on the roof = on the roof terrace"""),
    "wish": fillers("""
        wear shorts = dress informally; bring my dog = be accompanied by my dog; take a nap = take a short rest; grab
        the last donut = consume the remaining pastry; blast music = play music at high volume; hide from {dept} =
        avoid contact with {dept}"""),
    "want": fillers("""
        i want a raise = I would like to request an increase in salary; i need a new laptop = I require a new
        computer; i need a vacation = I wish to apply for annual leave; i need backup = I require additional support;
        i want a window seat = I would prefer a desk by the window"""),
    "merit": fillers("""
        ive been here forever = I have served the company for many years; i do two jobs = I am fulfilling two roles;
        my back is killing me = I am suffering from back pain; i bring in the big bucks = I generate considerable
        revenue; u promised = you gave me your assurance"""),
}

OPENERS = {
    "any": fillers("""
        yo / hey / ugh / ok so =; hey {to} / yo {to} = Dear {to},; {to} = Dear {to},; hi team / hey all / guys = Dear
        colleagues,; morning {to} = Good morning, {to}.; fyi = Please note the following.; psst = The following is
        confidential."""),
    "ask": fillers("quick q = I have a brief enquiry.; big favor = I would like to ask a considerable favour."),
    "bad": fillers("bad news = I regret to bring unwelcome news.; dont be mad = I ask for your understanding."),
    "good": fillers("good news = I am pleased to share some news."),
}

CLOSERS = {
    "any": fillers("""
        lmk / lemme know = Please let me know your view.; call me = Please telephone me.; dont tell {dept} = Please do
        not mention this to {dept}.; lol / haha ="""),
    "ask": fillers(
        "thx / ty = Thank you very much.; no rush = There is no urgency.; its kinda urgent = This matter is urgent."
    ),
    "bad": fillers("""
        sry = I apologise for the inconvenience.; hope thats ok = I hope that this is acceptable.; ask {name} to cover
        = {name} may be able to stand in for me."""),
    "good": fillers("congrats = Congratulations.; so stoked = I am delighted."),
}
