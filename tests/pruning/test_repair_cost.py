"""What a repair costs beside training, on layers of LLaMA-2 7B's shape. `-s` prints the figures.

Fits take most of a repair, and do not depend on the tokens. So a few tokens give the cost of a layer for any number.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, block_slices
from apt_ds.pruning.layer_walk import WalkBatch, WalkTokens
from apt_ds.pruning.repair import repair

ROWS, LENGTH, MORE = 8, 128, 5  # of a batch, and batches of the longer measurement
EXAMPLES, EPOCHS, TOKENS = 52_000, 3, 200  # a run on Alpaca: rows, passes, tokens of a row
SHARE = 0.02  # of the run


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_repair_takes_at_most_a_fiftieth_of_a_run() -> None:
    config = LlamaConfig(num_hidden_layers=2, vocab_size=1000, dtype="bfloat16")  # else as LLaMA-2 7B
    assert (config.hidden_size, config.intermediate_size) == (4096, 11008)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    anatomy = anatomy_of(config)
    adapter.attach(model, anatomy, ("q", "v"), rank=8, seed=0)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if site != HIDDEN:
            keep[span] = np.arange(span.stop - span.start) % 10 < 7

    batches = [ids(seed) for seed in range(MORE)]
    # the first step also warms up
    step = min(seconds(lambda: train(model, batches[0])) for _ in range(2))
    one = seconds(lambda: repair(model, anatomy, keep, walk(batches[:1])))
    more = seconds(lambda: repair(model, anatomy, keep, walk(batches)))
    per_batch = (more - one) / (MORE - 1)
    fits = one - per_batch
    whole = fits + per_batch * RunConfig().pruning.repair_examples * TOKENS / (ROWS * LENGTH)
    training = step * EXAMPLES * EPOCHS * TOKENS / (ROWS * LENGTH)
    print(f"two layers: fits {fits:.0f} s, {per_batch:.1f} s for {ROWS * LENGTH} tokens, a step on them {step:.1f} s")
    print(f"a repair takes {whole / training:.2%} of {EPOCHS} epochs over {EXAMPLES:,} examples")
    assert whole <= SHARE * training


def ids(seed: int) -> Tensor:
    return torch.randint(1000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, tokens: Tensor) -> None:
    model(tokens, labels=tokens, use_cache=False).loss.backward()


def walk(batches: list[Tensor]) -> list[WalkBatch]:
    half = (torch.arange(ROWS) % 2).repeat_interleave(LENGTH)
    counted = torch.ones(ROWS * LENGTH, dtype=torch.bool)

    def calling(tokens: Tensor) -> Callable[[nn.Module], object]:
        return lambda base: base(tokens, use_cache=False)

    return [WalkBatch(calling(tokens), WalkTokens(counted, half)) for tokens in batches]
