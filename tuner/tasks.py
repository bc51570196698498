"""TASKS: one row per task, with everything that differs between tasks. Imports no torch."""

from dataclasses import dataclass

# Kinds of rows once they have been read, whatever their format was, each with its keys.
CONVERSATION = "conversations"  # "messages", ending with the assistant's answer, "tools" if there are some, and
# "learned" if only so many of the last answers are learned from
TEXT = "plain text"  # "text"
LABELED_TEXT = "text with a label"  # "text" and "label"
TAGGED_TOKENS = "tokens with tags"  # "tokens" and "tags"
QUESTION_CONTEXT = "questions with a context"  # "question", "context", "answer" and "start" (-1: no answer), and
# all right "answers" if there are several


@dataclass(frozen=True)
class TaskRow:
    """A task: the models that can do it, the rows it learns from, and how its answers are learned, read and scored."""

    name: str
    title: str
    family: str  # of models that can do it
    such_as: str  # an example of a model that fits, for error messages
    auto_class: str  # the class of transformers that loads the model
    mapping: str  # transformers' mapping from a configuration's model_type to the class that fits
    architecture: bool  # whether the model must have been published as this very class
    peft_type: str  # PEFT's name of the task
    trainer: str  # module and class
    learns_from: tuple[str, ...]  # the kinds of rows above
    objective: str  # what is predicted: a row of ENCODERS (data/encode.py), SCORES (models/losses.py) and, if
    # answers are read off one forward pass, of READERS (inference/predict.py) and READ_OFF (hub/card_use.py)
    metric: str  # that decides unless the recipe names others
    pipeline: str  # the Hub's name of the task
    placeholder: str  # of the playground's prompt
    prompt_lines: int = 1  # of the playground's prompt; Enter sends only if it is 1
    generates: bool = True  # answers are written token by token; else read off one forward pass
    encoder_decoder: bool = False  # generates with an encoder-decoder, not with a causal model
    chats: bool = False  # uses a chat template, so earlier turns and a system prompt count
    other_metrics: tuple[str, ...] = ()  # that are reported beside it
    has_labels: bool = False  # a new head gives one of the rows' labels


DEFAULT_TASK = "generation"  # of runs that don't name one: those of the first version
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
            learns_from=(CONVERSATION, TEXT),
            objective="next_token",
            metric="rougeL",
            other_metrics=("perplexity",),
            pipeline="text-generation",
            placeholder="Write a message to all models",
            chats=True,
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
            learns_from=(CONVERSATION,),
            objective="target_token",
            metric="rougeL",
            other_metrics=("perplexity",),
            pipeline="text2text-generation",
            placeholder="Write a text for all models",
            encoder_decoder=True,
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
            learns_from=(LABELED_TEXT,),
            objective="whole_text",
            metric="accuracy",
            other_metrics=("macro_f1",),
            pipeline="text-classification",
            placeholder="Write a text to classify",
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
            learns_from=(TAGGED_TOKENS,),
            objective="each_token",
            metric="entity_f1",
            pipeline="token-classification",
            placeholder="Write a sentence to find entities in",
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
            learns_from=(QUESTION_CONTEXT,),
            objective="span",
            metric="answer_f1",
            other_metrics=("exact_match",),
            pipeline="question-answering",
            placeholder="A question on the first line, the text below",
            prompt_lines=4,  # a question and its text are two lines
            generates=False,
        ),
    ]
}


def task_of(plan: dict) -> TaskRow:
    """The task of a run, from its plan."""
    return TASKS[plan.get("task", DEFAULT_TASK)]


def task_for(requested: str, rows: str, is_encoder_decoder: bool) -> str:
    """The task of a recipe: `requested` unless it is "auto", else the one that fits the kind of rows and of model.

    `rows` is a kind from the top of this module; "" if the rows could not be read.
    """
    if requested != "auto":
        return requested
    read_off = [row.name for row in TASKS.values() if not row.generates and rows in row.learns_from]
    written = [row.name for row in TASKS.values() if row.generates and row.encoder_decoder == is_encoder_decoder]
    return [*read_off, *written][0]
