"""The special tokens that rows need: the end, the beginning, and padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apt_ds.config.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def resolve_pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the pad token, else the end token, since padding is masked anyway."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    end_token(tokenizer)
    return tokenizer.eos_token_id


def end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The end-of-sequence token, which ends an answer.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no end-of-sequence token. "
            "Set eos_token in its tokenizer_config.json"
        )
    return tokenizer.eos_token


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning token, where there is no template to write it and the tokenizer would add it itself."""
    if tokenizer.chat_template or tokenizer.bos_token_id is None:
        return []
    first = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []
