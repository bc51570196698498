"""How an adapter lies in its folder. No torch."""

import json
from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SECOND = "second"  # the folder of a hybrid's second part, and its adapter's name


def is_native(folder: Path) -> bool:
    """Whether what is saved there is ours (native.py) and not PEFT's."""
    return "native" in json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
