"""Speed and samples of the base model and the written model."""

from __future__ import annotations

import pytest

from apt_ds.training.model_figures import ModelFigures
from apt_ds.training.plain_models import NEW_TOKENS, add_speeds, prompt_length
from tests.support import tiny


def test_speeds_are_medians_of_the_parts() -> None:
    figures: ModelFigures = {}
    add_speeds(figures, [(0.5, 2.0), (9.0, 1.0), (0.25, 4.0)], length=100)
    assert figures["prefill_tokens_per_second"] == 200
    assert figures["decode_tokens_per_second"] == NEW_TOKENS / 2
    # the two parts in one
    assert figures["generated_tokens_per_second"] == pytest.approx(NEW_TOKENS / 2.5)


@pytest.mark.parametrize(("context", "expected"), [(4096, 256), (128, 128 - NEW_TOKENS), (16, 1)])
def test_prompt_and_new_tokens_fit_the_context(context: int, expected: int) -> None:
    model = tiny.model(max_position_embeddings=context)
    assert prompt_length(model) == expected
