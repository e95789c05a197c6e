"""Whole runs, as jobs of `multiprocess.py`. Every job runs on all ranks and returns JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import collectives
from apt_ds.training import run as training_run
from apt_ds.training.model_figures import ModelFigures
from apt_ds.training.trainer import Trainer
from tests.support.launcher import PLAIN

# only with these do the weights of a tiny model stay sharded between uses
STRICT = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}


def zero_json(folder: str, stage: int, offload: bool = False) -> str:
    """A DeepSpeed file for a ZeRO stage."""
    section: dict[str, Any] = {"stage": stage} | (STRICT if stage == 3 else {})
    if offload:
        section["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            section["offload_param"] = {"device": "cpu"}
    path = Path(folder) / f"zero{stage}{'_offload' if offload else ''}_{collectives.rank()}.json"
    path.write_text(json.dumps({"zero_optimization": section, "train_batch_size": "auto"}), encoding="utf8")
    return str(path)


def stage_name(stage: int, offload: bool) -> str:
    """The name of a ZeRO mode in results: `2`, or `2o` with offload."""
    return f"{stage}{'o' if offload else ''}"


def run_config(folder: str, stage: int, offload: bool, flags: list[str]) -> RunConfig:
    """A run on the model and data of `folder`, a global batch of 4 on any world size."""
    place = Path(folder)
    return resolve(
        [
            *["--deepspeed", zero_json(folder, stage, offload), "--model_name_or_path", str(place / "model")],
            *["--data_path", str(place / "data.json"), "--output_dir", str(place / f"out_{collectives.world_size()}")],
            *["--overwrite_output_dir", "--eval_size", "4", "--max_seq_length", "64", "--report", "false"],
            *["--per_device_train_batch_size", "1", "--learning_rate", "1e-2"],
            *["--gradient_accumulation_steps", str(4 // collectives.world_size()), *PLAIN, *flags],
        ]
    )


def facts(trainer: Trainer, figures: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how a run is spread: losses, scores, decisions, kept blocks, ranks."""
    rows = (trainer.metrics_logger.folder / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    return {
        "losses": [json.loads(row)["loss"] for row in rows],
        "ranks": [json.loads(row)["ranks"]["mean"] for row in rows],
        "kept": [json.loads(row)["kept"] for row in rows],
        "scores": trainer.pruner.scorer.scores().tolist(),
        "importance": [] if trainer.pruner.growth.importance is None else trainer.pruner.growth.importance.tolist(),
        "alive": trainer.pruner.blocks.kept_ids.tolist(),
        "held_out": figures["after"]["held_out_loss"],
        "score": figures["after"].get("score"),
        "rebuilds": len(figures["pruning"]["rebuild_seconds"]),
        "repair": figures["pruning"].get("repair"),
        "allocation": figures["pruning"].get("allocation"),
        "scales": figures["pruning"].get("scales"),
    }


def runs(folder: str, stages: list[tuple[int, bool]], modes: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Whole runs for every ZeRO mode and every set of flags."""
    results = {}
    for stage, offload in stages:
        for mode, flags in modes.items():
            trainer = training_run.prepare(run_config(folder, stage, offload, flags))
            figures = trainer.run()
            # only the first rank writes metrics
            collectives.barrier()
            results[f"{stage_name(stage, offload)} {mode}"] = facts(trainer, figures)
    return results


def outcome(trainer: Trainer, figures: dict[str, Any]) -> dict[str, Any]:
    """All that a run reports and writes, without measurements of time and memory."""
    timed = ("tokens_per_second", "peak_memory_bytes", "seconds")
    rows = [
        json.loads(row)
        for row in (trainer.metrics_logger.folder / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    ]
    weights = b"".join(
        path.read_bytes() for path in sorted((trainer.metrics_logger.folder / "model").glob("*.safetensors"))
    )
    measured = {key for key in ModelFigures.__annotations__ if key.endswith(("_seconds", "_bytes", "_per_second"))}
    measured -= {"checkpoint_bytes"}
    judged = {w: figures[w] for w in ("before", "after_cut", "after") if w in figures}
    return {
        "rows": [{key: value for key, value in row.items() if key not in timed} for row in rows],
        "judged": {w: {k: v for k, v in each.items() if k not in measured} for w, each in judged.items()},
        "rebuilds": len(figures["pruning"]["rebuild_seconds"]),
        "model": hashlib.sha256(weights).hexdigest(),
        "alive": trainer.pruner.blocks.kept_ids.tolist(),
        "scores": trainer.pruner.scorer.scores().tolist(),
        "held_out": figures["after"]["held_out_loss"],
        "score": figures["after"].get("score"),
        "searched": [
            {key: value for key, value in figures["pruning"].get(name, {}).items() if key != "seconds"}
            for name in ("allocation", "scales")
        ],
    }


def whole(folder: str, name: str, stage: int, offload: bool, flags: list[str]) -> dict[str, Any]:
    """The outcome of a run into `folder/name`."""
    output = ["--output_dir", str(Path(folder) / name)]
    trainer = training_run.prepare(run_config(folder, stage, offload, [*output, *flags]))
    figures = trainer.run()
    trainer.metrics_logger.close()
    collectives.barrier()
    return outcome(trainer, figures)


def resumed(folder: str, cases: list[tuple[str, int, bool, list[str], list[int]]]) -> dict[str, dict[str, Any]]:
    """For (name, stage, offload, flags, steps): a run that never stops, one that saves, one from each of `steps`."""
    results = {}
    for name, stage, offload, flags, steps in cases:
        runs = {"straight": whole(folder, f"{name}_straight", stage, offload, ["--save_steps", "0", *flags])}
        runs["saving"] = whole(folder, name, stage, offload, ["--save_steps", "1", *flags])
        for step in steps:
            source = str(Path(folder) / name / f"checkpoint-{step}")
            # whatever was drawn since must not matter
            torch.rand(step)
            go_on = ["--save_steps", "0", "--resume_from_checkpoint", source, *flags]
            runs[str(step)] = whole(folder, f"{name}_{step}", stage, offload, go_on)
        results[name] = runs
    return results


def refused(folder: str, flags: list[str]) -> str:
    """The one line that ends a run on this rank."""
    try:
        whole(folder, "refused", 2, False, flags)
    except UserError as error:
        return str(error)
    return ""


def continued(folder: str, sources: dict[str, list[str]], stages: list[tuple[int, bool]]) -> dict[str, Any]:
    """Runs from checkpoints of other worlds and stages."""
    return {
        f"{source} in {stage_name(stage, offload)}": whole(
            folder, "other", stage, offload, ["--save_steps", "0", "--resume_from_checkpoint", source, *flags]
        )
        for source, flags in sources.items()
        for stage, offload in stages
    }
