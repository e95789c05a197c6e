"""Which examples of a step each micro-batch of each rank takes, and how they share rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from apt_ds.data.packing import over_slots, padded_tokens


@dataclass(frozen=True)
class StepLayout:
    """A step's global batch in slots. Slot `micro * world size + rank` is a rank's micro-batch.

    The layout depends on the examples' lengths and the number of slots alone. So 2 ranks with 2 micro-batches have the
    slots of 1 rank with 4.

    Attributes:
        lengths: tokens of each example of the step.
        slots: for each slot its rows, for each row its examples by their place in the step.
    """

    lengths: tuple[int, ...]
    slots: list[list[list[int]]]

    @classmethod
    def padded(cls, lengths: Sequence[int], slots: int) -> StepLayout:
        """Equal numbers of examples for each slot in the step's order, one example a row."""
        size, rest = divmod(len(lengths), slots)
        assert not rest
        return cls(tuple(lengths), [[[i] for i in range(k * size, (k + 1) * size)] for k in range(slots)])

    @classmethod
    def packed(cls, lengths: Sequence[int], slots: int, limit: int, single: bool) -> StepLayout:
        """Rows of several examples, see `packing.over_slots`."""
        return cls(tuple(lengths), over_slots(lengths, slots, limit, single))

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(self.lengths)

    @cached_property
    def tensor_tokens(self) -> int:
        """Tokens of all slots' tensors, padding included."""
        return sum(padded_tokens(rows, self.lengths) for rows in self.slots)
