"""The loss under a teacher, made a piece at a time, against autograd of the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds.analysis.live_bytes import LiveBytes
from apt_ds.losses import cross_entropy
from apt_ds.losses.cross_entropy import ChunkSizes
from apt_ds.losses.distilled_cross_entropy import of_hidden, of_logits
from apt_ds.losses.teacher_kl import TeacherTokens
from apt_ds.models.logit_transform import IDENTITY, LogitTransform

WORDS, KNOWN = 50, 6
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows at a time, and three of them in fp32."""
    monkeypatch.setattr(cross_entropy, "CHUNK_SIZES", {"cpu": ChunkSizes(7 * WORDS + 3, 3 * WORDS)})


def drawn(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(rows + seed)
    return torch.randn(rows, columns, generator=generator).to(dtype).requires_grad_()


def targets(rows: int) -> Tensor:
    return torch.randint(WORDS, (rows,), generator=torch.Generator().manual_seed(3))


def teacher(rows: int, temperature: float) -> TeacherTokens:
    top = F.log_softmax(3 * drawn(rows, WORDS, torch.float32, 9).detach() / temperature, -1).topk(KNOWN)
    return TeacherTokens(top.indices.int(), top.values, 0.7, temperature)


def expected(logits: Tensor, wanted: Tensor, known: TeacherTokens) -> Tensor:
    """The loss in explicit buckets: `KNOWN` tokens and the rest."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = torch.softmax(logits / known.temperature, -1)
    inside = torch.zeros_like(p).scatter(1, known.ids.long(), 1.0)
    p = torch.cat([p.gather(1, known.ids.long()), (p * (1 - inside)).sum(-1, keepdim=True)], 1)
    q = known.log_probabilities.to(p.dtype).exp()
    q = torch.cat([q, 1 - q.sum(-1, keepdim=True)], 1)
    distance = (q * (q.log() - p.log())).sum()
    plain = F.cross_entropy(logits, wanted, reduction="sum")
    return (1 - known.weight) * plain + known.weight * known.temperature**2 * distance


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 23])
def test_loss_and_gradient_of_logits_are_those_of_autograd(rows: int, dtype: torch.dtype, temperature: float) -> None:
    logits, wanted, known = drawn(rows, WORDS, dtype), targets(rows), teacher(rows, temperature)
    losses, torchs = of_logits(logits, wanted, known), expected(logits, wanted, known)
    torch.testing.assert_close(losses.loss, torchs)
    torch.testing.assert_close(losses.cross_entropy, cross_entropy.of_logits(logits, wanted).detach())
    assert not losses.cross_entropy.requires_grad and not losses.distance.requires_grad
    (gradient,), (theirs,) = (torch.autograd.grad(3 * loss, logits) for loss in (losses.loss, torchs))
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transform", [IDENTITY, LogitTransform(scale=1 / 8), LogitTransform(0.5, 2.0)])
@pytest.mark.parametrize(("rows", "beyond"), [(0, 7), (7, 1), (20, 4), (23, 0)])
def test_loss_and_gradient_of_hidden_states_are_those_of_autograd(
    rows: int, beyond: int, transform: LogitTransform, dtype: torch.dtype
) -> None:
    """Rows beyond the targets have no loss and no gradient. The cap is below many of the head's outputs."""
    hidden, weight, wanted = drawn(rows + beyond, 16, dtype), drawn(WORDS, 16, dtype).detach(), targets(rows)
    known = teacher(rows, 1.0)
    losses = of_hidden(hidden, weight, wanted, known, transform)
    outputs = F.linear(hidden[:rows], weight).to(torch.promote_types(dtype, torch.float32))
    torchs = expected(transform.apply(outputs), wanted, known)
    torch.testing.assert_close(losses.loss, torchs)
    torch.testing.assert_close(known.mix(losses.cross_entropy, losses.distance), losses.loss.detach())
    (gradient,), (theirs,) = (torch.autograd.grad(3 * loss, hidden) for loss in (losses.loss, torchs))
    assert gradient.dtype == dtype and not gradient[rows:].any()
    # each row of it is a sum over the vocabulary, rounded here before it is scaled and there after
    torch.testing.assert_close(gradient, theirs, **({"atol": 0.03, "rtol": 0.02} if dtype == torch.bfloat16 else {}))
    with torch.no_grad():
        torch.testing.assert_close(of_hidden(hidden, weight, wanted, known, transform).loss, torchs)


def test_only_a_piece_of_the_logits_is_ever_there() -> None:
    rows = 700
    hidden, weight = drawn(rows, 16, torch.bfloat16), drawn(WORDS, 16, torch.bfloat16).detach()
    wanted, known = targets(rows), teacher(rows, 1.0)
    with LiveBytes(torch.nn.Module()) as live:
        of_hidden(hidden, weight, wanted, known).loss.backward()
    # as without a teacher: states, their gradient made on the way forward, and the one handed on
    given = 4 * hidden.nbytes + known.ids.nbytes + known.log_probabilities.nbytes
    assert live.peak < given + 0.1 * rows * WORDS * 2
