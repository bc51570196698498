"""METHODS: one row per fine-tuning method, with the facts that checks and the page need. No torch until a method is
applied. A new method is a new row, and nothing else.

The rows stand in this order on the page: by kind, the well-known first; those with `more` are folded away.
"""

from tuner.methods import peft_configs, spec
from tuner.methods.peft_configs import (
    ALPHA,
    LORA,
    RANK,
    Target,
    peft_config,
    selected,
    setting,
    soft_prompt,
    unless_known,
)
from tuner.methods.registry_more import MORE
from tuner.methods.spec import FLOAT, LINEAR, MethodRow, times_lora
from tuner.recipe import Recipe
from tuner.tasks import TaskRow

INTRINSIC = 4096  # numbers that Uni-LoRA learns in all
LOW_RANK = {"rank": 16, "alpha": "twice the rank", "dropout": 0.0, **LINEAR}


_REPARAMETERISATIONS = [
    MethodRow(
        name="lora",
        title="LoRA",
        kind="reparameterisation",
        paper="https://arxiv.org/abs/2106.09685",
        explanation="Leaves every weight as it is and learns a small low-rank update beside each linear layer. The "
        "safest first choice: often close to full fine-tuning with a small part of the weights.",
        trains="two thin matrices beside each linear layer",
        parameters=r"\.lora_[AB]\.",
        parts=peft_config("LoraConfig", **LORA),
        settings=LOW_RANK,
        beside_base=True,
    ),
    MethodRow(
        name="qlora",
        title="QLoRA",
        kind="reparameterisation",
        paper="https://arxiv.org/abs/2305.14314",
        explanation="LoRA on a base held in 4 or 8 bits, so that a model four times the size fits. The rounding costs "
        "a little accuracy, and the adapter learns around it.",
        trains="two thin matrices beside each linear layer",
        parameters=r"\.lora_[AB]\.",
        parts=peft_config("LoraConfig", **LORA),
        settings=LOW_RANK,
        quantizations=("nf4", "int8"),
        beside_base=True,
    ),
    MethodRow(
        name="rslora",
        title="rsLoRA",
        kind="reparameterisation",
        paper="https://arxiv.org/abs/2312.03732",
        explanation="LoRA whose update is divided by the root of the rank instead of the rank, so that high ranks "
        "still learn. Worth a try from rank 64 on; at low ranks it is LoRA with a larger step.",
        trains="two thin matrices beside each linear layer",
        parameters=r"\.lora_[AB]\.",
        parts=peft_config("LoraConfig", use_rslora=True, **LORA),
        settings=LOW_RANK | {"rank": 64, "alpha": 16},
        beside_base=True,
    ),
    MethodRow(
        name="dora",
        title="DoRA",
        kind="reparameterisation",
        paper="https://arxiv.org/abs/2402.09353",
        explanation="Splits each weight into its length and its direction, and lets LoRA turn the direction. Often a "
        "little better than LoRA at low ranks, and slower.",
        trains="LoRA's two matrices and a length for each output",
        parameters=r"\.lora_([AB]|magnitude_vector)\.",
        parts=peft_config("LoraConfig", use_dora=True, **LORA),
        quantizations=("nf4", "none"),  # PEFT loses the scale of an 8-bit weight after an evaluation
        settings=LOW_RANK,
    ),
    MethodRow(
        name="adalora",
        title="AdaLoRA",
        kind="reparameterisation",
        paper="https://arxiv.org/abs/2303.10512",
        explanation="Starts with a higher rank than it may keep and drops what matters least, layer by layer, while "
        "it trains. It decides where the rank is needed; short runs give it little time to.",
        trains="the three factors of an update beside each linear layer",
        parameters=r"\.lora_[ABE]\.",
        parts=peft_config(
            "AdaLoraConfig",
            init_r=lambda settings: settings["rank"] * 3 // 2,
            target_r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=setting("dropout"),
            total_step=1,  # PEFT wants one; schedules.py goes by the run's own progress
        ),
        settings=LOW_RANK,
        learning_rate=times_lora(2),
        learning_rate_reason="twice LoRA's: its update begins with a singular value of nought",
        needs_total_steps=True,
        schedule="AdaLoraSchedule",
    ),
    MethodRow(
        name="unilora",
        title="Uni-LoRA (intrinsic dimension)",
        kind="reparameterisation",
        paper="https://arxiv.org/abs/2506.00799",
        explanation="Learns one short vector and spreads it over all layers by a fixed random projection, as "
        "Intrinsic SAID (https://arxiv.org/abs/2012.13255) did. Shows how few numbers a task needs.",
        trains="one vector for the whole model",
        parameters=r"\.unilora_theta_d\.",
        parts=peft_config("UniLoraConfig", r=RANK, theta_d_length=INTRINSIC),
        count=lambda target: INTRINSIC,
        settings={"rank": 4, **LINEAR},
        learning_rate=times_lora(4),
        learning_rate_reason="each number moves many weights a little",
        quantizations=FLOAT,
    ),
]

