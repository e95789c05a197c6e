"""The table that a run ends with, and `summary.json`."""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path
from typing import Any, Literal, cast

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.instructions import prompt_ids, resolve_pad_id
from apt_ds.models import loading
from apt_ds.models.export.write import Exported
from apt_ds.models.loading import Base
from apt_ds.models.weights import device_map
from apt_ds.runtime import collectives, profiler, zero
from apt_ds.runtime.files import write_json
from apt_ds.training.datasets import Data
from apt_ds.training.final_model import describe
from apt_ds.training.summary_schema import Summary, TrainingFigures

NEW_TOKENS = 48
REPEATS = 3

ROWS = (
    ("parameters", "parameters, all", "{:,.0f}"),
    ("parameters_without_embeddings", "parameters, without embeddings", "{:,.0f}"),
    ("checkpoint_bytes", "checkpoint size, MB", "{:,.1f}"),
    ("held_out_loss", "held-out loss", "{:.3f}"),
    ("held_out_perplexity", "held-out perplexity", "{:.2f}"),
    ("corpus_perplexity", "corpus perplexity", "{:.2f}"),
    ("generated_tokens_per_second", "generation, tokens per second", "{:.1f}"),
    ("step_seconds", "training step at this size, seconds", "{:.3f}"),
    ("peak_memory_bytes", "training peak at this size, MB", "{:,.0f}"),
    ("peak_reserved_bytes", "the same, reserved, MB", "{:,.0f}"),
)
COLUMNS: tuple[Literal["before", "after_cut", "after"], ...] = ("before", "after_cut", "after")
IN_MEGABYTES = ("checkpoint_bytes", "peak_memory_bytes", "peak_reserved_bytes")


def report(run: RunConfig, base: Base, data: Data, summary: Summary, output: Path) -> Summary:
    """Complete the summary, write `summary.json` and print the table. Rank 0 works alone.

    Args:
        run: the options.
        base: the base model.
        data: questions of its evaluation set are answered before and after.
        summary: figures of the run.
        output: the run's output folder.
    """
    if not collectives.is_main():
        return summary
    if run.output.report and base.kind == LANGUAGE_MODEL:
        compare_plain(run, base, data, output / "model", summary)
    write_json(output / "summary.json", summary)
    print(render(summary), flush=True)
    print(f"model: {output / 'model'}", flush=True)
    return summary


def compare_plain(run: RunConfig, base: Base, data: Data, folder: Path, summary: Summary) -> None:
    """Add generation speed and sample answers of the base model and the written model to the summary.

    Measurements of both models alternate, so that other work on the machine slows both.
    """
    device = zero.device()
    if bytes_needed(run, summary) > 0.8 * free_memory(device):
        summary["note"] = "generation was not measured: base and pruned model do not fit one device together"
        return
    sources = {"before": base.source, "after": str(folder)}
    plain = {when: load_plain(source, run, device) for when, source in sources.items()}
    questions = data.held_out_examples[: max(run.output.report_samples, 1)]
    prompts = [prompt_ids(question, base.tokenizer, data.now) for question in questions]
    speeds: dict[str, list[float]] = {when: [] for when in plain}
    for _ in range(REPEATS):
        for when, model in plain.items():
            speeds[when].append(generation_speed(model, base, prompts[0]))
    summary["before"]["generated_tokens_per_second"] = statistics.median(speeds["before"])
    summary["after"]["generated_tokens_per_second"] = statistics.median(speeds["after"])
    summary["samples"] = [
        {
            "question": question.messages[-2]["content"],
            "before": answer(plain["before"], base, prompt),
            "after": answer(plain["after"], base, prompt),
        }
        for question, prompt in list(zip(questions, prompts, strict=True))[: run.output.report_samples]
    ]
    del plain
    gc.collect()


def bytes_needed(run: RunConfig, summary: Summary) -> int:
    """Bytes of the base model and the written model, loaded together in the run's dtype."""
    width = loading.run_dtype(run).itemsize
    after = summary["after"]
    written = after["parameters"] * width if run.model.export_bits == 16 else after["checkpoint_bytes"]
    return summary["before"]["parameters"] * width + written


