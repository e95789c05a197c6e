"""Carries out a plan on weights, adapters and optimizer state (METHOD.md sections 5, 6 and 8).

A cut is a list of jobs, one per parameter: `WeightCut`, or `ExpertCut` for the weights of experts. `weight_cuts` lists
them without reading a weight, and `_apply` carries one out. No engine may be on the model.

Memory: one parameter is gathered at a time, and the old one is freed before the next is made. The peak is one weight
above what the model needs. New weights are partitioned as soon as they exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models import experts, position_bias, quantization
from apt_ds.models.adapter import AptLinear, Transform, adapters, gaussian_rows
from apt_ds.models.blocks import Anatomy, Axis, block_slices, kept_sizes
from apt_ds.models.export.apt_emptied_sublayers import Bias
from apt_ds.pruning.emptying import emptied_sites, empty_sublayer
from apt_ds.pruning.expert_cuts import ExpertCut, expert_cuts
from apt_ds.runtime import zero


@dataclass(frozen=True)
class Plan:
    """What to cut and to grow.

    Attributes:
        keep: bool [blocks], the blocks that remain. None: cut nothing.
        grow: new rank of each adapter that grows, by path.
        scale: float64 [blocks], factors of the heads and neurons that remain, at sites that lose some. None: all 1.
    """

    keep: np.ndarray | None = None
    grow: dict[str, int] = field(default_factory=dict)
    scale: np.ndarray | None = None

    def __bool__(self) -> bool:
        return bool(self.grow) or (self.keep is not None and not self.keep.all())


@dataclass(frozen=True)
class WeightCut:
    """The cut of one parameter.

    Attributes:
        path: path of the module.
        name: the parameter's name in it.
        rows: int64, ascending, the entries of dimension 0 that remain. None: all.
        columns: the same for dimension 1.
        factor: fp32 [kept columns], what to multiply columns with. None: 1.
        tied_to: path and name of an earlier job with the same parameter, which then replaces this one.
    """

    path: str
    name: str
    rows: Tensor | None = None
    columns: Tensor | None = None
    factor: Tensor | None = None
    tied_to: tuple[str, str] | None = None

    def part_of(self, tensor: Tensor, scaled: bool = True) -> Tensor:
        """A contiguous copy of the entries that remain, times the factor if `scaled`, in the dtype of `tensor`."""
        kept = take(tensor, self.rows, self.columns)
        if self.factor is None or not scaled:
            return kept
        return (kept * self.factor.to(kept.device)).to(kept.dtype)


def apply_plan(
    model: nn.Module, anatomy: Anatomy, plan: Plan, state: zero.EngineState | None, generator: torch.Generator
) -> Anatomy:
    """Cut and grow in place. Collective under ZeRO stage 3.

    New entries of a moment are zero. New columns of W_B are zero, so that growth changes no output.

    Args:
        model: the model without an engine and without hooks.
        anatomy: its anatomy.
        plan: the same on all ranks.
        state: optimizer state whose tensors follow the same index, or None.
        generator: draws new rows of W_A. It has the same seed on every rank.

    Returns:
        The anatomy that remains.
    """
    if plan.keep is not None and not plan.keep.all():
        anatomy = _cut(model, anatomy, plan.keep, plan.scale, state)
    for path, adapter in adapters(model):
        if path in plan.grow:
            _grow(path, adapter, plan.grow[path], state, generator)
    return anatomy


def element_index(axis: Axis | None, keep: np.ndarray, anatomy: Anatomy) -> Tensor | None:
    """Entries of a weight's dimension that remain, int64, ascending. None where all remain.

    Args:
        axis: the blocks along the dimension, None for no blocks.
        keep: bool [blocks].
        anatomy: the anatomy before the cut.
    """
    if axis is None:
        return None
    kept = keep[dict(block_slices(anatomy.sizes))[axis.site]]
    if kept.all():
        return None
    return torch.from_numpy(np.flatnonzero(kept[axis.owners(len(kept))]))


def take(tensor: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """A contiguous copy of the indexed part."""
    if rows is not None:
        tensor = tensor.index_select(0, rows.to(tensor.device))
    if columns is not None:
        tensor = tensor.index_select(1, columns.to(tensor.device))
    return tensor.contiguous()


def weight_cuts(
    model: nn.Module, anatomy: Anatomy, keep: np.ndarray, scale: np.ndarray | None = None
) -> list[WeightCut | ExpertCut]:
    """The jobs of a cut, in the order of the anatomy. Changes nothing, reads no weight and stores none.

    Args:
        model: the model before the cut.
        anatomy: its anatomy.
        keep: bool [blocks], the blocks that remain.
        scale: float64 [blocks], factors of the blocks that remain, or None.
    """
    axes = {axis for slot in anatomy.slots for axis in (slot.rows, slot.columns) if axis is not None}
    index = {axis: element_index(axis, keep, anatomy) for axis in axes}
    consumers = {site.consumer for site in anatomy.sites}
    cuts: list[WeightCut | ExpertCut] = []
    first: dict[int, tuple[str, str]] = {}  # by identity: tied embeddings are one parameter of several modules
    for slot in anatomy.slots:
        rows = None if slot.rows is None else index[slot.rows]
        columns = None if slot.columns is None else index[slot.columns]
        factor = None
        if scale is not None and slot.columns is not None and columns is not None and slot.path in consumers:
            factor = _per_entry(slot.columns, scale, anatomy)[columns]
        module = model.get_submodule(slot.path)
        for name, own_rows, own_columns in _dimensions(module, rows, columns):
            if own_rows is None and own_columns is None:
                continue
            place = slot.path, name
            tied_to = first.setdefault(id(getattr(module, name)), place)
            own_factor = None if own_columns is None else factor
            cut = WeightCut(*place, own_rows, own_columns, own_factor, None if tied_to == place else tied_to)
            cuts.append(cut)
    return [*cuts, *expert_cuts(anatomy, keep)]


def _dimensions(
    module: nn.Module, rows: Tensor | None, columns: Tensor | None
) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """(name, rows, columns) of the module's parameters, for a module that is indexed by rows and columns."""
    if not isinstance(module, (Transform, Bias)):
        yield "weight", rows, columns
    if not isinstance(module, Transform) and getattr(module, "bias", None) is not None:
        yield "bias", rows, None
    if isinstance(module, (AptLinear, Transform)):
        yield "lora_A", None, columns
        yield "lora_B", rows, None


