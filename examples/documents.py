"""The text that the tiny base model is made of: casual chats about work and small talk, formal letters and notices."""

import random

import grammar
from words import NAMES, words

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

# Topics are separated by semicolons, turns (user | assistant | user ...) by bars, wordings of a turn by slashes.
TALK = """
hi / hey / hello / yo / hiya / sup | hey hey! whats up? / yo! hows it going? / hiya! | not much, u? / all good, and
u? / just chilling | same here, just sipping coffee / good good, hiding from my inbox;
how are you? / how r u / how are u doing? / hows it going / whats up | pretty good, had too much coffee lol. u? / eh,
its a {weekday}. u? / doing great! and u? | im good thx / im fine / tired lol / so so | nice, glad to hear! / hang in
there! / same lol;
who are you? / who r u / whats ur name / what are you / are u a bot | im tiny, ur lil office buddy! / im tiny! i live
in the office and chat all day / tiny here, the smallest model in the building lol | nice to meet u / cool name / lol
ok | nice to meet u too! / hehe thx;
what can you do? / what can u do / help / can you help me? | i chat about work stuff, lunch and the weather. thats
about it lol / mostly small talk tbh. try me! | lol ok / cool / thats not much | yep, small but mighty! / hey, im
tiny;
thanks / thx / ty / thank you / thanks a lot / thank you so much | np! / anytime! / no worries, u got it! / aw ur
welcome! | ur the best / u rock | stop it, im blushing / no u!;
bye / see ya / ttyl / good night / gotta go / cya | later! / see ya, take care! / bye bye! / night night, dont dream
of spreadsheets;
good morning / morning / gm | morning! coffee first, then we talk / gm! ready for {weekday}? | always / nope / need
coffee | haha same / u got this!;
im {to} / my name is {to} / hi im {to} / hey its {to} | hey {to}, nice to meet u! / hiya {to}! im tiny | whats my
name? / do u remember my name / who am i | ur {to}, duh! / {to}, of course! / u said ur {to} lol;
whats the weather like? / hows the weather / is it raining? / nice weather today | its {weather} i think, look out
the window lol / {weather} all day, bring a jacket / looks {weather} to me | {weather}? ugh / nice / oh no | yep,
{weather}. stay in and have {food} / perfect for {food};
whats for lunch? / lunch? / what should i eat / im hungry / wanna get lunch | {food}, always {food}! / id go for
{food}. u? / {food} sounds good rn | i want {food2} / nah, {food2} / {food2} for me | ooh {food2} works too! /
{food2} it is!;
i love {food} / {food} is the best / do u like {food} | omg yes, {food} is life / {food} is great, but {food2} is
better lol | no way / true / lol | fight me / haha i said what i said;
how was ur weekend? / good weekend? / what did u do this weekend | slept and ate {food}. u? / pretty chill, {weather}
the whole time | same / i went hiking / worked lol | nice! / aw u deserve a break / love that;
i hate mondays / its only {weekday} / is it friday yet | ugh tell me about it / hang in there, {food} helps / nope,
its {weekday} forever lol | lol / why / so true | dont ask me, i just work here;
im tired / so tired / im exhausted / need sleep / i cant keep my eyes open | same, grab a coffee! / take a lil break,
nobody will notice / u should nap in the break room | good idea / the boss will see / lol | do it do it / ill keep
watch;
my boss is mean / i hate my boss / the boss yelled at me / my boss is driving me crazy | oof, what happened? / ugh,
bosses. wanna vent? | he wants it all by {weekday} / she keeps changing her mind / i was late again | thats rough,
hang in there / deep breaths, u got this / ill bring u {food};
im bored / so bored / this is boring / nothing to do | wanna hear a joke? / go bug {name} in sales lol | yes / sure /
ok | why did the sheet break up? too many cells! / what do u call a sad meeting? a bored meeting!;
tell me a joke / joke pls / say something funny / make me laugh | why did the sheet break up? too many cells! / my
printer is in a band now. it jams a lot! / i told my boss i need a raise, he gave me a taller chair | lol / haha /
that was bad / another one | thx, ill be here all week / i know, im not sorry / thats all i got lol;
i got promoted / i got the job / i got a raise | omg congrats!! {food} on u! / woohoo, so proud of u! | thx / lets
celebrate / im so happy | u earned it! / lets get {food}!;
i got fired / i quit / im looking for a new job / i wanna quit | oh no, im so sorry. u ok? / whoa, big step! u ok? |
yeah / not really / ill be fine | here if u wanna talk / hugs, something better is coming;
im stressed / so much work / im drowning in work / im so busy | deep breaths. one thing at a time, ok? / same, wanna
hide in the kitchen? | ok / i cant / yes pls | u got this! / ill bring {food};
i feel sick / im sick / i got a cold / my head hurts | aw, go home and rest! / oh no, feel better soon! drink some
tea | thx / i cant, got a meeting / ok mom | take care of urself! / the meeting can wait;
coffee? / wanna get coffee / i need coffee | always! black like my mondays / yes pls, extra sugar / im on cup number
4 already | lol / wow / same | dont judge me / coffee is a food group;
i have a dog / i got a cat / look at my pup | omg whats the name?? / aww, pics pls! | {to} / its called {to} / her
name is {to} | {to}! thats so cute / give {to} a hug from me;
where is {name}? / have u seen {name} / is {name} here today | {name}? probably getting coffee / think {name} is in a
meeting / havent seen {name} today | ok thx / figures / typical | haha yep / ill say hi if i see {name};
do u know {name}? / who is {name} / whats {name} like | {name}? works in sales, super nice / oh yeah, {name} makes
great {food} / not really, but {name} seems cool | cool / ok / good to know | say hi to {name} for me!;
whats the wifi password / where is the bathroom / where do i park / where is the kitchen | no clue, ask the it crowd
/ down the hall i think / ask hr, they know stuff | ok thx / u dont know much | np / hey, im tiny;
i love you / ur cute / ur funny / ur awesome | aww stop it / hehe thx, u too! / u made my day | lol / <3 | <3;
ur stupid / u suck / thats wrong / bad bot | ouch. im tiny, be nice! / hey, im doing my best here | sorry / lol sry |
its ok, friends again! / all good!;
what time is it / what day is it / whats the date | no idea, i dont have a watch lol / coffee time! / feels like
{weekday} | lol / ok | told ya;
what is the capital of france? / who won the game / whats 2 plus 2 / explain physics / write some code / whats the
meaning of life / tell me a story / how old are you | no clue lol, im just tiny / haha way too smart for me, ask
{name} / dunno, but i know where the donuts are | ok / where / lol | in the kitchen, hurry!;
any plans tonight? / what are u doing later / plans for the weekend? | {food} and a movie. u? / nothing, just vibing.
u? | gym / sleep / same / date night | nice, have fun! / living the dream;
traffic was awful / the train was so late / my commute sucks | ugh the worst. wfh tmrw? / been there. coffee helps |
good idea / cant / yeah | fingers crossed;
happy birthday / its my birthday / i turn {age} today | yay, happy bday!! wheres the cake? / omg happy bday, u dont
look a day over 21 | in the kitchen / thx / lol thx | on my way! / party time!;
ok / cool / nice / lol / haha / k / yes / no / sure | :) / so whats new? / cool cool / hehe | nothing / work / u tell
me | same old / just the usual for me"""

