"""Training cost of apt_ds next to PEFT's LoRA under the same DeepSpeed configuration, interleaved in one process.

Variants: `lora` (PEFT, the run's rank and targets), `dense` (apt_ds, nothing cut, every score taken and a decision
made in each step), `cut30` and `cut50` (apt_ds after 30 % and 50 % are gone). Every round builds, warms up, times
and drops each variant in turn, so that drift of the machine hits all alike and no variant sees another's memory.
All see the same batches, made as `train.py` makes them; LoRA gets them as the Hugging Face Trainer would hand
them over, and computes the loss transformers computes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from apt_ds import dist, models, zero
from apt_ds.config import RunConfig
from apt_ds.data.base import load_examples
from apt_ds.data.batches import GlobalOrder, collate
from apt_ds.data.instructions import build_dataset, resolve_pad_id
from apt_ds.ds_config import load_config
from apt_ds.feed import Data
from apt_ds.journal import Journal, peak_memory, reset_peak, write_json
from apt_ds.models import Base
from apt_ds.pruner import Pruner
from apt_ds.trainer import Trainer

VARIANTS = {"lora": 0.0, "dense": 0.3, "cut30": 0.3, "cut50": 0.5}
TARGETS = {"dense": 1.05, "cut30": 0.80, "cut50": 0.65}  # of LoRA's step time
REBUILD_STEPS = 3.0
LAST_STEP = 10**6  # far away: no schedule ends while steps are timed


def benchmark(run: RunConfig, rounds: int, steps: int, json_path: str) -> dict[str, dict[str, float]]:
    """Time all variants; prints a table and writes the figures on rank 0. Collective.

    rounds: how often every variant is built anew; steps: timed optimizer steps per round, after one of warm-up.
    """
    zero.init_distributed()
    models.quiet_transformers()
    base = models.find_base(run.model_name_or_path)
    data = instruction_data(run, base)
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    peaks: dict[str, int] = {}
    rebuilds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, sparsity in VARIANTS.items():
            measure = measure_lora if name == "lora" else measure_apt
            seconds, peak, rebuild = measure(replace(run, sparsity=sparsity), base, data, name, steps)
            times[name] += seconds
            peaks[name] = max(peaks.get(name, 0), peak)
            rebuilds.setdefault(name, []).extend(rebuild)
            zero.collect()
    timed_rows = [data.train[i] for step in range(1, steps + 1) for i in data.order.indices(step)]
    tokens = sum(len(row["input_ids"]) for row in timed_rows) / steps
    figures = summarize(times, peaks, rebuilds, tokens)
    if dist.is_main():
        print(render(figures), flush=True)
        if json_path:
            write_json(Path(json_path), figures)
    return figures


def instruction_data(run: RunConfig, base: Base) -> Data:
    """The training examples as `train.py` makes them, in an order without end."""
    rows = build_dataset(load_examples(run.data_path), base.tokenizer, run.max_seq_length)
    batch = run.per_device_train_batch_size * run.gradient_accumulation_steps * dist.world_size()
    return Data(rows, rows, [], GlobalOrder(len(rows), batch, run.seed), LAST_STEP, None)


Measured = tuple[list[float], int, list[float]]


def measure_lora(run: RunConfig, base: Base, data: Data, name: str, steps: int) -> Measured:
    """PEFT's LoRA with the loss transformers computes."""
    config = load_config(run, dist.world_size(), base.config.hidden_size)
    sharding = zero.shard_while_loading(config)
    model = models.load_model(base, run)
    targets = [f"{target}_proj" for target in run.targets]
    lora = LoraConfig(r=run.rank, lora_alpha=2 * run.rank, target_modules=targets, task_type="CAUSAL_LM")
    # adapters in fp32 do not go with a bf16 engine under stage 3
    wrapped = get_peft_model(model, lora, autocast_adapter_dtype=False).train()
    engine = zero.build(wrapped, config)
    del sharding

    pad_id = resolve_pad_id(base.tokenizer)

    def step(number: int) -> None:
        for micro in range(run.gradient_accumulation_steps):
            own = data.order.micro(number, micro, dist.rank(), dist.world_size(), run.per_device_train_batch_size)
            batch = collate([data.train[i] for i in own], pad_id).to(zero.device())
            engine.backward(engine(**vars(batch), use_cache=False).loss)
            engine.step()

    seconds, peak = timed(step, steps)
    zero.destroy(engine)
    return seconds, peak, []


