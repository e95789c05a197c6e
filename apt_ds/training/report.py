"""Before and after: the table a run ends with, and `summary.json`."""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.instructions import prompt_ids, resolve_pad_id
from apt_ds.models import loading
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives, profiler, zero
from apt_ds.runtime.files import write_json
from apt_ds.training.datasets import Data

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
)
IN_MEGABYTES = ("checkpoint_bytes", "peak_memory_bytes")


def report(run: RunConfig, base: Base, data: Data, figures: dict[str, Any], output: Path) -> dict[str, Any]:
    """Complete the figures with what plain models do, write `summary.json`, print the table. Rank 0 works alone."""
    if not collectives.is_main():
        return figures
    if run.output.report and base.kind == LANGUAGE_MODEL:
        figures |= compare_plain(run, base, data, output / "model", figures)
    write_json(output / "summary.json", figures)
    print(render(figures), flush=True)
    print(f"model: {output / 'model'}", flush=True)
    return figures


def compare_plain(run: RunConfig, base: Base, data: Data, folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Generation speed and sample answers of the base and the written model, interleaved."""
    device = zero.device()
    if bytes_needed(run, figures) > 0.8 * free_memory(device):
        return {"note": "generation was not measured: base and pruned model do not fit one device together"}
    sources = {"before": base.source, "after": str(folder)}
    plain = {when: load_plain(source, run, device) for when, source in sources.items()}
    questions = data.held_out_examples[: max(run.output.report_samples, 1)]
    prompts = [prompt_ids(question, base.tokenizer, data.now) for question in questions]
    speeds: dict[str, list[float]] = {when: [] for when in plain}
    for _ in range(REPEATS):
        for when, model in plain.items():
            speeds[when].append(generation_speed(model, base, prompts[0]))
    for when, values in speeds.items():
        figures[when]["generated_tokens_per_second"] = statistics.median(values)
    samples = [
        {"question": question.messages[-2]["content"]}
        | {when: answer(model, base, prompt) for when, model in plain.items()}
        for question, prompt in list(zip(questions, prompts, strict=True))[: run.output.report_samples]
    ]
    del plain
    gc.collect()
    return {"samples": samples}


def bytes_needed(run: RunConfig, figures: dict[str, Any]) -> int:
    """Bytes of base and written model, loaded together in the run's dtype."""
    width = loading.run_dtype(run).itemsize
    after = figures["after"]
    written = after["parameters"] * width if run.model.export_bits == 16 else after["checkpoint_bytes"]
    return figures["before"]["parameters"] * width + written


def load_plain(source: str, run: RunConfig, device: torch.device) -> PreTrainedModel:
    """A model as its users will load it. No code of its folder runs."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=loading.run_dtype(run), trust_remote_code=False)
    return model.to(device).eval()


@torch.no_grad()
def generation_speed(model: PreTrainedModel, base: Base, prompt: list[int]) -> float:
    """Greedy tokens per second at batch 1, prompt included in the time, end token not obeyed."""
    ids = torch.tensor([prompt], device=model.device)
    start = time.perf_counter()
    generate(model, ids, base, min_new_tokens=NEW_TOKENS)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return NEW_TOKENS / (time.perf_counter() - start)


@torch.no_grad()
def answer(model: PreTrainedModel, base: Base, prompt: list[int]) -> str:
    """The greedy answer, cut at `NEW_TOKENS`."""
    ids = torch.tensor([prompt], device=model.device)
    out = generate(model, ids, base)
    return base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def generate(model: PreTrainedModel, ids: torch.Tensor, base: Base, min_new_tokens: int = 0) -> torch.Tensor:
    """Greedy continuation of one prompt, [1, length]."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=min_new_tokens,
        do_sample=False,
        pad_token_id=resolve_pad_id(base.tokenizer),
        eos_token_id=base.tokenizer.eos_token_id,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that may still be allocated."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def render(figures: dict[str, Any]) -> str:
    """The table, and the samples under it."""
    columns = [c for c in ("before", "after_cut", "after") if c in figures]
    lines = [f"{'':34}" + "".join(f"{c.replace('_', ' '):>16}" for c in columns) + f"{'after/before':>14}"]
    known = [key for key, _, _ in ROWS]
    metrics = [(key, key.replace("_", " "), "{:.4f}") for key in figures["after"] if key not in known]
    for key, label, form in (*metrics, *ROWS):
        cells = [figures[c].get(key) for c in columns]
        if all(cell is None for cell in cells):
            continue
        shown = [c / 1e6 if c is not None and key in IN_MEGABYTES else c for c in cells]
        ratio = f"{cells[-1] / cells[0]:.3f}" if cells[0] and cells[-1] is not None else ""
        lines.append(
            f"{label:34}" + "".join(f"{form.format(c) if c is not None else '':>16}" for c in shown) + f"{ratio:>14}"
        )
    pruning = figures["pruning"]
    lines.append(
        f"kept {100 * pruning['kept']:.2f} % of the prunable parameters (target {100 * pruning['target_kept']:.2f} %): "
        f"{pruning['sizes']}"
    )
    lines.append(describe_cost(figures["training"]))
    if "profile" in figures:
        lines += ["", profiler.render(figures["profile"])]
    if "note" in figures:
        lines.append(figures["note"])
    for sample in figures.get("samples", []):
        lines += ["", f"Q: {sample['question']}", f"before: {sample['before']}", f"after:  {sample['after']}"]
    return "\n".join(lines)


def describe_cost(training: dict[str, Any]) -> str:
    """One line: seconds and peak memory of the whole run on the first rank."""
    parts = ", ".join(f"{part} {training[f'{part}_seconds']:.1f}" for part in ("steps", "scoring", "rebuilds"))
    line = f"training took {training['seconds']:.1f} s ({parts}), evaluation {training['evaluation_seconds']:.1f} s"
    peak = training["peak_memory_bytes"]
    return line + (f"; peak memory of training {peak / 1e6:,.0f} MB" if peak else "")