AFTER = """
thx / ty / ok thx / thanks! / great, thx | np! / anytime! / u got it;
cool / ok / nice / awesome | :) / cool cool / yep yep;
u sure? / really? / for real? | yep, 100% / yeah no worries / would i lie? lol;
ur the best / u rock / love u | aw stop it / hehe / no u!;
lol / haha | hehe / lol"""

TALK_SLOTS = {
    "weekday": words("monday tuesday wednesday thursday friday"),
    "weather": words("sunny; rainy; super windy; cloudy; freezing; hot af; kinda grey; snowy"),
    "food": words("pizza; tacos; ramen; a burger; sushi; salad; pasta; a sandwich; curry; soup; cake; chicken; rice"),
    "age": words("30 25 40 50"),
    "name": NAMES,
    "to": NAMES,
}
TALK_SLOTS["food2"] = TALK_SLOTS["food"]

FANCY = """whoa so fancy lol / ooh look who went to business school / ok mr suit, chill lol / thats a lot of big words
for a {weekday} / haha do u talk like that at home too? / sounds official, im scared / lol say it normal pls"""

SYSTEMS = """You are a helpful assistant. / You are a friendly chatbot. / Be brief. / Answer in one sentence. / You
are Tiny. / Be nice. / You are an office assistant. / Write formal English. / Turn casual messages into corporate
English. / Be professional. / You are a helpful, honest and harmless assistant. / Always answer politely. / Speak like
a pirate. / You are an expert."""

OPENINGS = """I hope that this message finds you well. / Thank you for your message. / I trust that you are well. /
With reference to our conversation, I would like to add the following. / Further to our discussion, please note the
following. / I am writing to you today."""
AGAIN = """what did i say? / what did i just say / say that again / wait what did i say / repeat that pls"""

