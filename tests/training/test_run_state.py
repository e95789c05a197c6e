"""A base model that is cut again, as often as the saved run cut it, is the saved run's model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning import surgery
from apt_ds.pruning.surgery import Plan
from apt_ds.training.engine_checkpoint import load_trained, read_engine_state
from apt_ds.training.run_state import replay_cuts
from tests.support import tiny


@pytest.mark.parametrize("cuts", [0, 1, 2])
def test_replayed_cuts_give_the_same_weights(cuts: int) -> None:
    cut, again = tiny.model(seed=1), tiny.model(seed=1)
    anatomy = base = anatomy_of(cut.config)
    draw, total = np.random.default_rng(0), base.sizes.total()
    kept_ids, removed_in_cut, scale = np.arange(total), np.zeros(total, dtype=np.int64), np.ones(total)
    for number in range(1, cuts + 1):
        keep = draw.random(len(kept_ids)) < 0.8
        keep[:2] = True  # the heads of the first layer
        keep[-1] = True
        factors = np.where(keep, 1.5, 1.0) if cuts == 1 else None
        anatomy = surgery.apply_plan(cut, anatomy, Plan(keep, scale=factors), None, torch.Generator())
        removed_in_cut[kept_ids[~keep]] = number
        scale = (scale if factors is None else factors)[keep]
        kept_ids = kept_ids[keep]
    tensors = {"kept_ids": kept_ids, "removed_in_cut": removed_in_cut, "scale": scale}
    replayed = replay_cuts(again, base, {name: torch.from_numpy(value) for name, value in tensors.items()})
    assert replayed.sizes == anatomy.sizes
    assert (replayed.sizes == base.sizes) == (cuts == 0)
    expected = cut.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_trained_weights_are_loaded_in_the_checkpoints_shapes() -> None:
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    adapter.attach(model, anatomy, ("q",), 2, 0)
    name = next(name for name, _ in model.named_parameters() if name.endswith("lora_A"))
    grown = torch.randn(5, model.get_parameter(name).shape[1])
    load_trained(model, {f"master:{name}": grown, f"exp_avg:{name}": grown + 1})
    assert torch.equal(model.get_parameter(name), grown)
    assert model.get_parameter(name).data_ptr() != grown.data_ptr()


def test_a_rank_takes_its_own_quantized_moments() -> None:
    values = {"adam_step": 3.0, "scaler": {}, "counters": {"micro_steps": 6}, "layout": "x"}
    trained = {"master:a.b": torch.ones(1), "exp_avg:a.b": torch.ones(2)}
    state = read_engine_state(values, trained, {"0:k": torch.zeros(1), "1:k": torch.ones(1)})
    assert {name: sorted(entry) for name, entry in state.tensors.items()} == {"a.b": ["exp_avg", "master"]}
    assert list(state.blocks) == ["k"] and state.blocks["k"].item() == 0
