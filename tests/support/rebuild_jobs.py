"""More jobs of `multiprocess.py`: what steps and rebuilds cost in time, bytes sent and memory, and what they leave."""

from __future__ import annotations

import gc
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from apt_ds.pruning import surgery
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, profiler, zero
from apt_ds.training import run, trainer
from tests.support.devices import gpu_bytes
from tests.support.jobs import facts, run_config


def profiled(folder: str, stages: list[tuple[int, bool]]) -> dict[str, Any]:
    """What runs tell of their steps, and the same runs without a profile."""
    flags = ["--pruning", "gradual", "--max_steps", "10", "--align", "4", "--mask_step", "0.5", "--prune_every", "7"]
    found = {}
    for stage, offload in stages:
        runs = {}
        for on in ("false", "true"):
            made = run.prepare(run_config(folder, stage, offload, [*flags, "--profile", on]))
            figures = made.run()
            collectives.barrier()
            runs[on] = facts(made, figures)
        spent = [sum(step.values()) for step in profiler.NOW._steps[profiler.DENSE]]
        told = {"profile": figures["profile"], "unprofiled": runs["false"]}
        told |= {"spent": spent, "steps": made.meter.state_dict()[0]["dense"]}
        found[f"{stage}{'o' if offload else ''}"] = told | {"losses": runs["true"]["losses"]}
    return found


def sent(folder: str, stages: list[tuple[int, bool]]) -> dict[str, Any]:
    """Bytes this rank sends in one scored step, by what they are for, counted where collectives start."""
    import torch.distributed as td
    from deepspeed.comm import comm

    from apt_ds.analysis.bench.synthetic import shape_of

    zero.init_distributed()
    half = (collectives.world_size() - 1) / collectives.world_size()
    # owner and name; the whole tensor's place and name among the arguments, what it is for, how often a ring sends it
    watched = [
        (comm.cdb, "all_gather_function", 0, "output_tensor", "gather", half),
        (td.distributed_c10d, "all_gather_into_tensor", 0, "output_tensor", "gather", half),
        (td, "all_gather", 0, "tensor_list", "gather", half),
        (comm.cdb, "reduce_scatter_function", 1, "input", "reduce", half),
        (td, "all_reduce", 0, "tensor", "reduce", 2 * half),
    ]
    found = {}
    for stage, offload in stages:
        flags = ["--pruning", "gradual", "--rank_growth", "none", "--max_steps", "8"]
        made = run.prepare(run_config(folder, stage, offload, flags))
        observed = made.pruner.scorer.abs_sums.numel() + 2
        counted = {"gather": 0.0, "reduce": 0.0, "salience": 0.0}

        def counting(
            original: Any, place: int, word: str, kind: str, factor: float, all_: int = observed, into: Any = counted
        ) -> Any:
            def count(*arguments: Any, **options: Any) -> Any:
                tensor = options[word] if word in options else arguments[place]
                parts = tensor if isinstance(tensor, list) else [tensor]
                # the small ones are DeepSpeed's norms
                if parts[0].numel() > 8:
                    scored = original is td.distributed_c10d.all_reduce and parts[0].numel() == all_
                    into["salience" if scored else kind] += factor * sum(part.nbytes for part in parts)
                return original(*arguments, **options)

            return count

        made.train_step(0)
        originals = [getattr(owner, name) for owner, name, *_ in watched]
        for original, (owner, name, *how) in zip(originals, watched, strict=True):
            setattr(owner, name, counting(original, *how))
        made.train_step(1)
        for original, (owner, name, *_) in zip(originals, watched, strict=True):
            setattr(owner, name, original)
        load = {"tokens": 1.0, "trained": 1.0, "context": 1.0, "scoring": True}
        load["micro_batches"] = made.run_config.optim.gradient_accumulation_steps
        shape = vars(shape_of(made.base, made.base.anatomy, made.run_config))
        found[str(stage)] = counted | {"shape": shape, "load": load}
        made.finish()
        collectives.barrier()
    return found


