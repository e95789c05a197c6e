"""Prune while the Trainer of transformers, or TRL's SFTTrainer, trains.

`python launchers/examples/sft_with_callback.py` tunes SmolLM2-135M on the built-in instructions for 20 steps. On the
way it removes 30 % of the prunable parameters, all of them neurons. It takes about a minute on two CPU cores.
`--trl` uses SFTTrainer (`pip install trl`). `deepspeed launchers/examples/sft_with_callback.py --deepspeed
ds_configs/zero2.json` runs under DeepSpeed. The callback then only masks, and `export` cuts.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import apt_ds
from apt_ds.models.builtin_models import source_of

STEPS, LENGTH = 20, 64


def texts() -> list[dict[str, str]]:
    """The built-in instructions as prompts and completions."""
    file = resources.files("apt_ds.data").joinpath("builtin/instructions.jsonl")
    records = [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]
    return [{"prompt": f"{r['instruction']} {r['input']}\n", "completion": r["output"]} for r in records]


def tokenized(tokenizer: Any) -> list[dict[str, list[int]]]:
    """Token ids with labels for the completion only."""
    rows = []
    for text in texts():
        prompt = tokenizer(text["prompt"])["input_ids"]
        ids = (prompt + tokenizer(text["completion"])["input_ids"] + [tokenizer.eos_token_id])[:LENGTH]
        if len(ids) > len(prompt):
            rows.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    return rows


def make_trainer(options: argparse.Namespace, callback: apt_ds.AptCallback) -> Trainer:
    """An ordinary Trainer, or SFTTrainer, with the callback."""
    shared: dict[str, Any] = {
        "output_dir": options.output_dir,
        "max_steps": options.max_steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": [],
        "deepspeed": options.deepspeed,
        "bf16": False,
        "use_cpu": options.use_cpu,
    }
    # the arguments come before the model: under ZeRO-3 they make from_pretrained shard it, over the processes that
    # `arguments.device` joins
    if options.trl:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        arguments = SFTConfig(**shared, max_length=LENGTH)
        print(f"training on {arguments.device}")
        tokenizer, model = load(options.model_name_or_path)
        data = Dataset.from_list(texts())
        return SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    arguments = TrainingArguments(**shared)
    print(f"training on {arguments.device}")
    tokenizer, model = load(options.model_name_or_path)
    return Trainer(
        model,
        arguments,
        DataCollatorForSeq2Seq(tokenizer, padding=True),
        tokenized(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def load(name: str) -> tuple[Any, Any]:
    """Tokenizer and model. The tokenizer pads with its end token if it has no other."""
    tokenizer = AutoTokenizer.from_pretrained(source_of(name))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, AutoModelForCausalLM.from_pretrained(source_of(name), dtype="float32")


def main() -> None:
    """Train, prune and write `OUTPUT_DIR/pruned`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="builtin:smollm2", help="a folder, hub name or builtin:smollm2")
    parser.add_argument("--output_dir", default="apt_out/callback", help="a folder for the model")
    parser.add_argument("--sparsity", type=float, default=0.3, help="fraction of the prunable parameters to remove")
    parser.add_argument("--max_steps", type=int, default=STEPS, help="optimizer steps")
    parser.add_argument("--deepspeed", help="the path of a DeepSpeed JSON")
    parser.add_argument("--trl", action="store_true", help="use TRL's SFTTrainer")
    parser.add_argument("--use_cpu", action="store_true", help="train on the CPU even if there is a GPU")
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()

    callback = apt_ds.AptCallback(
        sparsity=options.sparsity,
        prune_steps=options.max_steps // 2,
        prune_every=5,
        prune_blocks="neurons",
        adapter_targets="q,v,down",
    )
    trainer = make_trainer(options, callback)
    trainer.train()
    callback.export(f"{options.output_dir}/pruned")
    if trainer.is_world_process_zero():
        print(f"kept {callback.summary()['kept']:.1%} of the prunable parameters: {options.output_dir}/pruned")


if __name__ == "__main__":
    main()
