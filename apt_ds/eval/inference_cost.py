"""Measures what models cost to run: latency, throughput, memory, FLOPs and size, several models in one process.

Every time is a median over rounds, after one warm-up. Each round runs every model, so that drift of the machine affects
all models alike. `inference_timing.py` defines one pass for each task type.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.eval import loading
from apt_ds.eval.inference_timing import (
    ENCODER,
    LANGUAGE,
    PROTOCOLS,
    Figures,
    TimingPlan,
    TimingProtocol,
    prompts,
    run_once,
    time_generation_at_batch,
)
from apt_ds.eval.memory_in_use import exact_heap, memory_in_use
from apt_ds.eval.static_decoding import StaticTimings, describe
from apt_ds.models import loading as model_loading
from apt_ds.models.architectures import find_architecture
from apt_ds.models.experts import weights_per_token
from apt_ds.runtime import zero
from apt_ds.runtime.memory import peak_memory, reset_peak


def protocol_of(sources: dict[str, str], trust: bool = False) -> TimingProtocol:
    """The protocol that measures all of these models.

    Args:
        sources: Name in the table to folder or hub name.
        trust: Allow code of the folders to run.

    Raises:
        UserError: A model is missing, or the models need different protocols.
    """
    task_types = {source: loading.task_type_of(loading.read_config(source, trust)[1]) for source in sources.values()}
    protocols = {id(PROTOCOLS[task_type]): PROTOCOLS[task_type] for task_type in task_types.values()}
    if len(protocols) > 1:
        purposes = ", ".join(f"{source} is for {task_type}" for source, task_type in task_types.items())
        raise UserError(f"--baseline: models of different kinds cannot be compared: {purposes}")
    return next(iter(protocols.values()))


def measure(
    sources: dict[str, str], bf16: bool = False, plan: TimingPlan | None = None, trust: bool = False
) -> dict[str, Figures]:
    """Measure models.

    Args:
        sources: Name in the table to folder or hub name.
        bf16: Run in bfloat16 instead of float32.
        plan: Sizes and repetitions.
        trust: Allow code of the folders to run.

    Returns:
        Figures of each model by its name: those of its protocol's rows. `inference_bytes` is the peak of memory that
        the model adds, weights included. `flops_per_token` counts weights. `batch` is the largest power of two that
        fits. `static_is_captured` is 1 where the static cache ran in captured graphs (`static_decoding.py`).

    Raises:
        UserError: A model is missing, the models need different protocols, or the memory does not hold all of them.
    """
    protocol = protocol_of(sources, trust)
    plan = protocol.complete(plan or TimingPlan())
    figures: dict[str, Figures] = {}
    models: dict[str, PreTrainedModel] = {}
    with exact_heap():
        # load twice on a CPU: memory that libraries allocate at first use would count as a model's
        rehearsal = sources if zero.device().type == "cpu" else {}
        for name, source in [*rehearsal.items(), *sources.items()]:
            models.pop(name, None)
            try:
                models[name], figures[name] = load_measured(source, bf16, plan, protocol, trust)
            except torch.OutOfMemoryError:
                reason = f"not enough device memory for {', '.join(sources)} at once, at batch {plan.batch}"
                raise UserError(f"--model {source!r}: {reason}; lower --inference_batch_size") from None
    for name, rounds in time_rounds(models, protocol, plan).items():
        # a model that fails in a later round has no figure of it
        keys = [key for key in rounds[0] if all(key in each for each in rounds)]
        figures[name] |= {key: statistics.median(each[key] for each in rounds) for key in keys}
    if protocol is LANGUAGE:
        for name, batch_figures in largest_batches(models, plan).items():
            figures[name] |= batch_figures
    return figures


def time_rounds(
    models: dict[str, PreTrainedModel], protocol: TimingProtocol, plan: TimingPlan
) -> dict[str, list[Figures]]:
    """The figures of each model's rounds. Says on stderr which language model cannot use a static cache."""
    passes: dict[str, list[Figures]] = {name: [] for name in models}
    timings = StaticTimings()
    for name, model in models.items() if protocol is LANGUAGE else ():
        timings.measure(name, model, plan)
    for _ in range(plan.rounds):
        for name, model in models.items():
            figures = one_pass(model, protocol, plan)
            passes[name].append(figures | (timings.measure(name, model, plan) if protocol is LANGUAGE else {}))
    timings.close()
    for name, reason in timings.obstacles.items():
        print(f"{name}: static cache not measured: {reason}", file=sys.stderr, flush=True)
    return passes


def one_pass(model: PreTrainedModel, protocol: TimingProtocol, plan: TimingPlan) -> Figures:
    """The times of one round."""
    figures = protocol.run(model, plan)
    return figures | time_generation_at_batch(model, plan) if has_second_batch(protocol, plan) else figures


