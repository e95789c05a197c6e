"""The shipped DeepSpeed JSONs: filled by the Hugging Face Trainer's own code, and read by DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import LlamaConfig, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

FOLDER = Path(__file__).parent.parent.parent / "ds_configs"
NAMES = ("zero2", "zero2_offload", "zero3", "zero3_offload")
PRECISIONS = ({}, {"bf16": True}, {"fp16": True})

each_file = pytest.mark.parametrize("name", NAMES)


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def filled_by_trainer(name: str, folder: Path, **precision: bool) -> dict[str, Any]:
    """The JSON as the Hugging Face Trainer hands it to DeepSpeed, in one process."""
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=2e-4,
        max_grad_norm=0.5,
        adam_beta2=0.95,
        weight_decay=0.1,
        **precision,
    )
    config = HfTrainerDeepSpeedConfig(str(FOLDER / f"{name}.json"))
    try:
        config.trainer_config_process(args)
        config.trainer_config_finalize(args, SimpleNamespace(config=LlamaConfig(hidden_size=64)), 100)
    finally:
        unset_hf_deepspeed_config()
    return config.config


def test_the_folder_holds_these_files() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("precision", PRECISIONS, ids=["fp32", "bf16", "fp16"])
@each_file
def test_trainer_leaves_no_auto(name: str, precision: dict[str, bool], tmp_path: Path) -> None:
    config = filled_by_trainer(name, tmp_path, **precision)
    assert [key for key, value in leaves(config) if value == "auto"] == []
    assert config["train_batch_size"] == 6
    assert config["gradient_clipping"] == 0.5
    params = config["optimizer"]["params"]
    assert (params["lr"], params["betas"], params["weight_decay"]) == (2e-4, [0.9, 0.95], 0.1)
    assert config["zero_optimization"]["reduce_bucket_size"] == 64 * 64
    for dtype in ("bf16", "fp16"):
        assert config[dtype]["enabled"] is precision.get(dtype, False)


@pytest.mark.parametrize("precision", PRECISIONS, ids=["fp32", "bf16", "fp16"])
@each_file
def test_deepspeed_reads_what_the_trainer_filled(name: str, precision: dict[str, bool], tmp_path: Path) -> None:
    parsed = DeepSpeedConfig(filled_by_trainer(name, tmp_path, **precision))
    assert parsed.zero_config.stage == int(name[4])
    assert parsed.optimizer_name == "adamw"
    assert parsed.zero_config.gather_16bit_weights_on_model_save is (name[4] == "3")
    assert (parsed.zero_config.offload_optimizer is not None) == name.endswith("offload")


@each_file
def test_zero_keys_are_known(name: str) -> None:
    known = {alias for key, spec in DeepSpeedZeroConfig.model_fields.items() for alias in (key, spec.alias)}
    assert set(load(name)["zero_optimization"]) <= known


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_differs_in_nothing_else(stage: int) -> None:
    """With offload the optimizer is DeepSpeed's CPUAdam, without it one that needs no compiler."""
    plain, offload = dict(leaves(load(f"zero{stage}"))), dict(leaves(load(f"zero{stage}_offload")))
    assert plain.items() - offload.items() == {("optimizer.params.torch_adam", True)}
    assert all("offload" in key for key, _ in offload.items() - plain.items())
