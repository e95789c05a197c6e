"""Mean loss and perplexity against their definitions, for any batch size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.tokenized import IGNORED, TokenizedSet
from apt_ds.eval.held_out import evaluation_mode, held_out_loss, perplexity, rank_batches
from apt_ds.runtime import collectives
from tests.support import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
def test_ranks_share_items_in_equally_many_batches(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    by_rank = []
    for rank in range(2):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        by_rank.append(rank_batches(count, 2))
    assert len(by_rank[0]) == len(by_rank[1]) == math.ceil(count / 4)
    together = [i for pair in zip(*by_rank, strict=True) for batch in pair for i in batch]
    assert together == list(range(count))


@pytest.mark.parametrize("per_device", [1, 2, 5])
def test_the_mean_counts_trained_tokens(per_device: int) -> None:
    model = tiny.model().eval()
    rows = [{"input_ids": [5 + i] * n, "labels": [IGNORED, *range(20, 19 + n)]} for i, n in enumerate((3, 6, 2))]
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        losses += F.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="none").tolist()
    loss = held_out_loss(model, TokenizedSet.of(rows), LANGUAGE_MODEL, per_device, 0, CPU)
    assert len(losses) == 8 and loss == pytest.approx(sum(losses) / 8, rel=1e-5)


@pytest.mark.parametrize("per_device", [1, 2, 5])
def test_perplexity_counts_all_tokens_but_the_first(per_device: int) -> None:
    model, blocks = tiny.model().eval(), torch.arange(5, 29).view(3, 8)
    with torch.no_grad():
        logits = model(blocks).logits[:, :-1]
    mean = F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).item()
    assert perplexity(model, blocks, per_device, CPU) == pytest.approx(math.exp(mean), rel=1e-5)


def test_a_model_that_diverged_has_a_perplexity() -> None:
    model = tiny.model(tie_word_embeddings=False).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    value = perplexity(model, torch.arange(5, 29).view(3, 8), 1, CPU)
    assert value == pytest.approx(math.exp(80))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(training: bool) -> None:
    model = torch.nn.Dropout().train(training)
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training is training
