"""The part `pruning` of `summary.json` (`summary_schema.py`)."""

from __future__ import annotations

from typing import TypedDict


class Sizes(TypedDict):
    """What is kept. heads, neurons: per layer, as one number where all layers are alike."""

    hidden: int
    parameters: int
    heads: int | list[int]
    neurons: int | list[int]


class _LayerSizes(TypedDict):
    hidden: int
    heads: list[int]
    neurons: list[int]


class LayerSizes(_LayerSizes, total=False):
    """Numbers of blocks of every sublayer, in the order of the model.

    Attributes:
        hidden: dimensions of the residual stream.
        heads: of every attention sublayer.
        neurons: of every feed-forward sublayer. In a mixture: of each expert.
        experts: of every mixture.
    """

    experts: list[int]


class LayersKept(TypedDict):
    """Sizes of the base model and of the written model."""

    before: LayerSizes
    after: LayerSizes


class _PruningFigures(TypedDict):
    target_kept: float
    kept: float
    prunable_parameters: int
    align: int
    sizes: Sizes
    layers: LayersKept
    ranks: dict[str, int]
    excluded: list[str]
    rebuild_seconds: list[float]
    rebuild_peak_bytes: list[int]


class RepairedSite(TypedDict):
    """A repaired layer.

    Attributes:
        path: the layer.
        ridge: how strongly the fit leans to the plain cut. None where the plain cut was best.
        error_cut, error_repaired: squared error of its output, as a fraction of the squared output.
    """

    path: str
    ridge: float | None
    error_cut: float
    error_repaired: float


class RepairFigures(TypedDict):
    """What --repair did.

    Attributes:
        tokens: tokens that the last repair read, over all ranks.
        seconds: the time of all repairs.
    """

    tokens: int
    seconds: float
    sites: list[RepairedSite]


class AllocationFigures(TypedDict):
    """What --allocate kl did.

    Attributes:
        kl_before, kl_after: mean divergence from the dense model in nats over the tokens that judged last, with the
            sizes of the score and with those of the search. None if it was not finite.
        evaluations: forward passes in units of 2,048 predictions, those of the dense model included.
        tokens: predictions that the search read. Each counts once.
        moves: groups of blocks that left a layer for another.
        accepted: candidates that won.
    """

    kl_before: float | None
    kl_after: float | None
    evaluations: int
    tokens: int
    seconds: float
    moves: int
    accepted: int


class ScaleFigures(TypedDict):
    """What --scale_steps did.

    Attributes:
        loss_before, loss_after: cross-entropy plus divergence, without and with the factors, on steps that did not
            learn. None if it was not finite.
        smallest, largest: factor of the blocks that remain. Both are 1 where the factors were dropped.
    """

    steps: int
    loss_before: float | None
    loss_after: float | None
    smallest: float
    largest: float
    seconds: float


class PruningFigures(_PruningFigures, total=False):
    """What pruning did.

    Attributes:
        target_kept, kept: fractions of the prunable parameters.
        prunable_parameters: number that is kept.
        align: multiple that the number of neurons of a layer keeps to.
        layers: sizes of every layer.
        ranks: final rank of every adapter, by the path of its module in the written model's shapes. {} without
            adapters.
        excluded: consumers that the kept sizes exclude, a line for each reason.
        rebuild_seconds, rebuild_peak_bytes: of each rebuild.
        requantization_error_mean, requantization_error_max: relative error of quantizing cut weights again.
        repair: what --repair did. Absent without it.
        allocation: what --allocate kl did. Absent without it.
        scales: what --scale_steps did. Absent without it.
    """

    requantization_error_mean: float
    requantization_error_max: float
    repair: RepairFigures
    allocation: AllocationFigures
    scales: ScaleFigures
