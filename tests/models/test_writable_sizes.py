"""Which uniform sizes an export can write."""

from __future__ import annotations

from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Sizes
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.writable_sizes import EVERY_SIZE
from tests.support import tiny


def test_a_llama_with_biases_needs_query_heads_that_divide_the_hidden_size() -> None:
    config = tiny.config(attention_bias=True)
    writable, anatomy = writable_sizes(config), anatomy_of(config)
    assert writable.holds(anatomy)
    assert writable.holds(anatomy.with_sizes(Sizes((1, 20) * 2, 18)))
    assert not writable.holds(anatomy.with_sizes(Sizes((2, 20) * 2, 18)))


def test_sizes_by_layer_are_always_writable() -> None:
    config = tiny.config(attention_bias=True)
    assert writable_sizes(config).holds(anatomy_of(config).with_sizes(Sizes((2, 20, 1, 20), 18)))


def test_other_families_write_every_size() -> None:
    assert writable_sizes(tiny.config()) is EVERY_SIZE
    assert writable_sizes(tiny.small("bert-classes").config) is EVERY_SIZE
    assert EVERY_SIZE.holds(anatomy_of(tiny.config()).with_sizes(Sizes((1, 7) * 2, 13)))
