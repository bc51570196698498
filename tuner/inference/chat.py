"""One prompt, answered by a run's base model, adapter and merged model."""

from tuner.inference import generate
from tuner.inference.generate import Sampling
from tuner.inference.merge import is_mergeable, merge
from tuner.inference.variants import load_variants
from tuner.runs import Run


def chat(run: Run, prompt: str, *, system: str | None = None, sampling: Sampling | None = None) -> dict[str, str]:
    """The answers to `prompt` by variant: "base", "adapter" and, for methods that can be merged, "merged".

    The first call merges the adapter, which is kept in the run. Raises TunerError if the run has no adapter yet.
    """
    folders = {}
    if is_mergeable(run):
        merge(run)
        folders = {"merged": run.merged}
    loaded = load_variants({"adapter": run}, folders)
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    conversations = dict.fromkeys(loaded.variants, messages)
    *_, answers = generate.stream(loaded, conversations, sampling or Sampling())
    return answers
