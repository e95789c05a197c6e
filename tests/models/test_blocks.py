"""Prices and tables of section 2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import (
    Anatomy,
    Axis,
    Sizes,
    Sublayer,
    block_slices,
    fused_axis,
    head_params_per_hidden,
    kept_sizes,
)
from apt_ds.pruning.surgery import element_index
from apt_ds.pruning.taylor import per_block
from tests.support import tiny


def roberta_base() -> Anatomy:
    """The arithmetic of a RoBERTa-base: 12 layers of 12 heads of 64 dimensions and 3072 plain neurons, d_m 768."""
    sites = (Sublayer("head", "o", 64, head_params_per_hidden(64, 1)), Sublayer("neuron", "down", 1, 2)) * 12
    return Anatomy(sites, (), (), (), (), "eps", {}, (), Sizes((12, 3072) * 12, 768))


def test_prices_of_roberta_base() -> None:
    anatomy = roberta_base()
    prices = anatomy.params_per_block(anatomy.sizes)
    first_head, first_neuron, last_hidden = prices[0], prices[12], prices[-1]
    assert (first_head, first_neuron, last_hidden) == (196_608, 1_536, 110_592)
    assert anatomy.num_parameters(anatomy.sizes) == 12 * (4 * 768 * 768 + 2 * 768 * 3072)


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_cost_equals_counted_parameters(kind: str) -> None:
    model = tiny.model(kind)
    anatomy = anatomy_of(model.config)
    counted = sum(p.numel() for name, p in model.named_parameters() if "_proj" in name)
    assert anatomy.num_parameters(anatomy.sizes) == counted


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_price_is_what_a_block_costs(kind: str) -> None:
    anatomy = anatomy_of(tiny.config(kind))
    prices = anatomy.params_per_block(anatomy.sizes)
    for block in (0, 1, anatomy.sizes.counts[0] + 3, anatomy.sizes.total() - 1):
        keep = np.ones(anatomy.sizes.total(), dtype=bool)
        keep[block] = False
        assert (
            anatomy.num_parameters(anatomy.sizes) - anatomy.num_parameters(kept_sizes(anatomy.sizes, keep))
            == prices[block]
        )


def test_every_path_exists_and_spans_cover() -> None:
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    for path in (*anatomy.writers, *anatomy.readers, *anatomy.norms, *(slot.path for slot in anatomy.slots)):
        model.get_submodule(path)
    covered = np.concatenate([np.arange(s.start, s.stop) for _, s in block_slices(anatomy.sizes)])
    assert (covered == np.arange(anatomy.sizes.total())).all()
    named = {slot.path for slot in anatomy.slots}
    assert {name.rpartition(".")[0] for name, _ in model.named_parameters()} == named


def test_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(UserError, match="'gpt99' is not supported as a language model; supported: gemma2, "):
        anatomy_of(_config("gpt99"))


def _config(model_type: str) -> PretrainedConfig:
    config = PretrainedConfig()
    config.model_type = model_type
    return config


def test_a_fused_weight_has_entries_of_a_block_in_every_part() -> None:
    assert Axis(0, 3).owners(2).tolist() == [0, 0, 0, 1, 1, 1]
    fused = fused_axis(0, 2, 1)  # as of a group with two queries and one key
    assert fused.unit == 3 and fused.owners(2).tolist() == [0, 0, 1, 1, 0, 1]
    table = Anatomy((Sublayer("head", "o", 2, 1),), (), (), (), (), "eps", {}, (), Sizes((2,), 1))
    keep = np.array([False, True, True])
    assert element_index(fused, keep, table).tolist() == [2, 3, 5]
    assert element_index(Axis(0, 3), keep, table).tolist() == [3, 4, 5]
    assert element_index(fused, np.ones(3, dtype=bool), table) is None
    entries = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert per_block(entries, fused).tolist() == [8.0, 13.0] and per_block(entries, Axis(0, 3)).tolist() == [6.0, 15.0]
