"""Sums over the dimensions of each block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from apt_ds.pruning.block_sums import BlockSums

BLOCKS = 7


def owners() -> Tensor:
    """Blocks of sizes 1, 3 and 4, in any order. Block 5 has no dimension."""
    ids = torch.tensor([0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 6, 6, 6])
    return ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_sums_are_those_of_index_add(shape: tuple[int, ...]) -> None:
    owner = owners()
    values = torch.randn(*shape, len(owner), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(*shape, BLOCKS, dtype=torch.float64).index_add_(-1, owner, values)
    assert torch.allclose(BlockSums(owner, BLOCKS).sum(values), expected, rtol=1e-14, atol=0)


class Recorder(TorchDispatchMode):
    """Keeps the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_no_operation_adds_to_an_entry_twice() -> None:
    sums = BlockSums(owners(), BLOCKS)
    with Recorder() as recorder:
        sums.sum(torch.ones(len(owners())))
    adding = ("index_add", "index_put", "scatter")
    assert recorder.names and not [name for name in recorder.names if any(word in name for word in adding)]
