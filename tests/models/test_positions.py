"""Encoders have a limited number of positions."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.models.positions import check_positions
from tests.support import tiny


@pytest.mark.parametrize(("kind", "room"), [("bert-classes", 64), ("roberta-answers", 63), ("deberta-classes", 64)])
def test_an_encoder_has_a_position_for_every_token(kind: str, room: int) -> None:
    config = tiny.small(kind).config
    check_positions(config, room)
    with pytest.raises(UserError, match=f"--max_seq_length {room + 1} is more than the model's {room} positions"):
        check_positions(config, room + 1)


def test_other_models_are_not_limited_here() -> None:
    check_positions(tiny.config(max_position_embeddings=128), 129)
    check_positions(tiny.small("t5").config, 100_000)
