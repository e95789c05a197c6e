"""Zeros in place of removed blocks, so that all layers of a written model have the same sizes.

A removed head has zero rows in its projections and zero columns in the output projection. A removed neuron has zero
rows and a zero column. Both add zero to the residual stream, so that logits stay what they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.blocks import DOWN, GATE_UP, HIDDEN, Anatomy, Axis, FusedExperts, Sizes, Sublayer
from apt_ds.runtime import zero


@dataclass(frozen=True)
class Padding:
    """Where the blocks of a cut model are in a padded one.

    Attributes:
        whole: the blocks of the base model, whose table names the modules of sublayers that lost all blocks too.
        before: the blocks of the cut model.
        sizes: the sizes of the padded model.
        places: int64 [blocks of the cut model], the place of each in the padded site, by site. The default is the
            beginning.
    """

    whole: Anatomy
    before: Anatomy
    sizes: Sizes
    places: Mapping[int, np.ndarray] = field(default_factory=dict)

    @cached_property
    def axes(self) -> dict[str, tuple[Axis | None, Axis | None]]:
        """What indexes rows and columns of each module's weight."""
        return {slot.path: (slot.rows, slot.columns) for slot in self.whole.slots}

    @cached_property
    def scales(self) -> dict[str, float]:
        """Factors of modules' weights and biases.

        A norm over n heads that is padded to m heads sees the mean square n / m of before. Its input is multiplied by
        sqrt(m / n), so that epsilon keeps its meaning, and its weight by sqrt(n / m).
        """
        scales: dict[str, float] = {}
        for norm in self.before.weighted_norms:
            rows = self.axes[norm][0]
            if rows is not None and rows.site != HIDDEN and self.before.sizes.counts[rows.site]:
                share = self.before.sizes.counts[rows.site] / self.sizes.counts[rows.site]
                if share != 1.0:
                    scales |= {norm: share**0.5, norm.removesuffix("_norm") + "_proj": share**-0.5}
        return scales

    @cached_property
    def mixtures(self) -> dict[str, FusedExperts]:
        """The experts of each layer, by the path of their weights."""
        return {mixture.path: mixture for mixture in self.before.experts}

    def grows(self, axis: Axis | None) -> bool:
        """Whether a dimension gets zeros, or other places for its blocks."""
        if axis is None or axis.site == HIDDEN:
            return False
        moved = axis.site in self.places and not np.array_equal(
            self.places[axis.site], np.arange(self.before.sizes.counts[axis.site])
        )
        return moved or self.before.sizes.counts[axis.site] != self.sizes.counts[axis.site]

    def changes(self, name: str) -> bool:
        """Whether a weight is padded or scaled."""
        path, _, kind = name.rpartition(".")
        if path in self.mixtures:
            return self.before.sizes != self.sizes
        rows, columns = self.axes.get(path, (None, None))
        return path in self.scales or self.grows(rows) or (kind != "bias" and self.grows(columns))

    def pad(self, name: str, value: Tensor) -> Tensor:
        """The padded weight of a name in the cut model. Weights that are not padded are returned as they are."""
        if not self.changes(name):
            return value
        path = name.rpartition(".")[0]
        if path in self.mixtures:
            return self._padded_experts(self.mixtures[path], name, value)
        if path in self.scales:
            value = value * self.scales[path]
        for dim, axis in enumerate(self.axes[path][: value.dim()]):
            if axis is not None and self.grows(axis):
                value = self._spread(value, dim, axis)
        return value

    def _spread(self, value: Tensor, dim: int, axis: Axis) -> Tensor:
        """Put the entries of each block where the padded dimension has them."""
        count, wanted = self.before.sizes.counts[axis.site], self.sizes.counts[axis.site]
        places = self.places.get(axis.site, np.arange(count))
        old = np.argsort(axis.owners(count), kind="stable")
        new = np.argsort(axis.owners(wanted), kind="stable").reshape(wanted, axis.unit)[places].reshape(-1)
        shape = list(value.shape)
        shape[dim] = wanted * axis.unit
        source = value.index_select(dim, torch.from_numpy(old).to(value.device))
        return value.new_zeros(shape).index_copy_(dim, torch.from_numpy(new).to(value.device), source)

    def _padded_experts(self, mixture: FusedExperts, name: str, value: Tensor) -> Tensor:
        """Zero neurons at the end of each expert. All layers have the same number of experts."""
        count, neurons = mixture.shape(self.before.sizes)
        wanted = self.sizes.counts[mixture.neuron_site] // count
        parts = {GATE_UP: (1, 2), DOWN: (2, 1)}.get(name.rpartition(".")[2])
        if parts is None:
            return value
        dim, copies = parts
        split = value.unflatten(dim, (copies, neurons))
        shape = list(split.shape)
        shape[dim + 1] = wanted
        padded = split.new_zeros(shape)
        padded.narrow(dim + 1, 0, neurons).copy_(split)
        return padded.flatten(dim, dim + 1)

    # Sublayers that lost all their blocks

    def dropped(self, model: nn.Module) -> set[str]:
        """The zero biases of emptied sublayers that had none before. A padded model has no place for them."""
        return {
            f"{path}.bias"
            for path in self._emptied_consumers
            if getattr(self._sibling(model, path), "bias", None) is None
        }

    def missing(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """The weights of sublayers that lost all their blocks.

        Yields:
            name, the parameter of another layer that corresponds to it, and zeros of the padded shape, fp32.
        """
        gone = tuple(f"{path}." for site in self._emptied for path in (site.consumer, site.module))
        for slot in self.whole.slots if gone else ():
            if not f"{slot.path}.".startswith(gone):
                continue
            for kind, parameter in self._sibling(model, slot.path).named_parameters(recurse=False):
                if kind.startswith("lora_") or (kind == "bias" and slot.path in self._emptied_consumers):
                    continue
                shape = list(zero.full_shape(parameter))
                for dim, axis in enumerate((slot.rows, slot.columns)[: len(shape)]):
                    if axis is not None and axis.site != HIDDEN:
                        shape[dim] = self.sizes.counts[axis.site] * axis.unit
                yield f"{slot.path}.{kind}", parameter, torch.zeros(shape)

    @cached_property
    def _emptied(self) -> list[Sublayer]:
        counts = self.before.sizes.counts
        return [site for site, count in zip(self.before.sites, counts, strict=True) if not count and site.module]

    @cached_property
    def _emptied_consumers(self) -> set[str]:
        return {site.consumer for site in self._emptied}

    def _sibling(self, model: nn.Module, path: str) -> nn.Module:
        """The module of another layer that corresponds to `path`, of a sublayer with blocks.

        Raises:
            ValueError: no layer has it.
        """
        left = {slot.path for slot in self.before.slots} - self._emptied_consumers
        for other in left:
            if without_number(other) == without_number(path):
                return model.get_submodule(other)
        raise ValueError(f"no layer has any block of {without_number(path)} left, so that its shape is unknown")


def without_number(path: str) -> str:
    """A path with `*` in place of the number of its layer."""
    return re.sub(r"\.\d+\.", ".*.", path)
