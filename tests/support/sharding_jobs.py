"""Jobs of `multiprocess.py` that report what a rank has: devices, shards of weights, 8-bit moments."""

from __future__ import annotations

import copy
import gc
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apt_ds.config.deepspeed_config import load_config
from apt_ds.losses import task_losses
from apt_ds.models import adapter, loading
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, zero
from apt_ds.runtime.packed import QuantizedParameter
from apt_ds.training import run as training_run
from tests.support.jobs import run_config


def devices_seen() -> list[list[str]]:
    """What each rank sees: the GPUs that it may see, DeepSpeed's accelerator, its device and its collectives."""
    zero.init_distributed()
    seen = [os.environ["CUDA_VISIBLE_DEVICES"], os.environ["DS_ACCELERATOR"], zero.device().type]
    return collectives.gather_objects([*seen, torch.distributed.get_backend()])


def load_sharded(folder: str, model: str = "model") -> dict[str, Any]:
    """Parameters of the model: in all, on this rank after loading, and the most on this rank while it loads."""
    zero.init_distributed()
    run = run_config(folder, 3, False, ["--model_name_or_path", str(Path(folder) / model)])
    base = loading.find_base(run.model.model_name_or_path)
    config = load_config(run, collectives.world_size(), base.config.hidden_size)
    largest = 0
    original = nn.Module.register_parameter

    def watch(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal largest
        original(module, name, parameter)
        sizes = {id(t): t.numel() for t in gc.get_objects() if isinstance(t, nn.Parameter) and t.device.type != "meta"}
        largest = max(largest, sum(sizes.values()))

    nn.Module.register_parameter = watch
    sharding = zero.shard_while_loading(config)
    model = loading.load_model(base, run)
    nn.Module.register_parameter = original
    del sharding
    total = sum(zero.full_numel(p) for p in model.parameters())
    kept = sum(p.numel() + p.ds_tensor.numel() for p in model.parameters())
    return {"total": total, "held": kept, "largest": largest}


def packed_shards(folder: str, flags: list[str]) -> dict[str, Any]:
    """How many bytes of each packed weight a rank holds under ZeRO-3: its share, at rest and before a backward pass."""
    trainer = training_run.prepare(run_config(folder, 3, False, flags))
    packed = [p for p in trainer.engine.module.parameters() if isinstance(p, QuantizedParameter)]
    sizes = {"whole": [p.full.numel() * p.bits // 8 for p in packed], "rest": [bytes_here(p) for p in packed]}
    loss = task_losses.summed_loss(trainer.engine, trainer.steps.batches.on_device(0, 0))
    sizes["waiting"] = [bytes_here(p) for p in packed]
    trainer.engine.backward(loss)
    trainer.engine.step()
    trainer.finish()
    return sizes


def bytes_here(parameter: nn.Parameter) -> int:
    """Bytes of a sharded parameter on this rank, gathered or not."""
    return (parameter.numel() + parameter.ds_tensor.numel()) * parameter.element_size()


def eight_bit_moments(folder: str, stages: list[tuple[int, bool]], flags: list[str]) -> dict[str, dict[str, Any]]:
    """What becomes of moments in 8 bits in a rebuild that changes nothing, and in one that cuts and grows."""
    results = {}
    original = zero.put_state
    for stage, offload in stages:
        trainer = training_run.prepare(run_config(folder, stage, offload, flags))
        for step in range(3):
            trainer.train_step(step)
        before = zero.take_state(trainer.engine)
        trainer.rebuild(3, Plan())
        after = zero.take_state(trainer.engine)
        same = [torch.equal(before.blocks[name], after.blocks[name]) for name in before.blocks]
        grown = next(path for path, _ in adapter.adapters(trainer.engine.module))
        wanted: list[zero.EngineState] = []

        def spy(engine: zero.Engine, state: zero.EngineState, wanted: list[zero.EngineState] = wanted) -> None:
            wanted.append(copy.deepcopy(state))
            original(engine, state)

        zero.put_state = spy
        trainer.rebuild(3, Plan(trainer.pruner.decide(trainer.pruner.scores(), 0.3), {grown: 12}))
        zero.put_state = original
        moved = zero.take_state(trainer.engine)
        errors = {}
        for key in ("master", "exp_avg", "exp_avg_sq"):
            # all at once: beside the large ones of its block a small tensor's moments are rounded to nothing
            a, b = (torch.cat([e[key].flatten() for e in s.tensors.values()]) for s in (wanted[0], moved))
            errors[key] = ((b - a).norm() / a.norm()).item()
        results[str(stage)] = {
            "same": all(same),
            "blocks": len(same),
            "errors": errors,
            "new": moved.tensors[f"{grown}.lora_A"]["exp_avg"][8:].abs().max().item(),
            "steps": [before.adam_step, after.adam_step, moved.adam_step],
        }
        trainer.train_step(3)
        trainer.finish()
    return results
