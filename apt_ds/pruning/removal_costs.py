"""What it costs to remove blocks of a layer's inputs after least squares have refitted the rest (METHOD.md section 12).

A layer y = W x with G = sum of x x^T and a weight s_i for the squared error of output i loses the inputs of block b.
The other columns follow by least squares. The weighted squared error is then

    cost_b = sum over i of s_i W_ib [(G^-1)_bb]^-1 W_ib^T,    G with a ridge.

It is the cost of the optimal brain surgeon, by block. Blocks that can replace each other are both cheap, but not
together. `elimination` therefore removes blocks in order. After some, weights and G^-1 are those of the layer without
them (Kurtic et al., "ZipLM", NeurIPS 2023, section 3). Increments of costs add up to the cost of joint removal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RIDGE = 0.1  # by which the diagonal of G grows, relative to each entry
ROUNDS = 64  # in which all blocks of a layer are removed
RISE = 1e-9  # by which the score of a block exceeds that of the block before it, so that their order stays


def removal_costs(weight: Tensor, error_weights: Tensor, gram: Tensor, unit: int) -> np.ndarray:
    """The score of every block: the highest cost of any removal up to its own, in the order of `elimination`.

    Args:
        weight: [out, in], before the cut. Consecutive `unit` columns are a block.
        error_weights: s, [out], not negative.
        gram: [in, in].
        unit: columns per block.

    Returns:
        float64 [in / unit].

    Raises:
        ArithmeticError: G is not finite.
    """
    count = weight.shape[1] // unit
    if not bool(torch.isfinite(gram).all()):
        raise ArithmeticError("inputs of a layer are not finite")
    if not bool(gram.any()):
        return np.zeros(count)
    scaled = weight.double() * error_weights.double().sqrt()[:, None]
    order, increments = elimination(scaled, ridged(gram), unit, -(-count // ROUNDS))
    costs, highest = np.zeros(count), 0.0
    for block, increment in zip(order, increments, strict=True):
        highest = max(highest * (1 + RISE), increment)
        costs[block] = highest
    return costs


def ridged(gram: Tensor, ridge: float = RIDGE) -> Tensor:
    """G with a diagonal that is larger by the fraction `ridge`, float64.

    It is relative to each input, so that scaling an input and dividing its column by as much changes no cost. Some
    layers have an input that is far larger than all others. A ridge of the mean would make the others look expensive.
    """
    result = gram.double().clone()
    diagonal = result.diagonal()
    least = 1e-12 * diagonal.mean()  # an input that is always zero must not make G singular
    diagonal *= 1 + ridge
    diagonal.clamp_(min=least)
    return result


def elimination(weight: Tensor, gram: Tensor, unit: int, at_once: int = 1) -> tuple[list[int], list[float]]:
    """Remove all blocks, the cheapest first.

    Args:
        weight: float64 [out, in]. All outputs weigh the same.
        gram: float64 [in, in], positive definite.
        unit: columns per block.
        at_once: blocks of a round. They share the cost of their joint removal in proportion to the costs of each.

    Returns:
        The blocks in order, and what each adds to the squared error.
    """
    weight = weight.clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    blocks = torch.arange(weight.shape[1] // unit, device=weight.device)
    order: list[int] = []
    increments: list[float] = []
    while len(blocks):
        costs = block_costs(weight, inverse, unit)
        places = costs.argsort(stable=True)[:at_once]
        gone = torch.zeros(len(blocks), dtype=torch.bool, device=weight.device)
        gone[places] = True
        entries = gone.repeat_interleave(unit)
        removed, kept = weight[:, entries], ~entries
        solved = torch.linalg.solve(inverse[entries][:, entries], removed.T)  # [(G^-1)_RR]^-1 W_R^T
        total, each = float((solved * removed.T).sum()), costs[places]
        order += blocks[places].tolist()
        increments += (each * (total / float(each.sum()) if float(each.sum()) > 0 else 0.0)).tolist()
        crossing = inverse[entries][:, kept]
        weight = weight[:, kept] - solved.T @ crossing
        inverse = inverse[kept][:, kept] - crossing.T @ torch.linalg.solve(inverse[entries][:, entries], crossing)
        blocks = blocks[~gone]
    return order, increments


def block_costs(weight: Tensor, inverse: Tensor, unit: int) -> Tensor:
    """The cost of removing each block alone: float64 [out, in] and G^-1 [in, in] -> [in / unit]."""
    if unit == 1:
        return weight.square().sum(0) / inverse.diagonal()
    count = weight.shape[1] // unit
    own = torch.arange(count, device=weight.device)
    diagonal = inverse.view(count, unit, count, unit)[own, :, own, :]  # [blocks, unit, unit]
    columns = weight.view(-1, count, unit).permute(1, 2, 0)  # [blocks, unit, out]
    return (columns * torch.linalg.solve(diagonal, columns)).sum((1, 2))
