"""Runs the LM head on trained tokens only, because most tokens of a batch have no label.

A model of transformers computes the logits of all its tokens. `logits_of` puts a hook on the LM head for one forward
pass. The hook selects the trained tokens. `loss_of` computes the loss at the head, so it must know what the family does
to its logits afterwards. `check_transform` compares that with the model's own logits. Where the two differ, `loss_of`
uses the model's own logits.

Shapes: B rows, L tokens a row, d hidden dimensions, n trained tokens, m >= n positions (`pad_positions`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.data.batching import round_up
from apt_ds.losses import cross_entropy, distilled_cross_entropy, liger
from apt_ds.losses.distilled_cross_entropy import DistilledLoss
from apt_ds.losses.teacher_kl import TeacherTokens
from apt_ds.models.architectures import find_architecture
from apt_ds.models.logit_transform import LogitTransform
from apt_ds.models.unwrap import pretrained_model
from apt_ds.runtime import collectives

OWN_LOGITS = "loss_of_own_logits"  # the attribute of a model whose transform after the LM head is unknown
PROBE = 100.0  # the largest output of the LM head that `check_transform` tries
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}  # relative error of a few operations in a dtype


def pad_positions(positions: Tensor) -> Tensor:
    """Positions, padded with position 0 to a multiple of 8: a matrix product of odd rows may take twice as long.

    Args:
        positions: int64 [n], see `logits_of`.

    Returns:
        int64 [m], m the next multiple of 8.
    """
    return torch.cat([positions, positions.new_zeros(round_up(len(positions)) - len(positions))])


def logits_of(model: nn.Module, inputs: dict[str, Any], positions: Tensor, count: int) -> Tensor:
    """Logits of selected tokens.

    Args:
        model: A model with an LM head, or an engine around it.
        inputs: Arguments of the model's forward, of B x L tokens that reach the head.
        positions: int64 [m] on the model's device. They index the B * L tokens, row after row.
        count: How many of the first positions to return.

    Returns:
        [count, vocabulary] in the head's dtype.
    """

    def select_tokens(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, -2).index_select(0, positions),)

    handle = _lm_head(model).register_forward_pre_hook(select_tokens)
    try:
        return model(**inputs, use_cache=False).logits[:count]
    finally:
        handle.remove()


def loss_of(model: nn.Module, inputs: dict[str, Any], positions: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of selected tokens, summed.

    A frozen head without bias gets it from `liger.of_hidden`, so that the logits never exist as a whole. Other heads,
    and families with an unknown transform after the head, get it from the model's own logits.

    Args:
        model: A model with an LM head, or an engine around it.
        inputs: Arguments of the model's forward.
        positions: int64 [m] on the model's device, see `logits_of`.
        targets: int64 [n] on the model's device, the labels of the first n positions.

    Returns:
        Scalar in nats, in fp32 or the wider dtype of the logits.
    """
    head, transform = _lm_head(model), _transform_of(model)
    if transform is None or not _at_head(head):
        return cross_entropy.of_logits(logits_of(model, inputs, positions, len(targets)), targets)

    def loss(hidden: Tensor) -> Tensor:
        selected = hidden.flatten(0, -2).index_select(0, positions)
        return liger.of_hidden(selected, head.weight, targets, transform)

    return _computed_at_head(model, inputs, transform, loss)


def distilled_loss_of(
    model: nn.Module, inputs: dict[str, Any], positions: Tensor, targets: Tensor, teacher: TeacherTokens
) -> DistilledLoss:
    """`loss_of` with a teacher: (1 - a) CE + a T^2 L of selected tokens, summed (`teacher_kl.py`).

    Args:
        model: A model with an LM head, or an engine around it.
        inputs: Arguments of the model's forward.
        positions: int64 [m] on the model's device, see `logits_of`.
        targets: int64 [n] on the model's device, the labels of the first n positions.
        teacher: of the same n tokens, on the model's device.
    """
    head, transform = _lm_head(model), _transform_of(model)
    if transform is None or not _at_head(head):
        own = logits_of(model, inputs, positions, len(targets))
        return distilled_cross_entropy.of_logits(own, targets, teacher)
    losses: list[DistilledLoss] = []

    def loss(hidden: Tensor) -> Tensor:
        selected = hidden.flatten(0, -2).index_select(0, positions)
        losses.append(distilled_cross_entropy.of_hidden(selected, head.weight, targets, teacher, transform))
        return losses[0].loss

    total = _computed_at_head(model, inputs, transform, loss)
    return losses[0]._replace(loss=total)


