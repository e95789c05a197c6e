"""What a model costs to run: latency, throughput, memory, FLOPs and size, several models in turn in one process.

Every figure of time is a median over rounds, after one of warm-up; each round runs every model, so that drift of
the machine hits all alike. `inference_timing.py` says what one pass is, by the kind of model.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.eval import loading
from apt_ds.eval.inference_timing import ENCODER, KINDS, LANGUAGE, Figures, Kind, Plan, prompts, run_at_batch, run_once
from apt_ds.models import loading as model_loading
from apt_ds.models.architectures import find_architecture
from apt_ds.runtime import zero
from apt_ds.runtime.memory import peak_memory, reset_peak, trim_heap

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt


def kind_of(sources: dict[str, str], trust: bool = False) -> Kind:
    """How these models are measured, by name: from their configurations.

    Raises:
        UserError: no model there, or models of different kinds.
    """
    tasks = {source: loading.task_of(loading.described(source, trust)[1]) for source in sources.values()}
    kinds = {id(KINDS[task]): KINDS[task] for task in tasks.values()}
    if len(kinds) > 1:
        told = ", ".join(f"{source} is for {task}" for source, task in tasks.items())
        raise UserError(f"--baseline: models of different kinds cannot be compared: {told}")
    return next(iter(kinds.values()))


def measure(
    sources: dict[str, str], bf16: bool = False, plan: Plan | None = None, trust: bool = False
) -> dict[str, Figures]:
    """Figures of each model, by the name given to its folder (or hub name).

    Those of its kind's rows: `inference_bytes` is the peak of memory it adds, weights included, `flops_per_token`
    counts weights. A language model runs at batch 1, at `plan.batch` where that is above 1, and at `batch`, the largest
    power of two that fits. Others run at `plan.batch`. trust: code of the folders may run.

    Raises:
        UserError: no model there, models of different kinds, or not enough memory for all of them at once.
    """
    kind = kind_of(sources, trust)
    plan = kind.complete(plan or Plan())
    found: dict[str, Figures] = {}
    loaded: dict[str, PreTrainedModel] = {}
    with exact_heap():
        # on the CPU what libraries take for themselves at first use would count as a model's
        rehearsed = sources if zero.device().type == "cpu" else {}
        for name, source in [*rehearsed.items(), *sources.items()]:
            loaded.pop(name, None)
            try:
                loaded[name], found[name] = load_measured(source, bf16, plan, kind, trust)
            except torch.OutOfMemoryError:
                told = f"not enough device memory for {', '.join(sources)} at once, at batch {plan.batch}"
                raise UserError(f"--model {source!r}: {told}; lower --inference_batch_size") from None
    passes: dict[str, list[Figures]] = {name: [] for name in loaded}
    for _ in range(plan.rounds):
        for name, model in loaded.items():
            passes[name].append(kind.run(model, plan) | (run_at_batch(model, plan) if batched(kind, plan) else {}))
    for name, figures in passes.items():
        found[name] |= {key: statistics.median(each[key] for each in figures) for key in figures[0]}
    if kind is LANGUAGE:
        for name, figures in largest_batches(loaded, plan).items():
            found[name] |= figures
    return found


def load_measured(
    source: str, bf16: bool, plan: Plan, kind: Kind, trust: bool = False
) -> tuple[PreTrainedModel, Figures]:
    """A model, what it weighs, and the peak of memory it adds while it runs once (which also warms it up)."""
    zero.free_memory()
    before = held_memory()
    config = loading.described(source, trust)[1]
    if kind is ENCODER:
        check_room(config, plan)
    judged = loading.load(source, bf16, task=loading.task_of(config), fresh_head=True, trust=trust)
    model = judged.model
    model.config.use_cache = True
    reset_peak(zero.device())
    kind.run(model, plan)
    figures: Figures = {"inference_bytes": peak_memory(zero.device()) - before}
    if batched(kind, plan):
        zero.free_memory()
        reset_peak(zero.device())
        run_at_batch(model, plan)
        figures["inference_batch_bytes"] = peak_memory(zero.device()) - before
    figures |= model_loading.count_parameters(model)
    figures["flops_per_token"] = 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    figures["checkpoint_bytes"] = checkpoint_bytes(judged.source) or figures["checkpoint_bytes"]
    return model, figures


def batched(kind: Kind, plan: Plan) -> bool:
    """Whether a second batch size is measured beside batch 1."""
    return kind is LANGUAGE and plan.batch > 1


def check_room(config: PretrainedConfig, plan: Plan) -> None:
    """Raise UserError for a prompt that is longer than an encoder has positions for."""
    spec = find_architecture(config)
    taken = spec.position_offset(config) if spec is not None else 0
    room = getattr(config, "max_position_embeddings", plan.prompt + taken) - taken
    if plan.prompt > room:
        raise UserError(f"--prompt_length {plan.prompt} is longer than the model's context of {room} tokens")


def held_memory() -> int:
    """Bytes this process holds now, once the allocator has given back what is free."""
    if zero.device().type == "cuda":
        return torch.cuda.memory_allocated(zero.device())
    trim_heap()
    return psutil.Process().memory_info().rss


@contextmanager
def exact_heap() -> Iterator[None]:
    """Have glibc give every tensor back as it is freed: what it keeps for later would count, or hide what is used."""

    def allow(mapped: int, trimmed: int) -> None:
        with suppress(OSError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, mapped)
            libc.mallopt(M_TRIM_THRESHOLD, trimmed)

    allow(2**16, 2**17)
    try:
        yield
    finally:
        # where they end up by themselves
        allow(2**25, 2**26)


def checkpoint_bytes(source: str) -> int:
    """Weight files of a folder in bytes; 0 for a hub name."""
    folder = Path(source)
    return sum(path.stat().st_size for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind))


def largest_batches(loaded: dict[str, PreTrainedModel], plan: Plan) -> dict[str, Figures]:
    """The largest power of two that fits next to nothing else on the device, and tokens per second there."""
    device = zero.device()
    if len(loaded) > 1:
        park(loaded.values())
    batches = {}
    for name, model in loaded.items():
        model.to(device)
        batches[name] = largest_batch(model, plan)
        park([model] if len(loaded) > 1 else [])
    speeds: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(max(1, plan.rounds // 2)):
        for name, model in loaded.items():
            model.to(device)
            _, seconds = run_once(model, prompts(model, batches[name], plan.prompt), plan.new_tokens)
            speeds[name].append(batches[name] * plan.new_tokens / seconds)
            park([model] if len(loaded) > 1 else [])
    return {n: {"batch": batches[n], "batch_tokens_per_second": statistics.median(speeds[n])} for n in loaded}


def park(parked: Any) -> None:
    """Move models off the device, so that the next one has all of it."""
    for model in parked:
        model.to("cpu")
    zero.free_memory()


def largest_batch(model: PreTrainedModel, plan: Plan) -> int:
    """By doubling; bounded by `plan.max_batch` where there is a bound."""
    batch = 1
    while not plan.max_batch or 2 * batch <= plan.max_batch:
        try:
            run_once(model, prompts(model, 2 * batch, plan.prompt), min(2, plan.new_tokens))
            run_once(model, prompts(model, 2 * batch, plan.prompt + plan.new_tokens - 1), 1)
        except torch.OutOfMemoryError:
            zero.free_memory()
            break
        batch *= 2
    return batch


def render(found: dict[str, Figures], plan: Plan, kind: Kind = LANGUAGE) -> str:
    """The table; with two models the ratio of the first to the second."""
    names, plan = list(found), kind.complete(plan)
    pair = len(names) == 2
    lines = [f"{'':34}" + "".join(f"{name:>16}" for name in names) + (f"{'ratio':>10}" if pair else "")]
    for key, label, form, scale in kind.rows:
        if any(key not in found[name] for name in names):
            continue
        label = label.format(batch=plan.batch)
        values = [found[name][key] for name in names]
        shown = "".join(f"{form.format(v if scale == 1 else v * scale):>16}" for v in values)
        lines.append(f"{label:34}{shown}" + (f"{values[0] / values[1]:>10.3f}" if pair and values[1] else ""))
    said = f"prompts of {plan.prompt} tokens"
    if kind is not LANGUAGE:
        said = f"batches of {plan.batch} {said}"
    if kind is not ENCODER:
        said += f", {plan.new_tokens} new ones"
    said += f"; medians of {plan.rounds} rounds"
    if kind is LANGUAGE:
        said += f" ({max(1, plan.rounds // 2)} at the largest batch)"
    said += " after one of warm-up"
    if kind is LANGUAGE:
        said += "; " + (f"batches up to {plan.max_batch}" if plan.max_batch else "batches until memory ends")
    return "\n".join([*lines, said])
