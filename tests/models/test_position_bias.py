"""An attention with a position bias knows its heads through several cuts."""

from __future__ import annotations

import torch

from apt_ds.models import position_bias
from apt_ds.models.architectures import anatomy_of
from tests.support import tiny


def test_heads_are_numbered_by_the_whole_table_after_every_cut() -> None:
    model = tiny.small("t5")
    anatomy = anatomy_of(model.config, tiny.TASKS["t5"])
    position_bias.number_heads(model, anatomy)
    path = anatomy.sites[0].position_bias
    attention = model.get_submodule(path)
    assert position_bias.heads_of(attention).tolist() == [0, 1, 2, 3]
    position_bias.follow(model, path, torch.tensor([0, 2, 3]))
    position_bias.follow(model, path, torch.tensor([1, 2]))
    assert position_bias.heads_of(attention).tolist() == [2, 3]
    assert not any(name.endswith("heads") for name in model.state_dict())
