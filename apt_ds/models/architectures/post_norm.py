"""Encoders with a norm after every sublayer, such as BERT. The norms write the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule, Sizes, Sublayer, head_params_per_hidden


@dataclass(frozen=True)
class PostNormEncoder:
    """Names and sizes of an encoder.

    Attributes:
        tables: paths of the embedding tables that the first norm reads.
        norm: path of the first norm.
        layers: path of the list of layers.
        sublayers: "q", "k", "v", "o", "up" and "down" to paths in a layer.
        norms: paths in a layer of the norms after the attention and after the feed-forward sublayer.
        depth: number of layers.
        heads: attention heads of a layer.
        head_dim: dimensions of a head.
        neurons: neurons of a layer.
        hidden: hidden dimensions.
        projections: further weights with rows by head, which read no stream: target names to paths in a layer.
        emptied: 'head' and 'neuron' to `Sublayer.module`, as a path in a layer, and `Sublayer.emptied`. Empty: no
            sublayer can lose all its blocks.
    """

    tables: tuple[str, ...]
    norm: str
    layers: str
    sublayers: Mapping[str, str]
    norms: tuple[str, str]
    depth: int
    heads: int
    head_dim: int
    neurons: int
    hidden: int
    projections: Mapping[str, str] = field(default_factory=dict)
    emptied: Mapping[str, tuple[str, Callable[[nn.Module], nn.Module]]] = field(default_factory=dict)

    def sublayer(self, kind: str, layer: str, consumer: str, unit: int, params_per_hidden: int) -> Sublayer:
        """The entry of a sublayer in the table. layer, consumer: paths. See `Sublayer` for the others."""
        sublayer = Sublayer(kind, consumer, unit, params_per_hidden)
        if kind not in self.emptied:
            return sublayer
        module, emptied = self.emptied[kind]
        return replace(sublayer, module=f"{layer}.{module}", emptied=emptied)


def post_norm_blocks(encoder: PostNormEncoder, task_heads: tuple[str, ...]) -> Anatomy:
    """The blocks of an encoder with linear layers after it. All but the last layer are as wide as the stream."""
    hidden, head_dim = Axis(HIDDEN), encoder.head_dim
    slots = [*(IndexedModule(path, None, hidden) for path in encoder.tables), IndexedModule(encoder.norm, hidden)]
    norms, sites = [encoder.norm], []
    names = {**encoder.sublayers, **encoder.projections}
    targets: dict[str, list[str]] = {short: [] for short in names}
    layers = [f"{encoder.layers}.{i}" for i in range(encoder.depth)]
    params_per_hidden = head_params_per_hidden(head_dim) + head_dim * len(encoder.projections)
    for number, layer in enumerate(layers):
        head, neuron = Axis(2 * number, head_dim), Axis(2 * number + 1)
        paths = {short: f"{layer}.{path}" for short, path in names.items()}
        after_attention, after_feed_forward = (f"{layer}.{path}" for path in encoder.norms)
        sites += [
            encoder.sublayer("head", layer, paths["o"], head_dim, params_per_hidden),
            encoder.sublayer("neuron", layer, paths["down"], 1, 2),
        ]
        slots += [IndexedModule(paths[short], head, hidden) for short in ("q", "k", "v", *encoder.projections)]
        slots += [IndexedModule(paths["o"], hidden, head), IndexedModule(after_attention, hidden)]
        slots += [IndexedModule(paths["up"], neuron, hidden), IndexedModule(paths["down"], hidden, neuron)]
        slots.append(IndexedModule(after_feed_forward, hidden))
        norms += [after_attention, after_feed_forward]
        for short, path in paths.items():
            targets[short].append(path)
    *aside, last = task_heads
    slots += [*(IndexedModule(path, hidden, hidden) for path in aside), IndexedModule(last, None, hidden)]
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=tuple(norms),
        readers=tuple(path for short in ("q", "k", "v", "up") for path in targets[short]),
        norms=tuple(norms),
        epsilon="eps",
        targets={short: tuple(paths) for short, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes((encoder.heads, encoder.neurons) * encoder.depth, encoder.hidden),
        layer_norm=True,
        stream_wide=tuple(aside),
        task_heads=task_heads,
    )
