"""Prints the peak bytes of two training steps above those of this process without a model.

Arguments: MODE BATCH LENGTH. MODE is `student`, which learns from its task alone, or `distilled`, which also learns
from the self-teacher. Each measurement needs its own process: memory that an allocator keeps from one would hide the
next.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from transformers import BertConfig, BertForSequenceClassification

from apt_ds.config.resolve import resolve
from apt_ds.config.tasks import CLASSIFICATION
from apt_ds.data.batching import collate
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import adapter, task_heads
from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.salience import Salience
from apt_ds.runtime.memory import peak_memory, reset_peak
from tests.support.paths import ROOT

CPU = torch.device("cpu")
M_MMAP_THRESHOLD = -3
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}


def main(mode: str, batch: int, length: int) -> None:
    # buffers of a known size go straight back to the system when they are freed
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 16)
    reset_peak(CPU)
    before = peak_memory(CPU)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**MINILM, num_labels=2))
    anatomy = anatomy_of(model.config, CLASSIFICATION)
    adapter.attach(model, anatomy, ("q", "v", "up"), rank=8, seed=1)
    task_heads.attach(model, anatomy)
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--pruning", "gradual"]
    run = resolve([*words, *(["--distill"] if mode == "distilled" else [])])
    training_loss = TrainingLoss(run, CLASSIFICATION, anatomy, 10, CPU)
    anatomy = training_loss.phase.prepare(model, anatomy)
    masks, salience = Masks(anatomy), Salience(anatomy, 0.85, "off", 1.0, CPU)
    masks.install(model.train())
    salience.install(model)
    training_loss.install_hooks(model)
    ids = torch.randint(5, 30000, (batch, length)).tolist()
    rows = [{"input_ids": row, "targets": [i % 2]} for i, row in enumerate(ids)]
    micro_batch = collate(rows, 0)
    for step in (5, 6):
        training_loss.begin(step, rows)
        salience.begin(micro_batch.attention_mask, torch.float32)
        training_loss.micro_batch_loss(model, micro_batch, masks)[0].backward()
        salience.end()
        model.zero_grad()
    print(peak_memory(CPU) - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