def rebuild_memory(folder: str, stages: list[tuple[int, bool]]) -> dict[str, dict[str, int]]:
    """Resident bytes before a cut of a model, and the most while it is cut and while its engine is built."""
    from apt_ds.analysis.bench.synthetic import random_base, random_data
    from apt_ds.analysis.benchmark import LAST_STEP
    from apt_ds.config.deepspeed_config import load_config
    from apt_ds.pruning.pruner import Pruner
    from apt_ds.runtime.memory import peak_memory, reset_peak
    from apt_ds.training.metrics import MetricsLogger

    zero.init_distributed()
    found: dict[str, dict[str, int]] = {}
    for stage, offload in stages:
        run = run_config(folder, stage, offload, ["--calibration_steps", "1", "--prune_blocks", "heads,neurons,hidden"])
        base = random_base(folder)
        config = load_config(run, collectives.world_size(), base.config.hidden_size)
        pruner = Pruner(run, base.anatomy, 100, zero.device())
        metrics_logger = MetricsLogger(Path(folder), 0, quiet=True)
        made = trainer.Trainer(run, base, config, random_data(run, base, LAST_STEP), pruner, metrics_logger)
        made.begin()
        made.steps.run(made.engine, 0, calibrating=True)
        zero.release_gathered(made.engine)
        zero.free_memory()
        layer = sum(zero.full_numel(p) * p.element_size() for p in made.engine.module.model.layers[0].parameters())
        told = {"layer": layer, "held": psutil.Process().memory_info().rss}

        def watched(place: Any, name: str, told: dict[str, int] = told) -> tuple[Any, str, Any]:
            original = getattr(place, name)

            def watch(*arguments: Any) -> Any:
                reset_peak(zero.device())
                value = original(*arguments)
                told[name] = peak_memory(zero.device())
                return value

            setattr(place, name, watch)
            return place, name, original

        changed = [watched(surgery, "apply_plan"), watched(zero, "build")]
        made.rebuild(0, pruner.cut_now(made.engine.module), fresh=True)
        for place, name, original in changed:
            setattr(place, name, original)
        made.train_step(1)
        found[f"{stage}{'o' if offload else ''}"] = told | {"kept": round(100 * pruner.kept())}
        pruner.remove_hooks()
        zero.destroy(made.engine)
        metrics_logger.close()
        del made
        zero.free_memory()
    return found


def rebuilds(folder: str, stages: list[tuple[int, bool]], count: int) -> dict[str, list[dict[str, int]]]:
    """`count` rebuilds with a step between them; what is alive after every tenth."""
    found = {}
    for stage, offload in stages:
        made = run.prepare(run_config(folder, stage, offload, ["--sparsity", "0", "--rank_growth", "none"]))
        census = []
        for step in range(count):
            made.train_step(step)
            made.rebuild(step, Plan())
            # a census walks every object: now and then is enough to see growth
            if step % 10 == 4 or step + 1 == count:
                census.append(settled(made, census[0] if census else None))
        found[f"{stage}{'o' if offload else ''}"] = census
        made.finish()
    return found


def settled(made: trainer.Trainer, first: dict[str, int] | None) -> dict[str, int]:
    """What is alive. Counted again for up to two seconds while it is more than at first.

    The threads of a collective may still hold a tensor, the longer the busier the machine is. A leak stays.
    """
    for _ in range(20):
        gc.collect()
        found = alive(made)
        if first is None or all(found[key] <= first[key] for key in ("tensors", "bytes")):
            break
        time.sleep(0.1)
    return found


def alive(made: trainer.Trainer) -> dict[str, int]:
    """Engines, tensors, bytes, hooks, registry entries of this process, and bytes that torch holds on a GPU for it."""
    from deepspeed.runtime.zero import parameter_offload

    kinds = {"engines": zero.Engine, "tensors": torch.Tensor, "modules": nn.Module}
    objects = gc.get_objects()
    census = gpu_bytes() | {name: sum(issubclass(type(o), kind) for o in objects) for name, kind in kinds.items()}
    tensors = [o for o in objects if issubclass(type(o), torch.Tensor)]
    census["bytes"] = sum(t.untyped_storage().nbytes() for t in tensors)
    census["hooks"] = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in made.engine.module.modules()
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
    made = run.prepare(run_config(folder, 2, True, ["--sparsity", "0", "--rank_growth", "none"]))
    for step in range(3):
        made.rebuild(step, Plan())
    made.finish()
    return {"descriptions": len(asked), "compiler": "torch._inductor.compile_fx" in sys.modules}