def load_plain(source: str, run: RunConfig, device: torch.device) -> PreTrainedModel:
    """Load a model as its users do. No code of its folder runs."""
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=loading.run_dtype(run), device_map=device_map(device, sharded=False), trust_remote_code=False
    )
    return model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types


@torch.no_grad()
def generation_speed(model: PreTrainedModel, base: Base, prompt: list[int]) -> float:
    """Greedy tokens per second at batch 1. The prompt counts in the time. The end token ends nothing."""
    ids = torch.tensor([prompt], device=model.device)
    start = time.perf_counter()
    generate(model, ids, base, min_new_tokens=NEW_TOKENS)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return NEW_TOKENS / (time.perf_counter() - start)


@torch.no_grad()
def answer(model: PreTrainedModel, base: Base, prompt: list[int]) -> str:
    """The greedy answer of at most `NEW_TOKENS` tokens."""
    ids = torch.tensor([prompt], device=model.device)
    out = generate(model, ids, base)
    return str(base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def generate(model: PreTrainedModel, ids: torch.Tensor, base: Base, min_new_tokens: int = 0) -> torch.Tensor:
    """Greedy continuation of one prompt. ids: [1, length]."""
    return model.generate(  # type: ignore[operator]  # transformers adds it by a mixin that mypy cannot follow
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=min_new_tokens,
        do_sample=False,
        pad_token_id=resolve_pad_id(base.tokenizer),
        eos_token_id=base.tokenizer.eos_token_id,
    )


def free_memory(device: torch.device) -> int:
    """Free bytes of a device, or of the host for the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def render(summary: Summary) -> str:
    """The table, and the samples under it."""
    evaluations: dict[str, dict[str, Any]] = {name: dict(summary[name]) for name in COLUMNS if name in summary}
    head = "".join(f"{name.replace('_', ' '):>16}" for name in evaluations)
    lines = [f"{'':34}{head}{'after/before':>14}"]
    known = [key for key, _, _ in ROWS]
    metrics = [(key, key.replace("_", " "), "{:.4f}") for key in evaluations["after"] if key not in known]
    for key, label, form in (*metrics, *ROWS):
        cells = [figures.get(key) for figures in evaluations.values()]
        if any(cell is not None for cell in cells):
            lines.append(render_row(key, label, form, cells))
    pruning = summary["pruning"]
    lines.append(
        f"kept {100 * pruning['kept']:.2f} % of the prunable parameters (target {100 * pruning['target_kept']:.2f} %): "
        f"{pruning['sizes']}"
    )
    lines.append(describe_cost(summary["training"]))
    if "profile" in summary:
        lines += ["", profiler.render(cast(dict[str, dict[str, dict[str, float]]], summary["profile"]))]
    if "written" in summary and (line := describe(Exported(**summary["written"]))):
        lines.append(line)
    if "note" in summary:
        lines.append(summary["note"])
    for sample in summary.get("samples", []):
        lines += ["", f"Q: {sample['question']}", f"before: {sample['before']}", f"after:  {sample['after']}"]
    return "\n".join(lines)


def render_row(key: str, label: str, form: str, cells: list[float | None]) -> str:
    """One line of the table: a figure at every evaluation, and the last to the first."""
    shown = [cell / 1e6 if cell is not None and key in IN_MEGABYTES else cell for cell in cells]
    ratio = f"{cells[-1] / cells[0]:.3f}" if cells[0] and cells[-1] is not None else ""
    columns = "".join(f"{form.format(cell) if cell is not None else '':>16}" for cell in shown)
    return f"{label:34}{columns}{ratio:>14}"


def describe_cost(training: TrainingFigures) -> str:
    """Seconds and peak memory of the whole run on the first rank, in one line."""
    parts = ", ".join(
        f"{part} {seconds:.1f}"
        for part, seconds in (
            ("steps", training["steps_seconds"]),
            ("scoring", training["scoring_seconds"]),
            ("rebuilds", training["rebuilds_seconds"]),
        )
    )
    line = f"training took {training['seconds']:.1f} s ({parts}), evaluation {training['evaluation_seconds']:.1f} s"
    peak, reserved = training["peak_memory_bytes"], training["peak_reserved_bytes"]
    line += f"; peak memory of training {peak / 1e6:,.0f} MB" if peak else ""
    return line + (f", {reserved / 1e6:,.0f} MB reserved" if reserved else "")
