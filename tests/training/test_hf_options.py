"""What `AptCallback` refuses, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaModel, TrainingArguments

import apt_ds
from apt_ds.config.errors import UserError
from apt_ds.training import hf_options
from tests.support import tiny, tiny_families


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"pruning": "pretuning"}, "pruning is always gradual"),
        ({"distill": True}, "AptCallback has no teacher"),
        ({"repair": "ls"}, "AptCallback has no calibration data"),
        ({"allocate": "kl"}, "AptCallback has no calibration data"),
        ({"learning_rate": 1e-3}, "AptCallback has no option 'learning_rate': give some of adapter_targets"),
        ({"score": "l0"}, "AptCallback does not support score='l0'"),
        ({"score": "taylor"}, "--pruning gradual does not support --score taylor"),
        ({"rank": 0}, "--rank 0 is not allowed"),
        ({"structure": "even"}, "--structure 'even' is not allowed"),
    ],
)
def test_options_are_checked(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        hf_options.options(0.3, flags)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_options_are_those_of_a_run_of_gradual_pruning() -> None:
    run = hf_options.options(0.4, {"prune_every": 7, "rank": 3, "recipe": "paper"})
    assert run.pruning.gradual and run.pruning.sparsity == 0.4 and run.pruning.prune_every == 7
    assert run.adapter.rank == 3 and run.pruning.structure == "adaptive"


def test_steps_of_the_pruning_phase_are_a_part_of_all_steps() -> None:
    run = hf_options.options(0.4, {})
    assert hf_options.with_prune_steps(run, 30, 120).pruning.pruning_phase == 0.25
    assert hf_options.with_prune_steps(run, 0, 120) == run
    with pytest.raises(UserError, match="prune_steps 121 is more than the 120 steps of the training"):
        hf_options.with_prune_steps(run, 121, 120)


def test_the_class_of_a_model_tells_its_task() -> None:
    assert hf_options.task_of(tiny.model()) == ("instructions", "language model")
    assert hf_options.task_of(tiny.small("bert-answers"))[0].startswith("squad")
    assert hf_options.task_of(tiny_families.model("phi3"))[0] == "instructions"


def test_models_are_checked() -> None:
    split = tiny_families.model("phi3")
    split.__class__ = type("Phi3ForCausalLM", (type(split),), {})
    for model, words in [
        (LlamaModel(tiny.config()), "AptCallback does not support the class LlamaModel: give one of LlamaForCausalLM"),
        (get_peft_model(tiny.model(), LoraConfig(task_type="CAUSAL_LM")), "give AptCallback the plain model"),
        (nn.Linear(2, 2), "AptCallback needs a model of transformers, the Trainer has a Linear"),
        (split, "AptCallback needs the split projections of SplitPhi3ForCausalLM"),
    ]:
        with pytest.raises(UserError) as caught:
            hf_options.task_of(model)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_arguments_of_the_trainer_are_checked(tmp_path: Path) -> None:
    def arguments(**changes: Any) -> TrainingArguments:
        return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **changes)

    hf_options.check_arguments(arguments(), 0)
    best = {"load_best_model_at_end": True, "save_strategy": "no", "eval_strategy": "no"}
    for args, step, words in [
        (arguments(), 3, "AptCallback cannot continue a run"),
        (arguments(**best), 0, "load_best_model_at_end"),
        (arguments(torch_compile=True), 0, "torch_compile"),
    ]:
        with pytest.raises(UserError, match=words):
            hf_options.check_arguments(args, step)


def test_steps_of_other_types_mean_what_they_say() -> None:
    assert apt_ds.AptCallback(prune_steps="3").prune_steps == 3  # type: ignore[arg-type]
    assert apt_ds.AptCallback(sparsity="0.4").run.pruning.sparsity == 0.4  # type: ignore[arg-type]
    for given in ("three", 2.5, None, True, [3], 10**30):
        with pytest.raises(UserError, match=r"^prune_steps .* is not allowed: give a whole number"):
            apt_ds.AptCallback(prune_steps=given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="prune_steps -1 is not allowed: give at least 1, or 0 for pruning_phase"):
        apt_ds.AptCallback(prune_steps="-1")  # type: ignore[arg-type]
