"""What a run starts from: which tasks a family answers, and which folders are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import MistralConfig

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.models.base import find_base, kind_of, name_classes
from tests.support import tiny


def test_a_family_decides_how_a_task_is_answered() -> None:
    assert kind_of("instructions", "mistral") == LANGUAGE_MODEL
    assert kind_of("sst2", "roberta") == CLASSIFICATION and kind_of("sst2", "t5") == GENERATION
    assert kind_of("squad", "bert") == ANSWERS
    with pytest.raises(UserError, match="--task squad is not for a model of type 't5'"):
        kind_of("squad", "t5")


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
