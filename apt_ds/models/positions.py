"""Whether a model has a position for every token of an example."""

from __future__ import annotations

from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import architecture_of


def check_positions(config: PretrainedConfig, max_length: int) -> None:
    """Check that an encoder has positions for `max_length` tokens. Relative positions have no limit.

    A language model is checked by `data.tokenizer_checks.check_lengths`, once the length of its examples is known.

    Raises:
        UserError: `max_length` is larger than the number of positions.
    """
    spec = architecture_of(config)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or LANGUAGE_MODEL in spec.stock_classes:
        return
    room = positions - spec.position_offset(config)
    if max_length > room:
        raise UserError(f"--max_seq_length {max_length} is more than the model's {room} positions; lower it")