def _per_entry(axis: Axis, values: np.ndarray, anatomy: Anatomy) -> Tensor:
    """A value per block as a value per entry of the dimension: float64 [blocks] -> fp32 [site's blocks * unit]."""
    own = torch.from_numpy(values[dict(block_slices(anatomy.sizes))[axis.site]]).float()
    return own[torch.from_numpy(axis.owners(len(own)))]


def _cut(
    model: nn.Module, anatomy: Anatomy, keep: np.ndarray, scale: np.ndarray | None, state: zero.EngineState | None
) -> Anatomy:
    emptied = emptied_sites(anatomy, keep)
    for number in emptied:
        empty_sublayer(model, anatomy.sites[number], state)
    anatomy = anatomy.without(emptied)
    cuts = weight_cuts(model, anatomy, keep, scale)
    for cut in cuts:
        _apply(cut, model, state)
    for path in dict.fromkeys(cut.path for cut in cuts if isinstance(cut, WeightCut)):
        _set_widths(model.get_submodule(path))
    experts.state_sizes(model, anatomy)
    for number, site in enumerate(anatomy.sites):
        heads = element_index(Axis(number), keep, anatomy)
        if site.position_bias and heads is not None:
            position_bias.follow(model, site.position_bias, heads)
    return anatomy.with_sizes(kept_sizes(anatomy.sizes, keep))


def _apply(cut: WeightCut | ExpertCut, model: nn.Module, state: zero.EngineState | None) -> None:
    """Replace one parameter, free the old one, and cut its optimizer state. Collective under ZeRO stage 3."""
    module = model.get_submodule(cut.path)
    if cut.tied_to is not None:
        path, name = cut.tied_to
        setattr(module, cut.name, getattr(model.get_submodule(path), name))
        return
    old = getattr(module, cut.name)
    setattr(module, cut.name, _replacement(old, cut))
    # the old weight must be free before the next one is made
    zero.release(old)
    entry = {} if state is None else state.tensors.get(f"{cut.path}.{cut.name}", {})
    for key, value in entry.items():
        entry[key] = cut.part_of(value, scaled=key == "master")


def _replacement(old: nn.Parameter, cut: WeightCut | ExpertCut) -> nn.Parameter:
    """The parameter after the cut, partitioned and quantized like the old one."""
    with zero.gathered([old]), torch.no_grad():
        new = quantization.requantize_like(old, cut.part_of(quantization.dense(old, torch.float32)))
    zero.shard([new], like=old)
    return new


def _set_widths(module: nn.Module) -> None:
    """Make the sizes that a module states those of its weight."""
    if isinstance(module, (Transform, Bias)):
        return
    assert isinstance(module.weight, nn.Parameter)
    shape = zero.full_shape(module.weight)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = shape[1]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)


def _grow(path: str, adapter: AptLinear, rank: int, state: zero.EngineState | None, generator: torch.Generator) -> None:
    """Raise an adapter to `rank`: Gaussian rows of W_A, zero columns of W_B, zero moments."""
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
                # the master of what was drawn is what the weight really contains after rounding
                fresh = new.to(old.dtype).float() if key == "master" else torch.zeros_like(new)
                entry[key] = torch.cat([value, fresh.to(value.device, value.dtype)], dim)
