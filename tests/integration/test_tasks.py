"""BERT, RoBERTa and T5 as users run them: tasks, teacher, export; the same run in every ZeRO stage, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.models import loading
from apt_ds.models.architectures import REGISTRY, anatomy_of
from apt_ds.models.blocks import kept_sizes
from apt_ds.pruning.pruner import Pruner
from apt_ds.training import run as training_run
from apt_ds.training.datasets import read_data
from tests.integration.test_resume import same
from tests.support import multiprocess, tiny
from tests.support.distilled_runs import check_alike
from tests.support.paths import ROOT

CPU = torch.device("cpu")
KINDS = ("bert-classes", "roberta-answers", "t5-gated", "t5")
SIZES = ["--align", "4", "--mask_step", "0.5", "--rank", "2", "--prune_every", "2", "--prune_blocks"]
FLAGS = [
    *("--pruning", "gradual", "--structure", "adaptive", "--sparsity", "0.4", "--max_steps", "8", "--distill"),
    *SIZES,
    "heads,neurons,hidden",
]

SHRINKING, PREVIOUS = ["--teacher", "shrinking"], ["--layer_match", "previous"]
# by default the teacher is unpruned and layers are matched on the same step
TEACHERS = {
    "bert-classes": [],
    "roberta-answers": [*SHRINKING, "--gradient_checkpointing"],
    "t5-gated": PREVIOUS,
    "t5": SHRINKING + PREVIOUS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def modes(folder: Path) -> dict[str, list[str]]:
    return {kind: [*tiny.save_task(folder / kind, kind), *FLAGS, *TEACHERS[kind]] for kind in KINDS}


@pytest.fixture(scope="module")
def distilled(folder: Path, modes: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    """Every kind's runs: one process first, then two."""
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for world, stages in ((1, [(0, False)]), (2, [(2, False), (3, False), (2, True)])):
        for name, run in multiprocess.run(
            world, "runs", {"folder": str(folder), "stages": stages, "modes": modes}
        ).items():
            runs[name.split()[1]].append(run)
    return runs


@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_a_distilled_run_is_the_same_in_every_stage(kind: str, distilled: dict[str, list[dict[str, Any]]]) -> None:
    check_alike(distilled[kind])


@pytest.mark.dist
def test_resuming_without_zero_on_single_rows_is_never_having_stopped(
    folder: Path, modes: dict[str, list[str]]
) -> None:
    """Nothing copies a weight there, and how a product of one row rounds depends on where it lies in memory."""
    flags = [*modes["bert-classes"], "--per_device_train_batch_size", "1"]
    case = ("resumed-alone", 0, False, flags, [1, 3, 5])
    same(multiprocess.run(1, "resumed", {"folder": str(folder), "cases": [case]})["resumed-alone"])


@pytest.mark.dist
def test_resuming_a_distilled_run_is_never_having_stopped(folder: Path, modes: dict[str, list[str]]) -> None:
    """Checkpoints while the teacher teaches, at the end of its time, and after it."""
    cases = [
        (f"resumed-{kind}", stage, False, modes[kind], [1, 3, 4, 6]) for kind, stage in (("bert-classes", 3), ("t5", 2))
    ]
    for case in multiprocess.run(2, "resumed", {"folder": str(folder), "cases": cases}).values():
        same(case)


