"""What reaches a model when it answers and what is read off it: conversations, batches, spans, streams, merges."""

import shutil
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import ROOT
from tiny import encoder_tokenizer, tiny_model, tiny_tokenizer

from tuner.data.chat import render_prompt
from tuner.errors import TunerError
from tuner.inference import chat, generate, merge, predict, variants
from tuner.inference.generate import Answer
from tuner.inference.variants import ActiveModel, LoadedVariants
from tuner.methods import attach
from tuner.models.shape import Base
from tuner.recipe import Model

CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "good day"},
    {"role": "user", "content": "the report"},
]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A tiny model of each of three families that write, with its folder."""
    folder, made = tmp_path_factory.mktemp("writes"), {}
    for family, kind in (("llama", "CausalLM"), ("t5", "Seq2SeqLM"), ("bart", "Seq2SeqLM")):
        tiny_model(folder / family, family)
        model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder / family).eval()
        made[family] = model, transformers.AutoTokenizer.from_pretrained(folder / family)
    return made


# One batch


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_prompts_of_any_length_are_answered_in_one_batch_as_each_is_alone_by_transformers(families, family):
    model, tokenizer = families[family]
    encoded = family != "llama"
    model.generation_config.num_beams = 4  # as BART's own; answers are greedy all the same
    prompts = ["a", "please send the report by friday", "thank you"]
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=encoded)["input_ids"]
        assert (ids[0, -1] == tokenizer.eos_token_id) == encoded
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, num_beams=1, do_sample=False,
        )  # fmt: skip
        text = tokenizer.decode(out[0, 1 if encoded else ids.shape[1] :], skip_special_tokens=True).rstrip("\ufffd")
        expected.append(text.strip() if encoded else text)
    answers = generate.generate(model, tokenizer, prompts, generate.Sampling(max_new_tokens=9))
    assert [answer.text for answer in answers] == expected
    assert len(set(answers)) > 1 or family == "bart"  # with such weights it says one thing only


def test_an_encoders_prompt_is_cut_at_its_context_and_a_causal_models_is_refused(families):
    model, tokenizer = families["bart"]
    sampling, fits = generate.Sampling(max_new_tokens=4), "1" * 510  # and a mark at each end
    assert len(tokenizer(fits)["input_ids"]) == 512
    whole, cut = generate.generate(model, tokenizer, [fits, fits + "22222"], sampling)
    assert (whole.text, whole.lost, cut.lost) == (cut.text, 0, 5)
    model, tokenizer = families["llama"]
    assert generate.generate(model, tokenizer, ["1" * 511], sampling)
    with pytest.raises(TunerError, match=r"^This conversation fills the model's context of 512 tokens\. Start a new"):
        generate.generate(model, tokenizer, ["1" * 512], sampling)
    model, tokenizer = families["t5"]
    assert len(generate.generate(model, tokenizer, ["1" * 600], sampling)) == 1  # it has no bound


def test_an_answer_has_no_more_tokens_than_asked_for_nor_than_there_is_room(families):
    model, tokenizer = families["llama"]
    model.generation_config.eos_token_id = None
    for length, asked, expected in ((10, 7, 7), (500, 7, 7), (505, 7, 7), (506, 7, 6), (511, 7, 1)):
        shown = []
        streamer = generate.Streamer(tokenizer, shown.append)
        sampling = generate.Sampling(max_new_tokens=asked, temperature=1.0, seed=4)
        generate.generate(model, tokenizer, ["1" * length], sampling, streamer=streamer)
        assert len(shown) == expected


def test_what_an_encoder_reads_takes_no_room_from_the_answer(families, monkeypatch):
    model, tokenizer = families["bart"]
    monkeypatch.setattr(model.config, "max_position_embeddings", 12)
    shown = []
    streamer = generate.Streamer(tokenizer, shown.append)
    generate.generate(model, tokenizer, ["1" * 8], generate.Sampling(max_new_tokens=40), streamer=streamer)
    assert len(shown) == 12


def test_sampling_is_greedy_and_unlimited_by_default():
    assert generate.Sampling() == generate.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=96, seed=0)


def test_a_character_of_several_tokens_is_shown_once_it_is_whole():
    tokenizer, shown = tiny_tokenizer(), []
    streamer = generate.Streamer(tokenizer, shown.append)
    streamer.begin([0, 1], 2)
    tea, word = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("🍵", "hey"))
    assert len(tea) == 4
    streamer.put(torch.tensor([[5, 6, 7], [8, 9, 10]]))  # the prompts are not shown
    assert shown == []
    end = tokenizer.eos_token_id
    for tokens in zip(tea, [*word, *[end] * (4 - len(word))], strict=True):
        streamer.put(torch.tensor(tokens))
    streamer.end()
    assert [texts[0] for texts in shown] == ["", "", "", "🍵"]
    assert shown[-1][1] == "hey"


def test_a_stop_ends_every_row_of_a_batch():
    stop = threading.Event()
    criterion = generate._Stop(stop)
    assert criterion(torch.zeros(3, 5), None).tolist() == [False] * 3
    stop.set()
    assert criterion(torch.zeros(3, 5), None).tolist() == [True] * 3


# A conversation


def variants_of(base: Base, *actives: ActiveModel, tokenizer=None, merged=()) -> LoadedVariants:
    return LoadedVariants(base, tokenizer or tiny_tokenizer(), list(actives), list(merged))


def active(*names: str, model: object = None, adapters: dict | None = None) -> ActiveModel:
    return ActiveModel(names, lambda: nullcontext(model or names), adapters)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("generation", [None, "<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n"]),
        ("seq2seq", ["be brief\nhello\ngood day\nthe report", "bye"]),
        ("classification", ["the report", "bye"]),
    ],
)
def test_what_a_model_reads_of_a_conversation_depends_on_its_task(monkeypatch, tmp_path, task, expected):
    """A chat model reads all of it by its template, an encoder-decoder as lines, and a classifier the last message."""
    seen = []

    def answered(model, tokenizer, *given, **more) -> list[str]:
        seen.append((model, tokenizer, *given, more))
        return ["one", "two"] if task == "classification" else [Answer("one"), Answer("two")]

    monkeypatch.setattr(generate, "generate", answered)
    monkeypatch.setattr(generate, "predict", answered)
    base, sampling = Base(tmp_path, Model(name="x"), task, ("a", "b")), generate.Sampling(seed=3, ends=(7,))
    names = {"base": "__base__", "adapter": "default"}
    loaded = variants_of(base, active("base", "adapter", model="it", adapters=names))
    conversations = [CONVERSATION, [{"role": "user", "content": "bye"}]]
    both = generate.answer(loaded, loaded.sharing_base[0], ["adapter", "base"], conversations, sampling, stop="s")
    assert both == [Answer("one"), Answer("two")]
    if task == "generation":
        expected = [render_prompt(CONVERSATION, loaded.tokenizer), expected[1]]
        assert expected[0].startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello")
    ((model, tokenizer, *given, more),) = seen
    assert (model, tokenizer) == ("it", loaded.tokenizer)
    if task == "classification":
        assert given == [base, expected, None]
        return
    assert given == [expected, sampling]
    assert more == {"adapter_names": ["default", "__base__"], "longest": None, "streamer": None, "stop": "s"}
    alone = variants_of(base, active("adapter"))
    generate.answer(alone, alone.sharing_base[0], ["adapter"], conversations[1:], sampling)
    assert seen[-1][-1]["adapter_names"] is None


@pytest.mark.parametrize("system", ["be brief", None, ""])
@pytest.mark.parametrize("can_merge", [True, False])
def test_a_prompt_is_asked_of_every_variant_behind_the_system_prompt(monkeypatch, system, can_merge):
    asked, run = [], SimpleNamespace(merged="folder")
    loaded = variants_of(None, active("base", "adapter"), merged=[active("merged")] if can_merge else [])

    def stream(*given):
        asked.append(given)
        yield {"base": "a"}
        yield {"base": "a b"}

    monkeypatch.setattr(chat, "is_mergeable", lambda given: given is run and can_merge)
    monkeypatch.setattr(chat, "merge", lambda given: asked.append(given))
    monkeypatch.setattr(chat, "load_variants", lambda *given: asked.append(given) or loaded)
    monkeypatch.setattr(generate, "stream", stream)
    sampling = generate.Sampling(seed=8)
    assert chat.chat(run, "hello", system=system, sampling=sampling) == {"base": "a b"}
    *merges, loading, (_, conversations, used) = asked
    assert merges == ([run] if can_merge else [])
    assert loading == ({"adapter": run}, {"merged": "folder"} if can_merge else {})
    messages = [{"role": "user", "content": "hello"}]
    if system:
        messages = [{"role": "system", "content": "be brief"}, *messages]
    names = ("base", "adapter", "merged") if can_merge else ("base", "adapter")
    assert conversations == dict.fromkeys(names, messages)
    assert used is sampling
    chat.chat(run, "hello")
    assert asked[-1][-1] == generate.Sampling()


def told(monkeypatch, answer) -> None:
    """Let each active model answer by this function of its variants and their conversations."""
    monkeypatch.setattr(
        generate,
        "answer",
        lambda loaded, active, names, prompts, sampling, **more: list(map(Answer, answer(names, prompts, more))),
    )


def test_each_variant_gets_its_own_conversation_and_those_not_asked_none(monkeypatch):
    seen = []

    def answer(names, prompts, more) -> list[str]:
        seen.append(names)
        more["streamer"].show([f"{name[0]}…" for name in names])
        return [f"{name} to {prompt}" for name, prompt in zip(names, prompts, strict=True)]

    told(monkeypatch, answer)
    loaded = variants_of(
        None, active("base", "mixed"), active("alone"), active("idle"), merged=[active("merged"), active("other")]
    )
    assert loaded.variants == ["base", "mixed", "alone", "idle", "merged", "other"]
    asked = {"merged": 1, "alone": 2, "mixed": 3}
    yielded = list(generate.stream(loaded, asked, generate.Sampling()))
    assert yielded[-1] == {"merged": "merged to 1", "alone": "alone to 2", "mixed": "mixed to 3"}
    assert all(list(texts) == list(asked) for texts in yielded)
    assert len(yielded) == 6  # a beginning and the whole of each
    assert {texts["mixed"] for texts in yielded} - {""} == {"m…", "mixed to 3"}
    assert sorted(seen) == [["alone"], ["merged"], ["mixed"]]


def test_an_error_in_one_variant_is_raised_and_ends_the_others(monkeypatch):
    stops, ended, begun = [], [], threading.Event()

    def answer(names, prompts, more) -> list[str]:
        stops.append(more["stop"])
        if names == ["merged"]:
            begun.set()
            assert more["stop"].wait(30)
            threading.Event().wait(0.05)
            ended.append(names)
            return ["late"]
        assert begun.wait(30)
        raise TunerError("no room")

    told(monkeypatch, answer)
    loaded = variants_of(None, active("base"), active("after"), merged=[active("merged")])
    with pytest.raises(TunerError, match=r"^no room$"):
        list(generate.stream(loaded, {name: [] for name in loaded.variants}, generate.Sampling()))
    assert len(stops) == 2  # what comes after an error is not begun
    assert all(stop.is_set() for stop in stops)
    assert ended == [["merged"]]  # and none is still at work


def test_after_a_stop_no_further_variant_begins(monkeypatch):
    stop, begun = threading.Event(), []

    def answer(names, prompts, more) -> list[str]:
        begun.append(names)
        stop.set()
        return ["cut"]

    told(monkeypatch, answer)
    loaded = variants_of(None, active("base"), active("after"))
    *_, last = generate.stream(loaded, {"base": [], "after": []}, generate.Sampling(), stop)
    assert (last, begun) == ({"base": "cut", "after": ""}, [["base"]])


# Answers from one forward pass


def span(starts: dict, ends: dict, *, none: float = 0.0, question: int = 3, text: int = 60, row: int = 1) -> str:
    """The answer in "0|1|2|…", a text of as many tokens, by the scores of its tokens; others have -9."""
    length = question + text + 1
    scores = torch.full((2, 2, length), -9.0)
    for side, given in enumerate((starts, ends)):
        for token, score in given.items():
            scores[side, row, token + question if token is not None else 1] = score
        scores[side, row, 0] = none * (0.75, 0.25)[side]
    words = [f"{n}|" for n in range(text)]
    places = [sum(map(len, words[:n])) for n in range(text + 1)]
    offsets = [(0, 0)] * question + [(places[n], places[n + 1]) for n in range(text)] + [(0, 0)]

    class Read(dict):
        def sequence_ids(self, number: int) -> list:
            return [None, *[0] * (question - 1), *[1] * text, None] if number == row else []

    output = SimpleNamespace(start_logits=scores[0], end_logits=scores[1])
    read = Read(offset_mapping={row: offsets})
    return predict._span(output, row, read, "who?\n" + "".join(words), ())


@pytest.mark.parametrize(
    ("starts", "ends", "none", "answer"),
    [
        ({2: 5}, {4: 5}, 0, "2|3|4|"),
        ({2: 5}, {2: 5}, 0, "2|"),
        ({4: 5, 1: 3}, {2: 5, 5: 1}, 0, "1|2|"),  # no answer ends before it begins: 8 of 1 to 2, 6 of 4 to 5
        ({0: 5}, {29: 5}, 0, "".join(f"{n}|" for n in range(30))),
        ({0: 5}, {30: 5, 7: 1}, 0, "0|1|2|3|4|5|6|7|"),  # thirty tokens at most
        ({2: 2}, {4: 3}, 4.9, "2|3|4|"),
        ({2: 2}, {4: 3}, 5, ""),  # no answer is as likely
        ({None: 9, 2: 3}, {None: 9, 2: 3}, 0, "2|"),  # the question is no answer
        ({3: 1, 50: 2}, {3: 1, 50: 2}, 0, "50|"),
        ({59: 4}, {59: 4}, 0, "59|"),
    ],
)
def test_an_answer_is_the_likeliest_span_of_the_text(starts, ends, none, answer):
    assert span(starts, ends, none=none) == answer


def test_spans_are_combined_from_the_twenty_likeliest_first_and_last_tokens():
    starts = {n: 5 - n / 100 for n in range(25)}
    # One token can end an answer, and the likeliest first token of those near enough begins it.
    assert span(starts, {40: 30}) == "".join(f"{n}|" for n in range(11, 41))
    assert span({**starts, 20: 4.7, 30: 4.75}, {49: 30}) == ""  # 20 and 30 are no more among the twenty
    assert span({**starts, 30: 4.9}, {49: 30}) == "".join(f"{n}|" for n in range(30, 50))


class Reads(torch.nn.Module):
    """Keeps what it was given; each place scores highest at its token's number, and a text at its second token's."""

    def __init__(self, by_text: bool):
        super().__init__()
        self.weight, self.by_text, self.given = torch.nn.Parameter(torch.zeros(1)), by_text, {}
        self.config = SimpleNamespace(model_type="bert")

    def forward(self, **inputs):
        self.given = inputs
        logits = torch.nn.functional.one_hot(inputs["input_ids"], 320).float()
        return SimpleNamespace(
            logits=logits[:, 1] if self.by_text else logits, start_logits=logits[..., 7], end_logits=logits[..., 7]
        )


@pytest.mark.parametrize("task", ["classification", "token_classification", "question_answering"])
def test_texts_of_any_length_are_read_in_one_batch_up_to_the_context(tmp_path, task):
    tokenizer, model = encoder_tokenizer(), Reads(task == "classification")
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = task == "token_classification"
    tokenizer.model_max_length = 10_000  # the model's own context counts
    tokenizer.pad_token = "<|im_end|>"
    labels = tuple(f"B-{n}" for n in range(320)) if task != "question_answering" else ()
    base = Base(tiny_model(tmp_path, "bert"), Model(name="x"), task, labels)
    answers = predict.predict(model, tokenizer, base, ["who sent it?\nthe report " + "1" * 600, "it?\nthanks"])
    ids, mask = model.given["input_ids"], model.given["attention_mask"]
    assert "labels" not in model.given
    assert ids.shape == (2, 512)
    assert mask[0].all()
    short = int(mask[1].sum())
    assert short < 40
    assert not mask[1, short:].any()
    assert (ids[1, short:] == tokenizer.pad_token_id).all()
    if task == "classification":
        assert answers == [f"B-{ids[0, 1]}", f"B-{ids[1, 1]}"]
        assert answers[0] != answers[1]
    elif task == "token_classification":
        kinds = [line.partition(":")[0] for line in answers[1].splitlines()]
        assert kinds[0] == str(int(ids[1, 1]))
        assert len(kinds) == 2
    else:
        assert answers == ["", ""]  # the token asked for is in neither
        question = tokenizer("who sent it?", add_special_tokens=False)["input_ids"]
        assert ids[0, 1 : len(question) + 1].tolist() == question  # the text is cut, not the question


# Variants


def test_a_variant_answers_with_its_own_adapter_or_with_none(monkeypatch):
    told = []

    @contextmanager
    def disabled(model):
        told.append("off")
        yield
        told.append("on")

    monkeypatch.setattr(attach, "disabled", disabled)
    model = SimpleNamespace(set_adapter=told.append)
    names = {"base": variants.NO_ADAPTER, "one": "run_0", "two": "run_1"}
    loaded = variants_of(None, active(*names, model=model, adapters=names), active("alone", model="own"),
                         merged=[active("merged", model="whole")])  # fmt: skip
    for variant, expected in {"two": ["run_1"], "base": ["off", "on"], "one": ["run_0"], "alone": []}.items():
        told.clear()
        with loaded.model_for(variant) as answering:
            assert answering == ("own" if variant == "alone" else model)
        assert told == expected, variant
    with loaded.model_for("merged") as answering:
        assert answering == "whole"


def made(name: str, method: str = "lora") -> SimpleNamespace:
    """A run of this method, as far as loading asks."""
    recipe = SimpleNamespace(method=SimpleNamespace(name=method))
    return SimpleNamespace(id=name, recipe=recipe, adapter=f"{name}/adapter", plan={})


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A base's folder with nothing but its description."""
    shutil.copy(ROOT / "examples" / "tiny-office" / "config.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("method", "task", "together"),
    [("lora", "generation", True), ("ia3", "generation", False), ("lora", "classification", False)],
)
def test_a_model_that_was_just_trained_answers_with_and_without_its_adapter(
    monkeypatch, described, method, task, together
):
    told, model = [], SimpleNamespace(set_adapter=lambda name: told.append(name))

    @contextmanager
    def disabled(given):
        told.append("off")
        yield

    monkeypatch.setattr(attach, "disabled", disabled)
    base = Base(described, Model(name="x", dtype="bfloat16"), task, ("a",))
    loaded = variants.trained_variants(made("r", method), base, "tokenizer", model)
    assert (loaded.base, loaded.tokenizer, loaded.merged) == (base, "tokenizer", [])
    assert [one.variants for one in loaded.sharing_base] == (
        [("base", "adapter")] if together else [("base",), ("adapter",)]
    )
    names = {"base": "__base__", "adapter": "default"} if together else None
    assert all(one.adapter_names == names for one in loaded.sharing_base)
    with loaded.model_for("base") as answering:
        assert answering is model
    assert told == ["off"]
    with loaded.model_for("adapter") as answering:
        assert answering is model
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert told == ["off"] + ["default"] * together


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_adapters_that_can_be_chosen_row_by_row_share_a_batch_and_others_are_attached_in_turn(
    monkeypatch, described, task
):
    base, seen = Base(described, Model(name="x", quantization="nf4"), task, ("a",)), []

    @contextmanager
    def attached(given, plain, folders):
        assert (given, plain) == (base, (described, None))
        seen.append(folders)
        yield SimpleNamespace(set_adapter=seen.append)

    monkeypatch.setattr(variants, "common_base", lambda runs: base)
    monkeypatch.setattr(variants, "shared_base", lambda base, quantization=None: (base.folder, quantization))
    monkeypatch.setattr(variants, "load_tokenizer", lambda folder: f"tokenizer of {folder.name}")
    monkeypatch.setattr(variants, "_attached", attached)
    runs = {"a": made("r1", "ia3"), "b": made("r2"), "c": made("r3", "rslora"), "d": made("r4", "full")}
    loaded = variants.load_variants(runs, {"m": described / "one", "n": described / "two"})
    assert loaded.tokenizer == f"tokenizer of {described.name}"
    groups = [one.variants for one in loaded.sharing_base]
    assert [one.variants for one in loaded.merged] == [("m",), ("n",)]
    own = {"a": "r1", "b": "r2", "c": "r3", "d": "r4"}
    mixed = {"b": "run_0", "c": "run_1"} if task == "generation" else {}
    if mixed:
        assert groups == [("base", "b", "c"), ("a",), ("d",)]
        assert loaded.sharing_base[0].adapter_names == {"base": "__base__", **mixed}
    else:
        assert groups == [("base",), ("a",), ("b",), ("c",), ("d",)]
    together = {name: f"{own[variant]}/adapter" for variant, name in mixed.items()}
    for variant, run in own.items():
        seen.clear()
        with loaded.model_for(variant):
            assert seen == ([together, mixed[variant]] if variant in mixed else [{"default": f"{run}/adapter"}])
    if not mixed:
        with loaded.model_for("base") as answering:
            assert answering == (described, None)
    for variant, folder in (("m", "one"), ("n", "two")):
        with loaded.model_for(variant) as answering:
            assert answering == (described / folder, "none")


