"""The scorer learns which tokens count from the arguments of the forward pass."""

from __future__ import annotations

import torch

from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning.salience import Salience
from apt_ds.training.hf_micro_batch import announce
from tests.support import tiny


def scorer(model: torch.nn.Module, task: str = "language model") -> Salience:
    anatomy = anatomy_of(model.config, task)  # type: ignore[arg-type]
    return Salience(anatomy, 0.85, "off", 0.0, torch.device("cpu"))


def test_padding_does_not_count() -> None:
    salience, mask = scorer(tiny.model()), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    announce(salience, (), {"input_ids": tiny.ids(2, 4), "attention_mask": mask}, torch.float32)
    assert salience.tokens is not None and salience.tokens.members is None and salience.tokens.rows == 2
    assert torch.equal(salience.tokens.valid, mask.reshape(1, -1).float())


def test_without_a_mask_all_tokens_count_and_positions_part_examples() -> None:
    salience = scorer(tiny.model())
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    announce(salience, (tiny.ids(1, 5),), {"position_ids": positions}, torch.float32)
    assert salience.tokens is not None and salience.tokens.members is not None
    assert salience.tokens.members.tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]


def test_a_decoder_counts_tokens_with_a_label() -> None:
    salience = scorer(tiny.small("t5"), "generation")
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    announce(salience, (), {"input_ids": tiny.ids(2, 4), "labels": labels}, torch.float32)
    assert salience.decoder_tokens is not None
    assert salience.decoder_tokens.valid.tolist() == [[1, 1, 0, 1, 0, 0]]
