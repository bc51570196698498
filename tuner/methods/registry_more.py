"""The folded part of the method table: what PEFT gives for one more row each."""

from collections.abc import Callable

from tuner.methods import peft_configs
from tuner.methods.peft_configs import ALPHA, RANK, peft_config
from tuner.methods.spec import FLOAT, LINEAR, MethodRow, times_lora


def _more(
    name: str, title: str, paper: str, explanation: str, trains: str, parameters: str, config: Callable, **facts
) -> MethodRow:
    kind = "reparameterisation"
    return MethodRow(name, title, kind, paper, explanation, trains, parameters, config, more=True, **facts)


MORE = [
    _more(
        "vera", "VeRA", "https://arxiv.org/abs/2310.11454",
        "LoRA whose two matrices are random, fixed and shared by layers of one shape; only two vectors a layer are "
        "learned.",
        "two vectors a layer",
        r"\.vera_lambda_[bd]\.",
        peft_config("VeraConfig", r=RANK, save_projection=True),
        settings={"rank": 256, **LINEAR}, learning_rate=times_lora(4), quantizations=FLOAT,
        learning_rate_reason="vectors need a higher rate than matrices",
    ),
    _more(
        "oft", "OFT", "https://arxiv.org/abs/2306.07280",
        "Turns the weights by a learned rotation in small blocks, which keeps the angles between neurons.",
        "a rotation a layer",
        r"\.oft_R\.",
        peft_config("OFTConfig", oft_block_size=RANK),
        settings={"rank": 32, **LINEAR},
        refuses=peft_configs.only_plain_linear,
    ),
    _more(
        "boft", "BOFT", "https://arxiv.org/abs/2311.06243",
        "OFT whose rotation is a product of sparse ones, like the steps of a fast Fourier transform.",
        "a rotation and a scale a layer",
        r"\.boft_[Rs]\.",
        peft_config("BOFTConfig", boft_block_size=RANK),
        settings={"rank": 4, **LINEAR}, quantizations=FLOAT,
        count=lambda target: sum(a * target.settings["rank"] + b for _, a, b in target.sizes),
        refuses=peft_configs.only_plain_linear,
    ),
    _more(
        "loha", "LoHa", "https://arxiv.org/abs/2108.06098",
        "The update is the elementwise product of two low-rank ones, so its rank can be the square of theirs.",
        "four thin matrices beside each linear layer",
        r"\.hada_w\d_[ab]\.",
        peft_config("LoHaConfig", r=RANK, alpha=ALPHA),
        settings={"rank": 16, "alpha": "twice the rank", **LINEAR}, quantizations=FLOAT,
        refuses=peft_configs.only_plain_linear,
    ),
    _more(
        "lokr", "LoKr", "https://arxiv.org/abs/2309.14859",
        "The update is a Kronecker product: a small matrix repeated in the pattern of another.",
        "the factors of a Kronecker product beside each linear layer",
        r"\.lokr_w\d(_[ab])?\.",
        peft_config("LoKrConfig", r=RANK, alpha=ALPHA),
        settings={"rank": 16, "alpha": "twice the rank", **LINEAR}, quantizations=FLOAT,
        refuses=peft_configs.only_plain_linear,
    ),
    _more(
        "miss", "MiSS", "https://arxiv.org/abs/2409.15371",
        "One matrix a layer, shared by slices of the weight: less memory and fewer steps than LoRA's two.",
        "one thin matrix a layer",
        r"\.miss_block\.",
        peft_config("MissConfig", r=RANK),
        settings={"rank": 16, **LINEAR},
        refuses=peft_configs.only_plain_linear,
    ),
    _more(
        "hra", "HRA", "https://arxiv.org/abs/2405.17484",
        "Mirrors the weights at a few learned planes (Householder reflections), a rotation in few numbers.",
        "a few reflections a layer",
        r"\.hra_u\.",
        peft_config("HRAConfig", r=RANK),
        settings={"rank": 8, **LINEAR}, quantizations=FLOAT,
        refuses=peft_configs.only_plain_linear,
    ),
    _more(
        "fourierft", "FourierFT", "https://arxiv.org/abs/2405.03003",
        "Learns a handful of frequencies of the update's spectrum, picked at random.",
        "a thousand spectral numbers a layer",
        r"\.fourierft_spectrum\.",
        peft_config("FourierFTConfig", n_frequency=lambda settings: 1000, scaling=150.0),
        settings=LINEAR, learning_rate=times_lora(3), quantizations=FLOAT,
        learning_rate_reason="a frequency is spread over the whole weight",
    ),
    _more(
        "randlora", "RandLoRA", "https://arxiv.org/abs/2502.00987",
        "A sum of many fixed random low-rank updates with learned scales: full rank in few numbers.",
        "scales of random matrices",
        r"\.randlora_(lambda|gamma)\.",
        peft_config("RandLoraConfig", r=RANK),
        settings={"rank": 32, **LINEAR}, quantizations=FLOAT,
    ),
    _more(
        "delora", "DeLoRA", "https://arxiv.org/abs/2503.18225",
        "LoRA whose update has a bounded length and a learned direction, so that it can't run away.",
        "two thin matrices and a length a layer",
        r"\.delora_(A|B|lambda)\.",
        peft_config("DeloraConfig", r=RANK),
        settings={"rank": 16, **LINEAR}, quantizations=FLOAT,
        refuses=peft_configs.only_plain_linear,
    ),
    _more(
        "road", "RoAd", "https://arxiv.org/abs/2409.00119",
        "Turns pairs of a layer's outputs in their plane, by a learned angle and length.",
        "an angle and a length for each pair of outputs",
        r"\.road_(theta|alpha)\.",
        peft_config("RoadConfig", group_size=lambda settings: 2),
        settings=LINEAR, learning_rate=times_lora(4), quantizations=FLOAT,
        learning_rate_reason="few numbers, each of little effect",
        refuses=peft_configs.only_plain_linear,
    ),
    _more(
        "hira", "HiRA", "https://openreview.net/forum?id=TwJrTz9cRS",
        "LoRA whose update is multiplied by the weight itself, which makes its rank high.",
        "two thin matrices beside each linear layer",
        r"\.hira_[AB]\.",
        peft_config("HiraConfig", r=RANK),
        settings={"rank": 32, **LINEAR},
    ),
]  # fmt: skip
