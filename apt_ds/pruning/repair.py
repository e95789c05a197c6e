"""Repairs the layers that read what a cut removes: outputs change as little as possible (METHOD.md section 12).

Layers are repaired from first to last. The inputs of a layer are those that the layers below give after their own cut
and repair. Consumers of heads and neurons are repaired (`Sublayer.consumer`), and where hidden dimensions are removed,
the readers of the stream (`reader_repair.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models import quantization
from apt_ds.models.blocks import Anatomy, Axis, block_slices
from apt_ds.pruning.kurtosis import effective_weight
from apt_ds.pruning.layer_walk import LayerWalk, WalkBatch, WalkTokens
from apt_ds.pruning.least_squares import Fit, repaired
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.reader_repair import (
    ReaderGroup,
    emptied,
    features_of,
    kept_hidden,
    reader_problem,
    repair_order,
    repairs_readers,
)
from apt_ds.runtime import collectives, heartbeat, zero
from apt_ds.runtime.packed import QuantizedParameter


@dataclass(frozen=True)
class RepairedSite:
    """One repaired layer: its path, and `least_squares.Fit` without the weights."""

    path: str
    ridge: float
    error_cut: float
    error_repaired: float


@torch.no_grad()
def repair(
    model: nn.Module,
    anatomy: Anatomy,
    keep: np.ndarray,
    batches: list[WalkBatch],
    state: zero.EngineState | None = None,
) -> list[RepairedSite]:
    """Change the kept columns of every layer that the cut `keep` shortens. The cut follows. Collective.

    The peak of memory is some copies of one layer's weight and about five matrices of [in, in], in fp32, besides the
    hidden states and layer arguments of all batches.

    Args:
        model: before the cut, without an engine and without hooks.
        anatomy: its blocks.
        keep: bool [blocks], the blocks that remain.
        batches: this rank's calibration batches. All ranks have as many.
        state: the state of what the engine trained, changed like the weights, or None.

    Returns:
        One entry for each changed layer, in the order of the forward pass, the same on all ranks.
    """
    masks, training = Masks(anatomy), model.training
    masks.set(keep.astype(float))
    readers = repairs_readers(anatomy, keep)
    masks.install(model, at_norms=readers)
    model.eval()
    sites: list[RepairedSite] = []
    try:
        walk = LayerWalk(model, anatomy, batches)
        numbers = {anatomy.sites[number].consumer: number for number in repairable(anatomy, keep)}
        for number in range(len(anatomy.layers)):
            for item in repair_order(walk, number, anatomy, readers):
                if isinstance(item, ReaderGroup):
                    group = item.without(emptied(anatomy, keep))
                    sites += _repair_readers(walk, number, masks, group, kept_hidden(anatomy, keep), state)
                elif item in numbers:
                    sites.append(_repair_site(walk, number, anatomy, numbers[item], keep, state))
            if number + 1 < len(anatomy.layers):
                walk.advance(number)
    finally:
        masks.remove()
        model.train(training)
    return sites


def repairs_anything(anatomy: Anatomy, keep: np.ndarray) -> bool:
    """Whether a cut shortens a layer that can be repaired."""
    return repairs_readers(anatomy, keep) or any(True for _ in repairable(anatomy, keep))


def repairable(anatomy: Anatomy, keep: np.ndarray) -> Iterator[int]:
    """Sites whose consumer can be repaired: it loses some blocks and keeps some.

    Experts and their neurons have no consumer with one weight.
    """
    nested = {mixture.neuron_site for mixture in anatomy.experts}
    spans = dict(block_slices(anatomy.sizes))
    for number, site in enumerate(anatomy.sites):
        kept = keep[spans[number]]
        if site.kind != "expert" and number not in nested and kept.any() and not kept.all():
            yield number


def _repair_site(
    walk: LayerWalk, layer: int, anatomy: Anatomy, number: int, keep: np.ndarray, state: zero.EngineState | None
) -> RepairedSite:
    """Collect the Gram matrices of a consumer, and repair it."""
    site = anatomy.sites[number]
    heartbeat.phase(f"repairing {site.consumer}", limited=False)
    consumer = walk.model.get_submodule(site.consumer)
    kept_blocks = keep[dict(block_slices(anatomy.sizes))[number]]
    kept = torch.from_numpy(kept_blocks[Axis(number, site.unit).owners(len(kept_blocks))]).to(zero.device())
    grams = _grams(walk, layer, consumer, len(kept))
    with effective_weight(consumer) as weight:
        fit = repaired(weight.float(), (grams[0], grams[1]), kept)
    del grams
    return _carry_out(walk.model, site.consumer, fit, kept, state)


def _repair_readers(
    walk: LayerWalk, layer: int, masks: Masks, group: ReaderGroup, kept: np.ndarray, state: zero.EngineState | None
) -> Iterator[RepairedSite]:
    """Collect the Gram matrices of readers with the same input, and repair each."""
    if not group.readers:
        return
    heartbeat.phase(f"repairing what reads {group.norm}", limited=False)
    norm, dimensions = walk.model.get_submodule(group.norm), torch.from_numpy(kept).to(zero.device())
    grams = _grams(walk, layer, norm, len(kept) + int(kept.sum()), features_of(masks, norm, dimensions))
    for path in group.readers:
        with effective_weight(walk.model.get_submodule(path)) as weight:
            joined, remain = reader_problem(weight.float(), dimensions)
            fit = repaired(joined, (grams[0], grams[1]), remain)
        yield _carry_out(walk.model, path, fit, dimensions, state)


def _carry_out(model: nn.Module, path: str, fit: Fit, kept: Tensor, state: zero.EngineState | None) -> RepairedSite:
    """Change a module and its optimizer state as rank 0's fit says. Collective."""
    module = model.get_submodule(path)
    # solvers may differ in the last bit between machines
    fit = _of_main(fit, (zero.full_shape(_weight(module))[0], int(kept.sum())))
    if fit.change is not None:
        _add(module, fit.change, kept)
        entry = {} if state is None else state.tensors.get(f"{path}.weight", {})
        if "master" in entry:
            master = entry["master"]
            master[:, kept.to(master.device)] += fit.change.to(master.device)
    return RepairedSite(path, fit.ridge, fit.error_cut, fit.error_repaired)


