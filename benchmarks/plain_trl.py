"""QLoRA as TRL's documentation shows it, with its defaults, to compare with. Settings come from the command line."""

import argparse
import json

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
for name, kind in [
    ("model", str),
    ("rows", str),
    ("out", str),
    ("rank", int),
    ("steps", int),
    ("batch", int),
    ("rate", float),
]:
    parser.add_argument(f"--{name}", type=kind, required=True)
parser.add_argument("--precision", choices=["nf4", "none"], default="nf4")
parser.add_argument("--by-hand", action="store_true", help="without the defaults that cost time on a CPU")
options = parser.parse_args()

rows = load_dataset("json", data_files=options.rows, split="train").filter(lambda row: row["split"] == "train")
rows = rows.map(
    lambda row: {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    },
    remove_columns=rows.column_names,
)
model = AutoModelForCausalLM.from_pretrained(
    options.model,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    if options.precision == "nf4"
    else None,
)
trainer = SFTTrainer(
    model,
    SFTConfig(
        output_dir=options.out,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        learning_rate=options.rate,
        warmup_steps=10,
        report_to="none",
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        **({"gradient_checkpointing": False, "bf16": False} if options.by_hand else {}),
    ),
    train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained(options.model),
    peft_config=LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    ),
)
result = trainer.train()
trainer.save_model(options.out)
figures = {"tokens": trainer._total_train_tokens, "seconds": result.metrics["train_runtime"]}
figures["peak_memory"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
print(json.dumps(figures))
