"""What the verdict says of examples in the prompt, the base model's other chance: their score, gain and cost."""

from tuner.evaluation.advice import helped, is_better, pair_of
from tuner.evaluation.figures import digits_of_gain, shown_gain, title
from tuner.metrics import metric_of


def about_prompts(scores: dict, advice: str, prompt: str, digits: int) -> list[str]:
    """Sentences about the prompt with examples that the advice is about; none if no prompt was tried."""
    if not prompt:
        return []
    name = metric_of(scores).name
    value = f"{scores[prompt][name]:.{digits}f}"
    over_base, over_prompt = pair_of(scores, prompt, "base"), pair_of(scores, "adapter", prompt)
    is_clear = is_better(scores, "adapter", prompt)
    if over_base[name] <= 0 and (is_clear or advice == "neither"):
        return [f"Examples in the prompt did not help the base model ({value})."]

    def gain(pair: dict) -> str:
        return shown_gain(scores, pair, digits_of_gain(pair, digits))

    clearly = "clearly" if helped(scores, prompt) else "not clearly"
    with_examples = f"With {title(scores, prompt)}, the base model scores {value}"
    sentences = [f"{with_examples}, {clearly} better than without: {gain(over_base)}."]
    if advice == "prompt":
        much = "clearly worse" if over_prompt["high"] < 0 else "not clearly better"
        sentences.append(f"The adapter is {much} than that: {gain(over_prompt)}.")
    elif advice == "tune" and is_clear:
        sentences.append(f"The adapter is clearly better than that: {gain(over_prompt)}.")
    elif advice == "tune":
        sentences.append(f"Whether the adapter is better than that is open: {gain(over_prompt)}.")
    return [*sentences, _costs(scores, prompt) if advice != "neither" else ""]


def _costs(scores: dict, prompt: str) -> str:
    """What training and the examples cost, in a sentence."""
    costs, seconds = scores.get("costs", {}), scores.get("course", {}).get("seconds")
    if not {"base", prompt} <= costs.keys() or seconds is None:
        return ""
    long, short = (f"{costs[variant]['prompt_tokens']:,.0f}" for variant in (prompt, "base"))
    return f"Training took {seconds:,.0f} s; with examples a prompt has {long} tokens, not {short}."
