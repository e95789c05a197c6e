"""The APT adapter: a frozen linear layer with a low-rank path beside it (METHOD.md section 1).

`H(x) = (W + s W_B W_A) x`, s = 2 at every rank. The masks m_i and m_o of the paper are outside, on what the
layer reads and writes (`pruning/masks.py`). Both places compute the same function.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.config.errors import UserError
from apt_ds.config.pruning_options import PROJECTIONS
from apt_ds.models import quantization
from apt_ds.models.blocks import Anatomy
from apt_ds.models.modules import linear_at, replace_module
from apt_ds.runtime import zero

SCALE = 2.0


class AptLinear(nn.Linear):
    """A frozen linear layer with an adapter. It takes over the layer's parameters, quantized or not, without a copy.

    Attributes:
        lora_A: W_A, [rank, in_features], Gaussian with standard deviation 1/sqrt(3 in_features).
        lora_B: W_B, [out_features, rank], zero.
        past: values to use instead of these two, by name, during the teacher's forward pass.
    """

    def __init__(self, base: nn.Linear, lora_A: Tensor, lora_B: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.lora_A, self.lora_B = nn.Parameter(lora_A), nn.Parameter(lora_B)
        self.past: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + s W_B W_A x. [..., in_features] -> [..., out_features]."""
        a, b = self.past.get("lora_A", self.lora_A), self.past.get("lora_B", self.lora_B)
        low = F.linear(F.linear(x, a), b)
        return torch.add(quantization.linear(x, self.weight, self.bias), low, alpha=SCALE)

    def merged(self) -> Tensor:
        """W + s W_B W_A, [out, in], in the weight's dtype, summed in fp32. Parameters must be gathered."""
        base = quantization.dense(self.weight, torch.float32).float()
        return (base + SCALE * (self.lora_B.float() @ self.lora_A.float())).to(self.weight.dtype)


def gaussian_rows(rows: int, columns: int, width: int, generator: torch.Generator) -> Tensor:
    """New rows of W_A, fp32 [rows, columns] on the CPU, with standard deviation 1/sqrt(3 width)."""
    return torch.randn(rows, columns, generator=generator) / (3 * width) ** 0.5


def check_targets(anatomy: Anatomy, targets: tuple[str, ...]) -> None:
    """Check that a model has all the projections that get an adapter.

    Raises:
        UserError: it lacks one. The message lists those that it has.
    """
    absent = [name for name in targets if name not in anatomy.targets]
    if absent:
        known = ", ".join(name for name in PROJECTIONS if name in anatomy.targets)
        raise UserError(f"--adapter_targets {','.join(targets)}: the model has no {absent[0]}; give some of {known}")


def attach(model: nn.Module, anatomy: Anatomy, targets: tuple[str, ...], rank: int, seed: int) -> None:
    """Freeze `model` and put adapters of `rank` on every layer's `targets`, in place.

    A fused layer that several targets name gets one adapter. The weights may be partitioned: only their declared
    widths are read. The same seed gives the same adapters on every rank and for any partitioning.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for path in dict.fromkeys(path for name in targets for path in anatomy.targets[name]):
        base = linear_at(model, path)
        like = base.weight
        a = gaussian_rows(rank, base.in_features, base.in_features, generator).to(like.device, like.dtype)
        b = torch.zeros(base.out_features, rank, device=like.device, dtype=like.dtype)
        replace_module(model, path, AptLinear(base, a, b))


def adapters(model: nn.Module) -> Iterator[tuple[str, AptLinear]]:
    """(path, adapter) in module order, the same on every rank."""
    for path, module in model.named_modules():
        if isinstance(module, AptLinear):
            yield path, module


def ranks(model: nn.Module) -> dict[str, int]:
    """Path to rank of every adapter."""
    return {path: zero.full_shape(adapter.lora_A)[0] for path, adapter in adapters(model)}


class Transform(nn.Module):
    """Tr of METHOD.md section 7: the identity plus a low-rank map, between a student's layer and its teacher's."""

    def __init__(self, lora_A: Tensor, lora_B: Tensor) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(lora_A), nn.Parameter(lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """X + s W_B W_A x. [..., d] -> [..., d]."""
        low = nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B)
        return torch.add(x, low, alpha=SCALE)
