"""The LM head on labelled tokens only, against the loss of all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds.data.batching import collate
from apt_ds.losses.lm_head import logits_of, pad_positions
from apt_ds.losses.task_losses import TASK_LOSSES
from tests.support import tiny


def expected(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize(("count", "padded"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_positions_are_padded_with_the_first_token(count: int, padded: int) -> None:
    positions = pad_positions(torch.arange(1, count + 1))
    assert positions.tolist() == [*range(1, count + 1), *[0] * (padded - count)]


def test_selected_logits_are_those_of_all_tokens() -> None:
    model, ids = tiny.model().eval(), torch.tensor([[5, 6, 7], [8, 9, 4]])
    positions = torch.tensor([4, 1, 0])
    with torch.no_grad():
        selected = logits_of(model, {"input_ids": ids}, positions, 2)
        whole = model(input_ids=ids).logits.flatten(0, 1)
    torch.testing.assert_close(selected, whole[[4, 1]])
    # the hook is off again
    assert model(input_ids=ids).logits.shape[:2] == (2, 3)


ROWS = {
    "gqa": [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}],
    "t5": [{"input_ids": [5, 6, 7], "labels": [7, 8, 9]}, {"input_ids": [9], "labels": [4]}],
}
MODELS = {"gqa": tiny.model, "t5": tiny.small}
LABELS = {"gqa": [7, 8, 4], "t5": [7, 8, 9, 4]}


@pytest.mark.parametrize("kind", ["gqa", "t5"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_has_the_loss_of_its_logits(kind: str, frozen: bool) -> None:
    """With a head that is trained, whose gradient needs the logits, too; what a row adds does not depend on others."""
    model, rows, task_loss = MODELS[kind](kind), ROWS[kind], TASK_LOSSES[tiny.TASKS[kind]]
    model.eval().get_output_embeddings().weight.requires_grad_(not frozen)
    batch = collate(rows, 0)
    body = next(p for name, p in model.named_parameters() if name.endswith(("o_proj.weight", "wo.weight")))
    loss = task_loss.summed_loss(model, batch)
    (logits,) = task_loss.logits(model, batch)
    torchs = expected(logits, torch.tensor(LABELS[kind]))
    torch.testing.assert_close(loss, torchs)
    torch.testing.assert_close(*(torch.autograd.grad(value, body)[0] for value in (loss, torchs)))
    alone = sum(task_loss.summed_loss(model, collate([row], 0)) for row in rows)
    torch.testing.assert_close(loss, alone)
    # the head is the model's own again
    assert "forward" not in vars(model.get_output_embeddings())
