"""Jobs of `multiprocess.py` about rebuilds: the memory that a rebuild needs, and what rebuilds leave."""

from __future__ import annotations

import gc
import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from apt_ds.pruning import surgery
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, zero
from apt_ds.training import run
from apt_ds.training.trainer import Trainer
from tests.support.devices import gpu_bytes
from tests.support.jobs import run_config, stage_name


@contextmanager
def watching_peaks(*functions: tuple[Any, str]) -> Iterator[dict[str, int]]:
    """Measure the peak of memory in each call of some functions.

    Args:
        functions: the object that has the function, and its name.

    Yields:
        Peak bytes by name, of the function's last call.
    """
    from apt_ds.runtime.memory import peak_memory, reset_peak

    peaks: dict[str, int] = {}

    def watched(name: str, original: Any) -> Any:
        def watch(*arguments: Any) -> Any:
            reset_peak(zero.device())
            value = original(*arguments)
            peaks[name] = peak_memory(zero.device())
            return value

        return watch

    originals = [getattr(owner, name) for owner, name in functions]
    for original, (owner, name) in zip(originals, functions, strict=True):
        setattr(owner, name, watched(name, original))
    yield peaks
    for original, (owner, name) in zip(originals, functions, strict=True):
        setattr(owner, name, original)


def random_trainer(folder: str, stage: int, offload: bool) -> Trainer:
    """A trainer that prunes heads, neurons and hidden dimensions of a random model, on random data."""
    from apt_ds.analysis.bench.synthetic import random_base, random_data
    from apt_ds.analysis.benchmark import LAST_STEP
    from apt_ds.config.deepspeed_config import load_config
    from apt_ds.pruning.pruner import Pruner
    from apt_ds.training.metrics import MetricsLogger

    config = run_config(folder, stage, offload, ["--calibration_steps", "1", "--prune_blocks", "heads,neurons,hidden"])
    base = random_base(folder)
    deepspeed = load_config(config, collectives.world_size(), base.config.hidden_size)
    pruner = Pruner(config, base.anatomy, 100, zero.device())
    metrics_logger = MetricsLogger(Path(folder), 0, quiet=True)
    return Trainer(config, base, deepspeed, random_data(config, base, LAST_STEP), pruner, metrics_logger)


def rebuild_memory(folder: str, stages: list[tuple[int, bool]]) -> dict[str, dict[str, int]]:
    """Resident bytes before a cut of a model, and the most while it is cut and while its engine is built."""
    zero.init_distributed()
    results: dict[str, dict[str, int]] = {}
    for stage, offload in stages:
        trainer = random_trainer(folder, stage, offload)
        pruner = trainer.pruner
        trainer.begin()
        trainer.steps.run(trainer.engine, 0, calibrating=True)
        zero.release_gathered(trainer.engine)
        zero.free_memory()
        layer = sum(zero.full_numel(p) * p.element_size() for p in trainer.engine.module.model.layers[0].parameters())
        before = {"layer": layer, "held": psutil.Process().memory_info().rss}
        with watching_peaks((surgery, "apply_plan"), (zero, "build")) as peaks:
            trainer.rebuild(0, pruner.cut_now(trainer.engine.module), fresh=True)
        trainer.train_step(1)
        results[stage_name(stage, offload)] = before | peaks | {"kept": round(100 * pruner.kept())}
        pruner.remove_hooks()
        zero.destroy(trainer.engine)
        trainer.metrics_logger.close()
        del trainer
        zero.free_memory()
    return results


def rebuilds(folder: str, stages: list[tuple[int, bool]], count: int) -> dict[str, list[dict[str, int]]]:
    """`count` rebuilds with a step between them; what is alive after every tenth of them."""
    results = {}
    for stage, offload in stages:
        trainer = run.prepare(run_config(folder, stage, offload, ["--sparsity", "0", "--rank_growth", "none"]))
        census = []
        for step in range(count):
            trainer.train_step(step)
            trainer.rebuild(step, Plan())
            # a census walks every object: now and then is enough to see growth
            if step % 10 == 4 or step + 1 == count:
                census.append(settled(trainer, census[0] if census else None))
        results[stage_name(stage, offload)] = census
        trainer.finish()
    return results


def settled(trainer: Trainer, first: dict[str, int] | None) -> dict[str, int]:
    """What is alive. Counted again for up to two seconds while it is more than at first.

    The threads of a collective may still hold a tensor, the longer the busier the machine is. A leak stays.
    """
    for _ in range(20):
        gc.collect()
        census = alive(trainer)
        if first is None or all(census[key] <= first[key] for key in ("tensors", "bytes")):
            break
        time.sleep(0.1)
    return census


def alive(trainer: Trainer) -> dict[str, int]:
    """Engines, tensors, bytes, hooks, registry entries of this process, and bytes that torch holds on a GPU for it."""
    from deepspeed.runtime.zero import parameter_offload

    kinds = {"engines": zero.Engine, "tensors": torch.Tensor, "modules": nn.Module}
    objects = gc.get_objects()
    census = gpu_bytes() | {name: sum(issubclass(type(o), kind) for o in objects) for name, kind in kinds.items()}
    tensors = [o for o in objects if issubclass(type(o), torch.Tensor)]
    census["bytes"] = sum(t.untyped_storage().nbytes() for t in tensors)
    census["hooks"] = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in trainer.engine.module.modules()
    )
    census["stack"] = len(parameter_offload.FWD_MODULE_STACK)
    census["rss"] = psutil.Process().memory_info().rss
    return census


def engine_costs(folder: str) -> dict[str, Any]:
    """What the four engines of a run that offloads its optimizer paid for.

    descriptions: how often they asked for a description of the CPU. compiler: whether they loaded torch's compiler.
    """
    cpuinfo: Any = importlib.import_module("cpuinfo")
    asked, real = [], cpuinfo.get_cpu_info

    def describe() -> dict[str, Any]:
        asked.append(1)
        return real()

    cpuinfo.get_cpu_info = describe
    zero.describe_cpu_once.cache_clear()
    trainer = run.prepare(run_config(folder, 2, True, ["--sparsity", "0", "--rank_growth", "none"]))
    for step in range(3):
        trainer.rebuild(step, Plan())
    trainer.finish()
    return {"descriptions": len(asked), "compiler": "torch._inductor.compile_fx" in sys.modules}
