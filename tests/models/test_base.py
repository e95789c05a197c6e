"""What a run starts from: which tasks a family answers, and which folders are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    AutoConfig,
    Gemma3Config,
    LlavaConfig,
    Mistral3Config,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2VLConfig,
)

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.models.base import find_base, name_classes, task_type_for
from tests.support import tiny


def test_a_family_decides_how_a_task_is_answered() -> None:
    assert task_type_for("instructions", "mistral") == LANGUAGE_MODEL
    assert task_type_for("sst2", "roberta") == CLASSIFICATION and task_type_for("sst2", "t5") == GENERATION
    assert task_type_for("squad", "bert") == ANSWERS
    with pytest.raises(UserError, match="--task squad is not for a model of type 't5'"):
        task_type_for("squad", "t5")


def test_labels_name_classes_and_none_is_a_number() -> None:
    config = tiny.small("bert-classes").config
    name_classes(config, ("no", "yes"))
    assert config.id2label == {0: "no", 1: "yes"} and config.label2id == {"no": 0, "yes": 1}
    assert config.problem_type == "single_label_classification"
    name_classes(config, ())
    assert config.num_labels == 1 and config.problem_type == "regression"


def test_a_mistral_with_a_sliding_window_is_read(tmp_path: Path) -> None:
    values = tiny.config().to_dict()
    values.pop("model_type")
    tiny.tokenizer().save_pretrained(tmp_path)
    for window in (None, 64):
        MistralConfig(**values, sliding_window=window).save_pretrained(tmp_path)
        base = find_base(str(tmp_path))
        assert base.anatomy.sizes.hidden == 32 and base.config.sliding_window == window


def saved(config: PretrainedConfig, folder: Path) -> str:
    config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_an_unsupported_family_is_answered_with_the_nearest_and_the_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'opt' is not supported; supported: bert, .*t5\. apt_ds/models/README\.md"):
        find_base(saved(OPTConfig(), tmp_path / "opt"))
    with pytest.raises(UserError, match=r"; the nearest is mistral\. apt_ds/models/README\.md shows how to add a fam"):
        find_base(saved(AutoConfig.for_model("mistral4"), tmp_path / "mistral4"))


def test_a_model_of_more_than_text_names_its_text_model(tmp_path: Path) -> None:
    supported = (
        r"'mistral3' is not supported: it reads more than text\. Its text model is a 'mistral', which is supported"
    )
    with pytest.raises(UserError, match=supported):
        find_base(saved(Mistral3Config(), tmp_path / "mistral3"))
    with pytest.raises(
        UserError, match=r"'llava' is not supported: .* Its text model is a 'llama', which is supported"
    ):
        find_base(saved(LlavaConfig(), tmp_path / "llava"))
    with pytest.raises(UserError, match=r"Its text model is a 'qwen2_vl_text', which is not supported either\. apt_ds"):
        find_base(saved(Qwen2VLConfig(), tmp_path / "qwen2_vl"))


def test_the_language_model_of_gemma_3_is_found_beside_its_parts_for_images(tmp_path: Path) -> None:
    base = find_base(saved(Gemma3Config(text_config={"hidden_size": 640}), tmp_path / "gemma3"))
    assert base.config.model_type == "gemma3_text" and base.anatomy.sizes.hidden == 640
