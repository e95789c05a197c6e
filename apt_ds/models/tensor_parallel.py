"""Sizes that divide between the GPUs that share a served model (vLLM's `--tensor-parallel-size`).

Every GPU gets as many query heads and as many neurons as the others. Key/value heads divide too, or each GPU has a copy
of one: then their number divides that of the GPUs. `consumers.py` has the source of these rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import Anatomy, plural, query_heads

VOCABULARY = 64  # vLLM pads the vocabulary to a multiple of it, which must divide too


@dataclass(frozen=True)
class Split:
    """The numbers of blocks that divide.

    Attributes:
        gpus: number of GPUs.
        heads: head blocks of a sublayer that are kept or removed together.
        most_heads: the most head blocks of a sublayer that divide. 0: any number does.
        neurons: neurons that are kept or removed together.
    """

    gpus: int = 1
    heads: int = 1
    most_heads: int = 0
    neurons: int = 1

    def most(self, kind: str, count: int) -> int:
        """The most of `count` blocks of a kind that divide. Hidden dimensions and experts do not have to."""
        if kind == "head":
            return min(count, self.most_heads or count) // self.heads * self.heads
        return count // self.neurons * self.neurons if kind == "neuron" else count

    def __str__(self) -> str:
        """What an error line adds."""
        return f" and --tensor_parallel {self.gpus}" if self.gpus > 1 else ""


WHOLE = Split()


def heads_divide(groups: int, queries: int, gpus: int) -> bool:
    """Whether key/value heads with `queries` query heads each divide between GPUs, or GPUs between them."""
    return groups * queries % gpus == 0 and (groups % gpus == 0 or gpus % groups == 0)


def split_of(anatomy: Anatomy, gpus: int) -> Split:
    """How the heads and neurons of a model divide between GPUs.

    Raises:
        UserError: no number of its heads does.
    """
    if gpus == 1:
        return WHOLE
    full, queries = next(
        (count, query_heads(site))
        for site, count in zip(anatomy.sites, anatomy.sizes.counts, strict=True)
        if site.kind == "head"
    )
    permitted = [groups for groups in range(1, full + 1) if heads_divide(groups, queries, gpus)]
    if not permitted:
        raise UserError(
            f"--tensor_parallel {gpus}: no number of heads divides between {gpus} GPUs, since each of the {full} "
            f"key/value heads has {queries} query heads; give a divisor of {full * queries}"
        )
    most = permitted[-1]
    unit = next(unit for unit in range(1, most + 1) if set(range(unit, most + 1, unit)) <= set(permitted))
    return Split(gpus, unit, most // unit * unit, gpus)


def check_vocabulary(size: int, gpus: int) -> None:
    """Check that the vocabulary divides.

    Raises:
        UserError: it does not.
    """
    padded = -(-size // VOCABULARY) * VOCABULARY
    if padded % gpus:
        raise UserError(
            f"--tensor_parallel {gpus}: vLLM pads the vocabulary of {size:,} tokens to {padded:,}, which {gpus} does "
            "not divide; give a power of two"
        )


def check_whole(split: Split, anatomy: Anatomy, kinds: tuple[str, ...]) -> None:
    """Check the blocks that no plan removes.

    Args:
        split: how blocks divide.
        anatomy: the model before any cut.
        kinds: kinds of block that a plan may remove, of `blocks.ALL_KINDS`.

    Raises:
        UserError: blocks do not divide and none of them may be removed.
    """
    experts = {mixture.neuron_site: mixture.shape(anatomy.sizes)[1] for mixture in anatomy.experts}
    for number, (site, count) in enumerate(zip(anatomy.sites, anatomy.sizes.counts, strict=True)):
        kind, blocks = plural(site.kind), experts.get(number, count)
        most = split.most(site.kind, blocks)
        if most == blocks or (most and kind in kinds):
            continue
        advice = f"allow {kind} in --prune_blocks, or " if most else ""
        name = f"key/value heads, with {query_heads(site)} query heads each," if kind == "heads" else kind
        raise UserError(
            f"--tensor_parallel {split.gpus}: the {blocks} {name} of a layer do not divide between {split.gpus} GPUs; "
            f"{advice}give another number"
        )
