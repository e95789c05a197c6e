"""What a model is made of: which weights belong to which block (METHOD.md section 2).

There are four kinds of block. A *head* is an attention head, or under grouped-query attention one key/value group
with all its query heads. A *neuron* is one of a feed-forward layer. An *expert* is a whole feed-forward network of a
mixture, with its row of the router. A *hidden* block is a dimension of the residual stream. All but hidden blocks
belong to *sites*: one attention or feed-forward sublayer each, or the experts of a layer. The tables are in
`architectures/`. Nothing else in the package knows a module name.

Neurons of experts are nested: those of all E experts of a layer form one site, expert after expert, f of each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

HIDDEN = -1  # the site number of hidden dimensions
GATE_UP, DOWN = "gate_up_proj", "down_proj"  # the weights of a mixture, as transformers names them for all families
PLURALS = {"head": "heads", "neuron": "neurons", "hidden": "hidden", "expert": "experts"}
ALL_KINDS = tuple(PLURALS.values())


@dataclass(frozen=True)
class Sublayer:
    """One attention or feed-forward sublayer.

    Attributes:
        kind: 'head', 'neuron' or 'expert'.
        consumer: path of the linear layer that reads the blocks and writes the residual stream. Of experts: their
            router. Of neurons of experts: the module that passes them on (`models/experts.py`).
        unit: input columns of the consumer per block: query heads x head_dim, or 1.
        params_per_hidden: parameters per block and hidden dimension: 2 d_h (n_q + 1) for a head, 2 or (gated) 3 for a
            neuron, 0 for an expert, whose neurons count.
        position_bias: path of the attention whose relative position bias follows its heads. '': none.
        module: path of the module that a sublayer without blocks does not need. '': it cannot lose all blocks.
        emptied: makes what replaces `module`, from it. The consumer is an `apt_emptied_sublayers.Bias` by then.
    """

    kind: str
    consumer: str
    unit: int
    params_per_hidden: int
    position_bias: str = ""
    module: str = ""
    emptied: Callable[[nn.Module], nn.Module] = nn.Module


@dataclass(frozen=True)
class Axis:
    """A dimension of a weight that blocks index: `unit` entries per block of `site`.

    The entries of a block are consecutive. A fused weight, such as one of queries, keys and values, consists of parts.
    Each part has its own consecutive entries of every block.

    Attributes:
        site: the site, or `HIDDEN`.
        unit: entries per block, of all parts together.
        parts: entries per block of each part of a fused weight, in order. (): the weight is not fused.
    """

    site: int
    unit: int = 1
    parts: tuple[int, ...] = ()

    def owners(self, count: int) -> np.ndarray:
        """The block of every entry of a dimension with `count` blocks, int64 [count * unit]."""
        blocks = np.arange(count)
        return np.concatenate([blocks.repeat(entries) for entries in self.parts or (self.unit,)])


def fused_axis(site: int, *parts: int) -> Axis:
    """The axis of a fused weight. parts: entries per block of each part, in order."""
    return Axis(site, sum(parts), parts)


@dataclass(frozen=True)
class IndexedModule:
    """A module whose weight and bias are indexed by blocks.

    Attributes:
        path: path of the module.
        rows: dimension 0 of the weight, and the bias. None: no block indexes it.
        columns: dimension 1 of the weight. None: no block indexes it.
    """

    path: str
    rows: Axis | None
    columns: Axis | None = None


@dataclass(frozen=True)
class FusedExperts:
    """The experts of one layer, with two 3-D weights: `GATE_UP` [E, 2 f, d_m], gates first, and `DOWN` [E, d_m, f].

    Attributes:
        path: path of the module with these weights.
        router: path of the module with the weight [E, d_m] that chooses experts.
        expert_site: the site of the experts.
        neuron_site: the site of their E * f neurons.
    """

    path: str
    router: str
    expert_site: int
    neuron_site: int

    def shape(self, sizes: Sizes) -> tuple[int, int]:
        """(E, f): experts, and neurons of each."""
        count = sizes.counts[self.expert_site]
        return count, sizes.counts[self.neuron_site] // count


@dataclass(frozen=True)
class Sizes:
    """Numbers of blocks: `counts[s]` at site s, and `hidden` dimensions."""

    counts: tuple[int, ...]
    hidden: int

    def total(self) -> int:
        """Number of blocks."""
        return sum(self.counts) + self.hidden


@dataclass(frozen=True)
class Anatomy:
    """The table of one model's blocks. Paths are relative to the model.

    Attributes:
        sites: all attention and feed-forward sublayers, numbered in this order.
        slots: every module with a weight that blocks index, and those whose weight must stay whole.
        writers: modules whose output is the residual stream, or is added to it.
        readers: linear layers that read the residual stream.
        norms: normalisations over the residual stream.
        epsilon: the name of the norms' attribute that keeps them from dividing by zero.
        targets: names of adapter targets ("q", "gate", ...) to the paths in all layers.
        layers: paths of all layers.
        sizes: numbers of blocks.
        layer_norm: norms are LayerNorm. False: RMSNorm.
        stream_wide: modules whose output is as wide as the stream but no part of it, such as a pooler.
        task_heads: linear layers that make the task's answer. They are trained whole.
        experts: the mixture of each layer that has one.
        experts_per_token: experts that a router chooses for a token. Every layer keeps at least as many.
        router_loss: coefficient of the auxiliary loss of routers (`losses/router_loss.py`). 0: training has none.
        decoder_prefix: prefix of the modules that read the tokens of the decoder. '': there is no decoder.
        weighted_norms: RMSNorms whose input carries no mask: over the output of a sublayer, or over all heads of a
            projection. The mask of the blocks that index the norm's weight weights its statistics.
        layer_outputs: values that a layer returns. The first is what the next layer reads. Others may be arguments of
            the next layer. 1: a tensor and no tuple.
        new_biases: the export can write a bias at every consumer, even where the base model has none.
    """

    sites: tuple[Sublayer, ...]
    slots: tuple[IndexedModule, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    norms: tuple[str, ...]
    epsilon: str
    targets: dict[str, tuple[str, ...]]
    layers: tuple[str, ...]
    sizes: Sizes
    layer_norm: bool = False
    stream_wide: tuple[str, ...] = ()
    task_heads: tuple[str, ...] = ()
    experts: tuple[FusedExperts, ...] = ()
    experts_per_token: int = 1
    router_loss: float = 0.0
    decoder_prefix: str = ""
    weighted_norms: tuple[str, ...] = ()
    layer_outputs: int = 1
    new_biases: bool = False

    def num_parameters(self, sizes: Sizes) -> int:
        """Model size C(n) in parameters (METHOD.md section 2): d_m times the sum over sites."""
        return sizes.hidden * self.width(sizes)

    def width(self, sizes: Sizes) -> int:
        """Price of one hidden dimension in parameters."""
        return sum(site.params_per_hidden * n for site, n in zip(self.sites, sizes.counts, strict=True))

    def params_per_block(self, sizes: Sizes) -> np.ndarray:
        """Price in parameters of every block, flat in `block_slices` order, float64 [sizes.total()].

        The price of an expert is that of its neurons.
        """
        return np.repeat(self.params_per_block_of_site(sizes), [*sizes.counts, sizes.hidden])

    def params_per_block_of_site(self, sizes: Sizes) -> np.ndarray:
        """Price in parameters of one block of every site, then of one hidden dimension, float64 [sites + 1]."""
        params_per_hidden = [site.params_per_hidden for site in self.sites]
        for mixture in self.experts:
            params_per_hidden[mixture.expert_site] = params_per_hidden[mixture.neuron_site] * mixture.shape(sizes)[1]
        prices = [params * sizes.hidden for params in params_per_hidden]
        return np.array([*prices, self.width(sizes)], dtype=np.float64)

    def kind(self, site: int) -> str:
        """'head', 'neuron', 'expert' or 'hidden'."""
        return "hidden" if site == HIDDEN else self.sites[site].kind

    def kinds_and_counts(self) -> list[tuple[str, int]]:
        """(kind, number of blocks) of every site, then of the hidden dimensions."""
        kinds = [*(site.kind for site in self.sites), "hidden"]
        return list(zip(kinds, [*self.sizes.counts, self.sizes.hidden], strict=True))

    def with_sizes(self, sizes: Sizes) -> Anatomy:
        """The same table after a cut."""
        return replace(self, sizes=sizes)

    def without(self, sites: Collection[int]) -> Anatomy:
        """The table after sites have lost all their blocks. Of their modules only the consumers' biases remain.

        The sites keep their numbers.
        """
        consumers = {self.sites[number].consumer for number in sites}
        gone = tuple(
            f"{path}." for number in sites for path in (self.sites[number].consumer, self.sites[number].module)
        )

        def remain(paths: Iterable[str]) -> tuple[str, ...]:
            return tuple(path for path in paths if not f"{path}.".startswith(gone))

        biases = tuple(IndexedModule(slot.path, slot.rows) for slot in self.slots if slot.path in consumers)
        named = set(remain(slot.path for slot in self.slots))
        return replace(
            self,
            slots=tuple(slot for slot in self.slots if slot.path in named) + biases,
            readers=remain(self.readers),
            targets={name: remain(paths) for name, paths in self.targets.items()},
        )


def plural(kind: str) -> str:
    """The word of `--prune_blocks` for a kind of block."""
    return PLURALS[kind]


def block_slices(sizes: Sizes) -> Iterator[tuple[int, slice]]:
    """(site, slice) of every site, then (HIDDEN, slice), in a flat vector over all blocks."""
    start = 0
    for site, n in enumerate(sizes.counts):
        yield site, slice(start, start + n)
        start += n
    yield HIDDEN, slice(start, start + sizes.hidden)


def kept_sizes(sizes: Sizes, keep: np.ndarray) -> Sizes:
    """Sizes that remain under a boolean keep vector [sizes.total()]."""
    counts = [int(keep[span].sum()) for _, span in block_slices(sizes)]
    return Sizes(tuple(counts[:-1]), counts[-1])


def head_params_per_hidden(head_dim: int, queries_per_group: int = 1) -> int:
    """Parameters of a head block per hidden dimension: q and o rows of its queries, one k and one v."""
    return 2 * head_dim * (queries_per_group + 1)


def query_heads(site: Sublayer) -> int:
    """Query heads of a head block, from its price and the columns of its consumer (`head_params_per_hidden`)."""
    return site.unit // (site.params_per_hidden // 2 - site.unit)
