"""The words of the tiny base model's world: the fillers of the grammar's slots, openers and closers."""

from typing import NamedTuple


class Filler(NamedTuple):
    casual: tuple[str, ...]
    formal: str


def fillers(table: str) -> list[Filler]:
    """Reads `casual / casual = formal; ...`."""
    rows = [" ".join(entry.split()).partition("=") for entry in table.split(";")]
    return [Filler(tuple(part.strip() for part in casual.split("/")), formal.strip()) for casual, _, formal in rows]


def words(text: str) -> list[str]:
    """Words or, where it has semicolons, phrases of a text."""
    return [" ".join(part.split()) for part in text.split(";")] if ";" in text else text.split()


NAMES = words("""maya omar lena jonas priya tom sofia ben aisha felix nora hugo ines marco ella sam yuki zoe raj
tess""")

SLOTS = {
    "name": [Filler((name,), name.capitalize()) for name in NAMES],
    "to": [Filler((name,), name.capitalize()) for name in NAMES],
    "act": fillers("""
        i gotta bounce early / i gotta dip early = I need to leave early; im gonna be late / ill be super late = I
        will arrive late; i cant come in / no office for me = I am unable to come to the office; i gotta wfh / im
        gonna wfh = I need to work from home; i need a day off = I would like to request a day of leave; i wanna swap
        shifts = I would like to exchange shifts; im gonna be offline = I will be unavailable; i need a long lunch = I
        require an extended lunch break; i cant do the late shift = I am unable to work the evening shift; i gotta
        skip a shift = I am unable to work my assigned shift"""),
    "kin": fillers("""
        kid = child; wife = wife; hubby = husband; mom = mother; dad = father; gran = grandmother; gramps =
        grandfather; lil bro = younger brother; big sis = elder sister; bestie = closest friend; roomie = flatmate;
        pup = dog; kitty = cat; auntie = aunt"""),
    "ill": fillers("""
        is sick = is unwell; has a fever = has a high temperature; broke an arm = has fractured an arm; is in the er =
        has been admitted to hospital; threw up all night = suffered from nausea overnight; fell off a ladder = has
        had a fall; ate something weird = has an upset stomach; is freaking out = is in considerable distress"""),
    "visit": fillers("""
        needs a ride = requires transportation; is in town = is visiting from abroad; has a bday = is celebrating a
        birthday; got locked out = has been locked out of the house; has a vet thing / has a doc thing = has a medical
        appointment; is moving = is relocating; is home alone = cannot be left unattended; lost the keys = has
        misplaced the keys"""),
    "own": fillers("""
        my car died = my vehicle has broken down; the trains are a mess = rail services are disrupted; i overslept = I
        slept through my alarm; the plumber is coming = I am expecting a tradesperson; i feel awful = I am feeling
        unwell; i gotta see the dentist = I have a dental appointment; my flight got canceled = my flight has been
        cancelled; i got a flat = I have a punctured tyre; my basement is flooded = my cellar is under water; im stuck
        in traffic = I am delayed by congestion; my bike got stolen = my bicycle has been stolen; i didnt sleep at all
        = I was unable to rest; theres a wasp in my car = an insect has occupied my car"""),
    "day": fillers("""
        today = today; tmrw / tomoz = tomorrow; tonight = this evening; this arvo = this afternoon; on mon = on
        Monday; on tues = on Tuesday; on weds = on Wednesday; on thurs = on Thursday; on fri = on Friday; next week =
        next week"""),
    "due": fillers("""
        by eod = by the end of the day; before lunch = before noon; by fri = by Friday; by mon = by Monday; by tmrw =
        by tomorrow; in an hour = within one hour; by midnight = before midnight; this month = in the course of this
        month"""),
    "clock": fillers("""
        at 3 = at 3 p.m.; at 9 sharp = at precisely 9 a.m.; at 4ish = at approximately 4 p.m.; at noon = at midday; at
        half 10 = at 10:30 a.m.; after lunch = early in the afternoon; in 5 = in five minutes; after work = after
        office hours"""),
    "doc": fillers("""
        the deck / the ppt = the presentation; the number crunching = the statistical analysis; the write-up = the
        report; the paperwork = the documentation; the bill = the invoice; the recap = the summary of the meeting; the
        sheet = the spreadsheet; the money stuff = the budget proposal; the game plan = the strategy; the quote = the
        cost estimate; the ad = the advertisement; the to-do list = the list of action items; the pic = the group
        photograph; the form = the application form"""),
    "do": fillers("""
        send over = transmit; look over = review; fix = correct; print = produce a printed copy of; sign = sign; pass
        on = forward; double check = verify; wrap up = complete; redo = prepare a new version of; shred = securely
        destroy; dig up = locate; cut down = condense"""),
    "ask": fillers("""
        can u = Could you please; any chance u could = Would it be possible for you to; u up to = Would you be willing
        to"""),
    "tell": fillers("""
        dont forget to = Please remember to; u gotta = You are required to; everyone should = All members of staff are
        asked to"""),
    "event": fillers("""
        standup = the daily briefing; the all-hands = the staff assembly; the kickoff = the project launch; the client
        call = the client consultation; ur review = your performance review; the training = the training session; the
        offsite = the company retreat; the brainstorm = the ideas workshop; the xmas party = the year-end celebration;
        team lunch = the team luncheon; the demo = the product demonstration; the interview = the recruitment
        interview"""),
    "shift": fillers("""
        push = postpone; move up = bring forward; bump = defer; shift = reschedule"""),
    "slot": fillers("""
        to noon = to midday; to tmrw = to tomorrow; to mon = to Monday; to thurs = to Thursday; to next week = to next
        week; to the fall = to the autumn"""),
    "dept": fillers("""
        the money folks = the finance department; hr = the human resources department; the it crowd = the technical
        support team; sales = the sales department; legal = the legal department; the big boss = the managing
        director; the client = the client; the interns = the trainees; the design kids = the design department"""),
    "slip": fillers("""
        lost = having misplaced; messed up = the errors in; spilled coffee on = having spilled coffee on; deleted =
        having deleted; leaked = having disclosed; forgot about = having overlooked"""),
    "snub": fillers("""
        missed = having missed; snored in = having fallen asleep during; crashed = my uninvited attendance at; ruined
        = having disrupted; joked around in = my lack of seriousness during; walked out of = having left; was late for
        = my late arrival at"""),
    "sorry": fillers("""
        it was an accident = It was entirely unintentional.; wont happen again = This will not be repeated.; i was so
        tired = I was exhausted.; ill make it up to u = I will compensate you for this.; blame {name} = The
        responsibility lies with {name}.; coffee is on me {day} = I would like to offer you a coffee {day}.; ill sort
        it out {day} = I will resolve the matter {day}."""),
    "gear": fillers("""
        the printer = the printer; the coffee machine = the coffee machine; the ac = the air conditioning; the
        elevator = the lift; the wifi = the wireless network; the fridge = the refrigerator; my laptop = my computer;
        my chair = my office chair; the phone = the telephone line; the loo = the washroom; the toaster = the toaster;
        the gate = the car park barrier; the screen = the projector"""),
    "fault": fillers("""
        is busted = is out of order; is acting up = is not functioning reliably; smells funny = is emitting an unusual
        odour; makes weird noises = is producing unusual sounds; keeps freezing = repeatedly ceases to respond; is
        gone = has disappeared; hates me = does not accept my instructions; is super old = is in need of replacement;
        is dripping = is leaking; is a death trap = presents a safety hazard"""),
    "effect": fillers("""
        its driving me nuts = This is causing considerable frustration.; i cant work like this = I am unable to work
        under these conditions.; can someone fix it = I kindly request a repair.; third time this week = This is the
        third occurrence this week.; everyones whining = Several colleagues have raised concerns.; just buy a new one
        = I recommend the purchase of a new one.; who broke it = I would like to know who is responsible.; already
        told {dept} = I have notified {dept}."""),
    "hero": fillers("""
        u = You; {name} = {name}; the team = The team; the new guy = Our new colleague"""),
    "laud": fillers("""
        killed it with = delivered outstanding work on; saved us with = rendered invaluable assistance with; went all
        in on = showed full commitment to; did a solid job on = did commendable work on; worked like crazy on = worked
        with great dedication on; was a wizard with = displayed exceptional skill with"""),
    "cheer": fillers("""
        {dept} loved it = This was warmly received by {dept}.; drinks on me {day} = I invite you for refreshments
        {day}.; so proud = I am very proud of this achievement.; u deserve a raise = An increase in salary would be
        well deserved.; didnt see that coming = This exceeded my expectations.; keep it up = I encourage you to
        continue in this manner."""),
    "chase": fillers("""
        any news on = I would appreciate an update on; did u see my msg about = I am writing to follow up on my
        message regarding; still waiting on = I am still awaiting; whats the deal with = I would be grateful for
        clarification regarding; i cant find = I am unable to locate; i got questions about = I would like to raise
        some questions regarding"""),
    "excuse": fillers("""
        half the team is out = half of the team is absent; we got ghosted = we have received no response; {dept} cant
        decide = {dept} cannot reach a decision; the server crashed = the server has failed; nobody told us = we were
        not informed; were swamped = our workload is excessive; {name} is on vacation = {name} is on annual leave;
        were broke = our funds are exhausted; the data is garbage = the data is unreliable"""),
    "state": fillers("""
        is done = has been completed; got a thumbs up = has been approved; is a mess = requires substantial revision;
        got shot down = has been declined; is almost there = is nearing completion; is way too long = exceeds the
        permitted length; leaked = has become public"""),
    "busy": fillers("""
        im swamped = My workload is very high at present.; im on pto {day} = I am on annual leave {day}.; im new here
        = I have only recently joined the company.; im so done with this = I have lost my enthusiasm for this matter.;
        im bad at this = This lies outside my expertise.; i got a hot date = I have a private engagement."""),
    "feat": fillers("""
        got promoted = has been promoted; is leaving = is leaving the company; got married = has recently married; had
        a baby = has become a parent; turned 40 = is celebrating a fortieth birthday; is back = has returned to us;
        passed the test = has passed the examination"""),
    "treat": fillers("""
        cake = cake; pizza = pizza; donuts = pastries; drinks = refreshments; snacks = a light buffet; a bbq = a
        barbecue; free coffee = complimentary coffee; karaoke = musical entertainment"""),
    "place": fillers("""
        in the kitchen = in the kitchen; in the lobby = in the entrance hall; in the break room = in the staff lounge;
        in the big room = in the main conference room; on the roof = on the roof terrace; out back = in
        the courtyard"""),
    "wish": fillers("""
        wear shorts = dress informally; bring my dog = be accompanied by my dog; take a nap = take a short rest; grab
        the last donut = consume the remaining pastry; blast music = play music at high volume; park my bike = store
        my bicycle; borrow ur charger = borrow your charging cable; hide from {dept} = avoid contact with {dept};
        throw a party = host a celebration"""),
    "want": fillers("""
        i want a raise = I would like to request an increase in salary; i need a new laptop = I require a new
        computer; i want a better chair = I would like a more comfortable chair; i need a vacation = I wish to apply
        for annual leave; i need backup = I require additional support; i want a window seat = I would prefer a desk
        by the window; i wanna work with {name} = I would welcome the opportunity to collaborate with {name}"""),
    "merit": fillers("""
        ive been here forever = I have served the company for many years; i do two jobs = I am fulfilling two roles;
        my back is killing me = I am suffering from back pain; i bring in the big bucks = I generate considerable
        revenue; my stuff is ancient = my equipment is outdated; everyone got one but me = my colleagues have already
        received one; im bored to death = I seek a new challenge; u promised = you gave me your assurance"""),
}