def test_the_written_model_has_the_score_of_the_evaluated_one(
    folder: Path, modes: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded by plain transformers, the models give the answers whose score the summary holds."""
    for kind, loader in (("bert-classes", AutoModelForSequenceClassification), ("t5", AutoModelForSeq2SeqLM)):
        output = folder / f"written-{kind}"
        words = [*modes[kind], "--output_dir", str(output), "--learning_rate", "1e-2", "--reference_score", "1"]
        run = resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *words, "--eval_steps", "4"])
        figures = training_run.train(run)
        model = loader.from_pretrained(output / "model", trust_remote_code=True)
        base = loading.find_base(str(folder / kind / "model"), run.data.task, ("negative", "positive"))
        data = read_data(run, base)
        assert data.task_evaluator is not None
        assert data.task_evaluator.evaluate(model, 3, 0)["score"] == pytest.approx(figures["after"]["score"])
        assert figures == json.loads((output / "summary.json").read_text(encoding="utf8"))
        steps = [entry["step"] for entry in figures["training"]["history"]]
        assert steps == [2, 4, 8]
        reached = figures["training"]["reached_97_percent_pruned"]
        assert (reached is None) == all(e["score"] < 0.97 for e in figures["training"]["history"][1:])
    assert model.generation_config.decoder_start_token_id == 0


def test_a_checkpoint_without_a_head_gets_one_and_says_so(
    folder: Path, modes: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    source = tiny.small("bert-classes")
    source.bert.save_pretrained(folder / "bare")
    tiny.framing_tokenizer().save_pretrained(folder / "bare")
    base = loading.find_base(str(folder / "bare"), "mnli", ("a", "b", "c"))
    run = resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *modes["bert-classes"]])
    models = [loading.load_model(base, run) for _ in range(2)]
    assert models[0].config.num_labels == 3 and models[0].classifier.weight.shape == (3, 32)
    assert torch.equal(models[0].classifier.weight, models[1].classifier.weight)
    assert 0.01 < models[0].classifier.weight.std() < 0.03 and not models[0].classifier.bias.any()
    assert torch.equal(models[0].bert.pooler.dense.weight, source.bert.pooler.dense.weight)
    assert "classifier: not in the checkpoint, initialized at random" in capfd.readouterr().err


def test_deferred_cuts_wait_for_the_end_of_the_phase() -> None:
    model = tiny.small("bert-classes")
    anatomy = anatomy_of(model.config, tiny.TASKS["bert-classes"])
    flags = {"pruning": "gradual", "structure": "adaptive", "sparsity": 0.4, "align": 4, "prune_every": 2}
    cut_at = {}
    for hold in (False, True):
        pruner = Pruner(RunConfig(**flags, defer_cuts=hold, mask_step=0.5, rank_growth="none"), anatomy, 16, CPU)
        pruner.scorer.average = torch.arange(anatomy.sizes.total(), dtype=torch.float32)
        cut_at[hold] = []
        for step in range(1, 17):
            pruner.advance(step)
            plan = pruner.plan(step, 16, model)
            if plan:
                cut_at[hold].append(step)
                pruner.follow(plan, anatomy.with_sizes(kept_sizes(pruner.anatomy.sizes, plan.keep)), step)
        assert pruner.kept() <= 0.6 and pruner.at_target()
    assert min(cut_at[False]) < 8 <= min(cut_at[True]) and len(cut_at[True]) == 1


def test_an_unpruned_teacher_takes_precedence_over_early_cuts() -> None:
    waits = {
        (hold, distill, teacher): RunConfig(
            pruning="gradual", defer_cuts=hold, distill=distill, teacher=teacher
        ).pruning.cuts_wait
        for hold in (False, True)
        for distill in (False, True)
        for teacher in ("unpruned", "shrinking")
    }
    assert {case for case, wait in waits.items() if not wait} == {
        (False, False, "unpruned"),
        (False, False, "shrinking"),
        (False, True, "shrinking"),
    }


@pytest.mark.parametrize(
    ("kind", "teacher"), [("bert-classes", "unpruned"), ("t5-gated", "unpruned"), ("bert-classes", "shrinking")]
)
def test_pruning_never_moves_an_unpruned_teacher(
    kind: str, teacher: str, folder: Path, modes: dict[str, list[str]]
) -> None:
    """Masks move, ranks grow and the snapshot stays. A shrinking teacher changes with every cut."""
    words = [
        *modes[kind],
        "--teacher",
        teacher,
        "--max_steps",
        "12",
        "--pruning_phase",
        "0.8",
        "--learning_rate",
        "1e-2",
    ]
    words += ["--output_dir", str(folder / f"{kind}-{teacher}"), "--overwrite_output_dir", "--save_steps", "0"]
    trainer = training_run.prepare(resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *words]))
    training_loss, pruner, batch = trainer.training_loss, trainer.pruner, trainer.steps.batches.on_device(0, 0)
    training_loss.phase.best_score = float("inf")  # no later student counts as better
    first, moved, ranks = None, [], trainer.pruner.growth.initial_parameters
    for step in range(12):
        if not training_loss.phase.active:
            break
        training_loss.begin(step, [])
        logits = training_loss.distillation.teacher_outputs(trainer.engine, batch, pruner.masks).logits
        first = logits if first is None else first
        moved.append(max((a - b).abs().max().item() for a, b in zip(logits, first, strict=True)))
        trainer.train_step(step)
        trainer.adjust(step + 1)
        if step == 7:
            assert (pruner.kept() == 1) == (pruner.masks.values.min() < 1) == (teacher == "unpruned")
            assert sum(p.numel() for n, p in trainer.engine.module.named_parameters() if "lora" in n) > ranks
    assert not training_loss.phase.active and len(moved) == pruner.phase == 10
    assert max(moved) < 1e-4 if teacher == "unpruned" else max(moved) > 1e-2
    trainer.finish()


def test_a_sequence_longer_than_the_positions_is_refused(folder: Path, modes: dict[str, list[str]]) -> None:
    words = [*modes["roberta-answers"], "--output_dir", str(folder / "long"), "--max_seq_length", "64"]
    with pytest.raises(UserError, match="--max_seq_length 64 is more than the model's 63 positions"):
        training_run.prepare(resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *words]))
    assert not (folder / "long").exists()


@pytest.mark.parametrize(
    ("task", "model_type", "allowed"),
    [
        ("sst2", "llama", "instructions"),
        ("instructions", "bert", "sst2, mnli"),
        ("squad_v2", "t5", "stsb, cnndm, text"),
    ],
)
def test_a_task_that_the_model_does_not_support_is_refused(task: str, model_type: str, allowed: str) -> None:
    with pytest.raises(UserError, match=f"--task {task} is not for a model of type '{model_type}'.*{allowed}"):
        loading.task_type_for(task, model_type)
    assert task not in REGISTRY[model_type].tasks


@pytest.mark.slow
def test_a_small_t5_learns_to_swap_words_while_it_is_pruned_and_distilled(
    folder: Path, modes: dict[str, list[str]]
) -> None:
    """The whole way: from answers that are all wrong to a written model that generates nearly all of them right."""
    output = folder / "learnt"
    words = [*modes["t5"], "--sparsity", "0.3", "--prune_blocks", "heads,neurons", "--mask_step", "0.1", "--rank", "8"]
    words += ["--adapter_targets", "q,k,v,o,up,down", "--prune_every", "20", "--max_steps", "200"]
    words += ["--learning_rate", "2e-2", "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "12"]
    run = resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *words, "--output_dir", str(output)])
    figures = training_run.train(run)
    assert figures["before"]["score"] < 10 and figures["pruning"]["kept"] <= 0.7
    model = AutoModelForSeq2SeqLM.from_pretrained(output / "model", trust_remote_code=True)
    task_evaluator = read_data(run, loading.find_base(str(folder / "t5" / "model"), run.data.task)).task_evaluator
    assert task_evaluator is not None
    score = task_evaluator.evaluate(model, 12, 0)["score"]
    assert score == pytest.approx(figures["after"]["score"]) and score > 80
