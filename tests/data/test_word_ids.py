"""Ids of a text from its words are those of the whole text."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from apt_ds.data import word_ids
from apt_ds.data.conversations import builtin_path
from apt_ds.data.segments import splitting_tokens
from apt_ds.data.word_ids import WordIds, plain_ids, spelled_out, word_patterns

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT_4O = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|\s+|."
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split_by(expression: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), BYTES])


SPLITTERS = {
    "GPT-2": GPT_2,
    "SmolLM": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2]),
    "LLaMA 3": split_by(LLAMA_3),
    "Qwen2": split_by(QWEN_2),
    "GPT-4o": split_by(GPT_4O),
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of people, and drawn ones with what texts of people seldom have."""
    lines = builtin_path().read_text(encoding="utf8").splitlines()[:150]
    prompts = ["<|im_start|>user\n" + json.loads(line)["instruction"] + "<|im_end|>\n" for line in lines]
    draw = Random(1)
    signs = [
        *"aZ09 \n\t\r.'\"-\u00e9\u00df\u2019\u2026\u00a0\u00aa\u0130\u3042\U0001f600e\u0301\x1c\x0b",
        "  ",
        "'S",
        "x1",
    ]
    signs += ["<|im_start|>", "<|im_end|>", "<pad>"]
    return prompts + ["".join(draw.choices(signs, k=30)) for _ in range(300)] + ["", " ", "\n\n"]


def trained_tokenizer(splitter: Any, texts: list[str], normalizer: Any = None) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = splitter
    if normalizer:
        inner.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<pad>"])  # found in normalized text, so that it is no splitting token
    return tokenizer


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["as it is", "NFC"])
@pytest.mark.parametrize("name", SPLITTERS)
def test_ids_of_words_are_those_of_the_text(name: str, normalizer: Any, texts: list[str]) -> None:
    tokenizer = trained_tokenizer(SPLITTERS[name], texts, normalizer)
    words = WordIds(tokenizer, splitting_tokens(tokenizer))
    for _ in range(2):  # with words that are new, and with known ones
        ids_of_words = words(texts)
        assert [
            a if a is None else b for a, b in zip(ids_of_words, plain_ids(tokenizer, texts), strict=True)
        ] == ids_of_words
        assert sum(ids is not None for ids in ids_of_words[:150]) > 140 and None in ids_of_words


def test_a_full_memory_is_emptied(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = trained_tokenizer(GPT_2, texts)
    words = WordIds(tokenizer, splitting_tokens(tokenizer))
    monkeypatch.setattr(word_ids, "MOST", 50)
    for text in texts[:40]:
        assert words([text]) in ([None], plain_ids(tokenizer, [text]))
    assert len(words.known) < 100


def test_what_is_not_known_is_tokenized_whole(texts: list[str]) -> None:
    others = {
        "a prefix": (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        "a lower case": (GPT_2, normalizers.Lowercase()),
        "a compatible form": (GPT_2, normalizers.NFKC()),
        "another splitter": (pre_tokenizers.Whitespace(), None),
        "another class": (split_by(r"\p{Han}+|\P{L}+|\p{L}+"), None),
    }
    for name, (splitter, normalizer) in others.items():
        tokenizer = trained_tokenizer(splitter, texts, normalizer)
        assert word_patterns(tokenizer) is None, name
        assert WordIds(tokenizer, ())(["a text", ""]) == [None, None]


def test_a_tokenizer_that_answers_otherwise_is_left_alone(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the expressions say is compared with the tokenizer before it is used."""
    tokenizer = trained_tokenizer(SPLITTERS["SmolLM"], texts)
    monkeypatch.setattr(word_ids, "word_patterns", lambda _: word_patterns(trained_tokenizer(GPT_2, texts)))
    assert WordIds(tokenizer, splitting_tokens(tokenizer))(["no. 1234 and 56 words"]) == [None]


def test_classes_are_spelled_out() -> None:
    assert spelled_out(r"[^\s\p{N}]+(a|\p{N})\S") == r"[^\t\n\r 0-9]+(?:a|[0-9])[^\t\n\r ]"
    unlike = (r"\d", r"[[a]]", r"[\S]", r"\p{M}", r"\bx", r"\p{N}{1,3}+", r"\s+$")
    assert [spelled_out(wrong) for wrong in unlike] == [None] * 7
