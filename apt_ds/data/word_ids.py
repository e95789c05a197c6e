"""Token ids of texts from those of their words, each of which the tokenizer sees once.

A tokenizer over bytes splits a text at its added tokens, then into words by regular expressions. It makes the tokens of
each word alone. So the ids of a text are those of its words, and most words of a data set occur in many rows. Texts are
split here if they have only ASCII, letters of Latin-1 and common punctuation: no version of Unicode changes those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# the expression of `ByteLevel` in the package tokenizers, which is GPT-2's
GPT_2 = r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
UPPER, LOWER = "A-Z\u00c0-\u00d6\u00d8-\u00de", "a-z\u00df-\u00f6\u00f8-\u00ff"
# dashes, quotation marks, bullet, ellipsis and degree
PUNCTUATION = "\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u00b0"
# classes of characters, of those that `OTHER` leaves
CLASSES = {r"\s": r"\t\n\r ", r"\p{L}": UPPER + LOWER, r"\p{N}": "0-9", r"\p{Lu}": UPPER, r"\p{Ll}": LOWER}
CLASSES |= dict.fromkeys((r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}"), "")
NO_BLANK = r"\S"
OTHER = re.compile(rf"[^\t\n\r -~{UPPER}{LOWER}{PUNCTUATION}]")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # those of ASCII
MOST = 1 << 17  # words that are remembered

_SIGN = re.compile(r"\\p\{\w+\}|\\.|[\[\]]|[^\\\[\]]+", re.DOTALL)
_PROBE = [
    *"abcxyzABCXYZ0123456789 \n\t.,;:!?'\"()[]{}<>|_-/\\#@$%&*+=~`^",
    *("  ", "\n\n", "\r\n", "'s", "'LL", " the", "\u00e9", "\u00c4", "\u00df", *PUNCTUATION),
]

Patterns = list[re.Pattern[str]]


class WordIds:
    """Makes token ids of texts. Keep it for many calls: it remembers words.

    Args:
        tokenizer: The tokenizer.
        splitting: Added tokens at which it splits a text before anything else.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, splitting: Collection[str]) -> None:
        self.tokenizer = tokenizer
        self.patterns = word_patterns(tokenizer)
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self.added = re.compile(f"({'|'.join(map(re.escape, sorted(added, reverse=True)))})") if added else None
        self.split_at = {content: [added[content]] for content in splitting}
        self.known = dict(self.split_at)
        if self.patterns is not None and not self._agrees():
            self.patterns = None

    def __call__(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The ids of every text. None where the text must be tokenized as a whole."""
        if self.patterns is None:
            return [None] * len(texts)
        split = [self._words_of(text) for text in texts]
        wanted = set().union(*(words for words in split if words))
        if len(self.known) + len(wanted) > MOST:
            self.known = dict(self.split_at)
        self._learn([word for word in wanted if word not in self.known])
        return [None if words is None else self._joined(words) for words in split]

    def _joined(self, words: list[str]) -> list[int] | None:
        try:
            return list(chain.from_iterable(map(self.known.__getitem__, words)))
        except KeyError:
            return None

    def _words_of(self, text: str) -> list[str] | None:
        """The words and added tokens of a text. None: it is not split here."""
        if (CONTROL if text.isascii() else OTHER).search(text):
            return None
        words: list[str] = []
        for number, part in enumerate(self.added.split(text) if self.added else [text]):
            if number % 2 == 0:
                words += self._split(part)
            elif part in self.split_at:
                words.append(part)
            else:
                return None  # a token that takes blanks, or is found in another way
        return words if sum(map(len, words)) == len(text) else None

    def _split(self, part: str) -> list[str]:
        assert self.patterns is not None
        words = [part]
        for pattern in self.patterns:
            find = pattern.findall
            words = find(words[0]) if len(words) == 1 else [word for piece in words for word in find(piece)]
        return words

    def _learn(self, words: list[str]) -> None:
        """Ask the tokenizer for the ids of words. One that is split where it is alone stays unknown."""
        whole = [word for word in words if self._split(word) == [word]]
        if whole:
            self.known.update(zip(whole, plain_ids(self.tokenizer, whole), strict=True))

    def _agrees(self) -> bool:
        """Whether the ids of drawn texts are the tokenizer's."""
        draw = Random(0)
        texts = ["".join(draw.choices(_PROBE, k=400)) for _ in range(8)]
        expected = plain_ids(self.tokenizer, texts)
        return all(ids in (None, whole) for ids, whole in zip(self(texts), expected, strict=True))


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The tokenizer's ids of whole texts, without special tokens of its own."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def word_patterns(tokenizer: PreTrainedTokenizerBase) -> Patterns | None:
    """Expressions that split a text into words, one after another. None: this module cannot split it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not tokenizer.is_fast or getattr(backend.model, "dropout", None):
        return None
    normalizer = _described(backend.normalizer)
    if normalizer and normalizer["type"] != "NFC":  # which leaves these characters as they are
        return None
    splitter = _described(backend.pre_tokenizer)
    steps = splitter.get("pretokenizers", [splitter]) if splitter else []
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    expressions = [_expression(step) for step in steps]
    if None in expressions:
        return None
    try:
        return [re.compile(expression) for expression in expressions if expression]
    except re.error:
        return None


def _described(part: Any) -> dict[str, Any]:
    """What a part of a tokenizer is, as tokenizer.json says it. {}: there is none."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _expression(step: dict[str, Any]) -> str | None:
    """The expression of a step. '': it splits nothing. None: it is not known here."""
    if step["type"] == "ByteLevel":
        return spelled_out(GPT_2) if step.get("use_regex", True) else ""
    if step["type"] == "Digits":
        return "[0-9]|[^0-9]+" if step["individual_digits"] else "[0-9]+|[^0-9]+"
    isolated = (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True))
    if step["type"] == "Split" and isolated and "Regex" in step["pattern"]:
        return spelled_out(step["pattern"]["Regex"])
    return None


def spelled_out(expression: str) -> str | None:
    """An expression with `CLASSES` written out, without groups that capture. None: it has other classes."""
    signs, inside = [], False
    for sign in _SIGN.findall(expression):
        characters = CLASSES.get(sign.replace("S", "s"))
        if characters is not None:
            if (sign == NO_BLANK and inside) or (not characters and not inside):
                return None
            signs.append(characters if inside else f"[{'^' if sign == NO_BLANK else ''}{characters}]")
        elif sign[0] == "\\" and (len(sign) > 2 or (sign[1].isalnum() and sign[1] not in "rnt")):
            return None
        elif sign in "[]" and inside == (sign == "["):
            return None  # a class in a class
        elif not inside and re.search(r"[$^]|\}\+", sign):
            return None  # tokenizers has these at every line, and reads `{1,3}+` as any number of times
        else:
            inside = sign == "[" if sign in "[]" else inside
            signs.append(sign if inside else re.sub(r"\((?!\?)", "(?:", sign))
    return "".join(signs)
