"""Divergences of the engine's model under masks, and gradients of factors, equal those of plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.config.resolve import resolve
from apt_ds.data.tokenized import Row
from apt_ds.losses import dense_predictions
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import zero
from apt_ds.training import run as training_run
from apt_ds.training.dense_divergence import DenseDivergence, Part, calibration_rows, predictions
from apt_ds.training.trainer import Trainer
from tests.pruning.test_masks import random_keep
from tests.support.launcher import PRETUNING, Place, own_world


@pytest.fixture(scope="module")
def trainer(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """A run before its first step. Its steps have two micro-batches of two rows."""
    with own_world():
        words = place.words(tmp_path_factory.mktemp("run") / "out", *PRETUNING, "--report", "false")
        prepared = training_run.prepare(resolve([*words, "--gradient_accumulation_steps", "2"]))
        yield prepared
        prepared.finish()


def logits_of(model: nn.Module, row: Row) -> Tensor:
    """Logits that predict the labelled tokens of a row."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    return model(input_ids=ids).logits[0, :-1][labels[1:] != -100]


def divergence(own: Tensor, dense: Tensor) -> Tensor:
    return F.kl_div(own.log_softmax(-1), dense.log_softmax(-1), reduction="sum", log_target=True)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """All choices are kept, so that no bucket approximates."""
    monkeypatch.setattr(dense_predictions, "KEPT", 1000)


def test_the_mean_is_that_of_plain_pytorch(trainer: Trainer, whole: None) -> None:
    engine, masks, task_loss = trainer.engine, trainer.pruner.masks, trainer.training_loss.task_loss
    keep, passes = random_keep(trainer.pruner.anatomy, 1), []
    batches = trainer.steps.calibration_batches
    steps = list(calibration_rows(batches, task_loss, 60))
    rows = [row for step in steps for row in step]
    assert predictions(steps[0], task_loss) < 60 <= predictions(rows, task_loss)
    measured = DenseDivergence(engine, masks, task_loss, batches, 10, lambda: passes.append(1))
    part, training = Part(rows[:7]), engine.training
    value = measured.mean(keep, part)
    plain, own = copy.deepcopy(engine.module), Masks(trainer.pruner.anatomy)
    for module in plain.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    plain.eval()
    with torch.no_grad():
        dense = [logits_of(plain, row) for row in rows[:7]]
        own.install(plain)
        own.set(keep.astype(float))
        total = sum(divergence(logits_of(plain, row), other) for row, other in zip(rows[:7], dense, strict=True))
    count = predictions(rows[:7], task_loss)
    assert value == pytest.approx(float(total) / count, rel=1e-4)
    # the dense pass is taken once
    assert measured.mean(keep, part) == value
    assert measured.mean(np.ones(len(keep), bool), part) == pytest.approx(0, abs=1e-6)
    assert (measured.tokens, len(passes), measured.evaluations) == (count, 4, 4 * round(count / 10))
    assert (masks.values == 1).all() and engine.training == training


def test_the_gradient_of_factors_is_that_of_plain_pytorch(trainer: Trainer, whole: None) -> None:
    engine, learner = trainer.engine, trainer.one_shot_cut.scales
    anatomy, masks, batches = trainer.pruner.anatomy, trainer.pruner.masks, trainer.steps.calibration_batches
    keep = random_keep(anatomy, 2)
    trainer.steps.set_scoring(engine, False)
    masks.set(keep.astype(float))
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    scale = torch.rand(len(keep)).add(0.5).requires_grad_()
    zero.set_learning_rate(engine, 0.0)
    gradient = learner._gradient(engine, scale, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))
    expected = torch.zeros_like(scale)
    for row in batches.rows(0):
        with torch.no_grad(), masks.disabled():
            dense = logits_of(engine.module, row)
        with masks.scaled(scale):
            logits = logits_of(engine.module, row)
        targets = torch.tensor([label for label in row["labels"][1:] if label != -100])
        loss = F.cross_entropy(logits, targets, reduction="sum") + divergence(logits, dense)
        expected += torch.autograd.grad(loss, scale)[0]
    expected /= predictions(batches.rows(0), trainer.training_loss.task_loss)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-6) and expected.abs().max() > 1e-3
    masks.set(np.ones(len(keep)))


def test_rows_end_after_one_pass_over_the_data(trainer: Trainer) -> None:
    batches, task_loss = trainer.steps.calibration_batches, trainer.training_loss.task_loss
    rows = [row for step in calibration_rows(batches, task_loss, 10**9) for row in step]
    assert len(rows) == batches.order.steps(1.0) * batches.order.global_batch >= len(trainer.data.train)
