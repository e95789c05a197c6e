"""What a model costs to run: latency, throughput, memory, FLOPs and size, several models in turn in one process.

Every figure of time is a median over rounds, after one of warm-up; each round runs every model, so that drift of
the machine hits all alike. Greedy decoding of random prompts, the same for all models.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from apt_ds import models, zero
from apt_ds.config import UserError
from apt_ds.eval import loading
from apt_ds.journal import peak_memory, reset_peak

Figures = dict[str, float | int]


@dataclass(frozen=True)
class Plan:
    """What is run. Lengths in tokens; max_batch bounds the search for the largest batch, 0: until memory ends."""

    prompt: int = 256
    new_tokens: int = 32
    rounds: int = 5
    max_batch: int = 16


def measure(sources: dict[str, str], bf16: bool = False, plan: Plan | None = None) -> dict[str, Figures]:
    """Figures of each model, by the name given to its folder (or hub name).

    `prefill_seconds` and `decode_tokens_per_second` at batch 1, `batch` and `batch_tokens_per_second` at the
    largest power of two that fits, `inference_bytes` (peak at batch 1, weights included), `parameters`,
    `parameters_without_embeddings`, `flops_per_token`, `checkpoint_bytes`.

    Raises:
        UserError: no model there, or not enough memory for all of them at once.
    """
    plan = plan or Plan()
    found: dict[str, Figures] = {}
    loaded: dict[str, PreTrainedModel] = {}
    for name, source in sources.items():
        try:
            loaded[name], found[name] = load_measured(source, bf16, plan)
        except torch.OutOfMemoryError:
            raise UserError(f"--model {source!r}: not enough device memory for {', '.join(sources)} at once") from None
    prefills: dict[str, list[float]] = {name: [] for name in loaded}
    decodes: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(plan.rounds):
        for name, model in loaded.items():
            prefill, decode = run_once(model, prompts(model, 1, plan.prompt), plan.new_tokens)
            prefills[name].append(prefill)
            decodes[name].append(plan.new_tokens / decode)
    for name in loaded:
        found[name]["prefill_seconds"] = statistics.median(prefills[name])
        found[name]["decode_tokens_per_second"] = statistics.median(decodes[name])
    for name, figures in largest_batches(loaded, plan).items():
        found[name] |= figures
    return found


def load_measured(source: str, bf16: bool, plan: Plan) -> tuple[PreTrainedModel, Figures]:
    """A model, what it weighs, and the peak of memory it adds while it runs at batch 1 (which also warms it up)."""
    zero.collect()
    before = held_memory()
    judged = loading.load(source, bf16)
    model = judged.model
    model.config.use_cache = True
    reset_peak(zero.device())
    run_once(model, prompts(model, 1, plan.prompt), plan.new_tokens)
    figures: Figures = {"inference_bytes": peak_memory(zero.device()) - before}
    figures |= models.count_parameters(model)
    figures["flops_per_token"] = 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    figures["checkpoint_bytes"] = checkpoint_bytes(judged.source) or figures["checkpoint_bytes"]
    return model, figures


def held_memory() -> int:
    """Bytes this process holds now, once the allocator has given back what is free."""
    if zero.device().type == "cuda":
        return torch.cuda.memory_allocated(zero.device())
    with suppress(OSError):  # not glibc: the figure is a little lower
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def checkpoint_bytes(source: str) -> int:
    """Weight files of a folder in bytes; 0 for a hub name."""
    folder = Path(source)
    return sum(path.stat().st_size for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind))


def prompts(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    """Random ids [batch, length], the same for every model of a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator)
    return ids.to(model.device)


@torch.no_grad()
def run_once(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of reading the prompts [batch, length], and of `new_tokens` greedy tokens after them."""
    start = now(model.device)
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    read = now(model.device)
    for _ in range(new_tokens):
        following = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=following, past_key_values=out.past_key_values, use_cache=True)
    return read - start, now(model.device) - read


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
    zero.collect()


def largest_batch(model: PreTrainedModel, plan: Plan) -> int:
    """By doubling; bounded by `plan.max_batch` where there is a bound."""
    batch = 1
    while not plan.max_batch or 2 * batch <= plan.max_batch:
        try:
            run_once(model, prompts(model, 2 * batch, plan.prompt), min(2, plan.new_tokens))
            run_once(model, prompts(model, 2 * batch, plan.prompt + plan.new_tokens - 1), 1)
        except torch.OutOfMemoryError:
            zero.collect()
            break
        batch *= 2
    return batch


ROWS = (
    ("prefill_seconds", "prefill, ms", "{:,.1f}", 1e3),
    ("decode_tokens_per_second", "decode at batch 1, tokens/s", "{:,.1f}", 1),
    ("batch", "largest batch", "{:,}", 1),
    ("batch_tokens_per_second", "decode there, tokens/s", "{:,.1f}", 1),
    ("inference_bytes", "peak memory at batch 1, MB", "{:,.1f}", 1e-6),
    ("parameters", "parameters, all", "{:,}", 1),
    ("parameters_without_embeddings", "parameters, without embeddings", "{:,}", 1),
    ("flops_per_token", "GFLOPs per token (weights)", "{:,.3f}", 1e-9),
    ("checkpoint_bytes", "checkpoint, MB", "{:,.1f}", 1e-6),
)


def render(found: dict[str, Figures], plan: Plan) -> str:
    """The table; with two models the ratio of the first to the second."""
    names = list(found)
    pair = len(names) == 2
    lines = [f"{'':34}" + "".join(f"{name:>16}" for name in names) + (f"{'ratio':>10}" if pair else "")]
    for key, label, form, scale in ROWS:
        values = [found[name][key] for name in names]
        shown = "".join(f"{form.format(v if scale == 1 else v * scale):>16}" for v in values)
        lines.append(f"{label:34}{shown}" + (f"{values[0] / values[1]:>10.3f}" if pair and values[1] else ""))
    lines.append(
        f"prompts of {plan.prompt} tokens, {plan.new_tokens} new ones; medians of {plan.rounds} rounds "
        f"({max(1, plan.rounds // 2)} at the largest batch) after one of warm-up; "
        + (f"batches up to {plan.max_batch}" if plan.max_batch else "batches until memory ends")
    )
    return "\n".join(lines)