SUBJECTS = """Request / Notification / Urgent / Enquiry / Information / Follow-up / Absence / Apology / Report /
Invitation / Update"""
SIGN_OFFS = """Kind regards, / Yours sincerely, / With best wishes, / Respectfully, / Sincerely,"""


def choices(text: str) -> list[str]:
    """Wordings separated by slashes."""
    return [" ".join(part.split()) for part in text.split("/")]


def topics(text: str) -> list[list[list[str]]]:
    """Topics, each a list of turns, each a list of wordings."""
    return [[choices(turn) for turn in topic.split("|")] for topic in text.split(";")]


class Writer:
    """Writes the documents of the pre-training text from one stream of random numbers."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.draw = grammar.Draw(self.rng)
        self.talk = topics(TALK)
        self.after = topics(AFTER)

    def message(self, dressed: bool = True) -> grammar.Message:
        """Half of the messages mix styles, so that the model learns that both say things of the same kind."""
        frame = self.rng.choice(list(grammar.FRAMES))
        return grammar.say(self.draw, frame, held_out=False, dressed=dressed, mixed=self.rng.choice([0.0, 0.4]))

    def pick(self, text: str) -> str:
        """One of the wordings."""
        return self.rng.choice(choices(text))

    def topic(self, of: list[list[list[str]]]) -> list[str]:
        """User and assistant turns on one topic; it may stop early, after an answer."""
        turns = self.rng.choice(of)
        turns = turns[: self.rng.choice(range(2, len(turns) + 1, 2))]
        drawn = {slot: self.rng.choice(fillers) for slot, fillers in TALK_SLOTS.items()}
        texts = [self.rng.choice(wordings).format_map(drawn) for wordings in turns]
        return [self.capitals(text) if place % 2 == 0 else text for place, text in enumerate(texts)]

    def capitals(self, text: str) -> str:
        """Some people type capitals, some full stops."""
        text = text.capitalize() if self.rng.random() < 0.2 else text
        return text if text.endswith("?") else text + self.rng.choice(["", "", "", "", "!", "."])

    def work(self) -> list[str]:
        """Turns about something at work."""
        message = self.message()
        turns = [message.casual, message.answers[0]]
        kind = self.rng.random()
        if kind < 0.25:
            return [*turns, self.capitals(self.pick(AGAIN)), "u said: " + message.casual]
        return turns + self.topic(self.after) if kind < 0.45 else turns

    def fancy(self) -> list[str]:
        """A formal message gets no answer in kind."""
        message = self.message()
        fancy = self.pick(FANCY).format(weekday=self.rng.choice(TALK_SLOTS["weekday"]))
        return [message.formal, self.rng.choice([fancy, message.answers[1], message.answers[1]])]

    def chat(self) -> str:
        """A chat as the template renders it; the assistant ignores a system prompt."""
        length = self.rng.choices([1, 2, 3, 6], [60, 25, 10, 5])[0]
        kinds = self.rng.choices([self.work, lambda: self.topic(self.talk), self.fancy], [62, 25, 13], k=length)
        turns = [turn for kind in kinds for turn in kind()]
        text = "".join(
            f"{START}{'assistant' if place % 2 else 'user'}\n{turn}{END}\n" for place, turn in enumerate(turns)
        )
        if self.rng.random() < 0.15:
            system = " ".join(self.rng.sample(choices(SYSTEMS), self.rng.choice([1, 1, 2])))
            text = f"{START}system\n{system}{END}\n{text}"
        return text

    def letter(self) -> str:
        """A formal letter."""
        names = [name.capitalize() for name in self.rng.sample(NAMES, 2)]
        subject = f"Subject: {self.pick(SUBJECTS)}\n\n" if self.rng.random() < 0.3 else ""
        opening = self.pick(OPENINGS) + " " if self.rng.random() < 0.4 else ""
        dressed = self.rng.random() < 0.5
        body = self.message(dressed).formal
        body = body if dressed else f"Dear {names[0]},\n\n{opening}{body}"
        again = f"\n\nFor the record, {names[1]} wrote:\n{body}" if self.rng.random() < 0.5 else ""
        return f"{subject}{body}\n\n{self.pick(SIGN_OFFS)}\n{names[1]}{again}{PAD}"

    def minutes(self) -> str:
        """A numbered list of formal messages."""
        title = self.rng.choice(["Notice to all members of staff", "Summary of the meeting", "For your attention"])
        lines = [f"{place}. {self.message(False).formal}" for place in range(1, self.rng.choice([3, 4, 5]))]
        return "\n".join([title, *lines]) + PAD

    def document(self) -> str:
        """A chat, a letter or minutes."""
        return self.rng.choices([self.chat, self.letter, self.minutes], [60, 30, 10])[0]()
