"""Each task's loss against its definition, and its denominator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, LANGUAGE_MODEL
from apt_ds.data.batching import collate
from apt_ds.data.tokenized import IGNORED, Row
from apt_ds.losses.task_losses import TASK_LOSSES
from tests.support import tiny

ROWS: dict[str, list[Row]] = {
    "gqa": [{"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}],
    "t5": [{"input_ids": [5, 6, 7], "labels": [7, 8, 9]}, {"input_ids": [9], "labels": [4]}],
    "bert-classes": [{"input_ids": [5, 6, 7], "targets": [1]}, {"input_ids": [9, 4], "targets": [0]}],
    "roberta-answers": [{"input_ids": [5, 6, 7], "targets": [0, 2]}, {"input_ids": [9, 4], "targets": [1, 1]}],
}
TYPES = {"gqa": LANGUAGE_MODEL} | tiny.TASKS


@pytest.mark.parametrize(("kind", "denominator"), [("gqa", 3), ("t5", 4), ("bert-classes", 2), ("roberta-answers", 2)])
def test_the_mean_of_a_batch_is_that_of_its_examples(kind: str, denominator: int) -> None:
    task_loss, rows = TASK_LOSSES[TYPES[kind]], ROWS[kind]
    model = (tiny.model(kind=kind) if kind == "gqa" else tiny.small(kind)).eval()
    assert sum(task_loss.loss_denominator(row) for row in rows) == denominator
    with torch.no_grad():
        whole = task_loss.summed_loss(model, collate(rows, 0))
        alone = sum(task_loss.summed_loss(model, collate([row], 0)) for row in rows)
        batch = collate(rows, 0)
        of_logits = task_loss.loss(task_loss.logits(model, batch), batch)
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(whole, of_logits)


def test_a_score_has_a_squared_error() -> None:
    batch = collate([{"input_ids": [5], "targets": [1.5]}, {"input_ids": [6], "targets": [3.0]}], 0)
    loss = TASK_LOSSES[CLASSIFICATION].loss((torch.tensor([[1.0], [5.0]]),), batch)
    assert loss == pytest.approx(0.25 + 4.0)


def test_a_span_has_the_mean_of_both_ends() -> None:
    batch = collate(ROWS["roberta-answers"], 0)
    start, end = torch.randn(2, 8), torch.randn(2, 8)
    by_hand = (
        F.cross_entropy(start, torch.tensor([0, 1]), reduction="sum")
        + F.cross_entropy(end, torch.tensor([2, 1]), reduction="sum")
    ) / 2
    torch.testing.assert_close(TASK_LOSSES[ANSWERS].loss((start, end), batch), by_hand)
