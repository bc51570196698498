"""The loss of each task against transformers' own, and the held-out loss as a mean over all labels."""

import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from tiny import tiny_model

from tuner.data.tokens import IGNORE_INDEX
from tuner.models import losses
from tuner.models.losses import SCORES, collate, heldout_loss, mean_loss

# Rows of unequal length and with unequal numbers of labels, some of them in the middle of the row.
ROWS = [
    {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [IGNORE_INDEX, IGNORE_INDEX, 7, IGNORE_INDEX, 9, 10]},
    {"input_ids": [11, 12, 13], "labels": [IGNORE_INDEX, IGNORE_INDEX, 13]},
    {"input_ids": [14, 15, 16, 17, 18, 19, 20, 21], "labels": [14, 15, 16, 17, 18, 19, 20, 21]},
]
HEADS = {
    "whole_text": ("bert", "AutoModelForSequenceClassification", [[2], [0], [1]]),
    "each_token": (
        "bert",
        "AutoModelForTokenClassification",
        [[IGNORE_INDEX, 1, 2, 0, IGNORE_INDEX], [1, 0], [2, 2, 2]],
    ),
    "span": ("bert", "AutoModelForQuestionAnswering", [[1, 3], [0, 0], [2, 4]]),
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")

    def load(family: str, auto_class: str, **settings):
        if not (folder / family).is_dir():
            tiny_model(folder / family, family)
        torch.manual_seed(0)
        return getattr(transformers, auto_class).from_pretrained(folder / family, **settings).eval()

    return load


def published(model, batch: dict) -> float:
    """The loss that transformers computes from labels."""
    with torch.inference_mode():
        return model(**batch).loss.item()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_next_token_is_the_loss_of_a_causal_model(load, family):
    model, batch = load(family, "AutoModelForCausalLM"), collate(ROWS)
    assert mean_loss("next_token", model, batch).item() == pytest.approx(published(model, batch), rel=1e-5)
    logits, labels = SCORES["next_token"](model, batch)
    # A row's first token follows nothing, so its label counts nowhere.
    assert sorted(labels[labels != IGNORE_INDEX].tolist()) == [7, 9, 10, 13, 15, 16, 17, 18, 19, 20, 21]
    assert len(logits) == len(labels)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_target_token_is_the_loss_of_an_encoder_decoder(load, family):
    model = load(family, "AutoModelForSeq2SeqLM")
    rows = [{**row, "labels": [30 + n, 40, 2][: n + 1]} for n, row in enumerate(ROWS)]
    batch = collate(rows)
    assert mean_loss("target_token", model, batch).item() == pytest.approx(published(model, batch), rel=1e-5)


def test_whole_text_is_the_loss_of_a_classifier(load):
    family, auto_class, labels = HEADS["whole_text"]
    model = load(family, auto_class, num_labels=3)
    batch = collate([{**row, "labels": label} for row, label in zip(ROWS, labels)])
    expected = published(model, batch | {"labels": batch["labels"][:, 0]})
    assert mean_loss("whole_text", model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_each_token_is_the_loss_of_a_tagger(load):
    family, auto_class, labels = HEADS["each_token"]
    model = load(family, auto_class, num_labels=3)
    rows = [{"input_ids": list(range(5, 5 + len(tags))), "labels": tags} for tags in labels]
    batch = collate(rows)
    assert mean_loss("each_token", model, batch).item() == pytest.approx(published(model, batch), rel=1e-5)


def test_span_is_the_loss_of_a_reader_of_the_row_alone(load):
    """transformers lets padding compete with the text, so rows are held against it one by one."""
    family, auto_class, labels = HEADS["span"]
    model = load(family, auto_class)
    rows = [{**row, "labels": span} for row, span in zip(ROWS, labels)]
    expected = []
    for row in rows:
        batch = collate([row])
        start, end = batch.pop("labels").T
        expected.append(published(model, batch | {"start_positions": start, "end_positions": end}))
    assert mean_loss("span", model, collate(rows)).item() == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_every_loss_is_held_against_transformers():
    assert SCORES.keys() == {"next_token", "target_token", *HEADS}


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_heldout_loss_weighs_every_label_alike_however_rows_are_batched(load, batch_size):
    model = load("llama", "AutoModelForCausalLM")
    total = count = 0
    for row in ROWS:
        labels = sum(label != IGNORE_INDEX for label in row["labels"][1:])
        total += published(model, collate([row])) * labels
        count += labels
    assert heldout_loss("next_token", model, ROWS, batch_size) == pytest.approx(total / count, rel=1e-5)


def test_padding_changes_no_loss(load):
    model = load("bert", "AutoModelForSequenceClassification", num_labels=3)
    rows = [{**row, "labels": [1]} for row in ROWS]
    found = [heldout_loss("whole_text", model, rows, size, padding) for size, padding in ((1, 0), (3, 0), (3, 5))]
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-5)


def test_a_decoder_that_reads_the_last_token_before_the_padding_finds_it_in_a_held_out_batch(load):
    model = load("gpt2", "AutoModelForSequenceClassification", num_labels=3, pad_token_id=4)
    rows = [{**row, "labels": [1]} for row in ROWS]
    alone, together = (heldout_loss("whole_text", model, rows, size, 4) for size in (1, 3))
    assert together == pytest.approx(alone, rel=1e-5)


def test_rows_are_padded_on_the_right_with_a_mask():
    batch = losses.collate([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}], 9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_other_columns_are_padded_with_zero_and_labels_may_be_shorter_than_their_row():
    rows = [
        {"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1], "labels": [2]},
        {"input_ids": [8], "token_type_ids": [1], "labels": [3, 4]},
    ]
    assert {key: t.tolist() for key, t in collate(rows, 9).items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "token_type_ids": [[0, 1, 1], [1, 0, 0]],
        "labels": [[2, IGNORE_INDEX], [3, 4]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert collate(rows)["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert "attention_mask" not in rows[0]


@pytest.mark.parametrize("positions", [1, 5])
def test_soft_prompts_in_front_shift_no_label(load, positions):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=positions)
    model, batch = get_peft_model(load("llama", "AutoModelForCausalLM"), config).eval(), collate(ROWS)
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert logits.shape[1] == positions + batch["labels"].shape[1]
        expected = torch.nn.functional.cross_entropy(
            logits[:, positions:-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE_INDEX
        )
        assert mean_loss("next_token", model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_without_labels_have_no_loss_and_weigh_nothing(load):
    model = load("llama", "AutoModelForCausalLM")
    assert heldout_loss("next_token", model, [], 4) == 0.0
    empty = {"input_ids": [5, 6], "labels": [IGNORE_INDEX, IGNORE_INDEX]}
    loss = heldout_loss("next_token", model, ROWS, 4)
    assert heldout_loss("next_token", model, [empty, *ROWS], 4) == pytest.approx(loss, rel=1e-5)
    assert isinstance(loss, float)
