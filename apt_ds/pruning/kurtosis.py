"""The kurtosis term of every block, from weights (METHOD.md section 3).

A block contributes O_{:,j} = W_{:,j} * x_j to the output of the linear layer that reads it. A heavy tail of that column
marks a block with outliers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from apt_ds.models import quantization
from apt_ds.models.adapter import AptLinear
from apt_ds.models.blocks import DOWN, GATE_UP
from apt_ds.runtime import zero

CHUNK_ELEMENTS = 1 << 20  # of a weight, that are converted to fp64 together


@contextmanager
def effective_weight(module: nn.Module) -> Iterator[Tensor]:
    """The weight of a linear layer plus its adapter's part, [out, in]. Gathered inside the context. Collective."""
    with zero.gathered(module.parameters(recurse=False)), torch.no_grad():
        if isinstance(module, AptLinear):
            yield module.merged()
        else:
            assert isinstance(module.weight, Tensor)
            yield quantization.dense(module.weight)


def excess_kurtosis(moments: Tensor, count: int) -> Tensor:
    """Excess kurtosis from raw power sums.

    Args:
        moments: sums of x, x^2, x^3, x^4 over `count` values, [4, n].
        count: values per sum.

    Returns:
        fp32 [n].
    """
    m1, m2, m3, m4 = (moments.double() / count).unbind(0)
    variance = (m2 - m1**2).clamp(min=1e-30)
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return (fourth / variance**2 - 3).float()


def power_sums(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Sums over rows of the first four powers of weight * scale: [out, in], [in] -> fp64 [4, in].

    A chunk of rows at a time. All rows in fp64 may be larger than everything else of a step.
    """
    total = torch.zeros(4, weight.shape[1], dtype=torch.float64, device=weight.device)
    for rows in weight.split(max(1, CHUNK_ELEMENTS // weight.shape[1])):
        w = rows.double() if scale is None else rows.double() * scale.double()
        square = w * w
        total += torch.stack([w.sum(0), square.sum(0), (square * w).sum(0), (square * square).sum(0)])
    return total


def outlier_term(kurtosis: Tensor) -> Tensor:
    """sqrt(max(kurtosis, 0)): what a heavy tail adds to a block's score."""
    return kurtosis.clamp(min=0).sqrt()


def consumer_outliers(weight: Tensor, unit: int, abs_sums: Tensor) -> Tensor:
    """Kurtosis term of a site's blocks, from the weight of their consumer.

    The scale of a column cancels for a neuron. For a head it weights the head's dimensions against each other.

    Args:
        weight: [d_m, blocks * unit].
        unit: columns per block.
        abs_sums: sum |x| per column, [blocks * unit].

    Returns:
        fp32 [blocks].
    """
    sums = power_sums(weight, abs_sums if unit > 1 else None).view(4, -1, unit).sum(2)
    return outlier_term(excess_kurtosis(sums, weight.shape[0] * unit))


def reader_outliers(weight: Tensor) -> Tensor:
    """Kurtosis term of the hidden dimensions at one reader of the stream: [out, d_m] -> fp32 [d_m]."""
    return outlier_term(excess_kurtosis(power_sums(weight), weight.shape[0]))


def mixture_outliers(module: nn.Module, abs_sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kurtosis terms at the experts of a layer. Collective under ZeRO stage 3. Gathers both weights.

    Args:
        module: has the weights `GATE_UP` [E, 2 f, d_m] and `DOWN` [E, d_m, f].
        abs_sums: sum |x| per neuron, [E * f].

    Returns:
        fp32 [E] of the experts, as heads of f dimensions; [E * f] of their neurons; [d_m] of the hidden dimensions.
    """
    ups, downs = module.get_parameter(GATE_UP), module.get_parameter(DOWN)
    with zero.gathered([ups, downs]), torch.no_grad():
        each = abs_sums.view(len(downs), -1)
        experts = [consumer_outliers(down, down.shape[1], own) for down, own in zip(downs, each, strict=True)]
        neurons = [consumer_outliers(down, 1, own) for down, own in zip(downs, each, strict=True)]
        return torch.cat(experts), torch.cat(neurons), reader_outliers(ups.flatten(0, 1))
