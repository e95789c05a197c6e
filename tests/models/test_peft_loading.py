"""Adapters load on their base, wherever it has moved, and on no other."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import apt_ds
from apt_ds.config.errors import UserError
from tests.support import tiny
from tests.support.adapter_folders import write_cut


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cut("llama3", "adaptive", tmp_path_factory.mktemp("written")).folder


def test_they_load_by_name_and_from_the_folder_beside_them(folder: Path, tmp_path: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(folder / "model")(tiny.ids()).logits
    moved = shutil.copytree(folder, tmp_path / "moved")
    for place, base in ((folder, ""), (moved, ""), (moved, str(moved / "base"))):
        model = apt_ds.load_adapters(str(place / "adapters"), base)
        torch.testing.assert_close(model(tiny.ids()).logits, expected, atol=1e-5, rtol=0)
    (folder / "base").rename(folder / "elsewhere")
    try:
        moved_alone = apt_ds.load_adapters(str(moved / "adapters"))
        torch.testing.assert_close(moved_alone(tiny.ids()).logits, expected, atol=1e-5, rtol=0)
    finally:
        (folder / "elsewhere").rename(folder / "base")


def test_a_classifier_gets_the_labels_of_its_adapters(tmp_path: Path) -> None:
    write_cut("bert-classes", "whole", tmp_path)
    expected = tiny.answer(AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval())
    # what the hub has of an encoder: no classifier, or one of another number of classes
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "original")
    loaded = apt_ds.load_adapters(str(tmp_path / "adapters"))
    torch.testing.assert_close(tiny.answer(loaded.eval()), expected, atol=1e-5, rtol=0)
    assert loaded.config.id2label == other.config.id2label


def test_another_base_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other")
    with pytest.raises(UserError, match="is another model than the one they were trained on") as caught:
        apt_ds.load_adapters(str(folder / "adapters"), str(other))
    assert "\n" not in str(caught.value) and str(folder / "base") in str(caught.value)
    # the merged model has the right shapes
    with pytest.raises(UserError, match="is another model than the one they were trained on"):
        apt_ds.load_adapters(str(folder / "adapters"), str(folder / "model"))


def test_other_folders_are_refused_in_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is not a folder of --export_adapters: adapter_config.json is missing"):
        apt_ds.load_adapters(str(tmp_path))
    copied = shutil.copytree(folder / "adapters", tmp_path / "adapters")
    (copied / "apt_ds.json").write_text("{}", encoding="utf8")
    with pytest.raises(UserError, match="does not say which base the adapters are of"):
        apt_ds.load_adapters(str(copied))
    (copied / "apt_ds.json").unlink()
    with pytest.raises(UserError, match=r"apt_ds\.json is missing"):
        apt_ds.load_adapters(str(copied))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'apt_ds\[peft\]'"):
        apt_ds.load_adapters(str(folder / "adapters"))
