"""What a kind of task asks of a model: logits from a batch, their loss, and what each row weighs in the mean of it.

Losses are sums, so that dividing them by the weight of the global batch gives a mean that does not depend on how the
batch is split. For the same reason padding enters no softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.data.batching import Batch
from apt_ds.data.tokenized import IGNORED, Row
from apt_ds.losses import cross_entropy
from apt_ds.losses.lm_head import grouped, logits_of, loss_of
from apt_ds.runtime import zero

Inputs = dict[str, Tensor | None]
Logits = tuple[Tensor, ...]  # each [what is predicted, choices]; one choice is a number


@dataclass(frozen=True)
class Objective:
    """logits: of everything in a batch that is trained; loss: summed over it, fp32 scalar; weight: what a row counts.

    second: which tokens of a decoder count, [B, T], None where there is no decoder; summed: the loss without logits,
    None where it takes them.
    """

    logits: Callable[[nn.Module, Batch], Logits]
    loss: Callable[[Logits, Batch], Tensor]
    weight: Callable[[Row], int]
    second: Callable[[Batch], Tensor | None] = lambda batch: None
    summed: Callable[[nn.Module, Batch], Tensor] | None = None

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a micro-batch, for whoever does not ask for its logits."""
        return self.summed(model, batch) if self.summed else self.loss(self.logits(model, batch), batch)


def language_inputs(model: nn.Module, batch: Batch) -> Inputs:
    """What a causal model takes.

    Padding sits on the right, where causal attention never looks back from a real token, so no attention mask is
    passed; where rows hold several examples, positions that restart keep them apart.
    """
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids}


def next_tokens(batch: Batch) -> Tensor:
    """What a causal model is to say at every token, [B, L], on the host."""
    return F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)


def trained_tokens(row: Row) -> int:
    """How many tokens of a causal row enter the loss: the first is predicted from nothing."""
    predicted = row["labels"][1:]
    return len(predicted) - predicted.count(IGNORED)


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


def text_inputs(model: nn.Module, batch: Batch) -> Inputs:
    """What an encoder with a decoder takes."""
    labels = batch.labels.to(batch.input_ids.device, non_blocking=True)
    return encoder_inputs(batch) | {"decoder_input_ids": shifted(labels, model)}


def shifted(labels: Tensor, model: nn.Module) -> Tensor:
    """What the decoder reads while it is to write `labels`, [B, T]: these one step later, behind its start token."""
    config = zero.unwrap(model).config
    begun = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    read = torch.cat([begun, labels[:, :-1]], dim=1)
    return read.masked_fill(read == IGNORED, config.pad_token_id)


def of_tokens(
    inputs: Callable[[nn.Module, Batch], Inputs],
    wanted: Callable[[Batch], Tensor],
    weight: Callable[[Row], int],
    second: Callable[[Batch], Tensor | None] = lambda batch: None,
) -> Objective:
    """An objective over a vocabulary. wanted: what is to be said at every token, or -100, [B, T].

    Labels are best left on the host: on a device, looking them up makes the host wait.
    """

    def asked(batch: Batch) -> tuple[Tensor, Tensor]:
        words, place = wanted(batch), {"device": batch.input_ids.device, "non_blocking": True}
        places = (words != IGNORED).flatten().nonzero().squeeze(1)
        return grouped(places).to(**place), words.flatten()[places].to(**place)

    def logits(model: nn.Module, batch: Batch) -> Logits:
        places, targets = asked(batch)
        return (logits_of(model, inputs(model, batch), places, len(targets)),)

    def loss(logits: Logits, batch: Batch) -> Tensor:
        return cross_entropy.of_logits(logits[0], asked(batch)[1])

    def summed(model: nn.Module, batch: Batch) -> Tensor:
        return loss_of(model, inputs(model, batch), *asked(batch))

    return Objective(logits, loss, weight, second, summed)


OBJECTIVES = {
    LANGUAGE_MODEL: of_tokens(language_inputs, next_tokens, trained_tokens),
    CLASSIFICATION: Objective(class_logits, class_loss, lambda row: 1),
    ANSWERS: Objective(span_logits, span_loss, lambda row: 1),
    GENERATION: of_tokens(
        text_inputs,
        lambda batch: batch.labels,
        lambda row: sum(label != IGNORED for label in row["labels"]),
        lambda batch: (batch.labels != IGNORED).long().to(batch.input_ids.device, non_blocking=True),
    ),
}


def summed_loss(model: nn.Module, batch: Batch, kind: str = LANGUAGE_MODEL) -> Tensor:
    """The loss of a micro-batch, summed over what is trained, fp32 scalar."""
    return OBJECTIVES[kind].summed_loss(model, batch)


@torch.no_grad()
def token_losses(model: nn.Module, input_ids: Tensor, device: torch.device) -> Tensor:
    """Cross-entropy summed over all tokens but the first of each row, fp32 scalar, unit nat.

    input_ids: [B, L] on the host; device: the model's.
    """
    batch = Batch(input_ids.to(device), torch.ones_like(input_ids), labels=input_ids)
    return summed_loss(model, batch)
