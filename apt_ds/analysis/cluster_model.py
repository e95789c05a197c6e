"""Predicts the cost of a training step on many devices: FLOPs, bytes on the wire, seconds. Pure formulas.

Adapters are trained, all other weights are frozen. Bytes are those that one device sends. In a ring of n devices an
all-gather or a reduce-scatter of S bytes sends S (n-1)/n, and an all-reduce twice that. ZeRO-3 gathers all weights in
the forward and again in the backward pass of every micro-batch, for any n. The backward pass leaves out the embeddings,
which no gradient reaches unless hidden dimensions may be removed. ZeRO-2 gathers none. Only adapters have gradients.
Scoring adds one all-reduce per optimizer step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

WEIGHT = 2  # bytes, bf16
SCORE = 4  # bytes, fp32
ASSUMED_UTILISATION = 0.4  # an assumption, for a prediction without a measurement


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal model and its adapters, in elements.

    Attributes:
        blocks: weights of all attention and feed-forward projections.
        head: weights of the LM head.
        embeddings: weights of the embeddings. 0 where the LM head shares them.
        adapters: weights of all adapters.
        attention: query width, summed over layers.
        taps: dimensions with a scoring hook.
        gathers: number of collectives that gather all weights once under ZeRO-3.
    """

    blocks: int
    head: int
    embeddings: int
    adapters: int
    attention: int
    taps: int
    gathers: int

    def frozen(self) -> int:
        """Number of frozen weights."""
        return self.blocks + self.head + self.embeddings


@dataclass(frozen=True)
class Load:
    """The work of one device in an optimizer step.

    Attributes:
        tokens: tokens except padding.
        trained: tokens with a loss.
        context: length of the example of an average token.
        micro_batches: per step.
        scoring: whether the step scores blocks.
    """

    tokens: float
    trained: float
    context: float
    micro_batches: int = 1
    scoring: bool = True


@dataclass(frozen=True)
class Cluster:
    """Devices and their connections.

    Attributes:
        flops: operations per second that the model reaches on one device (peak times utilisation).
        inside: bytes per second from a device to others of its node.
        between: bytes per second from a whole node to other nodes.
        per_node: devices of a node.
        latency: seconds to start a collective, for each doubling of the devices.
    """

    flops: float
    inside: float
    between: float
    per_node: int = 8
    latency: float = 1e-5


class Reached(NamedTuple):
    """The arithmetic that training reaches on a device.

    Attributes:
        utilisation: the reached share of `peak`.
        peak: operations per second that the share refers to.
        source: where both come from, in words.
    """

    utilisation: float
    peak: float
    source: str

    @property
    def flops(self) -> float:
        """Reached operations per second."""
        return self.utilisation * self.peak


def assumed(peak: float) -> Reached:
    """A fixed share of a data sheet's peak."""
    return Reached(ASSUMED_UTILISATION, peak, "an assumption")


def measured(figures: dict[str, Any], source: str) -> Reached:
    """What a benchmark measured: its utilisation of dense training, and the peak that it refers to.

    Args:
        figures: what `benchmark --json` wrote.
        source: the name of the file.

    Raises:
        KeyError, TypeError, ValueError: figures of dense training are missing.
    """
    utilisation = figures["utilisation"]
    share = utilisation["dense"] if "dense" in utilisation else utilisation["unscored"]
    return Reached(float(share), float(figures["peak_flops"]), f"measured, {source}")


def training_flops(shape: Shape, load: Load) -> float:
    """Floating-point operations of a step on one device.

    Forward takes 2 per weight and token. Backward takes 2 for the gradient of the input, and 2 more for that of a
    trained weight. Causal attention takes 2 per query dimension and pair of tokens, for scores and for values, and
    twice that backward.
    """
    linear = load.tokens * (4 * shape.blocks + 6 * shape.adapters) + load.trained * 4 * shape.head
    return linear + load.tokens * 6 * load.context * shape.attention


def wire_bytes(shape: Shape, load: Load, devices: int, stage: int) -> dict[str, float]:
    """Bytes that one device sends in an optimizer step: `gather`, `reduce`, `salience`."""
    ring = (devices - 1) / devices
    adapters = WEIGHT * shape.adapters
    gradients = adapters * load.micro_batches
    observed = SCORE * ((2 * shape.taps if load.scoring else 0) + 2)
    if stage == 3:
        # no gradient reaches the embeddings
        passes = 2 * (WEIGHT * shape.frozen() + adapters) - WEIGHT * shape.embeddings
        gathers = load.micro_batches * passes
    else:
        # DeepSpeed's stages 1 and 2 all-reduce a bucket and keep their part, then gather updated weights
        gathers = adapters if stage else 0
        gradients *= 2
    return {"gather": ring * gathers, "reduce": ring * gradients, "salience": 2 * ring * observed}


def collectives(shape: Shape, load: Load, stage: int) -> int:
    """Number of collectives that a step starts. Gradients are reduced in one bucket."""
    gathers = 2 * load.micro_batches * shape.gathers if stage == 3 else int(stage > 0)
    return gathers + load.micro_batches + 1


def predict(shape: Shape, load: Load, cluster: Cluster, devices: int, stage: int) -> dict[str, float]:
    """Seconds of a step on `devices` with the same load each, by part.

    `hidden` is the whole step if computation hides all communication: the longer of `compute` and `wire`. `exposed` is
    the whole step if it hides none: their sum. A real step is between the two.
    """
    sent = wire_bytes(shape, load, devices, stage)
    nodes = math.ceil(devices / cluster.per_node)
    # a ring through several nodes leaves and enters each node once, and uses its whole connection
    speed = cluster.inside if nodes == 1 else min(cluster.inside, cluster.between)
    start = cluster.latency * math.log2(devices) * collectives(shape, load, stage) if devices > 1 else 0.0
    seconds = {name: value / speed for name, value in sent.items()} | {"start": start}
    wire = sum(seconds.values())
    compute = training_flops(shape, load) / cluster.flops
    return seconds | {"compute": compute, "wire": wire, "hidden": max(compute, wire), "exposed": compute + wire}


def render(shape: Shape, load: Load, cluster: Cluster, sizes: tuple[int, ...] = (8, 64, 512)) -> str:
    """The table of both ZeRO stages at several numbers of devices."""
    head = ("ZeRO", "devices", "gather MB", "reduce MB", "score MB", "compute s", "wire s", "step s", "longest part")
    lines = ["".join(f"{title:>13}" for title in head)]
    for stage in (2, 3):
        for devices in sizes:
            sent = wire_bytes(shape, load, devices, stage)
            prediction = predict(shape, load, cluster, devices, stage)
            parts = {name: prediction[name] for name in (*sent, "start", "compute")}
            cells = [f"{stage}", f"{devices}", *(f"{value / 1e6:,.1f}" for value in sent.values())]
            cells += [
                f"{prediction['compute']:.3f}",
                f"{prediction['wire']:.4f}",
                f"{prediction['hidden']:.3f}-{prediction['exposed']:.3f}",
            ]
            lines.append("".join(f"{cell:>13}" for cell in [*cells, max(parts, key=lambda name: parts[name])]))
    return "\n".join(lines)
