"""What is suggested for a name that is unknown."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.nearest import SYNONYMS, nearest
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import OPTIONS
from tests.support.paths import ROOT

MEANT = {
    "--lr": "--learning_rate",
    "--batch_size": "--per_device_train_batch_size",
    "--epochs": "--num_train_epochs",
    "--num_epochs": "--num_train_epochs",
    "--model": "--model_name_or_path",
    "--dataset": "--data_path",
    "--lora_r": "--rank",
    "--output": "--output_dir",
    "--max_length": "--max_seq_length",
    "--learning-rate": "--learning_rate",
    "--Max_Steps": "--max_steps",
    "--sparsty": "--sparsity",
    "--lerning_rat": "--learning_rate",
    "--grad_accum_steps": "--gradient_accumulation_steps",
    "--train_epochs": "--num_train_epochs",
    "--max_seq_len": "--max_seq_length",
    "--load_in_4bit": "--base_bits",
}


@pytest.mark.parametrize("flag", MEANT)
def test_the_option_that_is_meant_comes_first(flag: str) -> None:
    assert nearest(flag, [f"--{name}" for name in OPTIONS])[0] == MEANT[flag]
    with pytest.raises(UserError, match=rf"{flag} .*did you mean {MEANT[flag]}\b"):
        resolve([flag, "1"])


@pytest.mark.parametrize("flag", ["--zzz", "unrelated", "--", "--q"])
def test_nothing_is_suggested_where_nothing_is_near(flag: str) -> None:
    assert nearest(flag, [f"--{name}" for name in OPTIONS]) == []


def script(name: str) -> ModuleType:
    """A launcher, imported."""
    spec = importlib.util.spec_from_file_location(f"launcher_{name}", ROOT / "launchers" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "words", "meant"),
    [
        ("evaluate", "--model_path m", "--model"),
        ("evaluate", "--model m --batchsize 4", "--batch_size"),
        ("evaluate", "--model m --max_length 4", "--block_length"),
        ("evaluate", "--model m --output f", "--json"),
        ("eval_mmlu", "--model m --n_shot 5", "--num_shots"),
        ("eval_mmlu", "--model m --dataset d", "--data_dir"),
        ("compare", "--method apt --lr 1", "--learning_rate"),
        ("compare", "--metods apt", "--methods"),
        ("compare", "--num_gpus 2", "--processes"),
        ("benchmark", "--epochs 1", "--num_train_epochs"),
        ("benchmark", "--variant apt", "--variants"),
    ],
)
def test_every_script_suggests_its_own_options_and_those_of_a_run(
    name: str, words: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words.split()])
    with pytest.raises(UserError, match=rf"did you mean {meant}\b"):
        script(name).main()


def test_synonyms_are_no_options_of_the_same_script() -> None:
    """Otherwise a right flag would never be looked up, and a wrong one would hide behind it."""
    for option, others in SYNONYMS.items():
        if option in OPTIONS:
            assert not OPTIONS.keys() & set(others.split()), option
