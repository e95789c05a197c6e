"""`--dry_run`: the memory that a run needs, from the model's configuration, the data and the DeepSpeed file alone.

It requires no launcher and no process group. The data is tokenized, since the longest batch decides. No weight is read.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

import psutil
import torch

from apt_ds.analysis.batch_bounds import evaluation_batches, micro_batches, repaired_batches
from apt_ds.analysis.memory_estimate import MOMENTS_IN_8_BITS, Estimate, estimate
from apt_ds.analysis.memory_trace import measure
from apt_ds.analysis.repair_memory import repair_bytes
from apt_ds.analysis.sharding import MOMENTS, Bytes, Layout
from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.run_config import RunConfig
from apt_ds.data.glue import labels_of
from apt_ds.data.tokenizer_checks import check_lengths
from apt_ds.eval import metrics
from apt_ds.models import attention, initial_adapters, loading
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.loading import Base
from apt_ds.models.positions import check_positions
from apt_ds.pruning.rules import mask_notice, rules_of
from apt_ds.runtime import collectives, launch_variables, zero
from apt_ds.training import dense_tokens
from apt_ds.training.datasets import read_data
from apt_ds.training.model_checks import check_model
from apt_ds.training.run_data import Data
from apt_ds.training.sampling import sampling

GPUS = 8  # per node, where neither launcher nor machine says


class Machine(NamedTuple):
    """The machine of a run.

    Attributes:
        device: bytes of one device.
        host: bytes of one node.
        ranks: ranks on one node.
        on_cpu: whether device and host are one memory.
    """

    device: int
    host: int
    ranks: int
    on_cpu: bool


def files(run: RunConfig) -> tuple[Base, Data]:
    """The inputs of `train.py`: the model's configuration, and the tokenized data. Collective."""
    base = loading.find_base(
        run.model.model_name_or_path, run.data.task, labels_of(run.data.task), run.model.trust_remote_code
    )
    # too few positions are a mistake that should show before the data is tokenized
    check_positions(base.config, run.data.max_seq_length)
    data = read_data(run, base)
    check_lengths(base.config, data.longest(), run.data.perplexity_length if run.data.perplexity_path else 0)
    return base, data


def dry_run(run: RunConfig, inputs: Callable[[RunConfig], tuple[Base, Data]] = files) -> Estimate | None:
    """Print the estimate and whether the run fits.

    Args:
        run: the configuration of the run.
        inputs: reads the model's configuration and the data.

    Returns:
        The estimate on the first rank, None on all others.

    Raises:
        UserError: a mistake in the input. The run itself would report it too.
    """
    if not collectives.is_main():
        return None
    loading.quiet_transformers()
    zero.check_sections(run.distributed.deepspeed)
    world = run.distributed.world_size or collectives.world_size()
    machine = machine_of(run, world)
    base, data = inputs(run)
    run, _ = initial_adapters.resolve(run, base, None)
    config = load_config(run, world, base.config.hidden_size)
    zero.check_config(alone(run, config), run.distributed.deepspeed)
    check_model(run, base, None if run.distributed.device_memory else zero.device())
    rules_of(run, base.anatomy, writable_sizes(base.config, base.anatomy.new_biases and run.pruning.compensates))
    metrics.load(run.data.task)
    process = psutil.Process().memory_info().rss
    estimated = estimate_run(run, base, data, config, world, machine.on_cpu)
    if run.pruning.dense_teacher and run.pruning.teacher_source == "cache":
        print(teacher_room(run, base, data, world))
    print("\n".join(report(estimated, process, machine, world)), flush=True)
    if notice := mask_notice(run, data.total_steps):
        print(notice, file=sys.stderr, flush=True)
    return estimated


def alone(run: RunConfig, config: zero.Config) -> zero.Config:
    """The configuration for a single process. DeepSpeed can check it without the other ranks.

    float16 is left out for a GPU that this machine lacks: DeepSpeed would check it against the CPU.
    """
    batch = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    absent = {"fp16": {"enabled": False}} if run.distributed.device_memory else {}
    return config | {"train_batch_size": batch} | absent


def machine_of(run: RunConfig, world: int) -> Machine:
    """The machine of the run: this machine, except for what options state."""
    on_cpu = zero.device().type == "cpu" and not run.distributed.device_memory
    launched = launch_variables.number("LOCAL_WORLD_SIZE", launch_variables.number("LOCAL_SIZE"))
    devices = world if on_cpu else torch.cuda.device_count() or GPUS
    host = round(run.distributed.host_memory * 1e9) or psutil.virtual_memory().total
    device = round(run.distributed.device_memory * 1e9)
    if not device and not on_cpu:
        device = torch.cuda.get_device_properties(zero.device()).total_memory
    return Machine(device, host, launched or min(world, devices), on_cpu)


