"""The pure functions of self-distillation (METHOD.md section 7) against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.config.tasks import TASKS
from apt_ds.losses import distillation


def test_a_layer_is_drawn_from_each_quarter_of_a_stack() -> None:
    stacks = [list(range(12)), list(range(12, 24))]
    drawn = np.array([distillation.draw_layers(stacks, step, seed=0) for step in range(200)])
    for column in range(8):
        assert sorted(set(drawn[:, column])) == list(range(3 * column, 3 * column + 3))
    assert (
        distillation.draw_layers(stacks, 7, 0)
        == distillation.draw_layers(stacks, 7, 0)
        != distillation.draw_layers(stacks, 7, 1)
    )
    assert distillation.draw_layers([[0, 1]], 3, 0) == [0, 1]


def test_layers_are_compared_on_kept_dimensions_and_counted_tokens() -> None:
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    valid, kept = torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.tensor([1.0, 0.0, 1.0, 0.5])
    squares = (student - teacher).square()
    by_hand = sum((squares[i, j] * kept).sum() / 2.5 for i, j in ((0, 0), (0, 1), (1, 0)))
    assert distillation.layer_distance(student, teacher, valid, kept) == pytest.approx(by_hand.item(), rel=1e-5)
    plain = squares.mean(-1)[valid.bool()].sum().item()
    assert distillation.layer_distance(student, teacher, valid, None) == pytest.approx(plain, rel=1e-5)


def test_predictions_are_compared_by_the_divergence_from_the_teacher() -> None:
    own, other = torch.randn(3, 5), torch.randn(3, 5)
    p, q = other.softmax(-1), own.softmax(-1)
    by_hand = (p * (p.log() - q.log())).sum().item()
    assert distillation.prediction_distance((own,), (other,)) == pytest.approx(by_hand, rel=1e-4)
    assert distillation.prediction_distance((own, own), (other, own)) == pytest.approx(by_hand / 2, rel=1e-4)
    assert distillation.prediction_distance((own[:, :1],), (other[:, :1],)) == pytest.approx(
        (own[:, 0] - other[:, 0]).square().sum().item()
    )


def test_the_nearest_layer_is_of_the_same_stack() -> None:
    table = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 5.0, 4.0]])
    assert distillation.nearest_layers(table, [0, 3], [[0, 1], [2, 3]]) == {0: 1, 3: 3}


def test_every_glue_task_weighs_its_predictions_by_one() -> None:
    heavy = {task for task in TASKS if distillation.prediction_coefficient(task) == 1.0}
    assert heavy == {"sst2", "mnli", "qnli", "qqp", "mrpc", "cola", "rte", "stsb"}
    assert {distillation.prediction_coefficient(task) for task in set(TASKS) - heavy} == {0.1}


def test_dimensions_are_compared_while_their_mask_is_one() -> None:
    assert distillation.compared_dimensions(None) is None
    assert distillation.compared_dimensions(torch.tensor([1.0, 0.5, 0.0, 1.0])).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert distillation.compared_dimensions(torch.tensor([0.5, 0.2, 0.5, 0.0])).tolist() == [1.0, 0.0, 1.0, 0.0]
