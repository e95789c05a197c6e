"""Bytes that pinned host memory takes beyond its tensors: torch rounds every piece up to a power of two.

Only a GPU pins memory. DeepSpeed pins what `offload_optimizer` and `offload_param` keep on the host, unless the file
says `"pin_memory": false`.
"""

from __future__ import annotations

from collections.abc import Iterable

from apt_ds.analysis.sharding import Sharding

FP32 = 4
SUB_GROUP = 1_000_000_000  # DeepSpeed's default, in elements


def pins(sharding: Sharding, section: str) -> bool:
    """Whether a section of the configuration keeps pinned tensors on the host."""
    given = sharding.zero.get(section)
    return not sharding.layout.on_cpu and isinstance(given, dict) and bool(given.get("pin_memory", True))


def rounding(sizes: Iterable[int]) -> int:
    """Bytes that rounding adds to pieces of these sizes."""
    return sum((1 << (size - 1).bit_length()) - size for size in sizes if size)


def parameter_rounding(sharding: Sharding) -> int:
    """Rounding of the weights that stage 3 offloads: one piece for each frozen weight, one for all trained ones."""
    if sharding.stage != 3 or not pins(sharding, "offload_param"):
        return 0
    item, world = sharding.layout.item, sharding.layout.world
    frozen = [-(-weight.numel // world) * item for weight in sharding.model.weights if not weight.trained]
    return rounding([*frozen, sharding.own_trained * item])


def optimizer_rounding(sharding: Sharding) -> int:
    """Rounding of what belongs to an offloaded optimizer.

    Stages 1 and 2 pin the master weights, their gradients in fp32, and a copy in the dtype of the run. Stage 3 pins the
    gradients in both dtypes, those in fp32 in pieces of `sub_group_size`. Moments are never pinned.
    """
    if not sharding.stage or not pins(sharding, "offload_optimizer"):
        return 0
    updated, item = sharding.updated, sharding.layout.item
    if sharding.stage < 3:
        return rounding([FP32 * updated, FP32 * updated, item * updated])
    piece = int(sharding.zero.get("sub_group_size", SUB_GROUP))
    pieces = [FP32 * min(piece, updated - start) for start in range(0, updated, piece)]
    return rounding([item * updated, *pieces])
