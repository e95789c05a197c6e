"""What every score has in common, and which one a run gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.config import schedules
from apt_ds.config.pruning_options import PruningOptions
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, kept_sizes
from apt_ds.pruning.fisher import Fisher
from apt_ds.pruning.flap import Flap
from apt_ds.pruning.l0_gates import L0Gates
from apt_ds.pruning.obs import Obs
from apt_ds.pruning.products import BatchProduct, PerExampleProduct
from apt_ds.pruning.random_scores import Random
from apt_ds.pruning.salience import Salience
from apt_ds.pruning.scorer import Scorer
from apt_ds.pruning.scorer_registry import MAKERS, make_scorer
from apt_ds.pruning.taylor import Taylor
from apt_ds.pruning.wanda import WandaSp
from tests.support import tiny

CPU = torch.device("cpu")


def anatomy() -> Anatomy:
    return anatomy_of(tiny.config("mha"))


def scorer(**flags: object) -> Scorer:
    return make_scorer(RunConfig(**flags), anatomy(), CPU)


def test_every_value_of_the_option_has_a_scorer() -> None:
    field = PruningOptions.__dataclass_fields__["score"]
    assert set(field.metadata["allowed"]) == set(MAKERS)
    kinds = {"salience": Salience, "fisher": Fisher, "taylor": Taylor, "random": Random, "obs": Obs}
    kinds |= {"flap": Flap, "wanda_sp": WandaSp, "l0": L0Gates}
    assert {score: type(scorer(score=score)) for score in MAKERS} == kinds


def test_options_reach_salience() -> None:
    salience = scorer(salience_product="batch", salience_decay=0.5, kurtosis="literal", calibration_average="moving")
    assert isinstance(salience, Salience) and isinstance(salience.product, BatchProduct)
    assert (salience.decay, salience.outlier, salience.weight) == (0.5, "literal", 1.0)
    assert not salience.mean and salience.stale
    resting = scorer(salience_product="per_example", pruning="pretuning")
    assert isinstance(resting, Salience) and isinstance(resting.product, PerExampleProduct) and resting.mean
    moving = scorer(pruning="gradual")
    assert isinstance(moving, Salience) and not moving.mean


def test_fisher_has_a_row_for_every_example_of_the_global_batch() -> None:
    fisher = scorer(score="fisher", per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert fisher.abs_sums.shape == (6, anatomy().sizes.total())


@pytest.mark.parametrize("score", list(MAKERS))
def test_every_scorer_follows_a_cut_and_its_own_state(score: str) -> None:
    table = anatomy()
    keep = np.ones(table.sizes.total(), dtype=bool)
    keep[[0, 5, -1]] = False
    smaller = table.with_sizes(kept_sizes(table.sizes, keep))
    first, second = scorer(score=score), scorer(score=score)
    if isinstance(first, Salience):
        first.average = torch.rand(len(keep), generator=torch.Generator().manual_seed(0))
    first.after_cut(smaller, keep)
    assert first.scores().shape == (keep.sum(),)
    second.resize(smaller)
    second.load_state_dict(np.flatnonzero(keep), *first.state_dict())
    assert np.array_equal(second.scores(), first.scores())
    assert second.stale == first.stale and second.abs_sums.shape == first.abs_sums.shape


def test_random_densities_follow_the_seed_and_their_blocks() -> None:
    table = anatomy()
    prices = table.params_per_block(table.sizes)
    first = scorer(score="random", seed=1).scores()
    assert np.array_equal(first, scorer(score="random", seed=1).scores())
    assert not np.array_equal(first, scorer(score="random", seed=2).scores())
    assert ((first / prices >= 0) & (first / prices < 1)).all()


def test_costs_of_removal_follow_their_blocks() -> None:
    obs, table = scorer(score="obs"), anatomy()
    assert isinstance(obs, Obs) and obs.kinds == ("heads", "neurons") and not obs.scores().any()
    obs.costs = np.arange(table.sizes.total(), dtype=np.float64)
    keep = np.ones(table.sizes.total(), dtype=bool)
    keep[:2] = False
    obs.after_cut(table.with_sizes(kept_sizes(table.sizes, keep)), keep)
    assert np.array_equal(obs.scores(), np.arange(2, len(keep)))


def test_weights_at_rest_keep_their_taylor_importance_over_a_cut() -> None:
    taylor, table = scorer(score="taylor"), anatomy()
    assert isinstance(taylor, Taylor) and not taylor.scores().any()
    taylor.importance = np.arange(table.sizes.total(), dtype=np.float64)
    keep = np.ones(table.sizes.total(), dtype=bool)
    keep[:2] = False
    taylor.after_cut(table.with_sizes(kept_sizes(table.sizes, keep)), keep)
    assert np.array_equal(taylor.scores(), np.arange(2, len(keep)))


def test_the_options_of_gates_reach_them() -> None:
    gates = scorer(score="l0", gate_learning_rate=0.7, allow_empty_layers=True, prune_blocks="neurons")
    assert isinstance(gates, L0Gates) and gates.kinds == ("neurons",) and len(gates.coarse) == 2
    gates.begin_step(0, 0.1, 40)
    assert gates.target == 0.1
    for name, rate in (("gates", 0.7), ("multipliers", schedules.multiplier_rate(40))):
        (group,) = gates._optimizers[name].param_groups
        assert group["lr"] == rate and group["betas"] == schedules.gate_betas(40)
