"""The dense model as teacher: what it says of tokens at the head, and the loss of a student through the head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.batching import Batch, collate
from apt_ds.losses import cross_entropy
from apt_ds.losses.cross_entropy import ChunkSizes
from apt_ds.losses.dense_teacher import DenseTeacher, has_teacher
from apt_ds.losses.task_losses import TASK_LOSSES
from tests.support import tiny, tiny_families

CAUSAL = TASK_LOSSES[LANGUAGE_MODEL]
ROWS = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}]
LABELS = torch.tensor([7, 8, 4])
MODELS = {"gqa": tiny.model, "granite": tiny_families.model, "gemma2": tiny_families.model}
K = 5


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at a time, and one of them in fp32."""
    monkeypatch.setattr(cross_entropy, "CHUNK_SIZES", {"cpu": ChunkSizes(1, 1)})


def taught(dense: nn.Module, temperature: float) -> Batch:
    """The batch, with what a model says of it."""
    batch = collate(ROWS, 0)
    ids, log_probabilities = CAUSAL.top_tokens(dense, batch, K, temperature)
    return replace(batch, teacher_ids=ids.int(), teacher_log_probabilities=log_probabilities)


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_likeliest_tokens_are_those_of_the_models_logits(kind: str, temperature: float) -> None:
    """With what a family does to its logits after the head, for a tied and an untied head."""
    model = MODELS[kind](kind).eval()
    with torch.no_grad():
        logits = CAUSAL.logits(model, collate(ROWS, 0))[0]
    batch, top = taught(model, temperature), F.log_softmax(logits / temperature, -1).topk(K)
    assert torch.equal(batch.teacher_ids.long(), top.indices)
    torch.testing.assert_close(batch.teacher_log_probabilities, top.values)
    assert "forward" not in vars(model.get_output_embeddings())


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("frozen", [True, False])
def test_a_student_has_the_loss_and_gradient_of_its_logits(kind: str, frozen: bool) -> None:
    batch, student = taught(MODELS[kind](kind).eval(), 2.0), MODELS[kind](kind, seed=1).eval()
    student.get_output_embeddings().weight.requires_grad_(not frozen)
    teacher = DenseTeacher(0.7, 2.0)
    teacher.begin()
    losses = teacher.loss(CAUSAL, student, batch)

    (logits,) = CAUSAL.logits(student, batch)
    p = torch.softmax(logits.float() / 2, -1)
    ids, q = batch.teacher_ids.long(), batch.teacher_log_probabilities.exp()
    known = p.gather(1, ids)
    rest = 1 - q.sum(-1), 1 - known.sum(-1)
    distance = (q * (q.log() - known.log())).sum() + (rest[0] * (rest[0].log() - rest[1].log())).sum()
    plain = F.cross_entropy(logits.float(), LABELS, reduction="sum")
    torchs = 0.3 * plain + 0.7 * 4 * distance
    torch.testing.assert_close(losses.loss, torchs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.cross_entropy, plain.detach())
    body = next(p for name, p in student.named_parameters() if name.endswith("o_proj.weight"))
    own, theirs = (torch.autograd.grad(loss, body)[0] for loss in (losses.loss, torchs))
    torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-5)

    teacher.observe(teacher.pending(), len(LABELS))
    assert teacher.distance == pytest.approx(distance.item() / 3, rel=1e-3) and teacher.distance > 1e-5


def test_the_dense_model_has_no_distance_to_itself() -> None:
    model, teacher = tiny.model().eval(), DenseTeacher(1.0, 1.0)
    teacher.begin()
    assert teacher.pending() is None
    loss = teacher.loss(CAUSAL, model, taught(model, 1.0))
    assert abs(float(loss.distance)) < 1e-4 and not has_teacher(collate(ROWS, 0))
    body = model.model.layers[0].self_attn.o_proj.weight
    assert torch.autograd.grad(loss.loss, body)[0].abs().max() < 1e-5
