"""What the host knows of a batch gives the masks that transformers makes by looking."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils

from apt_ds.data.batching import Batch, collate
from apt_ds.data.packing import pack
from apt_ds.losses.task_loss import encoder_inputs
from apt_ds.losses.token_losses import CausalLoss
from apt_ds.models.mask_checks import known_rows
from tests.support import tiny

LOOKS = ("find_packed_sequence_indices", "_ignore_bidirectional_mask_sdpa")


def rows(lengths: list[int]) -> list[dict[str, list[int]]]:
    return [{"input_ids": list(range(5, 5 + n)), "labels": list(range(5, 5 + n))} for n in lengths]


BATCHES = {
    "padded": collate(rows([8, 3]), 0),
    "full": collate(rows([8, 8]), 0),
    "packed": pack(rows([5, 3, 6]), 0, 16),
    "one example a row": pack(rows([8, 8]), 0, 8),
}
FACTS = {"padded": (True, False), "full": (False, False), "packed": (True, True), "one example a row": (False, False)}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_knows_its_rows(name: str) -> None:
    batch = BATCHES[name]
    assert (batch.padded, batch.packed) == FACTS[name]
    assert (batch.to("cpu").padded, batch.to("cpu").packed) == FACTS[name]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", BATCHES)
def test_a_causal_model_computes_the_same(name: str, attention: str) -> None:
    model, batch = tiny.model(attn_implementation=attention), BATCHES[name]
    inputs = CausalLoss().inputs(model, batch)
    expected = model(**inputs, use_cache=False).logits
    with known_rows(batch.packed, batch.padded):
        assert torch.equal(model(**inputs, use_cache=False).logits, expected)


@pytest.mark.parametrize("kind", ["bert-classes", "roberta-classes"])
@pytest.mark.parametrize("name", ["padded", "full"])
def test_an_encoder_computes_the_same(name: str, kind: str) -> None:
    model, batch = tiny.small(kind).eval(), BATCHES[name]
    expected = model(**encoder_inputs(batch)).logits
    with known_rows(batch.packed, batch.padded):
        assert torch.equal(model(**encoder_inputs(batch)).logits, expected)


@pytest.mark.parametrize("name", ["padded", "full"])
def test_an_encoder_with_a_decoder_computes_the_same(name: str) -> None:
    model, batch = tiny.small("t5").eval(), BATCHES[name]
    inputs = encoder_inputs(batch) | {"decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8]])}
    expected = model(**inputs).logits
    with known_rows(batch.packed, batch.padded):
        assert torch.equal(model(**inputs).logits, expected)


def test_the_facts_replace_the_looks() -> None:
    """A false fact shows, so that transformers does ask what is replaced here."""
    model, batch = tiny.small("bert-classes").eval(), BATCHES["padded"]
    right = model(**encoder_inputs(batch)).logits
    with known_rows(packed=False, padded=False):
        assert not torch.allclose(model(**encoder_inputs(batch)).logits, right)
    model, batch = tiny.model(attn_implementation="sdpa"), BATCHES["packed"]
    inputs = CausalLoss().inputs(model, batch)
    right = model(**inputs, use_cache=False).logits
    with known_rows(packed=False, padded=True):
        assert not torch.allclose(model(**inputs, use_cache=False).logits, right)


def test_unknown_rows_are_looked_at_and_the_looks_come_back() -> None:
    before = [getattr(masking_utils, name) for name in LOOKS]
    model, packed = tiny.model(attn_implementation="sdpa"), BATCHES["packed"]
    unknown = Batch(packed.input_ids, packed.attention_mask, position_ids=packed.position_ids)
    inputs = CausalLoss().inputs(model, unknown)
    expected = model(**inputs, use_cache=False).logits
    with known_rows(unknown.packed, unknown.padded):
        assert torch.equal(model(**inputs, use_cache=False).logits, expected)
    with pytest.raises(KeyError), known_rows(packed=True, padded=True):
        raise KeyError
    assert [getattr(masking_utils, name) for name in LOOKS] == before