def _grams(
    walk: LayerWalk, layer: int, module: nn.Module, width: int, features: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Sums of x x^T over both halves of the tokens of all ranks, fp32 [2, width, width]. Collective.

    features: makes x, [tokens, width], of what the module reads. None: x is what it reads.
    """
    grams = torch.zeros(2, width, width, device=zero.device())

    def add(x: Tensor, tokens: WalkTokens) -> None:
        inputs = x if features is None else features(x)
        for half in range(2):
            rows = inputs[tokens.counted & (tokens.half == half)].float()
            grams[half].addmm_(rows.T, rows)

    walk.inputs_of(layer, module, add)
    return collectives.all_reduce_sum(grams)


def _of_main(fit: Fit, shape: tuple[int, int]) -> Fit:
    """Rank 0's fit, on all ranks. Collective."""
    own = fit.change
    ridge, error_cut, error_repaired, plain = collectives.on_main(
        lambda: (fit.ridge, fit.error_cut, fit.error_repaired, own is None)
    )
    if plain:
        return Fit(None, ridge, error_cut, error_repaired)
    change = own if own is not None else torch.zeros(shape, device=zero.device())
    return Fit(collectives.from_main(change), ridge, error_cut, error_repaired)


def _weight(module: nn.Module) -> nn.Parameter:
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def _add(module: nn.Module, change: Tensor, kept: Tensor) -> None:
    """Add to the kept columns of a module's weight, partitioned and quantized as it is. Collective."""
    old = _weight(module)
    with zero.gathered([old]):
        values = quantization.dense(old, torch.float32).float().clone()
        values[:, kept] += change
        new = quantization.requantize_like(old, values if isinstance(old, QuantizedParameter) else values.to(old.dtype))
    zero.shard([new], like=old)
    module.weight = new
    # the old weight must be free before the next one is made
    zero.release(old)