_ADDITIVE = [
    MethodRow(
        name="ia3",
        title="(IA)³",
        kind="additive adapter",
        paper="https://arxiv.org/abs/2205.05638",
        explanation="Learns one factor for each key, value and feed-forward channel, and leaves the weights alone. A "
        "few thousand numbers, made for few rows; it needs a high learning rate.",
        trains="a factor a channel in attention and feed-forward",
        parameters=r"\.ia3_l\.",
        parts=peft_configs.ia3,
        learning_rate=times_lora(5),
        learning_rate_reason="factors begin at 1 and have far to go: PEFT's own comparison gains most at such rates",
        refuses=unless_known("key", "fused"),
    ),
    MethodRow(
        name="bottleneck",
        title="Bottleneck adapter",
        kind="additive adapter",
        paper="https://arxiv.org/abs/1902.00751",
        explanation="Puts a small two-layer network behind attention and feed-forward of each block, as Houlsby et "
        "al. did first. It stays in the model's way: slower answers, and no merging.",
        trains="a narrow layer behind each sub-layer",
        parameters=r"^bottlenecks\.",
        parts=peft_configs.bottleneck,
        settings={"bottleneck": 64},
        mergeable=False,
        refuses=unless_known("attention_out"),
    ),
    MethodRow(
        name="llama_adapter",
        title="LLaMA-Adapter",
        kind="additive adapter",
        paper="https://arxiv.org/abs/2303.16199",
        explanation="Gives the upper blocks' attention a few learned positions to look at, through a gate that begins "
        "shut. It changes nothing at first, so it can't break the model.",
        trains="learned positions and a gate in the upper blocks",
        parameters=r"\.adaption_(prompt|gate)$",
        parts=peft_configs.llama_adapter,
        settings={"virtual_tokens": 10, "layers": 30},
        learning_rate=times_lora(3),
        learning_rate_reason="nothing is learned until the gates open",
        mergeable=False,
        tasks=("generation",),
        quantizations=FLOAT,
        refuses=peft_configs.llama_adapter_refuses,
    ),
]

_SOFT_PROMPTS = [
    MethodRow(
        name="prompt_tuning",
        title="Prompt tuning",
        kind="soft prompt",
        paper="https://arxiv.org/abs/2104.08691",
        explanation="Learns a few vectors that are put before every prompt, as if there were words for them. The "
        "smallest adapter of all; small models gain little from it.",
        trains="vectors before the prompt",
        parameters=r"^prompt_encoder\.",
        parts=soft_prompt("PromptTuningConfig", prompt_tuning_init="SAMPLE_VOCAB"),
        settings={"virtual_tokens": 20},
        learning_rate=lambda width: 0.03,
        learning_rate_reason="soft prompts need high rates; Lester et al. took 0.3 with another optimizer",
        mergeable=False,
        tasks=("generation", "seq2seq"),
    ),
    MethodRow(
        name="prefix_tuning",
        title="Prefix tuning",
        kind="soft prompt",
        paper="https://arxiv.org/abs/2101.00190",
        explanation="Learns keys and values that every layer's attention sees before the prompt. It reaches deeper "
        "than prompt tuning, and takes room in the context.",
        trains="keys and values before the prompt, in every layer",
        parameters=r"^prompt_encoder\.",
        parts=soft_prompt("PrefixTuningConfig"),
        settings={"virtual_tokens": 20},
        learning_rate=lambda width: 0.05,
        learning_rate_reason="soft prompts need high rates",
        mergeable=False,
        tasks=("generation",),  # PEFT's does not reach an encoder-decoder's cross-attention where rows are padded
        gradient_checkpointing=False,
    ),
    MethodRow(
        name="p_tuning",
        title="P-tuning",
        kind="soft prompt",
        paper="https://arxiv.org/abs/2103.10385",
        explanation="Prompt tuning whose vectors come out of a small network, which makes them easier to learn. Only "
        "its vectors are kept in the end.",
        trains="a small network that makes the vectors before the prompt",
        parameters=r"^prompt_encoder\.",
        parts=soft_prompt("PromptEncoderConfig", encoder_hidden_size=lambda target: target.shape.width),
        settings={"virtual_tokens": 20},
        learning_rate=lambda width: 0.003,
        learning_rate_reason="a network stands between rate and vectors",
        mergeable=False,
        tasks=("generation", "seq2seq"),
    ),
]

