"""The hands: carry out a plan on weights, adapters and optimizer state (sections 5, 6 and 8).

No engine may be on the model. One module is gathered at a time, so that the peak is one weight above what is
held anyway; new weights are partitioned as soon as they are made.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models import position_bias, quantization
from apt_ds.models.adapter import AptLinear, Transform, adapters, gaussian_rows
from apt_ds.models.blocks import Anatomy, Axis, IndexedModule, block_slices, kept_sizes
from apt_ds.runtime import zero


@dataclass(frozen=True)
class Plan:
    """What to do.

    keep: bool over all blocks, None to cut nothing; scale: float64 over all blocks, what heads and neurons that stay
    are multiplied with where a site loses some (None: nothing); grow: adapter path to its new rank.
    """

    keep: np.ndarray | None = None
    grow: dict[str, int] = field(default_factory=dict)
    scale: np.ndarray | None = None

    def __bool__(self) -> bool:
        return bool(self.grow) or (self.keep is not None and not self.keep.all())


def apply_plan(
    model: nn.Module, anatomy: Anatomy, plan: Plan, state: zero.EngineState | None, generator: torch.Generator
) -> Anatomy:
    """Cut and grow in place; returns the anatomy that remains. Collective under stage 3.

    state: optimizer state whose tensors follow the same index (None: nothing to follow). New entries of a moment
    are zero, new rows of W_A come from `generator` (the same seed on every rank), new columns of W_B are zero.
    """
    if plan.keep is not None and not plan.keep.all():
        anatomy = _cut(model, anatomy, plan, state)
    for path, adapter in adapters(model):
        if path in plan.grow:
            _grow(path, adapter, plan.grow[path], state, generator)
    return anatomy


def element_index(axis: Axis | None, keep: np.ndarray, anatomy: Anatomy) -> Tensor | None:
    """Entries of a weight's dimension that stay, int64, ascending; None where all do."""
    if axis is None:
        return None
    kept = keep[dict(block_slices(anatomy.sizes))[axis.site]]
    if kept.all():
        return None
    blocks = torch.from_numpy(np.flatnonzero(kept))
    return (blocks[:, None] * axis.unit + torch.arange(axis.unit)).flatten()


def take(tensor: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """A contiguous copy of the indexed part."""
    if rows is not None:
        tensor = tensor.index_select(0, rows.to(tensor.device))
    if columns is not None:
        tensor = tensor.index_select(1, columns.to(tensor.device))
    return tensor.contiguous()


def _cut(model: nn.Module, anatomy: Anatomy, plan: Plan, state: zero.EngineState | None) -> Anatomy:
    keep = plan.keep
    consumers = {site.consumer for site in anatomy.sites}
    # weights that several slots share, old ones with the new: an old one that lives on keeps its id to itself
    shared = _shared(model, anatomy)
    replaced: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for slot in anatomy.slots:
        rows, columns = (element_index(axis, keep, anatomy) for axis in (slot.rows, slot.columns))
        if rows is None and columns is None:
            continue
        module = model.get_submodule(slot.path)
        factor = None
        if plan.scale is not None and columns is not None and slot.path in consumers:
            factor = _spread(slot.columns, plan.scale, anatomy)[columns]
        for name, index in _indexed(module, slot, rows, columns):
            weigh = factor if index[1] is not None else None
            old = getattr(module, name)
            if id(old) in replaced:
                setattr(module, name, replaced[id(old)][1])
                continue
            new = _replace(old, index, weigh)
            setattr(module, name, new)
            if id(old) in shared:
                replaced[id(old)] = old, new
            # what is gone must be free before the next is made
            zero.release(old)
            if state is not None:
                _follow(state, f"{slot.path}.{name}", index, weigh)
        _set_widths(module)
    for number, site in enumerate(anatomy.sites):
        heads = element_index(Axis(number), keep, anatomy)
        if site.position_bias and heads is not None:
            position_bias.follow(model, site.position_bias, heads)
    return anatomy.with_sizes(kept_sizes(anatomy.sizes, keep))


def _shared(model: nn.Module, anatomy: Anatomy) -> set[int]:
    """The ids of weights that are those of several slots (tied embeddings)."""
    held = (p for slot in anatomy.slots for p in model.get_submodule(slot.path).parameters(recurse=False))
    counts = Counter(map(id, held))
    return {number for number, count in counts.items() if count > 1}


Index = tuple[Tensor | None, Tensor | None]


def _indexed(
    module: nn.Module, slot: IndexedModule, rows: Tensor | None, columns: Tensor | None
) -> list[tuple[str, Index]]:
    """The module's parameters and how a cut indexes them."""
    found: list[tuple[str, Index]] = []
    if not isinstance(module, Transform):
        found.append(("weight", (rows, columns)))
        if getattr(module, "bias", None) is not None:
            found.append(("bias", (rows, None)))
    if isinstance(module, (AptLinear, Transform)):
        found += [("lora_A", (None, columns)), ("lora_B", (rows, None))]
    return [(name, index) for name, index in found if index != (None, None)]


def _spread(axis: Axis, values: np.ndarray, anatomy: Anatomy) -> Tensor:
    """A value per block as a value per entry of the dimension, fp32."""
    own = torch.from_numpy(values[dict(block_slices(anatomy.sizes))[axis.site]]).float()
    return own.repeat_interleave(axis.unit)


def _replace(old: nn.Parameter, index: Index, factor: Tensor | None) -> nn.Parameter:
    with zero.gathered([old]), torch.no_grad():
        values = quantization.dense(old, torch.float32)
        new = quantization.requantize_like(old, _weighed(take(values, *index), factor))
    zero.shard([new], like=old)
    return new


def _weighed(tensor: Tensor, factor: Tensor | None) -> Tensor:
    return tensor if factor is None else (tensor * factor.to(tensor.device)).to(tensor.dtype)


def _follow(state: zero.EngineState, name: str, index: Index, factor: Tensor | None) -> None:
    for key, value in state.tensors.get(name, {}).items():
        state.tensors[name][key] = _weighed(take(value, *index), factor if key == "master" else None)


def _set_widths(module: nn.Module) -> None:
    if isinstance(module, Transform):
        return
    shape = zero.full_shape(module.weight)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = shape[1]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)


def _grow(path: str, adapter: AptLinear, rank: int, state: zero.EngineState | None, generator: torch.Generator) -> None:
    extra = rank - zero.full_shape(adapter.lora_A)[0]
    rows = gaussian_rows(extra, adapter.in_features, adapter.in_features, generator)
    columns = torch.zeros(adapter.out_features, extra)
    for name, new, dim in (("lora_A", rows, 0), ("lora_B", columns, 1)):
        old = getattr(adapter, name)
        with zero.gathered([old]):
            grown = nn.Parameter(torch.cat([old.detach(), new.to(old.device, old.dtype)], dim))
        zero.shard([grown], like=old)
        setattr(adapter, name, grown)
        if state is not None:
            entry = state.tensors[f"{path}.{name}"]
            for key, value in entry.items():
                # the master of what was drawn is what the weight really holds after rounding
                fresh = new.to(old.dtype).float() if key == "master" else torch.zeros_like(new)
                entry[key] = torch.cat([value, fresh.to(value.device, value.dtype)], dim)
