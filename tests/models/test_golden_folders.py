"""Folders that earlier versions wrote still load and answer as they did (`tests/support/golden_folders.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from apt_ds.eval import loading
from tests.support import tiny
from tests.support.elsewhere import ELSEWHERE
from tests.support.golden_folders import ANSWERS, PLACE

FOLDERS = sorted(path for path in PLACE.glob("*/*") if path.is_dir())
ANSWER = """
import sys, torch
from transformers import AutoModelForCausalLM
sys.modules["apt_ds"] = None
folders, answers = torch.load(sys.argv[1]), {}
for folder, ids in folders.items():
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=folder.endswith("adaptive"))
    answers[folder] = model(ids).logits.detach()
torch.save(answers, sys.argv[1] + ".out")
"""


def test_there_are_both_structures() -> None:
    assert {path.name for path in FOLDERS} == {"uniform", "adaptive"}


def test_they_load_where_this_package_is_not_installed(tmp_path: Path) -> None:
    recorded = {str(folder): load_file(folder / ANSWERS) for folder in FOLDERS}
    torch.save({folder: answers["input_ids"] for folder, answers in recorded.items()}, tmp_path / "calls.pt")
    ELSEWHERE.run(ANSWER, tmp_path / "calls.pt")
    logits = torch.load(tmp_path / "calls.pt.out")
    for folder, answers in recorded.items():
        torch.testing.assert_close(logits[folder], answers["logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folder", FOLDERS, ids=[f"{path.parent.name}-{path.name}" for path in FOLDERS])
def test_they_load_without_the_code_of_their_folder(folder: Path) -> None:
    """By transformers, without the code of the folder, and by the package's own evaluation."""
    answers = load_file(folder / ANSWERS)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    torch.testing.assert_close(model(answers["input_ids"]).logits, answers["logits"], atol=1e-5, rtol=1e-5)
    loaded = loading.load(str(folder)).model
    torch.testing.assert_close(loaded(answers["input_ids"]).logits, answers["logits"], atol=1e-5, rtol=1e-5)
    text = "the cat sees a big dog"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tiny.tokenizer()(text).input_ids
