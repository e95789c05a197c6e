"""Jobs of `multiprocess.py`: a Trainer of transformers with `AptCallback`, under DDP and under DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

import apt_ds
from apt_ds.runtime import collectives, zero
from tests.support import tiny

OPTIONS: dict[str, Any] = {"sparsity": 0.4, "prune_steps": 8, "prune_every": 4, "align": 4, "mask_step": 0.5}
STEPS, GLOBAL_BATCH = 12, 8


def examples(count: int = 96) -> list[dict[str, list[int]]]:
    """Texts that repeat a word, of different lengths, padded on the right."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        word, length = (int(torch.randint(low, high, (1,), generator=draw)) for low, high in ((4, 12), (4, 10)))
        ids, blank = [1] + [word] * (length - 1), 10 - length
        rows.append(
            {
                "input_ids": ids + [0] * blank,
                "labels": ids + [-100] * blank,
                "attention_mask": [1] * length + [0] * blank,
            }
        )
    return rows


def arguments(output: Path, **changes: Any) -> TrainingArguments:
    """Twelve steps of eight examples."""
    batch = GLOBAL_BATCH // (collectives.world_size() * changes.get("gradient_accumulation_steps", 1))
    values: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": STEPS,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**(values | changes))


def trainer(model: PreTrainedModel, args: TrainingArguments, callback: apt_ds.AptCallback) -> Trainer:
    """A Trainer with the callback."""
    return Trainer(
        model=model, args=args, train_dataset=examples(), processing_class=tiny.tokenizer(), callbacks=[callback]
    )


def callback_runs(folder: str, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Train once for each set of TrainingArguments, and export to `folder/name`.

    Returns:
        Losses, scores, kept sizes, and the largest difference of logits between the masked and the written model.
    """
    runs = {}
    for name, changes in cases.items():
        place = Path(folder) / f"{name}{collectives.world_size()}"
        # under ZeRO-3 the arguments make from_pretrained shard the model over the processes of `args.device`
        args = arguments(place, **changes)
        assert args.device.type == "cpu"
        # on a CPU accelerate joins without DeepSpeed. ZeRO-3 needs it, and its shared memory would outlive the world
        zero.init_distributed()
        model = AutoModelForCausalLM.from_pretrained(Path(folder) / "model")
        callback = apt_ds.AptCallback(**OPTIONS)
        hf_trainer = trainer(model, args, callback)
        hf_trainer.train()
        callback.export(place / "pruned")
        collectives.barrier()
        wrapped = hf_trainer.model_wrapped
        wrapped.eval()
        with torch.no_grad():
            masked = wrapped(input_ids=tiny.ids()).logits
        # one rank alone cannot load a model that all ranks would share
        with zero.whole_while_making():
            written = AutoModelForCausalLM.from_pretrained(place / "pruned") if collectives.is_main() else None
        runs[name] = {
            "losses": [row["loss"] for row in hf_trainer.state.log_history if "loss" in row],
            "scores": callback.pruner.scores().tolist(),
            "summary": callback.summary(),
            "cuts": callback.cuts_while_training,
            "wrapped": type(wrapped).__name__,
            "shapes": [list(p.shape) for p in model.parameters()] if "deepspeed" not in changes else [],
            "difference": float((written(tiny.ids()).logits - masked).abs().max()) if written is not None else 0.0,
        }
        collectives.barrier()
    return runs
