"""The loss over a large vocabulary, made a piece at a time, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds.analysis.live_bytes import LiveBytes
from apt_ds.losses import cross_entropy
from apt_ds.losses.cross_entropy import ChunkSizes, of_hidden, of_logits
from apt_ds.models.logit_transform import LogitTransform

WORDS = 50
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows at a time, and three of them in fp32."""
    monkeypatch.setattr(cross_entropy, "CHUNK_SIZES", {"cpu": ChunkSizes(7 * WORDS + 3, 3 * WORDS)})


def drawn(rows: int, columns: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return (scale * torch.randn(rows, columns, generator=generator)).to(dtype).requires_grad_()


def targets(rows: int) -> Tensor:
    return torch.randint(WORDS, (rows,), generator=torch.Generator().manual_seed(3))


def expected(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted, reduction="sum")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 7, 23])
def test_loss_and_gradient_of_logits_are_torchs(rows: int, dtype: torch.dtype) -> None:
    logits, wanted = drawn(rows, WORDS, dtype, 5.0), targets(rows)
    ours, torchs = of_logits(logits, wanted), expected(logits, wanted)
    assert ours.dtype == torchs.dtype
    torch.testing.assert_close(ours, torchs)
    (gradient,), (theirs,) = (torch.autograd.grad(3 * loss, logits) for loss in (ours, torchs))
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "beyond"), [(0, 0), (1, 7), (7, 1), (20, 4), (23, 0)])
def test_loss_and_gradient_of_hidden_states_are_torchs(rows: int, beyond: int, dtype: torch.dtype) -> None:
    """Rows beyond the targets have no loss and no gradient."""
    hidden, weight, wanted = drawn(rows + beyond, 16, dtype), drawn(WORDS, 16, dtype).detach(), targets(rows)
    ours, torchs = of_hidden(hidden, weight, wanted), expected(F.linear(hidden[:rows], weight), wanted)
    assert ours.dtype == torchs.dtype
    torch.testing.assert_close(ours, torchs)
    (gradient,), (theirs,) = (torch.autograd.grad(3 * loss, hidden) for loss in (ours, torchs))
    assert gradient.dtype == dtype and not gradient[rows:].any()
    # each row of it is a sum over the vocabulary, rounded here before it is scaled and there after
    tolerance = {"atol": 0.03, "rtol": 0.02} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(gradient, theirs, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(of_hidden(hidden, weight, wanted), torchs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize("transform", [LogitTransform(scale=1 / 8), LogitTransform(cap=3.0), LogitTransform(0.5, 2.0)])
def test_what_a_family_does_after_the_head_is_in_loss_and_gradient(
    transform: LogitTransform, needs_gradient: bool, dtype: torch.dtype
) -> None:
    """Torch differentiates the transform itself. The cap is below many of the head's outputs."""
    rows, beyond = 20, 4
    hidden, weight, wanted = drawn(rows + beyond, 16, dtype), drawn(WORDS, 16, dtype).detach(), targets(rows)
    outputs = F.linear(hidden[:rows], weight).to(torch.promote_types(dtype, torch.float32))
    torchs = F.cross_entropy(transform.apply(outputs), wanted, reduction="sum")
    with torch.set_grad_enabled(needs_gradient):
        ours = of_hidden(hidden, weight, wanted, transform)
    assert ours.requires_grad == needs_gradient
    torch.testing.assert_close(ours, torchs)
    plain = of_hidden(hidden, weight, wanted)
    assert abs(plain - ours) > 0.1 * plain
    if needs_gradient:
        (gradient,), (theirs,) = (torch.autograd.grad(3 * loss, hidden) for loss in (ours, torchs))
        tolerance = {"atol": 0.03, "rtol": 0.02} if dtype == torch.bfloat16 else {}
        assert not gradient[rows:].any()
        torch.testing.assert_close(gradient, theirs, **tolerance)


def test_only_a_piece_of_the_logits_is_ever_there() -> None:
    """Torch's own holds logits, and more than twice as much beside them."""
    rows, peaks = 700, []
    hidden, weight, wanted = drawn(rows, 16, torch.bfloat16), drawn(WORDS, 16, torch.bfloat16).detach(), targets(rows)
    for loss in (of_hidden, lambda h, w, t: of_logits(F.linear(h, w), t), lambda h, w, t: expected(F.linear(h, w), t)):
        with LiveBytes(torch.nn.Module()) as live:
            loss(hidden, weight, wanted).backward()
        peaks.append(live.peak)
    logits = rows * WORDS * 2
    # states, their gradient made on the way forward, and the one handed on
    assert peaks[0] < 4 * hidden.nbytes + 0.1 * logits
    assert peaks[1] < 2.2 * logits + 4 * hidden.nbytes < peaks[2] / 2 + 4 * hidden.nbytes
