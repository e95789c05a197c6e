"""What a model is made of: which weights belong to which block. Carries section 2 of the method.

Three kinds of block: a *head* (under grouped-query attention one key/value group with all its query
heads), a *neuron* of a feed-forward layer, a *hidden* dimension of the residual stream. Heads and
neurons live at *sites*: one attention or feed-forward sublayer each. The tables are in
`architectures/`. Nothing else in the package knows a module name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

HIDDEN = -1  # the site number of hidden dimensions
PLURALS = {"head": "heads", "neuron": "neurons", "hidden": "hidden"}


@dataclass(frozen=True)
class Sublayer:
    """One attention or feed-forward sublayer.

    consumer: path of the linear layer that reads its blocks and writes the residual stream.
    unit: input columns of the consumer per block (query heads x head_dim, or 1).
    weight: parameters per block and per hidden dimension (head 2 d_h (n_q + 1), neuron 2, gated 3).
    position_bias: path of the attention whose relative position bias follows its heads ('': none).
    """

    kind: str
    consumer: str
    unit: int
    weight: int
    position_bias: str = ""


@dataclass(frozen=True)
class Axis:
    """A weight's dimension that is made of blocks: `unit` consecutive entries per block of `site`."""

    site: int
    unit: int = 1


@dataclass(frozen=True)
class IndexedModule:
    """A module whose `weight` (and `bias`) is indexed by blocks. `rows` is dimension 0, `columns` dimension 1."""

    path: str
    rows: Axis | None
    columns: Axis | None = None


@dataclass(frozen=True)
class Sizes:
    """How many blocks there are: `counts[s]` at site s, and `hidden` dimensions."""

    counts: tuple[int, ...]
    hidden: int

    def total(self) -> int:
        """Number of blocks."""
        return sum(self.counts) + self.hidden


@dataclass(frozen=True)
class Anatomy:
    """The table for one model. Paths are relative to the model that holds them.

    writers: modules whose output is the residual stream or goes into it; readers: those that read it.
    norms: normalisations over the stream, epsilon the name of that attribute; layer_norm: LayerNorm, not RMSNorm.
    stream_wide: modules whose output is as wide as the stream and follows it, without being part of it (a pooler).
    heads: linear layers that make the task's answer, trained whole.
    targets: short adapter names ("q", "gate", ...) to the paths of all layers.
    second: paths under this prefix see the tokens of a second sequence, the decoder's ('': there is one sequence).
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
    heads: tuple[str, ...] = ()
    second: str = ""

    def num_parameters(self, sizes: Sizes) -> int:
        """Model size C(n) in parameters (section 2): d_m times the sum over sites."""
        return sizes.hidden * self.width(sizes)

    def width(self, sizes: Sizes) -> int:
        """Price of one hidden dimension: parameters that go with it."""
        return sum(site.weight * n for site, n in zip(self.sites, sizes.counts, strict=True))

    def params_per_block(self, sizes: Sizes) -> np.ndarray:
        """Price in parameters of every block, flat in `block_slices` order, float64 [sizes.total()]."""
        parts = [
            np.full(n, site.weight * sizes.hidden, dtype=np.float64)
            for site, n in zip(self.sites, sizes.counts, strict=True)
        ]
        return np.concatenate([*parts, np.full(sizes.hidden, self.width(sizes), dtype=np.float64)])

    def kind(self, site: int) -> str:
        """'head', 'neuron' or 'hidden'."""
        return "hidden" if site == HIDDEN else self.sites[site].kind

    def with_sizes(self, sizes: Sizes) -> Anatomy:
        """The same table after a cut."""
        return replace(self, sizes=sizes)


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


def attention_weight(head_dim: int, queries_per_group: int = 1) -> int:
    """Parameters of a head block per hidden dimension: q and o rows of its queries, one k and one v."""
    return 2 * head_dim * (queries_per_group + 1)
