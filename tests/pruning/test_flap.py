"""FLAP's metric, and that the search removes blocks in its order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.data.batching import collate
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, block_slices
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.flap import Flap
from apt_ds.pruning.limits import Rules
from tests.pruning.test_input_moments import KINDS, observe, plain_inputs
from tests.pruning.test_masks import with_adapters
from tests.support import tiny

CPU = torch.device("cpu")


def test_the_metric_is_that_of_the_paper_with_adapters_in_the_weight() -> None:
    model, anatomy = with_adapters("gqa")
    scorer = Flap(anatomy, CPU, KINDS)
    scorer.install(model)
    observe(scorer, model, [collate(tiny.rows(6), 0)])
    scorer.remove()
    scorer.conclude(model)
    inputs = plain_inputs(model, [site.consumer for site in anatomy.sites], tiny.rows(6))
    standard = []
    for site, x in zip(anatomy.sites, inputs, strict=True):
        consumer = model.get_submodule(site.consumer)
        weight = consumer.merged() if hasattr(consumer, "merged") else consumer.weight
        metric = x.var(0) * weight.detach().double().square().sum(0).numpy()
        channels = (metric - metric.mean()) / metric.std()
        standard.append(channels.reshape(-1, site.unit).mean(1))
    assert any(hasattr(model.get_submodule(site.consumer), "merged") for site in anatomy.sites)
    expected = np.concatenate(standard)
    density = scorer.densities[: len(expected)]
    assert np.allclose(density, expected - expected.min() + 1, atol=1e-3) and density.min() == pytest.approx(1)


def test_blocks_go_in_the_order_of_the_standardised_metric_whatever_they_cost() -> None:
    model = tiny.model("mha")
    anatomy = anatomy_of(model.config)
    scorer = Flap(anatomy, CPU, KINDS)
    scorer.install(model)
    observe(scorer, model, [collate(tiny.rows(6), 0)])
    scorer.remove()
    scorer.conclude(model)
    spans = [span for number, span in block_slices(anatomy.sizes) if number != HIDDEN]
    order = np.argsort(-scorer.densities[: spans[-1].stop], kind="stable")
    spent = anatomy.params_per_block(anatomy.sizes)[order].cumsum()
    exact, unpriced = [], []
    for count in range(1, len(order)):
        first = np.zeros(anatomy.sizes.total(), dtype=bool)
        first[order[:count]] = True
        if not all(first[span].any() for span in spans):
            continue  # a plan keeps a block at every site
        first[spans[-1].stop :] = True
        for scores, same in ((scorer.scores(), exact), (scorer.densities, unpriced)):
            keep = search(scores, anatomy, Rules(KINDS, "adaptive"), float(spent[count - 1]))
            same.append(np.array_equal(keep, first))
    assert len(exact) > 40 and all(exact) and not all(unpriced)


def test_equal_channels_do_not_divide_by_zero() -> None:
    anatomy = anatomy_of(tiny.config("mha"))
    scorer = Flap(anatomy, CPU, KINDS)
    assert np.array_equal(scorer.site_densities(np.full((4, 8), 0.3)), np.zeros(4))
