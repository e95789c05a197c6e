"""What a run is fed: its training and held-out sets, the order of samples, the corpus it is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from apt_ds import dist
from apt_ds.config import RunConfig
from apt_ds.data.base import Example, load_examples
from apt_ds.data.batches import GlobalOrder
from apt_ds.data.instructions import build_dataset, split_held_out
from apt_ds.data.rows import TokenizedSet
from apt_ds.eval.losses import text_blocks
from apt_ds.models import Base


@dataclass
class Data:
    """Training and held-out sets, the order of samples, and the corpus perplexity is taken on (or None)."""

    train: TokenizedSet
    held_out: TokenizedSet
    held_out_examples: list[Any]
    order: GlobalOrder
    total_steps: int
    corpus: torch.Tensor | None

    def counts(self) -> dict[str, int]:
        """What a resumed run must have in common besides options (see `checkpoint.COUNTS`)."""
        return {"global_batch": self.order.global_batch, "total_steps": self.total_steps}

    def prints(self) -> dict[str, str]:
        """Fingerprints of what is read."""
        corpus = "" if self.corpus is None else dist.digest(self.corpus)
        return {"train": self.train.fingerprint, "held_out": self.held_out.fingerprint, "corpus": corpus}

    def describe(self) -> dict[str, int]:
        """Sizes, for the report."""
        sizes = {"train": len(self.train), "held_out": len(self.held_out), "dropped": self.train.dropped}
        return sizes | {"steps": self.total_steps}


def read_data(run: RunConfig, base: Base) -> Data:
    """Read and split on every rank; tokenize once on every node. Collective."""
    examples = load_examples(run.data_path)
    if run.eval_data_path:
        held = load_examples(run.eval_data_path)[: run.eval_size]
    else:
        examples, held = split_held_out(examples, run.eval_size, run.seed)

    def tokenized(part: list[Example]) -> TokenizedSet:
        made = dist.from_node(lambda: build_dataset(part, base.tokenizer, run.max_seq_length).to_bytes())
        return TokenizedSet.from_bytes(made)

    train_set, held_set = tokenized(examples), tokenized(held)
    batch = run.per_device_train_batch_size * run.gradient_accumulation_steps * dist.world_size()
    order = GlobalOrder(len(train_set), batch, run.seed)
    steps = run.max_steps if run.max_steps > 0 else order.steps(run.num_train_epochs)
    corpus = None
    if run.perplexity_path:
        corpus = text_blocks(run.perplexity_path, base.tokenizer, run.perplexity_length, run.perplexity_blocks)
    return Data(train_set, held_set, held, order, steps, corpus)
