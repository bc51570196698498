"""The base as a window found it: what PEFT, TRL and transformers change on it outside the adapter is put back."""

from collections.abc import Callable

from transformers import PreTrainedModel

from tuner.models.load import forget_batches


def snapshot(base: PreTrainedModel) -> Callable[[], None]:
    """Note how the base is now; the result restores it, once the adapter is detached.

    TRL wraps `forward` and adds tags, the Trainer turns the cache off in the configuration, PEFT freezes everything
    and gives inner modules a generation configuration.
    """
    held = (getattr(m, name, None) for m in base.modules() for name in ("config", "generation_config"))
    configurations = {id(thing): thing for thing in held if thing is not None}
    found = [(thing, dict(vars(thing))) for thing in (*base.modules(), *configurations.values())]
    trainable = [p for p in base.parameters() if p.requires_grad]

    def restore() -> None:
        for thing, attributes in found:
            vars(thing).clear()
            vars(thing).update(attributes)
        for p in trainable:
            p.requires_grad_(True)
        forget_batches()
        base.eval()

    return restore
