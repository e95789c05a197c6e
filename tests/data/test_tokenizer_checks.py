"""Tokenizers, special tokens and lengths that do not fit a model."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import tokenizer_checks
from tests.support import tiny


def test_a_fitting_tokenizer_passes() -> None:
    tokenizer_checks.check_tokenizer(tiny.tokenizer(), tiny.config())
    tokenizer_checks.check_tokenizer(tiny.framing_tokenizer(), tiny.small("bert-classes").config)


def test_ids_beyond_the_embeddings_are_refused() -> None:
    with pytest.raises(UserError, match="has ids up to"):
        tokenizer_checks.check_tokenizer(tiny.tokenizer(), tiny.config(vocab_size=10))


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_special_tokens_must_be_embedded(name: str) -> None:
    config = tiny.config()
    setattr(config, name, config.vocab_size)
    with pytest.raises(UserError, match=name):
        tokenizer_checks.check_ids(config)
    setattr(config, name, -1)
    tokenizer_checks.check_ids(config)


def test_a_length_must_leave_room_for_text() -> None:
    tokenizer = tiny.framing_tokenizer()
    framing = tokenizer.num_special_tokens_to_add(pair=True)
    tokenizer_checks.check_room(tokenizer, True, framing + 2)
    with pytest.raises(UserError, match="leaves no room"):
        tokenizer_checks.check_room(tokenizer, True, framing + 1)


def test_a_language_model_has_a_position_for_every_token() -> None:
    room = tiny.config().max_position_embeddings
    tokenizer_checks.check_lengths(tiny.config(), room, room)
    with pytest.raises(UserError, match=f"--max_seq_length {room} or less"):
        tokenizer_checks.check_lengths(tiny.config(), room + 1, 0)
    with pytest.raises(UserError, match=f"--perplexity_length {room + 1}"):
        tokenizer_checks.check_lengths(tiny.config(), room, room + 1)
