"""Whole training steps, a cut, growth and evaluations with the `meta` device in the GPU's place, for every family.

A tensor that stays on the host, where a GPU's is needed, raises. See `support/pretended_device.py`. The engine is real
(ZeRO 0, one process). Weights, batches, masks, sums and losses are on the pretended device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn
from transformers import AutoConfig

from apt_ds.analysis.memory_trace import skeleton
from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.data.batching import GlobalOrder
from apt_ds.data.tokenized import Row, TokenizedSet
from apt_ds.eval.held_out import evaluation_mode
from apt_ds.eval.task_evaluators import ClassEvaluator
from apt_ds.models import adapter, loading
from apt_ds.models.architectures import REGISTRY, anatomy_of
from apt_ds.models.loading import Base
from apt_ds.pruning import surgery
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import zero
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.run_data import Data
from apt_ds.training.trainer import Trainer
from tests.support import tiny
from tests.support.jobs import zero_json
from tests.support.launcher import own_world
from tests.support.paths import ROOT
from tests.support.pretended_device import META, OneDevice, PlacementError

# read by the families that have them. Sizes are multiples that 4 bits need
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "dim", "embedding_size"), 128),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff"), 256),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "num_labels"), 2),
    **dict.fromkeys(("head_dim", "d_kv"), 32),
    **dict.fromkeys(("max_position_embeddings", "moe_intermediate_size"), 64),
    "vocab_size": 224,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# what the published models of a family have instead
OWN: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}}
NAMED = ["--model_name_or_path", "none", "--data_path", "none"]
TASKS = {LANGUAGE_MODEL: "instructions", CLASSIFICATION: "sst2", ANSWERS: "squad", GENERATION: "text"}
COLUMNS = {
    LANGUAGE_MODEL: ({"labels": [7] * 8}, {"labels": [-100, 9, 9, 9, 9]}),
    CLASSIFICATION: ({"targets": [1]}, {"targets": [0]}),
    ANSWERS: ({"targets": [2, 4]}, {"targets": [0, 0]}),
    GENERATION: ({"labels": [5, 6, 2]}, {"labels": [2]}),
}
GRADUAL = ["--pruning", "gradual", "--structure", "adaptive", "--kurtosis", "normalized"]
DISTILL = [*GRADUAL, "--distill", "--bf16"]
TWICE = ["--gradient_accumulation_steps", "2"]
# the option sets that a step's code distinguishes
MODES = {
    "distill, step": [*DISTILL, "--layer_match", "step", *TWICE],
    "distill, previous": [*DISTILL, "--layer_match", "previous"],
    "examples": [*GRADUAL, "--salience_product", "per_example", "--bf16"],
    "fp16": [*GRADUAL, "--salience_product", "batch", "--fp16"],
    "pretuning": ["--calibration_steps", "1", "--gradient_checkpointing", "--bf16"],
    "fisher": ["--method", "lora_prune", "--calibration_steps", "1"],
    "taylor": ["--method", "prune_lora", "--calibration_steps", "1", "--bf16"],
    "all weights": ["--method", "full", "--bf16"],
    "gates": ["--method", "lora_prune_distill", "--gradient_checkpointing", "--bf16"],
    "gates, all weights": ["--method", "prune_distill", "--prune_blocks", "heads,neurons,hidden", "--bf16"],
}
LANGUAGE_MODES = {
    "packing": [*GRADUAL, "--packing", "--salience_product", "per_example", "--bf16"],
    "4 bits": [*GRADUAL, "--base_bits", "4", "--bf16"],
    "8 bits": ["--calibration_steps", "1", "--base_bits", "8", "--bf16"],
}


@dataclass
class Case:
    """A trainer of one family without an engine of its own, on the pretended device."""

    trainer: Trainer
    model: nn.Module
    engine: zero.Engine

    def step(self, number: int, calibrating: bool = False) -> None:
        self.trainer.steps.run(self.engine, number, calibrating)

    def operate(self, plan: Plan) -> None:
        """What `rebuild` does to the model, with state of an optimizer on the host."""
        trainer = self.trainer
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        keys = ("master", "exp_avg", "exp_avg_sq")
        state = zero.EngineState({n: {key: torch.zeros(p.shape) for key in keys} for n, p in trained.items()}, 1.0)
        trainer.steps.remove_hooks()
        with trainer.training_loss.phase.teacher_follows_surgery(state):
            anatomy = surgery.apply_plan(self.model, trainer.pruner.anatomy, plan, state, trainer.generators.surgery)
        trainer.pruner.follow(plan, anatomy, 1)
        if not adapter.ranks(self.model) and trainer.run_config.optim.trainable == "adapters":
            trainer.run_engine.attach_trainables(self.model, trainer.pruner.scores_by_weight_gradients())
        trainer.steps.install_hooks(self.model, scoring=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zero.Engine]:
    """A real engine. Each case puts its model under it."""
    with own_world():
        zero.init_distributed()
        words = ["--deepspeed", zero_json(str(tmp_path_factory.mktemp("engine")), 0), *NAMED]
        yield zero.build(nn.Linear(1, 1), load_config(resolve(words), 1, 1))


def base_of(model_type: str, task_type: str, layers: int) -> Base:
    """A small model of a family, which is only sizes."""
    depth = dict.fromkeys(("num_hidden_layers", "num_decoder_layers", "n_layers"), layers)
    config = AutoConfig.for_model(model_type, **(SIZES | depth | OWN.get(model_type, {})))
    return Base(model_type, config, tiny.tokenizer(), anatomy_of(config, task_type), task_type, random=True)


def data_of(task_type: str, run: RunConfig) -> Data:
    """Two rows, one of them padded."""
    rows: list[Row] = [{"input_ids": [5] * n} | own for n, own in zip((8, 5), COLUMNS[task_type], strict=True)]
    kept = TokenizedSet.of([{key: list(value) for key, value in row.items()} for row in rows])
    corpus = {"text": torch.full((2, 8), 5)} if task_type == LANGUAGE_MODEL else {}
    evaluator = ClassEvaluator("sst2", kept) if task_type == CLASSIFICATION else None
    return Data(kept, kept, [], GlobalOrder(2, run.optim.global_batch(1), 0), 100, corpus, evaluator)


def started(
    model_type: str, task_type: str, flags: list[str], engine: zero.Engine, folder: Path, layers: int = 1
) -> Case:
    """A run before its first step."""
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *NAMED, "--task", TASKS[task_type]]
    run = resolve([*words, "--per_device_train_batch_size", "2", "--eval_size", "0", "--align", "4", *flags])
    base = base_of(model_type, task_type, layers)
    if task_type == LANGUAGE_MODEL:
        model: nn.Module = loading.load_model(base, run)
    else:
        with META:
            model = skeleton(base, run)
    data = data_of(task_type, run)
    pruner = Pruner(run, base.anatomy, data.total_steps, zero.device())
    config = {"train_batch_size": 2, "gradient_accumulation_steps": 1}
    trainer = Trainer(run, base, config, data, pruner, MetricsLogger(folder, 100, quiet=True))
    trainer._attach(model, pruner.scores_by_weight_gradients())
    trainer.steps.install_hooks(model.train(), scoring=False)
    engine.module = model
    return Case(trainer, model, engine)


def run_pieces(case: Case) -> None:
    """Steps before and after a change of shapes, and evaluations."""
    trainer = case.trainer
    pruner, pruning = trainer.pruner, trainer.run_config.pruning
    if pruner.scores_by_weight_gradients():
        trainer.steps.score_by_weight_gradients(case.engine)
    elif pruning.one_shot:
        case.step(0, calibrating=True)
    else:
        pruner.masks.set(pruner.masks.values * 0.5)
        case.step(0)
    if pruning.prunes:
        plan = pruner.cut_now(case.model) if pruning.one_shot else Plan(pruner.decide(pruner.scores(), 0.3))
        grow = {path: size + 4 for path, size in list(adapter.ranks(case.model).items())[:2]}
        case.operate(Plan(plan.keep, grow, plan.scale))
        assert pruner.kept() < 0.75
        case.step(2)
        pruner.growth.plan(3, case.model)
    with evaluation_mode(case.engine):
        figures = trainer.evaluations.evaluator.evaluate(case.engine)
    assert figures["held_out_loss"] > 0
    trainer.training_loss.phase.update_teacher(1.0, case.model)
    trainer.steps.remove_hooks()


def check(case: Case) -> None:
    run_pieces(case)
    snapshot = case.trainer.training_loss.phase.teacher.snapshot
    places = {p.device.type for p in (*case.model.parameters(), *snapshot.values())}
    assert places == {"meta"}
    assert case.trainer.pruner.scorer.abs_sums.is_meta


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneDevice]:
    """The package computes on the pretended device."""
    monkeypatch.setattr(zero, "device", lambda: META)
    # a GPU's accelerator also knows fp16
    accelerator = get_accelerator()
    known = [*accelerator.supported_dtypes(), torch.float16]
    monkeypatch.setattr(accelerator, "supported_dtypes", lambda: known)
    if importlib.util.find_spec("bitsandbytes") is not None:
        # it keeps tables of the first device that it computes on
        monkeypatch.setattr(importlib.import_module("bitsandbytes.functional"), "name2qmap", {})
    with OneDevice() as device:
        yield device


FAMILIES = [(name, task) for name, spec in sorted(REGISTRY.items()) for task in spec.stock_classes]
ALL_MODES = [
    *(("llama", LANGUAGE_MODEL, mode) for mode in (*MODES, *LANGUAGE_MODES)),
    *(
        ("bert", CLASSIFICATION, mode)
        for mode in ("distill, step", "examples", "fisher", "taylor", "all weights", "gates")
    ),
    *(("t5", GENERATION, mode) for mode in ("distill, step", "examples", "fp16", "fisher")),
]


@pytest.mark.parametrize(("model_type", "task_type"), FAMILIES)
def test_a_step_of_every_family_is_on_the_device(
    model_type: str, task_type: str, engine: zero.Engine, pretended: OneDevice, tmp_path: Path
) -> None:
    check(started(model_type, task_type, MODES["distill, previous"], engine, tmp_path, layers=2))


@pytest.mark.parametrize(("model_type", "task_type", "mode"), ALL_MODES)
def test_a_step_of_every_mode_is_on_the_device(
    model_type: str, task_type: str, mode: str, engine: zero.Engine, pretended: OneDevice, tmp_path: Path
) -> None:
    check(started(model_type, task_type, (MODES | LANGUAGE_MODES)[mode], engine, tmp_path))


def test_a_packed_row_and_a_step_that_is_not_finite_are_on_the_device(
    engine: zero.Engine, pretended: OneDevice, tmp_path: Path
) -> None:
    """The host reads zeros: rows have several examples, and sums are not finite."""
    pretended.content = 0.0
    case = started("llama", LANGUAGE_MODEL, LANGUAGE_MODES["packing"], engine, tmp_path)
    case.step(0)
    assert case.trainer.early_end.nonfinite_steps == 1


@pytest.mark.parametrize("place", ["masks", "scores", "batch"])
def test_what_stays_on_the_host_is_seen(
    place: str, engine: zero.Engine, pretended: OneDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = started("llama", LANGUAGE_MODEL, MODES["examples"], engine, tmp_path)
    pruner = case.trainer.pruner
    if place == "masks":
        pruner.masks.set(pruner.masks.values * 0.5)
        pruner.masks._cached[0, pruner.anatomy.sites[0].unit] = torch.ones(1)
    elif place == "scores":
        pruner.scorer.abs_sums = pruner.scorer.abs_sums.cpu()
    else:
        monkeypatch.setattr(case.trainer.steps.batches, "device", torch.device("cpu"))
    with pytest.raises(PlacementError, match="tensors of two devices"):
        case.step(0)