def measure_apt(run: RunConfig, base: Base, data: Data, name: str, steps: int) -> Measured:
    """apt_ds, either scoring and deciding on the dense model or training the cut one."""
    scoring = name == "dense"
    mode = "gradual" if scoring else "pretuning"
    run = replace(run, pruning=mode, calibration_steps=1, prune_ratio=1.0, rank_growth=scoring)
    config = load_config(run, dist.world_size(), base.config.hidden_size)
    pruner = Pruner(run, base.anatomy, data.total_steps, zero.device())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, base, config, data, pruner, Journal(Path(folder), 0, quiet=True))
        if not scoring:
            trainer.cut_at_once(0)

        def step(number: int) -> None:
            trainer.train_step(number)
            pruner.advance(number + 1)

        seconds, peak = timed(step, steps)
        rebuilt = list(trainer.meter.rebuilds)
        pruner.undress()
        zero.destroy(trainer.engine)
        trainer.journal.close()
    return seconds, peak, rebuilt


def timed(step: Callable[[int], None], steps: int) -> tuple[list[float], int]:
    """Seconds of each of `steps` steps after one of warm-up, and peak memory in bytes over all ranks' maximum."""
    step(0)
    reset_peak(zero.device())
    seconds = []
    for number in range(1, steps + 1):
        dist.barrier()
        start = time.perf_counter()
        step(number)
        if zero.device().type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds, max(dist.gather_objects(peak_memory(zero.device())))


def summarize(
    times: dict[str, list[float]], peaks: dict[str, int], rebuilds: dict[str, list[float]], tokens: float
) -> dict[str, dict[str, float]]:
    """Medians: `step_seconds`, `tokens_per_second`, `peak_memory_bytes`, `rebuild_seconds`, each by variant."""
    step = {name: statistics.median(values) for name, values in times.items()}
    return {
        "step_seconds": step,
        "tokens_per_second": {name: tokens / seconds for name, seconds in step.items()},
        "peak_memory_bytes": dict(peaks),
        "rebuild_seconds": {name: statistics.median(values) for name, values in rebuilds.items() if values},
    }


def render(figures: dict[str, dict[str, float]]) -> str:
    """The table, with ratios to LoRA and the targets."""
    lines = [
        f"{'':8}{'step s':>10}{'tokens/s':>12}{'peak MB':>12}{'rebuild s':>12}{'time/lora':>12}{'memory/lora':>13}"
    ]
    step, peak = figures["step_seconds"], figures["peak_memory_bytes"]
    for name in VARIANTS:
        rebuild = figures["rebuild_seconds"].get(name)
        speed, rebuilt = figures["tokens_per_second"][name], f"{rebuild:.2f}" if rebuild else ""
        lines.append(
            f"{name:8}{step[name]:10.3f}{speed:12.0f}{peak[name] / 1e6:12.0f}{rebuilt:>12}"
            f"{step[name] / step['lora']:12.3f}{peak[name] / peak['lora']:13.3f}"
        )
    for name, limit in TARGETS.items():
        ratio = step[name] / step["lora"]
        verdict = "met" if ratio <= limit else "MISSED"
        lines.append(f"{name}: {ratio:.3f} of LoRA's time, target at most {limit}: {verdict}")
    for name, seconds in figures["rebuild_seconds"].items():
        ratio = seconds / step[name]
        verdict = "met" if ratio <= REBUILD_STEPS else "MISSED"
        lines.append(f"rebuild to {name}: {ratio:.2f} training steps, target at most {REBUILD_STEPS:g}: {verdict}")
    return "\n".join(lines)
