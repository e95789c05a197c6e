"""One hash over all weights of a model, equal for equal weights under any sharding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apt_ds.models import quantization
from apt_ds.runtime import collectives, zero

INTEGERS = {2: torch.int16, 4: torch.int32}
PIECE = 1 << 18
ODD = 0x1E3779B97F4A7C15


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A hash of all weights, the same for any number of ranks and any ZeRO stage. Collective.

    For each parameter p, with v_i the bits of element i as a signed integer and P = `PIECE`:

        s(p) = sum_i  v_i * k[i mod P] * (floor(i / P) * ODD | 1)   mod 2^64

    k is a fixed vector of P random odd numbers, so the sum depends on value and position. The factor of a piece is odd
    too, so no bit is lost. The sum modulo 2^64 does not depend on its order: each rank adds up its own share, and
    the shares are added. The hash is the digest of all names, shapes, dtypes, scales of quantized weights, and s(p).
    """
    low, high = -(2**63), 2**63 - 1
    keys = torch.randint(low, high, (PIECE,), generator=torch.Generator().manual_seed(PIECE)) | 1
    names, sums = [], []
    for name, parameter in model.named_parameters():
        start, flat = zero.own_part(parameter)
        bits = flat.contiguous().view(INTEGERS[flat.element_size()])
        total: Tensor | int = 0
        keys = keys.to(bits.device)
        while len(bits):
            piece, inside = divmod(start, PIECE)
            now = bits[: PIECE - inside]
            total += (now * keys[inside : inside + len(now)]).sum() * signed(piece * ODD | 1)
            bits, start = bits[len(now) :], start + len(now)
        scales = collectives.digest(*quantization.small_parts(parameter))
        names.append((name, tuple(zero.full_shape(parameter)), str(flat.dtype), scales))
        sums.append(int(total))
    shares = collectives.gather_objects(sums)
    return collectives.digest(names, [sum(column) % 2**64 for column in zip(*shares, strict=True)])


def signed(number: int) -> int:
    """A whole number as the int64 of its last 64 bits."""
    return (number + 2**63) % 2**64 - 2**63