OPENERS = {
    "any": fillers("""
        yo / hey / ugh / ok so =; hey {to} / yo {to} = Dear {to},; {to} = Dear {to},; hi team / hey all / guys = Dear
        colleagues,; morning {to} = Good morning, {to}.; fyi = Please note the following.; psst = The following is
        confidential."""),
    "ask": fillers("quick q = I have a brief enquiry.; big favor = I would like to ask a considerable favour."),
    "bad": fillers("bad news = I regret to bring unwelcome news.; dont be mad = I ask for your understanding."),
    "good": fillers("guess what = I am pleased to share some news.; good news = I am pleased to share some news."),
}

CLOSERS = {
    "any": fillers("""
        lmk / lemme know = Please let me know your view.; ping me = Please contact me with any questions.; dont tell
        {dept} = Please do not mention this to {dept}.; call me = Please telephone me.; ttyl = I will be in touch
        shortly.; lol / haha / smh ="""),
    "ask": fillers("""
        thx / ty = Thank you very much.; no rush = There is no urgency.; its kinda urgent = This matter is urgent.;
        ill owe u one = I would be in your debt."""),
    "bad": fillers("""
        sry = I apologise for the inconvenience.; hope thats ok = I hope that this is acceptable.; ask {name} to cover
        = {name} may be able to stand in for me.; ill catch up later = I will make up for this at a later date."""),
    "good": fillers("""
        congrats = Congratulations.; so stoked = I am delighted.; spread the word = Please pass this on to your
        colleagues."""),
}