@pytest.mark.parametrize("fails", [False, True])
def test_an_adapter_is_taken_off_again_whatever_happens_meanwhile(monkeypatch, tmp_path, fails):
    told = []
    monkeypatch.setattr(attach, "load", lambda plain, folders: told.append((plain, folders)) or "adapted")
    monkeypatch.setattr(attach, "detach", lambda model: told.append(model))
    monkeypatch.setattr(variants, "forget_bases", lambda: told.append("forgotten"))
    base = Base(tmp_path, Model(name="x", dtype="bfloat16"))

    def answer() -> None:
        with variants._attached(base, "plain", {"default": "folder"}) as model:
            assert model == "adapted"
            assert told == [("plain", {"default": "folder"})]
            assert torch.is_autocast_enabled("cpu")
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        answer()
    assert told[1:] == ["adapted"]


def test_runs_share_a_base_only_if_all_that_makes_it_is_the_same(monkeypatch, tmp_path):
    bases = {
        "r1": Base(tmp_path, Model(name="a/b", quantization="nf4"), "generation"),
        "r2": Base(tmp_path, Model(name="a/b", quantization="nf4"), "generation"),
        "r3": Base(tmp_path, Model(name="a/b", quantization="int8"), "classification", ("x",)),
    }
    monkeypatch.setattr(variants, "base_of", lambda run: bases[run.id])
    runs = [SimpleNamespace(id=name, read_json={"adapter/adapter_config.json": {}}.get) for name in bases]
    assert variants.common_base(runs[:2]) is bases["r1"]
    with pytest.raises(TunerError) as caught:
        variants.common_base(runs)
    assert str(caught.value) == (
        "Runs r1 and r3 have different bases (a/b, nf4, text generation; a/b, int8, text classification), so they "
        "can't be loaded side by side. Choose runs with the same base model, precision and task."
    )
    runs[1].read_json, runs[1].is_trained = {}.get, False
    with pytest.raises(TunerError, match=r"^Run r2 has no adapter yet\. Train it first, or wait until it has finis"):
        variants.common_base(runs)


