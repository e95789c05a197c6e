"""What a model is made of: which weights belong to which block. Carries section 2 of the method.

Three kinds of block: a *head* (under grouped-query attention one key/value group with all its query
heads), a *neuron* of a feed-forward layer, a *hidden* dimension of the residual stream. Heads and
neurons live at *sites*: one attention or feed-forward sublayer each. A new architecture is one more
function in `ARCHITECTURES`; nothing else in the package knows a module name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from transformers import PretrainedConfig

from apt_ds.config import UserError

HIDDEN = -1  # the site number under which hidden dimensions go


@dataclass(frozen=True)
class Site:
    """One attention or feed-forward sublayer.

    consumer: path of the linear layer that reads its blocks and writes the residual stream.
    unit: input columns of the consumer per block (query heads x head_dim, or 1).
    weight: parameters per block and per hidden dimension (head 2 d_h (n_q + 1), neuron 2, gated 3).
    """

    kind: str
    consumer: str
    unit: int
    weight: int


@dataclass(frozen=True)
class Axis:
    """A weight's dimension that is made of blocks: `unit` consecutive entries per block of `site`."""

    site: int
    unit: int = 1


@dataclass(frozen=True)
class Slot:
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

    writers: modules whose output goes into the residual stream; readers: those that read it (normed).
    norms: normalisations over the stream and the name of their epsilon attribute.
    targets: short adapter names ("q", "gate", ...) to the paths of all layers.
    """

    sites: tuple[Site, ...]
    slots: tuple[Slot, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    norms: tuple[str, ...]
    epsilon: str
    targets: dict[str, tuple[str, ...]]
    layers: tuple[str, ...]
    sizes: Sizes

    def cost(self, sizes: Sizes) -> int:
        """Model size C(n) in parameters (section 2): d_m times the sum over sites."""
        return sizes.hidden * self.width(sizes)

    def width(self, sizes: Sizes) -> int:
        """Price of one hidden dimension: parameters that go with it."""
        return sum(site.weight * n for site, n in zip(self.sites, sizes.counts, strict=True))

    def prices(self, sizes: Sizes) -> np.ndarray:
        """Price in parameters of every block, flat in `spans` order, float64 [sizes.total()]."""
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


def spans(sizes: Sizes) -> Iterator[tuple[int, slice]]:
    """(site, slice) of every site, then (HIDDEN, slice), in a flat vector over all blocks."""
    start = 0
    for site, n in enumerate(sizes.counts):
        yield site, slice(start, start + n)
        start += n
    yield HIDDEN, slice(start, start + sizes.hidden)


def kept_sizes(sizes: Sizes, keep: np.ndarray) -> Sizes:
    """Sizes that remain under a boolean keep vector [sizes.total()]."""
    counts = [int(keep[span].sum()) for _, span in spans(sizes)]
    return Sizes(tuple(counts[:-1]), counts[-1])


def attention_weight(head_dim: int, queries_per_group: int) -> int:
    """Parameters of a head block per hidden dimension: q and o rows of its queries, one k and one v."""
    return 2 * head_dim * (queries_per_group + 1)


def llama(config: PretrainedConfig) -> Anatomy:
    """LlamaForCausalLM: pre-norm, gated feed-forward, multi-head or grouped-query attention."""
    groups = config.num_key_value_heads
    queries = config.num_attention_heads // groups
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hidden = Axis(HIDDEN)
    sites: list[Site] = []
    slots = [Slot("model.embed_tokens", None, hidden), Slot("lm_head", None, hidden), Slot("model.norm", hidden)]
    targets: dict[str, list[str]] = {name: [] for name in ("q", "k", "v", "o", "gate", "up", "down")}
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    for number, layer in enumerate(layers):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        query, group, neuron = Axis(2 * number, queries * head_dim), Axis(2 * number, head_dim), Axis(2 * number + 1)
        sites += [
            Site("head", f"{attention}.o_proj", queries * head_dim, attention_weight(head_dim, queries)),
            Site("neuron", f"{mlp}.down_proj", 1, 3),
        ]
        slots += [
            Slot(f"{layer}.input_layernorm", hidden),
            Slot(f"{attention}.q_proj", query, hidden),
            Slot(f"{attention}.k_proj", group, hidden),
            Slot(f"{attention}.v_proj", group, hidden),
            Slot(f"{attention}.o_proj", hidden, query),
            Slot(f"{layer}.post_attention_layernorm", hidden),
            Slot(f"{mlp}.gate_proj", neuron, hidden),
            Slot(f"{mlp}.up_proj", neuron, hidden),
            Slot(f"{mlp}.down_proj", hidden, neuron),
        ]
        for name in targets:
            targets[name].append(f"{attention if name in 'qkvo' else mlp}.{name}_proj")
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=("model.embed_tokens", *(site.consumer for site in sites)),
        readers=tuple(p for n in ("q", "k", "v", "gate", "up") for p in targets[n]),
        norms=tuple(s.path for s in slots if s.path.endswith("norm")),
        epsilon="variance_epsilon",
        targets={name: tuple(paths) for name, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes((groups, config.intermediate_size) * config.num_hidden_layers, config.hidden_size),
    )


ARCHITECTURES: dict[str, Callable[[PretrainedConfig], Anatomy]] = {"llama": llama}


def anatomy_of(config: PretrainedConfig) -> Anatomy:
    """The table of a model, from its configuration alone.

    Raises:
        UserError: the architecture has no table; the message lists those that do.
    """
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(f"architecture '{config.model_type}' is not supported; supported: {known}")
    return ARCHITECTURES[config.model_type](config)
