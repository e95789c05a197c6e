"""Repairs the layers that read the residual stream where a cut removes hidden dimensions (METHOD.md section 12).

A reader's input is the output of an RMSNorm over the stream: u before the cut, v of the kept dimensions after it, with
the statistics of these. The output before the cut is W u = W_K v + W e, where e = u - v is what the cut loses. The kept
columns become the fit of W u by v. It is the problem of `least_squares.py` for the inputs (v, e) and the weight
(W_K, W), with e removed.

The stream of the walk keeps all its dimensions, so that u exists. Masks of hidden dimensions act where norms read it
(`Masks.install`). Its kept dimensions are those of the cut model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.layer_walk import LayerWalk
from apt_ds.pruning.masks import Masks


@dataclass(frozen=True)
class ReaderGroup:
    """Readers with the same input.

    Attributes:
        norm: path of the norm whose output they read.
        readers: their paths.
    """

    norm: str
    readers: tuple[str, ...]

    def without(self, prefixes: tuple[str, ...]) -> ReaderGroup:
        """The readers whose paths begin with none of `prefixes`."""
        return ReaderGroup(self.norm, tuple(path for path in self.readers if not path.startswith(prefixes)))


def kept_hidden(anatomy: Anatomy, keep: np.ndarray) -> np.ndarray:
    """The hidden dimensions that remain, bool [d_m]."""
    return np.asarray(keep[dict(block_slices(anatomy.sizes))[HIDDEN]])


def repairs_readers(anatomy: Anatomy, keep: np.ndarray) -> bool:
    """Whether a cut removes hidden dimensions of a model whose layers read the stream through RMSNorms alone."""
    pre_norm = not anatomy.layer_norm and all(
        any(norm.startswith(f"{layer}.") for norm in anatomy.norms) for layer in anatomy.layers
    )
    return pre_norm and not kept_hidden(anatomy, keep).all()


def emptied(anatomy: Anatomy, keep: np.ndarray) -> tuple[str, ...]:
    """What the paths begin with of modules that a cut removes whole, with all blocks of their sublayer."""
    spans = dict(block_slices(anatomy.sizes))
    return tuple(
        f"{site.module}." for number, site in enumerate(anatomy.sites) if site.module and not keep[spans[number]].any()
    )


def repair_order(walk: LayerWalk, layer: int, anatomy: Anatomy, readers: bool) -> list[str | ReaderGroup]:
    """What to repair in a layer, in the order of its forward pass: paths of consumers, and readers. Collective.

    Args:
        walk: is at the layer.
        layer: its number.
        anatomy: the model's blocks.
        readers: whether readers count. They are found by what they read.
    """
    prefix = f"{anatomy.layers[layer]}."
    consumers = [site.consumer for site in anatomy.sites if site.consumer.startswith(prefix)]
    if not readers:
        return list(consumers)
    order: dict[str, list[str]] = {}  # a consumer without readers, or a norm with those of its output
    normed: list[tuple[Tensor, str]] = []

    def on_norm(path: str) -> Callable[..., None]:
        return lambda module, args, output: normed.append((output, path))

    def on_consumer(path: str) -> Callable[..., None]:
        return lambda module, args: order.update({path: []})

    def on_reader(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            for output, norm in normed:
                if output is args[0]:
                    order.setdefault(norm, []).append(path)

        return hook

    norms, readers_here = ([p for p in paths if p.startswith(prefix)] for paths in (anatomy.norms, anatomy.readers))
    find = walk.model.get_submodule
    with ExitStack() as stack:
        for path in norms:
            stack.callback(find(path).register_forward_hook(on_norm(path)).remove)
        for path in consumers:
            stack.callback(find(path).register_forward_pre_hook(on_consumer(path)).remove)
        for path in readers_here:
            stack.callback(find(path).register_forward_pre_hook(on_reader(path)).remove)
        walk.run_once(layer)
    return [ReaderGroup(path, tuple(group)) if group else path for path, group in order.items()]


def features_of(masks: Masks, norm: nn.Module, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes (v, e) of the stream: [tokens, d_m] -> [tokens, K + d_m]. kept: bool [d_m]."""

    def features(x: Tensor) -> Tensor:
        before, after = masks.norm_before_and_after(norm, x)
        return torch.cat([after[:, kept], before - after], 1)

    return features


def reader_problem(weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The weight (W_K, W), [out, K + d_m], and which of its inputs remain, bool [K + d_m]. weight: [out, d_m]."""
    count = int(kept.sum())
    keep = torch.arange(count + len(kept), device=kept.device) < count
    return torch.cat([weight[:, kept], weight], 1), keep
