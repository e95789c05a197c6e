"""Scores of the answer letters: neither batches nor a reused prefix change them."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from apt_ds.config.errors import UserError
from apt_ds.eval import mmlu
from apt_ds.eval.choice_scores import Encoder, choice_scores, shared_length
from tests.support import tiny
from tests.support.mmlu_fixtures import model, small_set, tokenizer


def whole_scores(llama: LlamaForCausalLM, encoder: Encoder, prompts: list[str]) -> torch.Tensor:
    """One prompt at a time, nothing padded, nothing reused."""
    rows = [torch.tensor([row]) for row in encoder(prompts)]
    with torch.no_grad():
        return torch.cat([llama(row).logits[:, -1].log_softmax(-1)[:, encoder.choice_ids] for row in rows])


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_the_reused_prefix_changes_nothing(kind: str) -> None:
    llama, encoder, asked = model(kind=kind), Encoder(tokenizer()), small_set()
    for subject, rows in asked.test.items():
        prompts = [mmlu.prompt(question, asked.dev[subject]) for question in rows]
        expected = whole_scores(llama, encoder, prompts)
        ids = encoder(prompts)
        prefix = shared_length(ids)
        assert prefix > 100 and min(map(len, ids)) - prefix < 40
        for reused in (prefix, 0):
            scores = choice_scores(llama, ids, encoder.choice_ids, 4, torch.device("cpu"), reused)
            assert torch.allclose(scores, expected, atol=1e-4)
            assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_one_prompt_alone_still_has_a_token_of_its_own() -> None:
    assert shared_length([[1, 2, 3]]) == 2
    assert shared_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_length([[1, 2], [1, 2, 3]]) == 1
    assert shared_length([[1, 2], [3]]) == 0


def test_a_tokenizer_without_letters_is_refused() -> None:
    with pytest.raises(UserError, match="no single token for each of ' A'"):
        Encoder(tiny.tokenizer())