_SELECTIVE = [
    MethodRow(
        name="bitfit",
        title="BitFit",
        kind="selective",
        paper="https://arxiv.org/abs/2106.10199",
        explanation="Trains the bias terms alone, less than a thousandth of the weights. Models of today have few or "
        "none: those get new ones, as in BEFT (https://arxiv.org/abs/2509.15974).",
        trains="bias terms",
        parameters=r"\.(bias|beft_bias\.\w+)$",
        parts=peft_configs.bitfit,
        mergeable_on=lambda target: bool(peft_configs.biases(target)),
        learning_rate=times_lora(3),
        learning_rate_reason="few numbers, each of little effect",
    ),
    MethodRow(
        name="layernorm",
        title="LayerNorm tuning",
        kind="selective",
        paper="https://arxiv.org/abs/2312.11420",
        explanation="Trains the normalisation layers alone: one or two numbers a channel, twice or more a block. "
        "Its paper found it close to LoRA on models that also see.",
        trains="the normalisation layers",
        parameters=r"\.ln_tuning_layers\.",
        parts=peft_configs.layer_norm,
        learning_rate=times_lora(3),
        learning_rate_reason="few numbers, each of little effect",
    ),
    MethodRow(
        name="upper_layers",
        title="Upper layers",
        kind="selective",
        paper="https://arxiv.org/abs/1801.06146",
        explanation="Trains the last blocks as in full fine-tuning and leaves those below, which the backward "
        "pass then need not reach. The oldest trick of transfer learning.",
        trains="all weights of the last blocks",
        parameters=r"^base\.(.*?)\.\d+\.",
        parts=selected(peft_configs.upper_blocks),
        settings={"layers": 2},
        learning_rate=times_lora(0.3),
        learning_rate_reason="real weights move, so a third of LoRA's",
        quantizations=FLOAT,
        changes_base=True,
    ),
    MethodRow(
        name="shira",
        title="SHiRA (sparse)",
        kind="selective",
        paper="https://arxiv.org/abs/2406.13175",
        explanation="Trains a few of each layer's own weights, picked at random, and leaves the rest: a sparse update "
        "of high rank. Several such adapters get in each other's way less.",
        trains="as many of each linear layer's own weights as LoRA of that rank would add",
        parameters=r"\.shira_weight\.",
        parts=peft_config("ShiraConfig", r=RANK, random_seed=0),
        count=lambda target: sum(min(a * b, target.settings["rank"] * (a + b)) for _, a, b in target.sizes),
        stored=3,  # each with its row and column
        settings={"rank": 16, **LINEAR},
        refuses=peft_configs.only_plain_linear,
    ),
    MethodRow(
        name="supertuning",
        title="Super-Tuning (sparse)",
        kind="selective",
        paper="https://arxiv.org/abs/2607.09287",
        explanation="Trains the largest weights of each layer and leaves the rest.",
        trains="the largest 1% of each linear layer's weights",
        parameters=r"\.super",
        parts=peft_config("SupertuningConfig"),
        settings=LINEAR,
        quantizations=FLOAT,
        refuses=peft_configs.only_plain_linear,
        more=True,
    ),
]

_WHOLE = [
    MethodRow(
        name="lora_ia3",
        title="LoRA with (IA)³",
        kind="hybrid",
        paper="https://arxiv.org/abs/2110.04366",
        explanation="Both in one run: (IA)³ scales keys, values and what comes out of feed-forward, LoRA adds "
        "to the other layers. Mixed adapters reach further than each alone, say He et al.",
        trains="LoRA's matrices and (IA)³'s factors",
        parameters=r"\.(lora_[AB]|ia3_l)\.",
        parts=peft_configs.lora_and_ia3,
        settings={k: v for k, v in LOW_RANK.items() if k not in LINEAR},
        refuses=unless_known("key", "fused"),
    ),
    MethodRow(
        name="full",
        title="Full fine-tuning",
        kind="full",
        paper="https://arxiv.org/abs/1801.06146",
        explanation="Trains every weight. The yardstick for all others: sixteen bytes of memory a weight, and a file "
        "as large as the model.",
        trains="all weights",
        parameters=r"^base\.",
        parts=selected(lambda target: list(target.shape.weights)),
        learning_rate=times_lora(0.1),
        learning_rate_reason="a tenth of LoRA's, as fitted in 'LoRA Without Regret'",
        quantizations=FLOAT,
        changes_base=True,
    ),
]


METHODS = {row.name: row for row in [*_REPARAMETERISATIONS, *_ADDITIVE, *_SOFT_PROMPTS, *_SELECTIVE, *_WHOLE, *MORE]}


def resolve(recipe: Recipe, shape, task: TaskRow | None) -> Target:
    """What the recipe's method is put on, with the method's own defaults where the recipe says nothing."""
    return spec.resolve(METHODS[recipe.method.name], recipe, shape, task)
