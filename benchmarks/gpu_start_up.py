"""From the start of a process to the end of its first training step, in parts; then the same again, warm.

python benchmarks/gpu_start_up.py RUN RUN

Two prepared runs of one recipe. Prints one JSON line.
"""

import json
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Train one run after the other, and load their base without quantizing it and with."""
    sys.path.insert(0, str(ROOT))
    moments = [psutil.Process().create_time()]

    from tuner import gpu

    gpu.import_core()
    moments.append(time.time())

    import torch

    from tuner.models.device import device_type
    from tuner.models.fetch import base_of
    from tuner.models.load import forget_bases, load_base, shared_base
    from tuner.runs import Run
    from tuner.training.window import train

    synchronize = torch.cuda.synchronize if device_type() == "cuda" else lambda: None
    torch.ones(1, device=device_type()).sum().item()
    moments.append(time.time())
    cold, warm = (Run(Path(name)) for name in sys.argv[1:])
    base = base_of(cold)
    shared_base(base)
    synchronize()
    moments.append(time.time())

    def events(run: Run) -> list[float]:
        """When the run's training was ready for its first step, and when that was done."""
        for _ in train(run):
            pass
        kinds = {event["event"]: event["time"] for event in reversed(run.events())}
        return [kinds["start"], kinds["step"]]

    moments += events(cold)
    names = ("imports", "context", "load", "attach", "first_step")
    parts = {name: after - before for name, before, after in zip(names, moments, moments[1:])}
    again = [time.time(), *events(warm)]
    parts |= {"warm_attach": again[1] - again[0], "warm_first_step": again[2] - again[1]}
    for name, precision in (("load_unquantized_again", "none"), ("load_again", base.model.quantization)):
        forget_bases()
        began = time.time()
        load_base(base, quantization=precision)
        synchronize()
        parts[name] = time.time() - began
    parts["quantize"] = parts["load_again"] - parts["load_unquantized_again"]
    parts |= {"cold_total": moments[-1] - moments[0], "warm_total": again[-1] - again[0]}
    print(json.dumps({name: round(seconds, 3) for name, seconds in parts.items()}))


if __name__ == "__main__":
    main()
