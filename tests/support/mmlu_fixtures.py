"""A small MMLU: questions, a tokenizer with letters, models that answer, and folders with all of these."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from apt_ds.data import mmlu as data
from apt_ds.data.mmlu import Mmlu, Question
from apt_ds.eval.choice_scores import Encoder
from tests.support import tiny

SUBJECTS = ("anatomy", "college_physics", "world_religions")


def questions(subject: str, count: int, first: int = 0) -> list[Question]:
    """Questions of different lengths. Their answers are A, B, C, D in turn."""
    asked = []
    for i in range(first, first + count):
        words = [tiny.WORDS[(7 * i + k) % len(tiny.WORDS)] for k in range(8)]
        text = " ".join([*words[: 2 + i % 5], f"w{i}"])
        asked.append(Question(subject, text, (words[4], words[5], words[6], f"w{i + 100}"), i % 4, i + 1))
    return asked


def small_set(count: int = 11) -> Mmlu:
    return Mmlu({s: questions(s, 5, 50) for s in SUBJECTS}, {s: questions(s, count) for s in SUBJECTS})


def write_folder(folder: Path, asked: Mmlu) -> Path:
    """Write questions as the CSV files of the original MMLU."""
    for split, part in (("dev", asked.dev), ("test", asked.test)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for subject, rows in part.items():
            lines = [",".join([q.text, *q.choices, data.LETTERS[q.answer]]) for q in rows]
            (folder / split / f"{subject}_{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf8")
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer. Letters and the words of the fixed text replace words that the questions do not use."""
    fixed = [*"ABCD", "Answer", ":", ".", "The", "following", "are", "multiple", "choice", "questions"]
    fixed += ["(", "with", "answers", ")", "about", "anatomy", "college", "physics", "world", "religions"]
    spec = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    vocabulary = {word: i for word, i in spec["model"]["vocab"].items() if i < 200}
    spec["model"]["vocab"] = vocabulary | {word: 200 + i for i, word in enumerate(fixed)}
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
    )


def model(**changes: object) -> LlamaForCausalLM:
    # with this seed the answers differ between questions
    return tiny.model(seed=10, max_position_embeddings=512, **changes)


def planted(letter: str) -> LlamaForCausalLM:
    """A model that always answers `letter`: the head reads a constant that every position has."""
    llama = model(tie_word_embeddings=False)
    ids = Encoder(tokenizer()).choice_ids
    with torch.no_grad():
        # a constant through the residual stream: the last norm sees it in every position
        llama.model.embed_tokens.weight[:, 0] = 1000.0
        llama.model.norm.weight[0] = 1.0
        llama.lm_head.weight[ids, 0] = 0.0
        llama.lm_head.weight[ids[data.LETTERS.index(letter)], 0] = 100.0
    return llama


def write_exam(folder: Path) -> Path:
    """Write `model` and `data` to a folder."""
    model().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    write_folder(folder / "data", small_set())
    return folder
