"""The configuration of a run: flags in groups, what presets and methods imply, and its checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.methods import METHODS, RECIPES
from apt_ds.config.presets import PRESETS
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import GROUPS, OPTIONS, PLACES, RunConfig
from tests.support.paths import ROOT

LARGEST = 2**63 - 1


def complete(**flags: object) -> RunConfig:
    """A configuration that has every required flag."""
    required = {"model_name_or_path": "m", "data_path": "d", "deepspeed": str(ROOT / "ds_configs" / "zero2.json")}
    return RunConfig(**(required | flags))


def test_flags_are_distributed_over_the_groups() -> None:
    run = RunConfig(sparsity=0.25, rank=3, train="all", optim="adamw_8bit", pruning="gradual", eval_size=7)
    assert (run.pruning.sparsity, run.pruning.mode, run.adapter.rank) == (0.25, "gradual", 3)
    assert (run.optim.trainable, run.optim.optimizer, run.data.eval_size) == ("all", "adamw_8bit", 7)


def test_every_flag_has_one_place_and_is_read_back_by_its_name() -> None:
    for name, (group, attribute) in PLACES.items():
        run = RunConfig()
        assert run.flag(name) == getattr(getattr(run, group), attribute)
    places = list(PLACES.values())
    assert len(set(places)) == len(places)
    assert {place.group for place in places} == set(GROUPS)


def test_an_unknown_flag_is_a_type_error_that_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"no option 'sparsty' \(did you mean sparsity\?\)"):
        RunConfig(sparsty=0.3)
    with pytest.raises(TypeError, match="batch_size"):
        RunConfig().replace(batch_size=3)


def test_replace_changes_the_named_flags_alone() -> None:
    run = RunConfig(method="lora", sparsity=0.4, seed=7)
    other = run.replace(seed=8)
    assert (run.optim.seed, other.optim.seed) == (7, 8)
    assert {name for name in OPTIONS if run.flag(name) != other.flag(name)} == {"seed"}
    assert run.replace() == run


@pytest.mark.parametrize("method", METHODS)
def test_a_method_implies_its_flags_as_on_the_command_line(method: str) -> None:
    run = complete(method=method, salience_decay=0.25)
    words = ["--model_name_or_path", "m", "--data_path", "d", "--deepspeed", run.distributed.deepspeed]
    assert run == resolve([*words, "--method", method, "--salience_decay", "0.25"])
    run.check()


def test_stated_flags_win_over_recipe_and_preset() -> None:
    run = RunConfig(preset="roberta-sst2", recipe="paper", mask_step=0.5)
    assert (run.pruning.mask_step, run.pruning.structure) == (0.5, "adaptive")
    assert run.optim.learning_rate == PRESETS["roberta-sst2"]()["learning_rate"]
    assert run.pruning.kurtosis == RECIPES["paper"]["kurtosis"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"method": "lora", "pruning": "gradual"}, "--pruning gradual contradicts --method lora"),
        ({"export_format": "stock", "structure": "adaptive"}, "Give --export_format padded, which fills the smaller"),
        ({"method": "lorra"}, "--method 'lorra' is not allowed"),
        ({"preset": "quickstrat"}, "did you mean quickstart"),
        ({"sparsity": 1.5}, "--sparsity 1.5 is not allowed"),
        ({"max_steps": 0}, "--max_steps 0"),
        ({"bf16": True, "fp16": True}, "--bf16 true and --fp16 true"),
        ({"deepspeed": "absent.json"}, "'absent.json' is not a file"),
        ({"data_path": ""}, "--data_path is missing"),
        ({"rank": 9, "max_rank": 8}, "--rank 9 is not allowed"),
        ({"distill": True, "pruning": "pretuning"}, "--distill layers requires --pruning gradual"),
        ({"distill": "logits", "task": "sst2"}, "--distill logits does not support --task sst2"),
        ({"distill": "logits", "streaming": True, "max_steps": 3}, "does not support --streaming true"),
        ({"distill": "logits", "teacher_source": "live", "teacher_cache": "a"}, "--teacher_cache requires"),
        ({"teacher_cache": "a"}, "--teacher_cache requires --distill logits (got none)"),
        ({"score": "flap", "pruning": "gradual"}, "--pruning gradual does not support --score flap. Give --score sal"),
        ({"score": "wanda_sp", "prune_blocks": "hidden"}, "--prune_blocks hidden does not support --score wanda_sp"),
        ({"score": "l0", "pruning": "posttuning"}, "--score l0 requires --pruning gradual (got posttuning)"),
        (
            {"train": "all", "rank_growth": "none", "prune_scope": "adapted"},
            "--prune_scope adapted requires --train adapters (got all)",
        ),
        ({"train": "all"}, "--train all requires --rank_growth none (got importance)"),
        ({"adapter_targets": "auto,q"}, "--adapter_targets auto,q is not allowed: give auto, or the names"),
        ({"bf16": "no"}, "--bf16 'no' is not allowed: give true or false"),
        ({"trust_remote_code": 1}, "--trust_remote_code 1 is not allowed: give true or false"),
        ({"eval_size": None}, "--eval_size None is not allowed: give a whole number"),
        ({"max_steps": 2.5}, "--max_steps 2.5 is not allowed: give a whole number"),
        ({"preset": ["a"]}, "--preset ['a'] is not allowed"),
        ({"seed": 2**64 - 1}, f"{2**64 - 1} is not allowed: give a whole number from {-LARGEST} to {LARGEST}"),
        ({"max_steps": 10**400}, f"is not allowed: give a whole number from {-LARGEST} to {LARGEST}"),
        ({"max_steps": "9" * 5000}, "is not allowed: give a whole number"),
        ({"learning_rate": 10**400}, "is not allowed: give a number"),
        ({"seed": -1}, f"--seed -1 is not allowed: give at least 0 and at most {LARGEST}"),
        ({"learning_rate": 1e300}, "--learning_rate 1e+300 is not allowed: give above 0 and at most 1000"),
        ({"per_device_train_batch_size": 10**18}, "is not allowed: give at least 1 and at most 1000000"),
        ({"per_device_eval_batch_size": 10**18}, "is not allowed: give at least 1 and at most 1000000"),
        ({"gradient_accumulation_steps": 10**18}, "is not allowed: give at least 1 and at most 1000000"),
        ({"num_train_epochs": 1e300}, "--num_train_epochs 1e+300 is not allowed: give above 0 and at most 1000000"),
        ({"timeout": 100_000_000_000}, "--timeout 100000000000 is not allowed: give at least 1 and at most 604800"),
        ({"distill_temperature": 1e300}, "--distill_temperature 1e+300 is not allowed: give at least 0.01 and at most"),
        ({"distill_temperature": 1e-300}, "--distill_temperature 1e-300 is not allowed: give at least 0.01 and at"),
        ({"rewrite_temperature": 1e-300}, "1e-300 is not allowed: give 0, or at least 0.01 and at most 100"),
        ({"rewrite_temperature": 1e300}, "1e+300 is not allowed: give 0, or at least 0.01 and at most 100"),
    ],
)
def test_check_names_the_first_mistake(flags: dict[str, object], text: str) -> None:
    with pytest.raises(UserError) as mistake:
        complete(**flags).check()
    assert text in str(mistake.value)


def test_the_ends_of_a_range_belong_to_it() -> None:
    for flags in ({"seed": LARGEST}, {"timeout": 604800}, {"distill_temperature": 0.01}, {"distill_temperature": 100}):
        complete(**flags).check()
    for temperature in (0, 0.01, 100):
        complete(rewrite_temperature=temperature).check()


def test_values_of_other_types_mean_what_they_say() -> None:
    run = complete(sparsity="0.4", bf16="false", max_steps="3", output_dir=Path("a") / "b", data_path=Path("c.json"))
    assert (run.pruning.sparsity, run.optim.bf16, run.optim.max_steps) == (0.4, False, 3)
    assert (run.output.output_dir, run.data.data_path) == (str(Path("a") / "b"), "c.json")
    assert str(Path("a") / "b") in run.to_yaml()


@pytest.mark.parametrize(
    ("mode", "sparsity", "prunes", "gradual", "one_shot"),
    [
        ("none", 0.3, False, False, False),
        ("gradual", 0.0, False, False, False),
        ("gradual", 0.3, True, True, False),
        ("pretuning", 0.3, True, False, True),
        ("posttuning", 0.3, True, False, True),
        ("pretuning", 0.0, False, False, False),
    ],
)
def test_a_run_prunes_where_mode_and_sparsity_say_so(
    mode: str, sparsity: float, prunes: bool, gradual: bool, one_shot: bool
) -> None:
    pruning = RunConfig(pruning=mode, sparsity=sparsity).pruning
    assert (pruning.prunes, pruning.gradual, pruning.one_shot) == (prunes, gradual, one_shot)


def test_the_global_batch_counts_all_processes() -> None:
    optim = RunConfig(per_device_train_batch_size=3, gradient_accumulation_steps=4).optim
    assert (optim.global_batch(1), optim.global_batch(5)) == (12, 60)


def test_automatic_targets_depend_on_the_task() -> None:
    assert RunConfig().targets == ("q", "v")
    assert RunConfig(task="sst2").targets == ("q", "v", "up")
    assert RunConfig(adapter_targets="down,k").targets == ("k", "down")


def test_an_unpruned_teacher_makes_cuts_wait() -> None:
    assert RunConfig(distill=True, teacher="unpruned").pruning.cuts_wait
    assert not RunConfig(distill=True, teacher="shrinking").pruning.cuts_wait
    assert RunConfig(defer_cuts=True).pruning.cuts_wait


def test_a_saved_configuration_is_read_back(tmp_path: Path) -> None:
    run = complete(method="prune_lora", recipe="paper", learning_rate=3e-4, output_dir=str(tmp_path))
    run.save(tmp_path / "config.yaml")
    assert resolve(["--config", str(tmp_path / "config.yaml")]) == run


@pytest.mark.parametrize(
    ("given", "value"), [(True, "layers"), (False, "none"), ("true", "layers"), ("False", "none"), ("logits", "logits")]
)
def test_distill_is_a_word_that_true_and_false_stand_for(given: object, value: str) -> None:
    assert RunConfig(distill=given).pruning.distill == value
