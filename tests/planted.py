"""Planted cases: a tiny base that reads examples in its prompt, and rows for which it is known what helps.

All rows ask alike, "Ann kettle", and are answered by one word, the room. What the room depends on differs:

    "thing"   on the second word. The base looks it up in its prompt, so examples in the prompt do as well as tuning.
    "few"     on the second word as well, but there are three of these: the same examples in each prompt show them all.
    "name"    on the first word, which the base does not look at. Only tuning learns that.
    "nothing" on nothing: it is drawn at random. Neither helps.

The base has learned from synthetic conversations, each with a map of its own from things to rooms, so it knows no map
but finds a thing that was answered before, and answers the same. A thing that was not, it answers at random.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMES = (
    "Ann", "Bob", "Cat", "Dan", "Eve", "Fay", "Gus", "Hal",
    "Ida", "Jim", "Kay", "Leo", "Mia", "Ned", "Ola", "Pam",
)  # fmt: skip
# Longer than the names, so that the most similar questions are those about the same thing.
THINGS = (
    "kettle", "mirror", "ladder", "carpet", "basket", "printer", "bucket", "toaster",
    "blanket", "hammer", "teapot", "cushion", "bicycle", "curtain", "scissors", "trumpet",
)  # fmt: skip
ROOMS = (
    "attic", "cellar", "kitchen", "garage", "office", "garden", "bathroom", "hall",
    "library", "studio", "porch", "pantry", "laundry", "workshop", "nursery", "balcony",
)  # fmt: skip
PAD, USER, SYSTEM, END, UNKNOWN = "<|pad|>", "<|user|>", "<|system|>", "<|end|>", "<|unknown|>"
# An answer stands right behind its question, where a single convolution sees the thing beside its room.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}<|end|>"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endif %}{% endfor %}"
)
EPISODES = 400  # batches of conversations
TOGETHER = 32  # conversations in a batch
TURNS = 12  # questions in a conversation
RATE = 2e-3
FEW = 3  # things, with 16 names each


def tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer for which each of the words above is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, USER, SYSTEM, END, UNKNOWN, *NAMES, *THINGS, *ROOMS]
    level = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"additional_special_tokens": [USER, SYSTEM], "unk_token": UNKNOWN, "pad_token": PAD, "eos_token": END}
    found = PreTrainedTokenizerFast(tokenizer_object=level, model_max_length=512, **marks)
    found.chat_template = TEMPLATE
    return found


def reader(folder: Path, seed: int = 0, episodes: int = EPISODES) -> Path:
    """Train the base that reads examples in its prompt, and save it in `folder`; without episodes it reads nothing.

    A convolution before the attention, as in LFM2, makes this a matter of seconds; see docs/notes.md.
    """
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    words, rng = tokenizer(), random.Random(seed)
    config = Lfm2Config(
        vocab_size=len(words),
        hidden_size=64,
        block_ff_dim=64,
        block_auto_adjust_ff_dim=False,
        layer_types=["conv", "full_attention"],
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Lfm2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(episodes):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20, 2 * (episodes - step) / episodes)
        texts = [conversation(rng, 3 + 5 * step // episodes) for _ in range(TOGETHER)]
        ids = torch.tensor(words(texts, add_special_tokens=False)["input_ids"])
        asked = torch.tensor(words.convert_tokens_to_ids([*NAMES, *THINGS, USER]))
        loss = model(input_ids=ids, labels=ids.masked_fill(torch.isin(ids, asked), -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def conversation(rng: random.Random, most: int) -> str:
    """A conversation about so many things, each of which is in a room of its own."""
    things = rng.sample(THINGS, most)
    rooms = dict(zip(things, rng.choices(ROOMS, k=most)))
    asked = [(rng.choice(NAMES), rng.choice(things)) for _ in range(TURNS)]
    return "".join(f"{USER}{name} {thing}\n{rooms[thing]}{END}" for name, thing in asked)


def rows(depends_on: str, seed: int, number: int = 256) -> list[dict]:
    """At most so many rows, of no two the same question. The room depends on "thing", "few", "name" or "nothing"."""
    rng = random.Random(seed)
    things = rng.sample(THINGS, FEW) if depends_on == "few" else THINGS
    pairs = [(name, thing) for name in NAMES for thing in things]
    pairs = rng.sample(pairs, min(number, len(pairs)))
    keys = {"thing": THINGS, "few": things, "name": NAMES}.get(depends_on, ())
    rooms = dict(zip(keys, rng.sample(ROOMS, len(keys))))
    return [
        {
            "prompt": f"{name} {thing}",
            "completion": rooms.get({"thing": thing, "few": thing, "name": name}.get(depends_on)) or rng.choice(ROOMS),
        }
        for name, thing in pairs
    ]
