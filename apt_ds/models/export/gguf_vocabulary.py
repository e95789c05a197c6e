"""A BPE over pieces of SentencePiece in GGUF. It runs in the process of `gguf_worker.py`."""

from __future__ import annotations

import importlib
import json
from typing import Any


def add_merged_pieces(writer: Any, tokenizer: dict[str, Any]) -> None:
    """Write a BPE over pieces of SentencePiece as llama.cpp's `llama` vocabulary, which merges by scores.

    The score of a token is minus the rank of the merge that makes it, so that both merge in the same order.
    """
    gguf = importlib.import_module("gguf")
    ids, added = tokenizer["model"]["vocab"], {token["id"]: token for token in tokenizer["added_tokens"]}
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(tokenizer["model"]["merges"]):
        ranks.setdefault("".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1), rank)
    count = writer.hparams["vocab_size"]
    texts = {number: text for text, number in ids.items()} | {
        number: token["content"] for number, token in added.items()
    }
    tokens, scores, types = [], [], []
    unknown, kinds = tokenizer["model"].get("unk_token"), gguf.TokenType
    for number in range(count):
        text = texts.get(number)
        tokens.append((f"[PAD{number}]" if text is None else text).encode())
        scores.append(float(-ranks[text]) if text in ranks else -1e6)
        if text is None:
            types.append(kinds.UNUSED)
        elif text == unknown:
            types.append(kinds.UNKNOWN)
        elif number in added:
            types.append(kinds.CONTROL if added[number]["special"] else kinds.USER_DEFINED)
        else:
            types.append(kinds.BYTE if is_byte(text) else kinds.NORMAL)
    out = writer.gguf_writer
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_scores(scores)
    out.add_token_types(types)
    out.add_add_space_prefix(adds_space(tokenizer))
    gguf.SpecialVocab(writer.dir_model, n_vocab=count).add_to_gguf(out)


def adds_space(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer puts a space before a text."""
    rules = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")])
    return '"Prepend"' in rules or '"prepend_scheme": "first"' in rules or '"prepend_scheme": "always"' in rules


def is_byte(text: str) -> bool:
    """Whether a token stands for a byte: <0x00> to <0xFF>."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
