"""One number over all weights of a model, equal for equal weights whatever shards them."""

from __future__ import annotations

import torch
from torch import nn

from apt_ds.models import quantization
from apt_ds.runtime import collectives, zero

INTEGERS = {2: torch.int16, 4: torch.int32}
PIECE = 1 << 18
ODD = 0x1E3779B97F4A7C15


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A hash of all weights as they were loaded, the same for any number of ranks and any ZeRO stage. Collective.

    Every rank reads its own share, in pieces. Position and value of each element count; sums wrap at 2^64, where
    order does not matter.
    """
    low, high = -(2**63), 2**63 - 1
    keys = torch.randint(low, high, (PIECE,), generator=torch.Generator().manual_seed(PIECE)) | 1
    names, sums = [], []
    for name, parameter in model.named_parameters():
        start, flat = zero.own_part(parameter)
        bits, total = flat.contiguous().view(INTEGERS[flat.element_size()]), 0
        keys = keys.to(bits.device)
        while len(bits):
            piece, inside = divmod(start, PIECE)
            now = bits[: PIECE - inside]
            # a piece is told from another by a factor of its own, odd so that nothing is lost
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