@torch.no_grad()
def top_tokens_of(
    model: nn.Module, inputs: dict[str, Any], positions: Tensor, count: int, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens at selected positions, chunk by chunk where the logits are the head's own.

    Args:
        model: A model with an LM head, or an engine around it.
        inputs: Arguments of the model's forward.
        positions: int64 [m] on the model's device, see `logits_of`.
        count: How many of the first positions to return.
        k: at most the vocabulary.
        temperature: T.

    Returns:
        Their ids, int64 [count, k], and their log-probabilities at T, fp32 or fp64 [count, k].
    """
    head, transform = _lm_head(model), _transform_of(model)
    if transform is None or getattr(head, "bias", None) is not None:
        return _top(logits_of(model, inputs, positions, count), k, temperature)
    chunks: list[tuple[Tensor, Tensor]] = []

    def take(hidden: Tensor) -> Tensor:
        selected = hidden.flatten(0, -2).index_select(0, positions[:count])
        rows = max(1, cross_entropy.chunk_sizes(selected).logits // len(head.weight))
        for chunk in selected.split(rows):
            logits = F.linear(chunk, head.weight)
            chunks.append(_top(transform.apply(logits.to(cross_entropy.zero_like(logits).dtype)), k, temperature))
        return hidden.new_zeros(())

    _computed_at_head(model, inputs, transform, take)
    ids, log_probabilities = zip(*chunks, strict=True)
    return torch.cat(ids), torch.cat(log_probabilities)


def _top(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The k largest of each row: their places, and their log-probabilities."""
    scaled = logits.to(cross_entropy.zero_like(logits).dtype) / temperature
    top = scaled.topk(k)
    return top.indices, top.values - scaled.logsumexp(-1, keepdim=True)


def _at_head(head: nn.Linear) -> bool:
    """Whether the loss can be computed from the hidden states and the head's weight, with their gradient."""
    has_bias = getattr(head, "bias", None) is not None
    return not (head.weight.requires_grad or has_bias or head.weight.dtype == torch.float16)


def _computed_at_head(
    model: nn.Module, inputs: dict[str, Any], transform: LogitTransform, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """What `loss` makes of the head's input, in one forward pass.

    Args:
        model: A model with an LM head, or an engine around it.
        inputs: Arguments of the model's forward.
        transform: What the family does after the head.
        loss: from the hidden states, [B, L, d], to a scalar.
    """
    head, losses = _lm_head(model), list[Tensor]()

    def loss_forward(hidden: Tensor) -> Tensor:
        losses.append(loss(hidden))
        # the family's transform must not change the loss: it gets a zero with the same graph
        return losses[0] if transform.is_identity else losses[0] * 0

    # ZeRO-3 gathers the head's weight only while the head's own `forward` runs, so the loss is computed there
    vars(head)["forward"] = loss_forward
    try:
        output = model(**inputs, use_cache=False).logits
    finally:
        del head.forward
    return output if transform.is_identity else losses[0] + (output - output.detach())


@torch.no_grad()
def check_transform(model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Check that the spec of the family knows what follows the LM head. One forward pass. Collective.

    The pass gives the model probes in place of the head's output. The model's own logits must be the spec's transform
    of the probes. If they are not, `loss_of` uses the model's own logits from now on.

    Args:
        model: A model with an LM head, or an engine around it.
        inputs: Arguments of the model's forward, of a few tokens.

    Returns:
        Whether the loss is computed at the head.
    """
    transform = _transform_of(model)
    if transform is None:
        return False
    probes: list[Tensor] = []

    def probe(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        probes.append(torch.linspace(-PROBE, PROBE, output.shape[-1], device=output.device).to(output.dtype))
        return probes[0].expand_as(output)

    handle = _lm_head(model).register_forward_hook(probe)
    try:
        own = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    expected = transform.apply(probes[0].float()).expand(own.shape)
    tolerance = TOLERANCE.get(own.dtype, 1e-4)
    differs = torch.tensor(0.0 if torch.allclose(own.float(), expected, rtol=tolerance, atol=tolerance) else 1.0)
    known = not collectives.all_reduce_sum(differs.to(own.device)).item()
    if not known:
        setattr(pretrained_model(model), OWN_LOGITS, True)
    return known


def _transform_of(model: nn.Module) -> LogitTransform | None:
    """What the family of a model does after the LM head. None: unknown."""
    plain = pretrained_model(model)
    spec = find_architecture(plain.config)
    return None if spec is None or getattr(plain, OWN_LOGITS, False) else spec.logits(plain.config)


def _lm_head(model: nn.Module) -> nn.Linear:
    head = pretrained_model(model).get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head