def load_measured(
    source: str, bf16: bool, plan: TimingPlan, protocol: TimingProtocol, trust: bool = False
) -> tuple[PreTrainedModel, Figures]:
    """Load a model and run it once, which also warms it up. Returns it with its sizes and its peak of memory."""
    zero.free_memory()
    before = memory_in_use()
    config = loading.read_config(source, trust)[1]
    if protocol is ENCODER:
        check_context(config, plan)
    loaded = loading.load(source, bf16, task_type=loading.task_type_of(config), fresh_head=True, trust=trust)
    model = loaded.model
    model.config.use_cache = True
    reset_peak(zero.device())
    protocol.run(model, plan)
    figures: Figures = {"inference_bytes": peak_memory(zero.device()) - before}
    if has_second_batch(protocol, plan):
        zero.free_memory()
        reset_peak(zero.device())
        time_generation_at_batch(model, plan)
        figures["inference_batch_bytes"] = peak_memory(zero.device()) - before
    figures |= model_loading.count_parameters(model)
    figures["flops_per_token"] = 2 * weights_per_token(model)
    figures["checkpoint_bytes"] = checkpoint_bytes(loaded.source) or figures["checkpoint_bytes"]
    return model, figures


def has_second_batch(protocol: TimingProtocol, plan: TimingPlan) -> bool:
    """Whether a second batch size is measured besides batch 1."""
    return protocol is LANGUAGE and plan.batch > 1


def check_context(config: PretrainedConfig, plan: TimingPlan) -> None:
    """Check that an encoder has enough positions for a prompt.

    Raises:
        UserError: The prompt is longer.
    """
    spec = find_architecture(config)
    offset = spec.position_offset(config) if spec is not None else 0
    context = getattr(config, "max_position_embeddings", plan.prompt + offset) - offset
    if plan.prompt > context:
        raise UserError(f"--prompt_length {plan.prompt} is longer than the model's context of {context} tokens")


def checkpoint_bytes(source: str) -> int:
    """Bytes of the weight files in a folder. 0 for a hub name."""
    folder = Path(source)
    return sum(path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))


def largest_batches(models: dict[str, PreTrainedModel], plan: TimingPlan) -> dict[str, Figures]:
    """The largest power of two that fits while the model is alone on the device, and its decode speed there."""
    device = zero.device()
    share_device = len(models) > 1
    if share_device:
        move_to_cpu(models.values())
    batches = {}
    for name, model in models.items():
        loading.move(model, device)
        batches[name] = largest_batch(model, plan)
        move_to_cpu([model] if share_device else [])
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(max(1, plan.rounds // 2)):
        for name, model in models.items():
            loading.move(model, device)
            _, seconds = run_once(model, prompts(model, batches[name], plan.prompt), plan.new_tokens)
            speeds[name].append(batches[name] * plan.new_tokens / seconds)
            move_to_cpu([model] if share_device else [])
    return {n: {"batch": batches[n], "batch_tokens_per_second": statistics.median(speeds[n])} for n in models}


def move_to_cpu(models: Iterable[PreTrainedModel]) -> None:
    """Move models off the device, so that the next one has all its memory."""
    for model in models:
        loading.move(model, torch.device("cpu"))
    zero.free_memory()


def largest_batch(model: PreTrainedModel, plan: TimingPlan) -> int:
    """The largest batch that fits, by doubling up to `plan.max_batch`."""
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


def render(figures: dict[str, Figures], plan: TimingPlan, protocol: TimingProtocol = LANGUAGE) -> str:
    """The table. With two models it has the ratio of the first to the second."""
    names, plan = list(figures), protocol.complete(plan)
    is_pair = len(names) == 2
    lines = [f"{'':34}" + "".join(f"{name:>16}" for name in names) + (f"{'ratio':>10}" if is_pair else "")]
    for key, label, form, scale in protocol.rows:
        if any(key not in figures[name] for name in names):
            continue
        values = [figures[name][key] for name in names]
        cells = "".join(f"{form.format(v if scale == 1 else v * scale):>16}" for v in values)
        ratio = f"{values[0] / values[1]:>10.3f}" if is_pair and values[1] else ""
        lines.append(f"{label.format(batch=plan.batch):34}{cells}{ratio}")
    footer = f"prompts of {plan.prompt} tokens"
    if protocol is not LANGUAGE:
        footer = f"batches of {plan.batch} {footer}"
    if protocol is not ENCODER:
        footer += f", {plan.new_tokens} new ones"
    footer += f"; medians of {plan.rounds} rounds"
    if protocol is LANGUAGE:
        footer += f" ({max(1, plan.rounds // 2)} at the largest batch)"
    footer += " after one warm-up"
    if protocol is LANGUAGE:
        footer += "; " + (f"batches up to {plan.max_batch}" if plan.max_batch else "batches until memory ends")
        captured = [each.get("static_is_captured") for each in figures.values()]
        footer += f"; {describe(None if None in captured else all(captured))}"
    return "\n".join([*lines, footer])
