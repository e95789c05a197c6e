"""Token ids of texts made of segments, where no token spans the border of an answer.

A row is its segments, each tokenized in the context of the text before it. Most rows need a single tokenization: that
of the whole text, if it begins with the ids of the text before each border. This module checks that for many rows at
once. Fast tokenizers split a text at their added tokens before anything else. So the ids of a text are those of its
parts that begin at such tokens, and a border concerns one part alone. Equal parts of many rows are tokenized once, and
so are equal words where `word_ids.py` can split a part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from apt_ds.data.tokenized import IGNORED
from apt_ds.data.word_ids import WordIds, plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Piece = tuple[str, bool]  # a text, and whether it is trained
Ids = tuple[list[int], list[int]]  # token ids and labels, of one length

_SAMPLE = 8  # texts of which the splitting tokens are looked for


class SegmentTokenizer:
    """Tokenizes rows of segments, many at once.

    Args:
        tokenizer: The tokenizer.
        lead: Ids before all text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lead: Sequence[int] = ()) -> None:
        self.tokenizer, self.lead = tokenizer, list(lead)
        self._known = splitting_tokens(tokenizer)
        self._words = WordIds(tokenizer, self._known)
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        # any selection of them is right. Hundreds of them would take long to look for
        self._split_at({token for token in self._known if token in template})

    def _split_at(self, tokens: set[str]) -> None:
        self.splitting = tokens
        self._parts = re.compile("(?=" + "|".join(map(re.escape, sorted(tokens))) + ")") if tokens else None

    def __call__(self, rows: Sequence[Sequence[Piece]]) -> list[Ids]:
        """Ids and labels of every row."""
        texts = ["".join(text for text, _ in row) for row in rows]
        if self._known:
            sample = "".join(texts[:_SAMPLE])
            self._split_at(self.splitting | {token for token in self._known if token in sample})
            self._known = set()
        parts = [[part for part in self._parts.split(text) if part] if self._parts else [text] for text in texts]
        tails = [_tails(row, own) for row, own in zip(rows, parts, strict=True)]
        wanted = dict.fromkeys(chain(chain.from_iterable(parts), (tail for row in tails for _, tail in row)))
        ids = dict(zip(wanted, self._plain(list(wanted)), strict=True))
        labelled = []
        for row, own, row_tails in zip(rows, parts, tails, strict=True):
            whole, borders = _joined([ids[part] for part in own], [(place, ids[tail]) for place, tail in row_tails])
            labelled.append(self._one_by_one(row) if borders is None else self._labelled(row, whole, borders))
        return labelled

    def _plain(self, texts: list[str]) -> list[list[int]]:
        known = self._words(texts)
        whole = [text for text, ids in zip(texts, known, strict=True) if ids is None]
        rest = iter(plain_ids(self.tokenizer, whole) if whole else [])
        return [next(rest) if ids is None else ids for ids in known]

    def _labelled(self, row: Sequence[Piece], ids: list[int], borders: list[int]) -> Ids:
        shift = len(self.lead)
        labels = [IGNORED] * (shift + len(ids))
        for (_, trained), start, end in zip(row, [0, *borders], [*borders, len(ids)], strict=True):
            if trained:
                labels[shift + start : shift + end] = ids[start:end]
        return [*self.lead, *ids], labels

    def _one_by_one(self, row: Sequence[Piece]) -> Ids:
        """Tokenizes up to every border.

        Where tokenizing on would merge across a border, the ids before it stay and the text starts afresh.
        """
        ids, labels = list(self.lead), [IGNORED] * len(self.lead)
        fixed, text = list(self.lead), ""
        for piece, trained in row:
            longer = fixed + self._plain([text + piece])[0]
            if longer[: len(ids)] != ids:
                fixed, text = ids, ""
                longer = fixed + self._plain([piece])[0]
            text += piece
            labels += longer[len(ids) :] if trained else [IGNORED] * (len(longer) - len(ids))
            ids = longer
        return ids, labels


def _tails(row: Sequence[Piece], parts: Sequence[str]) -> list[tuple[int, str]]:
    """For each border inside a row, the number of the part that holds it, and that part's text before it."""
    tails: list[tuple[int, str]] = []
    border = start = number = 0
    for piece, _ in row[:-1]:
        border += len(piece)
        while number < len(parts) and start + len(parts[number]) < border:
            start += len(parts[number])
            number += 1
        tails.append((number, parts[number][: border - start] if parts else ""))
    return tails


def _joined(parts: list[list[int]], tails: list[tuple[int, list[int]]]) -> tuple[list[int], list[int] | None]:
    """The ids of a row, and how many of them come before each border. None where a token would span one."""
    starts = [0, *accumulate(map(len, parts))]
    borders: list[int] = []
    for number, before in tails:
        end = starts[number] + len(before)
        if (parts[number] if parts else [])[: len(before)] != before or (borders and end < borders[-1]):
            return [], None
        borders.append(end)
    return list(chain.from_iterable(parts)), borders


def splitting_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The added tokens at which a tokenizer always splits a text.

    A token that is part of another one is left out: where the other one occurs, it does not split. So is a token that
    takes the blanks around it, or that is looked for in normalized text. A tokenizer written in Python has none.
    """
    if not tokenizer.is_fast or getattr(tokenizer, "split_special_tokens", False):
        return set()
    added = tokenizer.added_tokens_decoder
    contents = [token.content for token in added.values()]
    beginnings = {content[:n] for content in contents for n in range(1, len(content))}
    endings = {content[-n:] for content in contents for n in range(1, len(content))}
    everything = "\0".join(contents)
    return {
        token.content
        for token in added.values()
        if not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        and everything.count(token.content) == 1
        and not any(token.content[:n] in endings or token.content[-n:] in beginnings for n in _lengths(token.content))
    }


def _lengths(content: str) -> range:
    return range(1, len(content))
