"""Token ids of texts made of segments, where no token spans the border of an answer.

A row is its segments, each tokenized in the context of the text before it. Most rows need a single tokenization: that
of the whole text, if it begins with the ids of the text before each border. This module checks that for many rows at
once. It tokenizes the few words before a border instead of all text before it, because fast tokenizers split a text
at their added tokens before anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from apt_ds.data.tokenized import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Piece = tuple[str, bool]  # a text, and whether it is trained
Ids = tuple[list[int], list[int]]  # token ids and labels, of one length

_TAILS = 4096  # texts before borders that are remembered
_SAMPLE = 8  # texts of which the splitting tokens are looked for


class _Tail(NamedTuple):
    """The text from the last splitting token before a border to the border.

    token: that token, '' where there is none. earlier: how many times it occurs before the tail.
    """

    text: str
    token: str
    earlier: int


class SegmentTokenizer:
    """Tokenizes rows of segments, many at once.

    Args:
        tokenizer: The tokenizer.
        lead: Ids before all text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lead: Sequence[int] = ()) -> None:
        self.tokenizer, self.lead = tokenizer, list(lead)
        self._known = splitting_tokens(tokenizer)
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        # any selection of them is right; hundreds of them would take long to look for
        self.splitting = {token: number for token, number in self._known.items() if token in template}
        self._tails: dict[str, list[int]] = {}

    def __call__(self, rows: Sequence[Sequence[Piece]]) -> list[Ids]:
        """Ids and labels of every row."""
        texts = ["".join(text for text, _ in row) for row in rows]
        if self._known:
            sample = "".join(texts[:_SAMPLE])
            self.splitting |= {token: number for token, number in self._known.items() if token in sample}
            self._known = {}
        tails = [self._tails_of(text, row) for text, row in zip(texts, rows, strict=True)]
        if len(self._tails) > _TAILS:
            self._tails.clear()
        missing = [tail for tail in dict.fromkeys(t.text for row in tails for t in row) if tail not in self._tails]
        found = self._plain([*texts, *missing])
        self._tails.update(zip(missing, found[len(texts) :], strict=True))
        made = []
        for row, text, ids, row_tails in zip(rows, texts, found, tails, strict=False):
            borders = self._borders(text, ids, row_tails)
            made.append(self._one_by_one(row) if borders is None else self._labelled(row, ids, borders))
        return made

    def _plain(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return found["input_ids"]

    def _tails_of(self, text: str, row: Sequence[Piece]) -> list[_Tail]:
        """What comes before each border inside a row."""
        tails, end = [], 0
        for piece, _ in row[:-1]:
            end += len(piece)
            start, token = max(((text.rfind(token, 0, end), token) for token in self.splitting), default=(-1, ""))
            if start < 0:
                tails.append(_Tail(text[:end], "", 0))
            else:
                tails.append(_Tail(text[start:end], token, text.count(token, 0, start)))
        return tails

    def _borders(self, text: str, ids: list[int], tails: list[_Tail]) -> list[int] | None:
        """How many of `ids`, those of `text`, come before each border; None where a token would span one."""
        borders: list[int] = []
        places: dict[str, list[int]] = {}
        for tail in tails:
            start = 0
            if tail.token:
                number = self.splitting[tail.token]
                if tail.token not in places:
                    places[tail.token] = [i for i, found in enumerate(ids) if found == number]
                    # an id may come from another text too, such as that of the unknown token
                    if len(places[tail.token]) != text.count(tail.token):
                        return None
                start = places[tail.token][tail.earlier]
            before = self._tails[tail.text]
            end = start + len(before)
            if ids[start:end] != before or (borders and end < borders[-1]):
                return None
            borders.append(end)
        return borders

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


def splitting_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The added tokens at which a tokenizer always splits a text, with their ids.

    A token that is part of another one is left out: where the other one occurs, it does not split. So is a token that
    takes the blanks around it, or that is looked for in normalized text. A tokenizer written in Python has none.
    """
    if not tokenizer.is_fast or getattr(tokenizer, "split_special_tokens", False):
        return {}
    added = tokenizer.added_tokens_decoder
    contents = [token.content for token in added.values()]
    beginnings = {content[:n] for content in contents for n in range(1, len(content))}
    endings = {content[-n:] for content in contents for n in range(1, len(content))}
    everything = "\0".join(contents)
    return {
        token.content: number
        for number, token in added.items()
        if not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        and everything.count(token.content) == 1
        and not any(token.content[:n] in endings or token.content[-n:] in beginnings for n in _lengths(token.content))
    }


def _lengths(content: str) -> range:
    return range(1, len(content))
