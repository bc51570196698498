"""TASKS: one row per task and family of models. No torch until a row is used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskRow:
    name: str
    title: str
    family: str  # of models that can do it
    such_as: str  # a model that fits, for whoever brought one that doesn't
    auto_class: str  # the class of transformers that loads the model
    mapping: str  # transformers' mapping from a configuration's model_type to the class that fits
    architecture: bool  # whether the class must be the very one that the model was published as
    peft_type: str  # PEFT's name of the task
    trainer: str  # module and class
    formats: tuple[str, ...]  # rows that it learns from
    scores: str  # the function of losses.py that pairs the model's scores with the labels
    metric: str  # that decides unless the recipe names others
    pipeline: str  # the Hub's name of the task
    generates: bool = True  # answers are written token by token; else read off one forward pass
    has_labels: bool = False  # a new head gives one of the rows' labels


GENERATED = ("prompt_completion", "instruction", "messages", "sharegpt")
TASKS = {
    row.name: row
    for row in [
        TaskRow(
            name="generation",
            title="text generation",
            family="a causal language model",
            such_as="one that continues text, such as Qwen/Qwen3-0.6B",
            auto_class="AutoModelForCausalLM",
            mapping="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
            architecture=True,
            peft_type="CAUSAL_LM",
            trainer="trl.SFTTrainer",
            formats=(*GENERATED, "text"),
            scores="next_token",
            metric="rougeL",
            pipeline="text-generation",
        ),
        TaskRow(
            name="seq2seq",
            title="text to text",
            family="an encoder-decoder",
            such_as="one such as google/flan-t5-small",
            auto_class="AutoModelForSeq2SeqLM",
            mapping="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
            architecture=False,
            peft_type="SEQ_2_SEQ_LM",
            trainer="transformers.Trainer",
            formats=GENERATED,
            scores="target_token",
            metric="rougeL",
            pipeline="text2text-generation",
        ),
        TaskRow(
            name="classification",
            title="text classification",
            family="a model that can be given a classification head",
            such_as="an encoder such as distilbert/distilbert-base-uncased",
            auto_class="AutoModelForSequenceClassification",
            mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
            architecture=False,
            peft_type="SEQ_CLS",
            trainer="transformers.Trainer",
            formats=("text_label",),
            scores="whole_text",
            metric="accuracy",
            pipeline="text-classification",
            generates=False,
            has_labels=True,
        ),
        TaskRow(
            name="token_classification",
            title="named entities and other tags of words",
            family="a model that can be given a head for tags",
            such_as="an encoder such as google-bert/bert-base-cased",
            auto_class="AutoModelForTokenClassification",
            mapping="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
            architecture=False,
            peft_type="TOKEN_CLS",
            trainer="transformers.Trainer",
            formats=("tokens_tags",),
            scores="each_token",
            metric="entity_f1",
            pipeline="token-classification",
            generates=False,
            has_labels=True,
        ),
        TaskRow(
            name="question_answering",
            title="answers found in a text",
            family="a model that can be given a head for spans",
            such_as="an encoder such as distilbert/distilbert-base-cased",
            auto_class="AutoModelForQuestionAnswering",
            mapping="MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
            architecture=False,
            peft_type="QUESTION_ANS",
            trainer="transformers.Trainer",
            formats=("squad",),
            scores="span",
            metric="answer_f1",
            pipeline="question-answering",
            generates=False,
        ),
    ]
}


def task_for(asked: str, format: str, is_encoder_decoder: bool) -> str:
    """The task meant by a recipe's `task`: by the rows' format where it is auto, then by the kind of model."""
    if asked != "auto":
        return asked
    for row in TASKS.values():
        if not row.generates and format in row.formats:
            return row.name
    return "seq2seq" if is_encoder_decoder else "generation"
