"""Sums of a step survive packing, whatever is empty, and a value that is not finite shows."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from apt_ds.training.step_sums import StepSums

NAMES = ("teacher_distances", "block_sums", "adapter_importances")
NOTHING = torch.zeros(0)


def sums(**parts: Tensor) -> StepSums:
    values = {
        "loss": torch.tensor(1.5),
        "stop": torch.tensor(0.0),
        "teacher_distances": torch.arange(4.0),
        "block_sums": torch.arange(6.0).view(2, 3) + 10,
        "adapter_importances": torch.arange(3.0) + 20,
    }
    return StepSums(**(values | parts))


@pytest.mark.parametrize("empty", [names for n in range(4) for names in itertools.combinations(NAMES, n)])
def test_unpack_gives_back_what_pack_took(empty: tuple[str, ...]) -> None:
    own = sums(**dict.fromkeys(empty, NOTHING))
    flat = own.pack()
    assert flat.dtype == torch.float32 and flat.dim() == 1
    assert flat.numel() == 2 + sum(getattr(own, name).numel() for name in NAMES)
    # as if two equal ranks had summed it
    reduced = own.unpack(flat * 2)
    for part, twice in zip(own.parts(), reduced.parts(), strict=True):
        assert twice.shape == part.shape and torch.equal(twice, 2 * part)


def test_pack_copies_so_that_a_reduction_in_place_changes_no_part() -> None:
    own = sums()
    own.pack().add_(1)
    assert own.loss.item() == 1.5 and own.block_sums[0, 0] == 10


def test_a_loss_of_16_bits_is_summed_in_32() -> None:
    own = sums(loss=torch.tensor(1.5, dtype=torch.bfloat16))
    assert own.pack().dtype == torch.float32 and own.unpack(own.pack()).loss.dtype == torch.float32


def test_read_gives_loss_and_number_of_ranks_that_stop() -> None:
    values = sums(stop=torch.tensor(3.0)).read()
    assert (values.loss, values.stop_ranks, values.finite) == (1.5, 3, True)
    assert sums(**dict.fromkeys(NAMES, NOTHING)).read().finite


@pytest.mark.parametrize("name", ["loss", *NAMES])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_element_that_is_not_finite_shows_and_signals_still_count(name: str, value: float) -> None:
    spoiled = getattr(sums(), name).clone()
    spoiled.view(-1)[-1] = value
    values = sums(**{name: spoiled, "stop": torch.tensor(1.0)}).read()
    assert not values.finite and values.stop_ranks == 1
