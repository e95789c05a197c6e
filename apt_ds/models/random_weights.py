"""Models that are only sizes: drawn weights, for measurements where there is nothing to read.

Weights repeat after a few million numbers, since a host takes minutes to draw billions of them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from apt_ds.models import quantization
from apt_ds.runtime import zero

DRAWN = 16_777_213  # a prime: no two rows of a weight are alike


@torch.no_grad()
def random_model(
    config: PretrainedConfig, dtype: torch.dtype, attention: str, projections: set[str], bits: int
) -> PreTrainedModel:
    """A model of `config` with drawn weights, made on the device, under ZeRO-3 sharded while it is made.

    projections: paths of what is held in `bits` bits, quantized as it is drawn: on a host only that much is ever
    touched. Every rank draws its own: below stage 3 the engine takes those of rank 0.

    Raises:
        ImportError: an attention kernel that is not there.
    """
    with zero.device(), no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=attention)
    model.tie_weights()
    pool, at = torch.empty(DRAWN, dtype=dtype, device=zero.device()).normal_(0, config.initializer_range), 0
    for path in [path for path, _ in model.named_modules()]:
        for parameter in model.get_submodule(path).parameters(recurse=False):
            at = pour(pool, at, parameter)
        if path in projections:
            quantization.hold(model, [path], bits, dtype)
    return model


def pour(pool: Tensor, at: int, parameter: nn.Parameter) -> int:
    """Fill this rank's part of a weight from `pool`, beginning at `at`; where to go on. Norms become 1."""
    rest = zero.held_part(parameter).view(-1)
    if len(zero.full_shape(parameter)) == 1:
        rest.fill_(1)
        return at
    while len(rest):
        drawn = pool[at : at + len(rest)]
        rest[: len(drawn)] = drawn
        rest, at = rest[len(drawn) :], (at + len(drawn)) % len(pool)
    return at
