"""Perplexity of a corpus, with all that it depends on: block length, start of a block, predicted tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data.sources import parse_sources
from apt_ds.data.text_slices import short_names, text_part
from apt_ds.eval.held_out import perplexity
from apt_ds.eval.loading import LoadedModel
from apt_ds.runtime import zero

SEPARATOR = "\n\n"  # between the rows of a data set


@dataclass(frozen=True)
class Corpus:
    """A text file, or a column of a data set.

    Attributes:
        name: A text file or a slice of one, a data set of the hub, or a folder that holds one.
        subset: Configuration of the data set.
        split: Split of the data set.
        column: Column of the data set.
    """

    name: str
    subset: str = ""
    split: str = "test"
    column: str = "text"

    def text(self) -> str:
        """The whole text.

        Raises:
            UserError: The corpus cannot be read.
        """
        if self.is_file():
            return text_part(self.name, "--perplexity").read("--perplexity")
        return SEPARATOR.join(self._rows())

    def is_file(self) -> bool:
        """Whether it is a text file."""
        return os.path.isfile(text_part(self.name, "--perplexity").path)

    def _rows(self) -> list[str]:
        from datasets import load_dataset

        try:
            rows: Any = load_dataset(self.name, self.subset or None, split=self.split)
        except Exception as error:  # `datasets` has no common error type
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"--perplexity {self.name!r} is neither a text file nor a data set that can be loaded ({reason}); "
                "see --subset and --split"
            ) from None
        if self.column not in rows.column_names:
            raise UserError(f"--column {self.column!r} is not in {self.name}; it has {', '.join(rows.column_names)}")
        return list(rows[self.column])


def token_blocks(
    text: str, tokenizer: PreTrainedTokenizerBase, length: int, *, source: str, bos: bool = False, limit: int = 0
) -> Tensor:
    """A text as blocks of token ids. The rest that fills no block is dropped.

    Args:
        text: The corpus.
        tokenizer: It adds no special token.
        length: Tokens of a block.
        source: The option and the file that an error names.
        bos: Whether each block is the BOS token and `length` - 1 tokens of the text.
        limit: At most this many blocks, spread evenly over the text. 0 keeps all.

    Returns:
        int64 [n, length].

    Raises:
        UserError: The text has less than one block, or the tokenizer has no BOS token.
    """
    bos_id = tokenizer.bos_token_id
    if bos and bos_id is None:
        raise UserError("--bos: this tokenizer has no BOS token; leave --bos out")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0].long()
    text_tokens = length - bos
    if len(ids) < text_tokens:
        raise UserError(f"{source} holds {len(ids)} tokens, fewer than one block of {length}")
    blocks = ids[: len(ids) // text_tokens * text_tokens].view(-1, text_tokens)
    if bos:
        blocks = torch.cat([blocks.new_full((len(blocks), 1), bos_id), blocks], dim=1)
    return blocks if not limit else blocks[torch.linspace(0, len(blocks) - 1, min(limit, len(blocks))).long()]


def text_blocks(
    paths: str, tokenizer: PreTrainedTokenizerBase, length: int, *, flag: str, bos: bool = False, limit: int = 0
) -> dict[str, Tensor]:
    """Blocks of the texts that an option names, by short names. See `token_blocks`.

    Args:
        paths: Text files, or slices of them, comma-separated.
        tokenizer: It adds no special token.
        length: Tokens of a block.
        flag: The option that an error names.
        bos: Whether each block begins with the BOS token.
        limit: At most this many blocks of each text. 0 keeps all.

    Raises:
        UserError: A text cannot be read or has less than one block, or two names mean the same text.
    """
    sources = parse_sources(paths, flag)
    if weighted := next((source for source in sources if source.weight is not None), None):
        raise UserError(f"{flag}: {weighted.name!r} has a weight: each text is measured alone, give no weights")
    names = [source.name for source in sources]
    return {
        short: token_blocks(
            text_part(name, flag).read(flag), tokenizer, length, source=f"{flag} {name!r}", bos=bos, limit=limit
        )
        for short, name in zip(short_names(names), names, strict=True)
    }


def evaluate(
    loaded: LoadedModel, text: str, length: int, bos: bool, batch_size: int, name: str = "the text"
) -> dict[str, Any]:
    """Perplexity of a text. Collective.

    Args:
        loaded: A causal language model.
        text: The corpus.
        length: Tokens of a block.
        bos: Whether each block starts with the BOS token.
        batch_size: Blocks per device and forward pass.
        name: The name of the corpus in errors.

    Returns:
        `perplexity`, `tokens` (predicted), `blocks`, `block_length`, `bos`.

    Raises:
        UserError: A block exceeds the model's context, or see `token_blocks`.
    """
    context = getattr(loaded.model.config, "max_position_embeddings", None) or length
    if length > context:
        raise UserError(f"--block_length {length} is longer than the model's context of {context} tokens")
    blocks = token_blocks(text, loaded.tokenizer, length, source=f"--perplexity: {name}", bos=bos)
    return {
        "perplexity": perplexity(loaded.runner, blocks, batch_size, zero.device()),
        "tokens": len(blocks) * (length - 1),
        "blocks": len(blocks),
        "block_length": length,
        "bos": bos,
    }


def render(figures: dict[str, Any]) -> str:
    """One line with the perplexity and all that it depends on."""
    start = "each begins with BOS" if figures["bos"] else "no BOS, the first token of a block is not predicted"
    return (
        f"perplexity {figures['perplexity']:.4f}: {figures['blocks']} blocks of {figures['block_length']} tokens, "
        f"{start}; {figures['tokens']} tokens predicted"
    )
