"""Layers that make the task's answer are trained whole."""

from __future__ import annotations

import torch

from apt_ds.models import task_heads
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.modules import linear_at
from tests.support import tiny


def test_heads_are_trained_without_a_change_of_the_answer() -> None:
    model = tiny.small("bert-classes").requires_grad_(False)
    before = tiny.answer(model)
    anatomy = anatomy_of(model.config, tiny.TASKS["bert-classes"])
    task_heads.attach(model, anatomy)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{path}.{part}" for path in anatomy.task_heads for part in ("weight", "bias")}
    assert torch.equal(tiny.answer(model), before)


def test_a_new_norm_of_a_head_is_one() -> None:
    model = tiny.small("modernbert-answers")
    task_heads.start(model, ["head.dense", "head.norm"], 0.02, 0)
    assert (model.head.norm.weight == 1).all() and not model.head.norm.bias.any()
    model = tiny.small("modernbert-classes")  # without biases
    task_heads.start(model, ["head.dense", "head.norm"], 0.02, 0)
    assert (model.head.norm.weight == 1).all() and model.head.norm.bias is model.head.dense.bias is None


def test_a_new_head_depends_on_the_seed_only() -> None:
    weights = []
    for seed in (1, 1, 2):
        model = tiny.small("bert-classes")
        task_heads.start(model, ["classifier"], 0.02, seed)
        head = linear_at(model, "classifier")
        assert not head.bias.any() and 0.01 < head.weight.std() < 0.03
        weights.append(head.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
