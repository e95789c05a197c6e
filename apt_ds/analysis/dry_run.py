"""`--dry_run`: what a run will need, told from the model's configuration, the data and the DeepSpeed file alone.

Needs no launcher and no process group. Data is tokenized, since the longest batch decides; weights are not read.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import psutil
import torch

from apt_ds.analysis.memory_estimate import MOMENTS, MOMENTS_IN_8_BITS, Bytes, Estimate, Layout, estimate
from apt_ds.analysis.memory_trace import Shape, measure
from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import GENERATION, LANGUAGE_MODEL
from apt_ds.data.batching import GlobalOrder, round_up
from apt_ds.data.glue import labels_of
from apt_ds.data.packing import sharing
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.data.tokenizer_checks import check_lengths
from apt_ds.eval import metrics
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.models import loading, quantization_checks
from apt_ds.models.loading import Base
from apt_ds.models.positions import check_positions
from apt_ds.pruning.rules import mask_notice
from apt_ds.runtime import collectives, zero
from apt_ds.training.datasets import Data, read_data

GPUS = 8  # of a node, where nothing says


class Machine(NamedTuple):
    """What there is. device and host: bytes of one device and of one node; ranks: on a node; on_cpu: one memory."""

    device: int
    host: int
    ranks: int
    on_cpu: bool


def files(run: RunConfig) -> tuple[Base, Data]:
    """What `train.py` reads: the model's configuration, and the data. Collective."""
    base = loading.find_base(
        run.model.model_name_or_path, run.data.task, labels_of(run.data.task), run.model.trust_remote_code
    )
    check_positions(base.config, run.data.max_seq_length)
    data = read_data(run, base)
    check_lengths(base.config, data.longest(), run.data.perplexity_length if run.data.perplexity_path else 0)
    return base, data


def dry_run(run: RunConfig, inputs: Callable[[RunConfig], tuple[Base, Data]] = files) -> Estimate | None:
    """Print the table and whether the run fits, on the first rank; returns the estimate there.

    Raises:
        UserError: a mistake in the input that a run would have named too.
    """
    if not collectives.is_main():
        return None
    loading.quiet_transformers()
    zero.check_sections(run.distributed.deepspeed)
    world = run.distributed.world_size or collectives.world_size()
    machine = machine_of(run, world)
    base, data = inputs(run)
    config = load_config(run, world, base.config.hidden_size)
    zero.check_config(alone(run, config), run.distributed.deepspeed)
    quantization_checks.check(run, base.anatomy, None if run.distributed.device_memory else zero.device())
    metrics.load(run.data.task)
    process = psutil.Process().memory_info().rss
    found = estimate_run(run, base, data, config, world, machine.on_cpu)
    print("\n".join(tell(found, process, machine, world)), flush=True)
    if notice := mask_notice(run, data.total_steps):
        print(notice, file=sys.stderr, flush=True)
    return found


def alone(run: RunConfig, config: zero.Config) -> zero.Config:
    """What DeepSpeed can judge in a single process; a device that is not here may train in float16."""
    batch = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    elsewhere = {"fp16": {"enabled": False}} if run.distributed.device_memory else {}
    return config | {"train_batch_size": batch} | elsewhere


def machine_of(run: RunConfig, world: int) -> Machine:
    """The machine the run is meant for: this one, unless options say otherwise."""
    on_cpu = zero.device().type == "cpu" and not run.distributed.device_memory
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "0")))
    devices = world if on_cpu else torch.cuda.device_count() or GPUS
    host = round(run.distributed.host_memory * 1e9) or psutil.virtual_memory().total
    device = round(run.distributed.device_memory * 1e9)
    if not device and not on_cpu:
        device = torch.cuda.get_device_properties(zero.device()).total_memory
    return Machine(device, host, launched or min(world, devices), on_cpu)


