"""METHODS: one row per fine-tuning method, with the facts that checks and the page need. A new method is a new
row, and nothing else. Torch is imported only when a method is applied.

The page shows the rows in this order: by kind, well-known ones first; those with `more` are folded away.
"""

from typing import Any

from tuner.methods import counts, peft_configs, rules, spec
from tuner.methods.counts import low_rank, per_layer
from tuner.methods.peft_configs import ALPHA, LORA, RANK, peft_config, selected, setting, soft_prompt
from tuner.methods.rates import compared, times_lora
from tuner.methods.registry_more import MORE
from tuner.methods.spec import LINEAR, UNQUANTIZED, MethodRow
from tuner.methods.target import Target
from tuner.models.shape import Shape
from tuner.recipe import Recipe
from tuner.tasks import TaskRow

INTRINSIC = 4096  # numbers that Uni-LoRA learns in all
# With an update of alpha / rank times B A, one alpha and one learning rate suit every rank (LoRA Without Regret, 2025,
# whose code has alpha 32: https://thinkingmachines.ai/blog/lora/).
LOW_RANK = {"rank": 16, "alpha": 32, "dropout": 0.0, **LINEAR}


_REPARAMETERIZATIONS = [
    MethodRow(
        name="lora",
        title="LoRA",
        kind="reparameterization",
        paper="https://arxiv.org/abs/2106.09685",
        explanation="Freezes the model and learns a small low-rank update for each linear layer. The best first "
        "choice: it often comes close to full fine-tuning with a small share of the parameters.",
        trains="two thin matrices for each linear layer",
        parameters=r"\.lora_[AB]\.",
        configs=peft_config("LoraConfig", **LORA),
        count=per_layer(low_rank),
        settings=LOW_RANK,
        beside_base=True,
    ),
    MethodRow(
        name="qlora",
        title="QLoRA",
        kind="reparameterization",
        paper="https://arxiv.org/abs/2305.14314",
        explanation="LoRA on a base in 4-bit or 8-bit precision, so that a model up to four times as large fits in "
        "memory. Rounding costs a little accuracy, which the adapter learns to make up for.",
        trains="two thin matrices for each linear layer",
        parameters=r"\.lora_[AB]\.",
        configs=peft_config("LoraConfig", **LORA),
        count=per_layer(low_rank),
        settings=LOW_RANK,
        quantizations=("nf4", "int8"),
        beside_base=True,
    ),
    MethodRow(
        name="rslora",
        title="rsLoRA",
        kind="reparameterization",
        paper="https://arxiv.org/abs/2312.03732",
        explanation="LoRA that divides its update by the square root of the rank, not by the rank, so that high ranks "
        "keep learning. Worth trying from rank 64; at low ranks it is LoRA with larger steps.",
        trains="two thin matrices for each linear layer",
        parameters=r"\.lora_[AB]\.",
        configs=peft_config("LoraConfig", use_rslora=True, **LORA),
        count=per_layer(low_rank),
        settings=LOW_RANK | {"rank": 64, "alpha": 16},
        beside_base=True,
    ),
    MethodRow(
        name="dora",
        title="DoRA",
        kind="reparameterization",
        paper="https://arxiv.org/abs/2402.09353",
        explanation="Splits each weight matrix into magnitude and direction, and lets LoRA change the direction. "
        "Often a little better than LoRA at low ranks, but slower.",
        trains="LoRA's two matrices, and a magnitude for each output",
        parameters=r"\.lora_([AB]|magnitude_vector)\.",
        configs=peft_config("LoraConfig", use_dora=True, **LORA),
        count=per_layer(lambda a, b, r: low_rank(a, b, r) + b),
        quantizations=("nf4", "none"),  # PEFT loses the scale of an 8-bit weight after an evaluation
        settings=LOW_RANK,
    ),
    MethodRow(
        name="adalora",
        title="AdaLoRA",
        kind="reparameterization",
        paper="https://arxiv.org/abs/2303.10512",
        explanation="Starts at one and a half times the rank and drops what matters least as it trains, so that each "
        "layer ends with the rank it needs. Short runs give it little time to find out.",
        trains="three factors of an update for each linear layer",
        parameters=r"\.lora_[ABE]\.",
        configs=peft_config(
            "AdaLoraConfig",
            init_r=lambda target: target.settings["rank"] * 3 // 2,
            target_r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=setting("dropout"),
            total_step=1,  # required by PEFT; schedules.py follows the run's own progress instead
        ),
        count=per_layer(lambda a, b, r: r * 3 // 2 * (a + b + 1)),
        settings=LOW_RANK,
        learning_rate=times_lora(2),
        learning_rate_reason="twice LoRA's: its singular values start at zero",
        schedule="AdaLoraSchedule",
        continues=False,  # which ranks it dropped, and why, is not in the file
    ),
    MethodRow(
        name="unilora",
        title="Uni-LoRA (intrinsic dimension)",
        kind="reparameterization",
        paper="https://arxiv.org/abs/2506.00799",
        explanation="Learns one short vector and projects it onto all layers at random, as in Intrinsic SAID "
        "(https://arxiv.org/abs/2012.13255). Shows how few parameters a task needs.",
        trains="one vector for the whole model",
        parameters=r"\.unilora_theta_d\.",
        configs=peft_config("UniLoraConfig", r=RANK, theta_d_length=INTRINSIC),
        count=lambda target: INTRINSIC,
        settings={"rank": 4, **LINEAR},
        learning_rate=times_lora(4),
        learning_rate_reason="four times LoRA's: each number changes many weights a little",
        quantizations=UNQUANTIZED,
        needs_storage=True,
    ),
]

_ADDITIVE = [
    MethodRow(
        name="ia3",
        title="(IA)³",
        kind="additive adapter",
        paper="https://arxiv.org/abs/2205.05638",
        explanation="Learns a scaling factor for each key, value and feed-forward channel. A few thousand parameters, "
        "made for tasks with few rows; it needs a high learning rate.",
        trains="a scaling factor for each channel",
        parameters=r"\.ia3_l\.",
        configs=peft_configs.ia3,
        count=counts.ia3_factors,
        learning_rate=compared(5e-3),
        learning_rate_reason="0.005 at width 3072, the best in PEFT's comparison (.455 on all layers)",
        rules=(rules.has_role("key", "fused"),),
    ),
    MethodRow(
        name="bottleneck",
        title="Bottleneck adapter",
        kind="additive adapter",
        paper="https://arxiv.org/abs/1902.00751",
        explanation="Adds a small two-layer network behind attention and feed-forward in each block: the original "
        "adapter of Houlsby et al. It can't be merged, so answers stay a little slower.",
        trains="a small network behind each sub-layer",
        parameters=r"^bottlenecks\.",
        configs=peft_configs.bottleneck,
        count=counts.bottlenecks,
        settings={"bottleneck": 64},
        mergeable=False,
        rules=(rules.has_role("attention_out"),),
    ),
    MethodRow(
        name="llama_adapter",
        title="LLaMA-Adapter",
        kind="additive adapter",
        paper="https://arxiv.org/abs/2303.16199",
        explanation="Gives attention in the upper blocks a few learned positions, behind a gate that starts closed. "
        "Training starts from exactly the base's answers.",
        trains="learned positions and a gate in each upper block",
        parameters=r"\.adaption_(prompt|gate)$",
        configs=peft_configs.llama_adapter,
        count=counts.prompt_positions,
        settings={"virtual_tokens": 10, "layers": 30},
        learning_rate=compared(5e-3),
        learning_rate_reason="0.005 at width 3072, the best in PEFT's comparison (.381; 0.0005 gives .212)",
        mergeable=False,
        tasks=("generation",),
        quantizations=UNQUANTIZED,
        rules=(rules.model_types("llama", "mistral", "gpt2"),),
    ),
]

_SOFT_PROMPTS = [
    MethodRow(
        name="prompt_tuning",
        title="Prompt tuning",
        kind="soft prompt",
        paper="https://arxiv.org/abs/2104.08691",
        explanation="Learns a few vectors that precede every prompt, like extra words. One of the smallest "
        "adapters; small models gain little from it.",
        trains="vectors before the prompt",
        parameters=r"^prompt_encoder\.",
        configs=soft_prompt("PromptTuningConfig", prompt_tuning_init="SAMPLE_VOCAB"),
        count=counts.prompt_vectors,
        settings={"virtual_tokens": 20},
        learning_rate=compared(1e-3),
        learning_rate_reason="0.001 at width 3072, the best in PEFT's comparison (.391 from words of the vocabulary)",
        mergeable=False,
        tasks=("generation", "seq2seq"),
        rules=(rules.room_in_context, rules.other_models(*rules.READ_TOKENS)),
    ),
    MethodRow(
        name="prefix_tuning",
        title="Prefix tuning",
        kind="soft prompt",
        paper="https://arxiv.org/abs/2101.00190",
        explanation="Learns keys and values that attention sees before the prompt, in every layer. It changes more "
        "than prompt tuning does, and also takes up context.",
        trains="keys and values before the prompt, in every layer",
        parameters=r"^prompt_encoder\.",
        configs=soft_prompt("PrefixTuningConfig"),
        count=counts.prefixes,
        settings={"virtual_tokens": 20},
        learning_rate=compared(5e-3),
        learning_rate_reason="0.005 at width 3072, the best in PEFT's comparison (.358; 0.001 gives .147)",
        mergeable=False,
        tasks=("generation",),  # PEFT's fails in an encoder-decoder's cross-attention if rows are padded
        rules=(rules.room_in_context, rules.other_models(*rules.WITHOUT_PREFIX)),
    ),
    MethodRow(
        name="p_tuning",
        title="P-tuning",
        kind="soft prompt",
        paper="https://arxiv.org/abs/2103.10385",
        explanation="Prompt tuning whose vectors come from a small network, which makes them easier to learn. Only "
        "the vectors are saved.",
        trains="a small network that produces the vectors before the prompt",
        parameters=r"^prompt_encoder\.",
        configs=soft_prompt("PromptEncoderConfig", encoder_hidden_size=lambda target: target.shape.width),
        count=counts.prompt_encoder,
        continues=False,  # the network is not in the file
        settings={"virtual_tokens": 20},
        learning_rate=compared(5e-4),
        learning_rate_reason="0.0005 at width 3072: .353 in PEFT's comparison, .371 at 0.0001, .355 at 0.005",
        mergeable=False,
        tasks=("generation", "seq2seq"),
        rules=(rules.room_in_context, rules.other_models(*rules.READ_TOKENS)),
    ),
]

_SELECTIVE = [
    MethodRow(
        name="bitfit",
        title="BitFit",
        kind="selective",
        paper="https://arxiv.org/abs/2106.10199",
        explanation="Trains only the bias terms, under 0.1% of the weights. Recent models have few or none: a model "
        "without any gets new ones, as in BEFT (https://arxiv.org/abs/2509.15974).",
        trains="bias terms",
        parameters=r"\.(bias|beft_bias\.\w+)$",
        configs=peft_configs.bitfit,
        count=lambda target: (
            target.size_of(peft_configs.biases(target)) or per_layer(lambda inputs, outputs, rank: outputs)(target)
        ),
        mergeable_on=lambda target: bool(peft_configs.biases(target)),
        learning_rate=times_lora(3),
        learning_rate_reason="three times LoRA's: few parameters, each with little effect",
    ),
    MethodRow(
        name="layernorm",
        title="LayerNorm tuning",
        kind="selective",
        paper="https://arxiv.org/abs/2312.11420",
        explanation="Trains only the normalization layers: one or two numbers for each channel, at least twice per "
        "block. Its paper found it close to LoRA on models that also process images.",
        trains="the normalization layers",
        parameters=r"\.ln_tuning_layers\.",
        configs=peft_configs.layer_norm,
        count=lambda target: target.size_of(target.weights_in(target.shape.norms)),
        learning_rate=times_lora(3),
        learning_rate_reason="three times LoRA's: few parameters, each with little effect",
    ),
    MethodRow(
        name="upper_layers",
        title="Upper layers",
        kind="selective",
        paper="https://arxiv.org/abs/1801.06146",
        explanation="Fine-tunes the last blocks in full and freezes those below, which the backward pass can then "
        "skip. The oldest form of transfer learning.",
        trains="all weights of the last blocks",
        parameters=r"^base\.(.*?)\.\d+\.",
        configs=selected(peft_configs.upper_blocks),
        count=lambda target: target.size_of(peft_configs.upper_blocks(target)),
        settings={"layers": 2},
        learning_rate=times_lora(0.3),
        learning_rate_reason="a third of LoRA's: the model's own weights change",
        quantizations=UNQUANTIZED,
        changes_base=True,
    ),
    MethodRow(
        name="shira",
        title="SHiRA (sparse)",
        kind="selective",
        paper="https://arxiv.org/abs/2406.13175",
        explanation="Trains a few random weights of each layer: a sparse update of high rank. Several such "
        "adapters on one model interfere less with each other.",
        trains="as many of each linear layer's own weights as LoRA of that rank would add",
        parameters=r"\.shira_weight\.",
        configs=peft_config("ShiraConfig", r=RANK, random_seed=0),
        count=per_layer(low_rank),
        stored=3,  # each with its row and its column
        settings={"rank": 16, **LINEAR},
        rules=(rules.plain_linear, rules.rank_fits_weights),
        needs_storage=True,
    ),
]

_WHOLE = [
    MethodRow(
        name="lora_ia3",
        title="LoRA with (IA)³",
        kind="hybrid",
        paper="https://arxiv.org/abs/2110.04366",
        explanation="Both in one run: (IA)³ scales keys, values and feed-forward channels, and LoRA updates the other "
        "layers. He et al. found that mixed adapters do better than each alone.",
        trains="LoRA's matrices and (IA)³'s factors",
        parameters=r"\.(lora_[AB]|ia3_l)\.",
        configs=peft_configs.lora_and_ia3,
        count=counts.beside_ia3,
        settings={k: v for k, v in LOW_RANK.items() if k not in LINEAR},
        rules=(rules.has_role("key", "fused"),),
    ),
    MethodRow(
        name="full",
        title="Full fine-tuning",
        kind="full",
        paper="https://arxiv.org/abs/1801.06146",
        explanation="Trains every weight. The reference for all other methods, at a price: sixteen bytes of memory "
        "per weight, and a file as large as the model.",
        trains="all weights",
        parameters=r"^base\.",
        configs=selected(peft_configs.all_weights),
        count=lambda target: target.size_of(target.shape.weights),
        learning_rate=times_lora(0.1),
        learning_rate_reason="a tenth of LoRA's, as fitted in 'LoRA Without Regret'",
        quantizations=UNQUANTIZED,
        changes_base=True,
    ),
]


METHODS = {row.name: row for row in [*_REPARAMETERIZATIONS, *_ADDITIVE, *_SOFT_PROMPTS, *_SELECTIVE, *_WHOLE, *MORE]}


def resolve(recipe: Recipe, shape: Shape, task: TaskRow | None, planned: dict[str, Any] | None = None) -> Target:
    """The recipe resolved against its method: what it leaves out is as `planned`, or else the method's default."""
    return spec.resolve(METHODS[recipe.method.name], recipe, shape, task, planned)
