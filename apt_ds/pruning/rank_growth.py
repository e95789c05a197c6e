"""Which adapters grow (section 5). Pure: importances in, new ranks out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterSize:
    """An adapter as the decider sees it: its path, rank, and parameters per unit of rank (d_in + d_out)."""

    path: str
    rank: int
    per_rank: int


def parameters(sizes: list[AdapterSize]) -> int:
    """Parameters of all adapters together."""
    return sum(size.rank * size.per_rank for size in sizes)


def grow_top_half(importance: list[float], sizes: list[AdapterSize], budget: float, max_rank: int) -> dict[str, int]:
    """New ranks of those adapters that grow; the others are not named.

    importance: I of each adapter, in the order of `sizes`. budget: D_t', in parameters, to which the adapters may
    grow from their present total D_t. The top half by I get rank floor(r D_t' / D_t), at most `max_rank`.
    """
    ratio = budget / parameters(sizes)
    ranking = sorted(range(len(sizes)), key=lambda i: (-importance[i], i))
    grown: dict[str, int] = {}
    for i in ranking[: (len(sizes) + 1) // 2]:
        # the quotient of two whole numbers must not lose a rank to rounding
        rank = min(max_rank, int(sizes[i].rank * ratio + 1e-9))
        if rank > sizes[i].rank:
            grown[sizes[i].path] = rank
    return grown


def even(sizes: list[AdapterSize], budget: float, max_rank: int) -> dict[str, int]:
    """New ranks where all adapters grow alike to `budget` parameters: the control of `tune`."""
    ratio = budget / parameters(sizes)
    grown = {size.path: min(max_rank, int(size.rank * ratio + 1e-9)) for size in sizes}
    return {size.path: grown[size.path] for size in sizes if grown[size.path] > size.rank}
