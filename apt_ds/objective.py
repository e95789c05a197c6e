"""What a kind of task asks of a model: logits from a batch, their loss, and what each row weighs in the mean of it.

Losses are sums, so that dividing them by the weight of the global batch gives a mean that does not depend on how the
batch is split. For the same reason padding enters no softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds import zero
from apt_ds.cross_entropy import summed_cross_entropy
from apt_ds.data.batches import Batch
from apt_ds.data.rows import IGNORED, Row
from apt_ds.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL

Logits = tuple[Tensor, ...]  # each [what is predicted, choices]; one choice is a number


@dataclass(frozen=True)
class Objective:
    """logits: of everything in a batch that is trained; loss: summed over it, fp32 scalar; weight: what a row counts.

    second: which tokens of a decoder count, [B, T], None where there is no decoder.
    """

    logits: Callable[[nn.Module, Batch], Logits]
    loss: Callable[[Logits, Batch], Tensor]
    weight: Callable[[Row], int]
    second: Callable[[Batch], Tensor | None] = lambda batch: None


def language_logits(model: nn.Module, batch: Batch) -> Logits:
    """Next-token logits of the trained tokens, [trained, vocabulary].

    Padding sits on the right, where causal attention never looks back from a real token, so no attention mask is
    passed; where rows hold several examples, positions that restart keep them apart. Labels are best left on the host:
    on a device, looking them up makes the host wait.
    """
    trained = F.pad(batch.labels[:, 1:] != IGNORED, (0, 1))
    with logits_at(model, places(trained, batch)):
        return (model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits,)


def language_loss(logits: Logits, batch: Batch) -> Tensor:
    """Cross-entropy summed over trained tokens, in nats."""
    return token_loss(logits[0], batch.labels[:, 1:])


def places(trained: Tensor, batch: Batch) -> Tensor:
    """Where `trained` [B, L] is true, counted row after row, on the batch's device: int64 [n]."""
    return trained.flatten().nonzero().squeeze(1).to(batch.input_ids.device, non_blocking=True)


@contextmanager
def logits_at(model: nn.Module, places: Tensor) -> Iterator[None]:
    """Inside, the model's head sees the tokens at `places` alone: most of a batch has no logits to learn from."""

    def chosen(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, -2).index_select(0, places),)

    handle = zero.plain(model).get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of `logits` [trained, vocabulary], summed, in nats. labels: any shape, best on the host."""
    targets = labels[labels != IGNORED].to(logits.device, non_blocking=True)
    return summed_cross_entropy(logits, targets)


def trained_tokens(row: Row) -> int:
    """How many tokens of a causal row enter the loss: the first is predicted from nothing."""
    return sum(label != IGNORED for label in row["labels"][1:])


def encoder_inputs(batch: Batch) -> dict[str, Tensor]:
    """What an encoder takes."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return inputs if batch.token_type_ids is None else inputs | {"token_type_ids": batch.token_type_ids}


def class_logits(model: nn.Module, batch: Batch) -> Logits:
    """[B, classes]; [B, 1] where a number is asked for."""
    return (model(**encoder_inputs(batch)).logits,)


def class_loss(logits: Logits, batch: Batch) -> Tensor:
    """Cross-entropy, or the squared error of a number, summed over examples."""
    found, targets = logits[0].float(), batch.targets[:, 0]
    if targets.is_floating_point():
        return F.mse_loss(found[:, 0], targets, reduction="sum")
    return F.cross_entropy(found, targets, reduction="sum")


def span_logits(model: nn.Module, batch: Batch) -> Logits:
    """Of the first and the last token of the answer, [B, L] each; the lowest number at padding."""
    found = model(**encoder_inputs(batch))
    padding = batch.attention_mask == 0
    lowest = torch.finfo(found.start_logits.dtype).min
    return tuple(side.masked_fill(padding, lowest) for side in (found.start_logits, found.end_logits))


def span_loss(logits: Logits, batch: Batch) -> Tensor:
    """Mean of the cross-entropies of both ends, summed over windows."""
    ends = zip(logits, batch.targets.unbind(1), strict=True)
    return torch.stack([F.cross_entropy(side.float(), end, reduction="sum") for side, end in ends]).mean()


def text_logits(model: nn.Module, batch: Batch) -> Logits:
    """Logits of the decoder's trained tokens, [trained, vocabulary]."""
    labels = batch.labels.to(batch.input_ids.device, non_blocking=True)
    inputs = encoder_inputs(batch) | {"decoder_input_ids": shifted(labels, model)}
    with logits_at(model, places(batch.labels != IGNORED, batch)):
        return (model(**inputs, use_cache=False).logits,)


def shifted(labels: Tensor, model: nn.Module) -> Tensor:
    """What the decoder reads while it is to write `labels`, [B, T]: these one step later, behind its start token."""
    config = zero.plain(model).config
    begun = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    read = torch.cat([begun, labels[:, :-1]], dim=1)
    return read.masked_fill(read == IGNORED, config.pad_token_id)


def text_loss(logits: Logits, batch: Batch) -> Tensor:
    """Cross-entropy summed over the decoder's trained tokens, in nats."""
    return token_loss(logits[0], batch.labels)


OBJECTIVES = {
    LANGUAGE_MODEL: Objective(language_logits, language_loss, trained_tokens),
    CLASSIFICATION: Objective(class_logits, class_loss, lambda row: 1),
    ANSWERS: Objective(span_logits, span_loss, lambda row: 1),
    GENERATION: Objective(
        text_logits,
        text_loss,
        lambda row: sum(label != IGNORED for label in row["labels"]),
        lambda batch: (batch.labels != IGNORED).long().to(batch.input_ids.device, non_blocking=True),
    ),
}


def summed_loss(model: nn.Module, batch: Batch, kind: str = LANGUAGE_MODEL) -> Tensor:
    """The loss of a micro-batch, summed over what is trained, fp32 scalar."""
    objective = OBJECTIVES[kind]
    return objective.loss(objective.logits(model, batch), batch)


@torch.no_grad()
def token_losses(model: nn.Module, input_ids: Tensor, device: torch.device) -> Tensor:
    """Cross-entropy summed over all tokens but the first of each row, fp32 scalar, unit nat.

    input_ids: [B, L] on the host; device: the model's.
    """
    batch = Batch(input_ids.to(device), torch.ones_like(input_ids), labels=input_ids)
    return summed_loss(model, batch)