def estimate_run(run: RunConfig, base: Base, data: Data, config: zero.Config, world: int, on_cpu: bool) -> Estimate:
    """The estimate of one rank's memory."""
    weighs = run.pruning.mode != "none" and run.pruning.score == "taylor"
    everything = run.optim.trainable == "all" or weighs
    # ranks that grow while the model is still whole
    grows = run.adapter.grows and run.pruning.mode != "pretuning"
    rank = (
        min(run.adapter.max_rank, math.ceil(run.adapter.rank * run.adapter.rank_budget)) if grows else run.adapter.rank
    )
    batch = run.optim.per_device_eval_batch_size
    tests = [apart(range(i, min(i + batch, len(data.held_out)))) for i in range(0, len(data.held_out), batch)]
    judged = [bound(data.held_out, tests, base.kind)]
    if data.corpus is not None:
        blocks, length = max(1, batch // 4), data.corpus.shape[1]
        judged.append(Shape(blocks, length, 0, blocks * (length - 1)))
    model = measure(base, run, micro_batches(run, data, world, base.kind), judged, rank, everything)
    prunable = base.anatomy.num_parameters(base.anatomy.sizes) / sum(w.full or w.numel for w in model.weights)
    kept = 1 - prunable * run.pruning.sparsity if run.pruning.mode != "none" else 1.0
    dtype = loading.run_dtype(run)
    stored = base.dtype or dtype
    moments = MOMENTS if run.optim.optimizer == "adamw_torch" else MOMENTS_IN_8_BITS
    layout = Layout(
        world, dtype.itemsize, stored.itemsize, kept, moments * (run.optim.trainable == "all" or not weighs), on_cpu
    )
    return estimate(model, config, layout)


def micro_batches(run: RunConfig, data: Data, world: int, kind: str) -> Shape:
    """What no training micro-batch of the run exceeds in any dimension, on any of `world` ranks."""
    size = run.optim.per_device_train_batch_size
    order = GlobalOrder(len(data.train), run.optim.global_batch(world), run.optim.seed)
    steps = run.optim.max_steps if run.optim.max_steps > 0 else order.steps(run.optim.num_train_epochs)
    drawn = (order.indices(step) for step in range(steps))
    parts = [indices[i : i + size] for indices in drawn for i in range(0, len(indices), size)]
    if not run.data.packing:
        return bound(data.train, [apart(part) for part in parts], kind)
    lengths = [len(row["input_ids"]) for row in data.train.rows]
    packed = [(part, sharing([lengths[i] for i in part], run.data.max_seq_length, run.model.one_row)) for part in parts]
    return bound(data.train, [[[part[i] for i in group] for group in groups] for part, groups in packed], kind)


def apart(indices: Iterable[int]) -> list[list[int]]:
    """A row for each example."""
    return [[i] for i in indices]


def bound(rows: TokenizedSet, batches: list[list[list[int]]], kind: str) -> Shape:
    """What none of the batches exceeds. A batch: the examples of each of its rows, one after the other."""
    lengths = [len(row["input_ids"]) for row in rows.rows]
    # an answer for a row trains no tokens
    trained = [
        TASK_LOSSES[kind].loss_denominator(row) if kind in (LANGUAGE_MODEL, GENERATION) else 0 for row in rows.rows
    ]
    written = [len(row["labels"]) if kind == GENERATION else 0 for row in rows.rows]
    most = Shape(0, 0, 0, 0)
    for batch in batches:
        longest = max(sum(lengths[i] for i in group) for group in batch)
        count, words = (sum(trained[i] for group in batch for i in group), max(written[i] for g in batch for i in g))
        most = Shape(*map(max, most, (len(batch), round_up(longest), round_up(words), count)))
    return most


def tell(found: Estimate, process: int, machine: Machine, world: int) -> list[str]:
    """The table and the verdict. process: bytes of this process before it holds a model."""
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    lines = [f"estimate per rank, MB, of {ranks}, {machine.ranks} on a node", f"{'':24}{'device':>10}{'host':>10}"]
    for title, part in (("", found.parts), ("peak in ", found.phases)):
        lines += [f"{title + name:24}{b.device / 1e6:10,.0f}{b.host / 1e6:10,.0f}" for name, b in part.items()]
    lines.append(f"{'process without a model':24}{0:10,.0f}{process / 1e6:10,.0f}")
    return [*lines, verdict(found, process, machine)]


def verdict(found: Estimate, process: int, machine: Machine) -> str:
    """One line: whether it fits."""
    if machine.on_cpu:
        needs = [("the host", machine.ranks * (found.total() + process), machine.host)]
    else:
        peak: Bytes = found.peak()
        needs = [("a device", peak.device, machine.device)]
        needs.append(("the host", machine.ranks * (peak.host + process), machine.host))
    short = [
        f"{where} needs {need / 1e9:.2f} GB, has {there / 1e9:.2f}" for where, need, there in needs if need > there
    ]
    shown = ", ".join(f"{where} {need / 1e9:.2f} of {there / 1e9:.2f} GB" for where, need, there in needs)
    return f"does not fit: {'; '.join(short)}" if short else f"fits: {shown}"
