"""Models of random weights, for measurements of a shape without a checkpoint.

Weights repeat after `DRAWN` numbers: a host takes minutes to draw billions of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import quantization
from apt_ds.models.architectures import architecture_of
from apt_ds.runtime import zero

DRAWN = 16_777_213  # a prime: no two rows of a weight are alike


@torch.no_grad()
def random_model(
    config: PretrainedConfig, dtype: torch.dtype, attention: str, projections: set[str], bits: int
) -> PreTrainedModel:
    """Make a model with random weights on the device. Under ZeRO-3 it is sharded as it is made.

    Every rank draws its own weights. Below stage 3 the engine takes those of rank 0.

    Args:
        config: the configuration. It is not changed.
        dtype: the dtype of all weights that are not quantized.
        attention: the attention kernel.
        projections: paths of the linear layers to quantize, each as soon as it is drawn.
        bits: bits of these layers, 16 for plain ones.

    Raises:
        ImportError: the attention kernel is missing.
    """
    with zero.device(), no_init_weights():
        model = architecture_of(config).empty_model(config, LANGUAGE_MODEL, dtype, attention)
    model.tie_weights()
    pool, at = torch.empty(DRAWN, dtype=dtype, device=zero.device()).normal_(0, config.initializer_range), 0
    for path in [path for path, _ in model.named_modules()]:
        for parameter in model.get_submodule(path).parameters(recurse=False):
            at = pour(pool, at, parameter)
        if path in projections:
            quantization.hold(model, [path], bits, dtype)
    return model


def pour(pool: Tensor, at: int, parameter: nn.Parameter) -> int:
    """Fill this rank's part of a weight from `pool`, starting at index `at`. Norms become 1.

    Returns:
        The index in `pool` for the next weight.
    """
    rest = zero.held_part(parameter).view(-1)
    if len(zero.full_shape(parameter)) == 1:
        rest.fill_(1)
        return at
    while len(rest):
        drawn = pool[at : at + len(rest)]
        rest[: len(drawn)] = drawn
        rest, at = rest[len(drawn) :], (at + len(drawn)) % len(pool)
    return at