# Merged models


def test_logits_are_compared_at_labeled_places_up_to_a_limit(monkeypatch):
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, -100]},
        {"input_ids": [8, 9, 10, 11], "labels": [8, -100, 10, 11]},
        {"input_ids": [12, 13], "labels": [12, 13]},
    ]
    model = torch.nn.Linear(1, 1)
    seen = []

    def scores(model, batch):  # as many choices as the row has tokens, as in question answering
        ids = batch["input_ids"]
        seen.append(ids.shape[1])
        return ids.flatten()[:, None].expand(-1, ids.shape[1]).double(), batch["labels"].flatten()

    monkeypatch.setitem(merge.SCORES, "made_up", scores)
    whole = merge._logits("made_up", model, rows)
    assert whole.dtype == torch.float32
    assert whole[:, 0].tolist() == [6, 8, 10, 11, 12, 13]
    assert whole[0].tolist() == [6, 6, 6, -100]
    assert whole[-1].tolist() == [13, 13, -100, -100]
    for limit, places, read in ((4, 4, 2), (3, 3, 2), (5, 5, 3), (1, 1, 1), (6, 6, 3)):
        seen.clear()
        monkeypatch.setattr(merge, "CHECKED_TOKENS", limit)
        assert len(merge._logits("made_up", model, rows)) == places
        assert len(seen) == read


def test_a_merged_model_is_written_in_the_type_it_was_published_in_or_is_in(monkeypatch, tmp_path, families):
    base = Base(families["llama"][1].name_or_path, Model(name="x"))
    for published, expected in ((torch.bfloat16, "bfloat16"), (None, "float16")):
        monkeypatch.setattr(merge, "load_config", lambda folder, name, dtype=published: SimpleNamespace(dtype=dtype))
        model = transformers.AutoModelForCausalLM.from_pretrained(base.folder).to(torch.float16)
        merge._write(model, base, tmp_path / expected / "merged")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / expected / "merged")
        assert str(again.dtype) == f"torch.{expected}"
        assert (tmp_path / expected / "merged" / "tokenizer.json").is_file()
