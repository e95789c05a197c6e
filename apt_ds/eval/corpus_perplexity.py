"""Perplexity of a corpus, with what it depends on: block length, what each block begins with, tokens counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data.text import read_plain
from apt_ds.eval.held_out import perplexity
from apt_ds.eval.loading import LoadedModel
from apt_ds.runtime import zero

JOINT = "\n\n"  # between the rows of a data set


@dataclass(frozen=True)
class Corpus:
    """A text file, or a data set of the hub or a folder: `subset`, `split` and `column` are for these."""

    name: str
    subset: str = ""
    split: str = "test"
    column: str = "text"

    def text(self) -> str:
        """All of it. Raises UserError if it cannot be read."""
        path = Path(self.name)
        if path.is_file():
            return read_plain(path, "--perplexity")
        return JOINT.join(self._rows())

    def _rows(self) -> list[str]:
        from datasets import load_dataset

        try:
            rows: Any = load_dataset(self.name, self.subset or None, split=self.split)
        except Exception as error:  # the library raises whatever its parts do
            text = " ".join(str(error).split())[:160]
            raise UserError(
                f"--perplexity {self.name!r} is no text file, nor a data set that can be loaded ({text}); "
                "see --subset and --split"
            ) from None
        if self.column not in rows.column_names:
            raise UserError(f"--column {self.column!r} is not in {self.name}; it has {', '.join(rows.column_names)}")
        return list(rows[self.column])


def token_blocks(text: str, tokenizer: PreTrainedTokenizerBase, length: int, bos: bool, name: str) -> torch.Tensor:
    """Token ids [n, length]; with `bos` each block is the BOS token and length - 1 of the text. The rest is dropped.

    Raises:
        UserError: less than one block, or no BOS token.
    """
    if bos and tokenizer.bos_token_id is None:
        raise UserError("--bos: this tokenizer has no BOS token; leave --bos out")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0].long()
    own = length - bos
    if len(ids) < own:
        raise UserError(f"--perplexity: {name} holds {len(ids)} tokens, fewer than one block of {length}")
    blocks = ids[: len(ids) // own * own].view(-1, own)
    if not bos:
        return blocks
    return torch.cat([torch.full((len(blocks), 1), tokenizer.bos_token_id), blocks], dim=1)


def judge(
    judged: LoadedModel, text: str, length: int, bos: bool, batch_size: int, name: str = "the text"
) -> dict[str, Any]:
    """`perplexity`, and `tokens` (predicted), `blocks`, `block_length`, `bos`. Collective."""
    room = getattr(judged.model.config, "max_position_embeddings", None) or length
    if length > room:
        raise UserError(f"--block_length {length} is longer than the model's context of {room} tokens")
    blocks = token_blocks(text, judged.tokenizer, length, bos, name)
    return {
        "perplexity": perplexity(judged.runner, blocks, batch_size, zero.device()),
        "tokens": len(blocks) * (length - 1),
        "blocks": len(blocks),
        "block_length": length,
        "bos": bos,
    }


def render(figures: dict[str, Any]) -> str:
    """One line that says all the number depends on."""
    start = "each begins with BOS" if figures["bos"] else "no BOS, the first token of a block is not predicted"
    return (
        f"perplexity {figures['perplexity']:.4f}: {figures['blocks']} blocks of {figures['block_length']} tokens, "
        f"{start}; {figures['tokens']} tokens predicted"
    )
