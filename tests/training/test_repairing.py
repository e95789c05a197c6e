"""When a repair reads too few tokens."""

from __future__ import annotations

import numpy as np
import pytest

from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.training.repairing import few_tokens
from tests.support import tiny


def kept(anatomy: Anatomy, hidden: bool) -> np.ndarray:
    """Half of all neurons of the first layer go, or else half of the hidden dimensions."""
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if hidden == (site == HIDDEN) and (hidden or anatomy.sites[site].kind == "neuron"):
            keep[span][::2] = False
    return keep


@pytest.mark.parametrize("hidden", [False, True])
def test_the_widest_fit_decides_how_many_tokens_suffice(hidden: bool) -> None:
    config = tiny.config()
    anatomy = anatomy_of(config)
    widest = config.hidden_size * 3 // 2 if hidden else config.intermediate_size
    keep = kept(anatomy, hidden)
    text = few_tokens(2 * widest - 1, widest - 1, anatomy, keep)
    assert f"reads {2 * widest - 1} tokens" in text and f"{widest} inputs" in text and "\n" not in text
    assert f"A half needs about {widest} tokens: give more --repair_examples" in text
    assert not few_tokens(2 * widest, widest, anatomy, keep)
    assert "The smaller half of the examples has 0, and" in few_tokens(9 * widest, 0, anatomy, keep)


def test_a_cut_without_a_fit_needs_no_tokens() -> None:
    anatomy = anatomy_of(tiny.config())
    assert not few_tokens(0, 0, anatomy, np.ones(anatomy.sizes.total(), dtype=bool))
