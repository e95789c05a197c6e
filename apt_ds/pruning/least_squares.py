"""The weights of a cut linear layer that come nearest to its output before the cut (METHOD.md section 12).

A layer reads x = (x_K, x_R), of which x_R is removed. With G the sum of x x^T over tokens, the kept columns become

    W_K + W_R G_RK (G_KK + r D)^-1,    D = mean of the diagonal of G_KK, times the identity.

It is the least-squares fit of W x by x_K that leans to W_K. As r grows it becomes the plain cut. A cross-validation
over two halves of the tokens chooses r for each layer.

Shapes: the weight is [out, in], K kept and R removed input dimensions, in = K + R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (0.001, 0.01, 0.1, 1.0)  # values of r that compete with the plain cut


@dataclass(frozen=True)
class Fit:
    """A repaired layer.

    Attributes:
        change: fp32 [out, K], what to add to the kept columns. None: the plain cut is best.
        ridge: r. Infinite for the plain cut.
        error_cut: squared error of the layer's output after the plain cut, over all tokens, as a fraction of the
            squared output.
        error_repaired: the same with `change`.
    """

    change: Tensor | None
    ridge: float
    error_cut: float
    error_repaired: float


def repaired(weight: Tensor, grams: tuple[Tensor, Tensor], keep: Tensor, ridges: Sequence[float] = RIDGES) -> Fit:
    """Fit the kept columns of a weight.

    The ridge is the one whose fits to each half of the tokens have the smallest error on the other half. The plain cut
    is among the choices. The final fit sees both halves.

    Args:
        weight: fp32 [out, in], before the cut.
        grams: sum of x x^T over each half of the tokens, fp32 [in, in].
        keep: bool [in], the input dimensions that remain.
        ridges: values of r that compete with the plain cut.
    """
    first, second = grams
    errors = {math.inf: sum(float(_error(weight, gram, keep, None)) for gram in grams)}
    for ridge in ridges:
        error = 0.0
        for fitted, other in ((first, second), (second, first)):
            change = fit(weight, fitted, keep, ridge)
            error += math.inf if change is None else float(_error(weight, other, keep, change))
        errors[ridge] = error
    best = min(errors, key=lambda ridge: (errors[ridge], -ridge))
    gram = first + second
    change = None if best == math.inf else fit(weight, gram, keep, best)
    output = float(((weight @ gram) * weight).sum())
    cut, after = (float(_error(weight, gram, keep, each)) for each in (None, change))
    scale = 1.0 / output if output > 0 else 0.0
    return Fit(change, best if change is not None else math.inf, cut * scale, after * scale)


def fit(weight: Tensor, gram: Tensor, keep: Tensor, ridge: float) -> Tensor | None:
    """W_R G_RK (G_KK + r D)^-1, fp32 [out, K]. None if no token counts or the system cannot be solved in fp32.

    Args:
        weight: fp32 [out, in].
        gram: fp32 [in, in].
        keep: bool [in].
        ridge: r.
    """
    kept = gram[keep][:, keep]
    diagonal = kept.diagonal()
    diagonal += ridge * diagonal.mean()
    factor, failed = torch.linalg.cholesky_ex(kept)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        return None
    missing = weight[:, ~keep] @ gram[~keep][:, keep]
    change = torch.cholesky_solve(missing.T, factor).T
    return change.contiguous() if bool(torch.isfinite(change).all()) else None


def _error(weight: Tensor, gram: Tensor, keep: Tensor, change: Tensor | None) -> Tensor:
    """Sum over tokens of the squared error of the output, without the removed columns and with the change."""
    difference = torch.zeros_like(weight)
    difference[:, ~keep] = -weight[:, ~keep]
    if change is not None:
        difference[:, keep] = change
    # rounding may leave a small negative number
    return ((difference @ gram) * difference).sum().clamp(min=0)
