"""A step's examples in slots, one for each micro-batch of each rank."""

from __future__ import annotations

from apt_ds.data.step_layout import StepLayout

LENGTHS = (9, 30, 4, 12, 7, 25, 3, 16)


def test_slots_take_examples_in_order() -> None:
    layout = StepLayout.padded(LENGTHS, 4)
    assert layout.slots == [[[0], [1]], [[2], [3]], [[4], [5]], [[6], [7]]]
    # lengths are padded to multiples of 8
    assert layout.tokens == sum(LENGTHS) and layout.tensor_tokens == 2 * (32 + 16 + 32 + 16)


def test_packed_slots_hold_every_example_once() -> None:
    layout = StepLayout.packed(LENGTHS, 2, 64, single=False)
    assert sorted(i for slot in layout.slots for row in slot for i in row) == list(range(8))
    assert layout.tokens == sum(LENGTHS) and layout.tokens / layout.tensor_tokens > 0.9
    single = StepLayout.packed(LENGTHS, 2, 32, single=True)
    assert [len(slot) for slot in single.slots] == [1, 1]
