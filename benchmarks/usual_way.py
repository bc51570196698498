"""The usual way to train on ZeroGPU: load, tokenize and train in the decorated function, with TRL's defaults.

python tests/on_stage.py benchmarks/usual_way.py MODEL ROWS SECONDS LOG [STEPS ...]

One call for each number of steps, in windows of SECONDS; the platform may end the last one. LOG gets one line per
step: the call, seconds since its window opened, and real tokens so far.
"""

import json
import sys
import time

import spaces
from datasets import load_dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

MODEL, ROWS, SECONDS, LOG, *STEPS = sys.argv[1:]


class Log(TrainerCallback):
    """Writes the beginning of the first step and the end of each."""

    def __init__(self, call: int, opened: float):
        self.call, self.opened, self.begun = call, opened, False

    def write(self) -> None:
        """Add a line."""
        tokens = getattr(self.trainer, "_total_train_tokens", 0)
        with open(LOG, "a") as file:
            print(json.dumps([self.call, time.time() - self.opened, tokens]), file=file, flush=True)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Write a line before the first step."""
        if not self.begun:
            self.begun = True
            self.write()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Write a line."""
        self.write()


@spaces.GPU(duration=int(SECONDS))
def train(call: int, steps: int, opened: float) -> None:
    """One whole training."""
    rows = load_dataset("json", data_files=ROWS, split="train").filter(lambda row: row["split"] == "train")
    rows = rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        },
        remove_columns=rows.column_names,
    )
    model = AutoModelForCausalLM.from_pretrained(
        MODEL,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    log = Log(call, opened)
    arguments = SFTConfig(
        output_dir=LOG + ".out",
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=4e-3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    log.trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[log],
    )
    log.trainer.train()
    log.trainer.save_model(LOG + ".out")


if __name__ == "__main__":
    for call, steps in enumerate(STEPS):
        # On the stage a window opens as soon as it is requested.
        train(call, int(steps), time.time())
