"""After a restore all generators go on as they would have."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from apt_ds.training.generators import Generators


def draws(generators: Generators) -> list[float]:
    drawn = [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]
    return [*drawn, torch.rand(()).item(), torch.rand((), generator=generators.surgery).item()]


def test_a_restored_state_gives_the_same_numbers() -> None:
    generators = Generators(3)
    draws(generators)  # half of a pair of Gaussian numbers is left over
    values, tensors = generators.state_dict()
    saved = json.loads(json.dumps(values)), {name: tensor.clone() for name, tensor in tensors.items()}
    expected = [draws(generators) for _ in range(3)]
    again = Generators(4)
    draws(again)
    again.load_state_dict(*saved)
    assert [draws(again) for _ in range(3)] == expected
    assert expected[0] != expected[1]


def test_a_rank_that_the_saved_run_had_not_keeps_its_own_numbers() -> None:
    generators = Generators(3)
    _, tensors = generators.state_dict()
    again = Generators(4)
    before = torch.get_rng_state()
    again.load_state_dict([], {"surgery": tensors["surgery"]})
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.surgery.get_state(), generators.surgery.get_state())


def test_rank_growth_draws_by_the_seed() -> None:
    assert torch.equal(Generators(3).surgery.get_state(), Generators(3).surgery.get_state())
    assert not torch.equal(Generators(3).surgery.get_state(), Generators(4).surgery.get_state())