def estimate_run(run: RunConfig, base: Base, data: Data, config: zero.Config, world: int, on_cpu: bool) -> Estimate:
    """The estimate of one rank's memory."""
    run = attention.assume(run, base.config, loading.run_dtype(run), on_gpu=not on_cpu)
    # scoring by weight gradients needs gradients of all weights until the cut
    trains_for_score = run.pruning.prunes and run.pruning.score == "taylor"
    trains_all = run.optim.trainable == "all"
    model = measure(
        base,
        run,
        micro_batches(run, data, world, base.task_type),
        evaluation_batches(run, data, base.task_type),
        largest_rank(run),
        trains_all or trains_for_score,
        "cpu" if on_cpu else "cuda",
    )
    prunable = base.anatomy.num_parameters(base.anatomy.sizes) / sum(w.full or w.numel for w in model.weights)
    dtype = loading.run_dtype(run)
    moments = MOMENTS if run.optim.optimizer == "adamw_torch" else MOMENTS_IN_8_BITS
    layout = Layout(
        world=world,
        item=dtype.itemsize,
        stored=(base.dtype or dtype).itemsize,
        kept=1 - prunable * run.pruning.sparsity if run.pruning.prunes else 1.0,
        moments=moments if trains_all or not trains_for_score else 0,
        on_cpu=on_cpu,
        repair=repair_of(run, base, data, config, world) if run.pruning.repairs else 0,
    )
    estimated = estimate(model, config, layout)
    if not run.pruning.dense_teacher or run.pruning.teacher_source == "cache":
        return estimated
    # every rank keeps the whole dense model, which has no adapters
    weights = [weight for weight in model.weights if ".lora_" not in weight.name]
    return with_live_teacher(estimated, sum(weight.numel * layout.item + weight.scales for weight in weights))


def repair_of(run: RunConfig, base: Base, data: Data, config: zero.Config, world: int) -> int:
    """Bytes of a repair on the device: fits, what the walk keeps, and under ZeRO-3 the gathered layer."""
    anatomy, item = base.anatomy, loading.run_dtype(run).itemsize
    readers = "hidden" in run.pruning.block_kinds
    peak = repair_bytes(anatomy, repaired_batches(run, data, world), item, readers)
    if config.get("zero_optimization", {}).get("stage") != 3:
        return peak
    return peak + anatomy.num_parameters(anatomy.sizes) // len(anatomy.layers) * item


def with_live_teacher(estimated: Estimate, size: int) -> Estimate:
    """The estimate with a model of `size` bytes on the device, which stays from the first load to the last step."""
    phases = {name: bytes_.plus(Bytes(size)) for name, bytes_ in estimated.phases.items()}
    return Estimate(estimated.parts | {"dense teacher": Bytes(size)}, phases)


def teacher_room(run: RunConfig, base: Base, data: Data, world: int) -> str:
    """The line about the disk that the dense model's probabilities need."""
    order, steps = sampling(run, data.train, data.sources, world)
    layout = dense_tokens.layout_of(run, base, data.train, dense_tokens.rows_read(order, steps, len(data.train)))
    folder = dense_tokens.parent_of(run)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    short = "" if free >= layout.bytes else ". That is too little, unless an earlier run has left the cache there"
    return (
        f"--distill logits: {layout.tokens:,} trained tokens need {layout.bytes / 1e6:,.1f} MB of the disk of every "
        f"node under {folder}, {free / 1e6:,.0f} MB are free{short}"
    )


def largest_rank(run: RunConfig) -> int:
    """The largest rank of an adapter while the model is whole."""
    if not run.adapter.grows or (run.pruning.prunes and run.pruning.mode == "pretuning"):
        return run.adapter.rank
    return min(run.adapter.max_rank, math.ceil(run.adapter.rank * run.adapter.rank_budget))


def report(estimated: Estimate, process: int, machine: Machine, world: int) -> list[str]:
    """The lines of the table, and the verdict.

    Args:
        estimated: the estimate of one rank.
        process: bytes of this process before it has a model.
        machine: the machine of the run.
        world: number of ranks.
    """
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    lines = [f"estimate per rank, MB, of {ranks}, {machine.ranks} on a node", f"{'':26}{'device':>10}{'host':>10}"]
    for prefix, rows in (("", estimated.parts), ("peak in ", estimated.phases)):
        lines += [f"{prefix + name:26}{b.device / 1e6:10,.0f}{b.host / 1e6:10,.0f}" for name, b in rows.items()]
    lines.append(f"{'process without a model':26}{0:10,.0f}{process / 1e6:10,.0f}")
    return [*lines, verdict(estimated, process, machine)]


def verdict(estimated: Estimate, process: int, machine: Machine) -> str:
    """One line: whether the run fits."""
    if machine.on_cpu:
        needs = [("the host", machine.ranks * (estimated.total() + process), machine.host)]
    else:
        peak = estimated.peak()
        needs = [("a device", peak.device, machine.device)]
        needs.append(("the host", machine.ranks * (peak.host + process), machine.host))
    short = [f"{where} needs {need / 1e9:.2f} GB, has {size / 1e9:.2f}" for where, need, size in needs if need > size]
    shown = ", ".join(f"{where} {need / 1e9:.2f} of {size / 1e9:.2f} GB" for where, need, size in needs)
    return f"does not fit: {'; '.join(short)}" if short else f"fits: {shown}"
