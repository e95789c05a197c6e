"""Jobs of `multiprocess.py` about scores of adapters and weights, and about what a rebuild keeps."""

from __future__ import annotations

import json
from typing import Any

import torch

from apt_ds.models import loading
from apt_ds.models.blocks import block_slices
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, zero
from apt_ds.training import run
from tests.support.jobs import run_config, stage_name


def importances(folder: str, stages: list[tuple[int, bool]]) -> dict[str, list[float]]:
    """Summed |w dL/dw| of every adapter after some steps, reduced over ranks."""
    importances = {}
    for stage, offload in stages:
        flags = ["--pruning", "none", "--max_steps", "4", "--rank_growth", "importance", "--pruning_phase", "1.0"]
        trainer = run.prepare(run_config(folder, stage, offload, flags))
        for step in range(3):
            trainer.train_step(step)
        importances[stage_name(stage, offload)] = trainer.pruner.growth.importance.tolist()
        trainer.finish()
    return importances


def loss_scales(folder: str, stages: list[tuple[int, bool]]) -> dict[str, list[dict[str, Any]]]:
    """The fp16 scaler, counters and Adam's step before and after a rebuild in the middle of training."""
    scales = {}
    for stage, offload in stages:
        flags = ["--fp16", "--pruning", "none", "--max_steps", "8"]
        trainer = run.prepare(run_config(folder, stage, offload, flags))
        for step in range(4):
            trainer.train_step(step)
        states = []
        for _ in range(2):
            state = zero.take_state(trainer.engine)
            states.append({"scaler": state.scaler, "counters": state.counters, "adam_step": state.adam_step})
            if len(states) == 1:
                trainer.rebuild(4, Plan())
        trainer.train_step(4)
        scales[stage_name(stage, offload)] = states
        trainer.finish()
    return scales


def middle_rebuild(folder: str, stages: list[tuple[int, bool]], flags: list[str]) -> dict[str, list[list[float]]]:
    """Losses of a run with a rebuild that changes nothing in its middle, and of the same run without."""
    runs = {}
    for stage, offload in stages:
        losses = []
        for rebuild in (False, True):
            fixed = ["--pruning", "none", "--rank_growth", "none", "--max_steps", "8", *flags]
            trainer = run.prepare(run_config(folder, stage, offload, fixed))
            for step in range(8):
                trainer.train_step(step)
                if rebuild and step == 3:
                    trainer.rebuild(step + 1, Plan())
            trainer.finish()
            collectives.barrier()
            rows = (trainer.metrics_logger.folder / "metrics.jsonl").read_text(encoding="utf8").splitlines()
            losses.append([json.loads(row)["loss"] for row in rows])
        runs[stage_name(stage, offload)] = losses
    return runs


TAYLOR = ["--method", "prune_lora", "--calibration_steps", "2", "--align", "4", "--max_steps", "2"]


def taylor(folder: str, stages: list[tuple[int, bool]]) -> dict[str, list[float]]:
    """Taylor importance of every block, in several ZeRO modes."""
    scores = {}
    for stage, offload in stages:
        trainer = run.prepare(run_config(folder, stage, offload, TAYLOR))
        trainer.steps.score_by_weight_gradients(trainer.engine)
        scores[stage_name(stage, offload)] = trainer.pruner.scores().tolist()
        zero.destroy(trainer.engine)
        trainer.metrics_logger.close()
        collectives.barrier()
    return scores


def plain_taylor(folder: str) -> list[float]:
    """Taylor importance from its definition: one backward pass over both global batches, without an engine."""
    from apt_ds.data.batching import collate
    from apt_ds.losses.task_losses import summed_loss
    from apt_ds.losses.token_losses import trained_tokens
    from apt_ds.training.datasets import read_data

    zero.init_distributed()
    run = run_config(folder, 0, False, TAYLOR)
    base = loading.find_base(run.model.model_name_or_path)
    data = read_data(run, base)
    model = loading.load_model(base, run)
    picked = [data.train[i] for step in range(2) for i in data.order.indices(step)]
    loss = sum(summed_loss(model, collate([row], 0)) for row in picked)
    (loss / sum(trained_tokens(row) for row in picked)).backward()
    parts: dict[int, torch.Tensor] = {}
    for slot in base.anatomy.slots:
        weight = model.get_submodule(slot.path).weight
        if weight.dim() == 2:
            product = (weight * weight.grad).abs()
            for axis, sums in ((slot.rows, product.sum(1)), (slot.columns, product.sum(0))):
                if axis is not None:
                    parts[axis.site] = parts.get(axis.site, 0) + sums.view(-1, axis.unit).sum(1)
    return torch.cat([parts[site] for site, _ in block_slices(base.anatomy.sizes)]).tolist()
