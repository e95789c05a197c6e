"""The base model and the written model, loaded as their users load them: speed of generation, and sample answers.

Rank 0 works alone. Measurements of both models alternate, so that other work on the machine slows both.
"""

from __future__ import annotations

import gc
import statistics
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from apt_ds.config.run_config import RunConfig
from apt_ds.data.prompts import prompt_ids
from apt_ds.data.special_tokens import resolve_pad_id
from apt_ds.eval.inference_timing import LANGUAGE, prompts, run_once
from apt_ds.models import loading
from apt_ds.models.loading import Base
from apt_ds.models.weights import device_map
from apt_ds.runtime import zero
from apt_ds.training.model_figures import ModelFigures
from apt_ds.training.run_data import Data
from apt_ds.training.summary_schema import Sample, Summary

NEW_TOKENS = 48
REPEATS = 3


def compare_plain(run: RunConfig, base: Base, data: Data, folder: Path, summary: Summary) -> None:
    """Add generation speed and sample answers of the base model and the written model to the summary.

    Args:
        run: the options.
        base: the base model.
        data: questions of its evaluation set are answered before and after.
        folder: the written model.
        summary: changed in place.
    """
    device = zero.device()
    if bytes_needed(run, summary) > 0.8 * free_memory(device):
        summary["note"] = "generation was not measured: base and pruned model do not fit one device together"
        return
    before, after = load_plain(base.source, run, device), load_plain(str(folder), run, device)
    length = prompt_length(before)
    # the first pass of each model warms it up
    passes = [[run_once(m, prompts(m, 1, length), NEW_TOKENS) for m in (before, after)] for _ in range(1 + REPEATS)]
    add_speeds(summary["before"], [pair[0] for pair in passes[1:]], length)
    add_speeds(summary["after"], [pair[1] for pair in passes[1:]], length)
    summary["samples"] = samples(run, base, data, before, after)
    del before, after
    gc.collect()


def bytes_needed(run: RunConfig, summary: Summary) -> int:
    """Bytes of the base model and the written model, loaded together in the run's dtype."""
    width = loading.run_dtype(run).itemsize
    after = summary["after"]
    written = after["parameters"] * width if run.model.export_bits == 16 else after["checkpoint_bytes"]
    return summary["before"]["parameters"] * width + written


def free_memory(device: torch.device) -> int:
    """Free bytes of a device, or of the host for the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def load_plain(source: str, run: RunConfig, device: torch.device) -> PreTrainedModel:
    """Load a model as its users do. No code of its folder runs."""
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=loading.run_dtype(run), device_map=device_map(device, sharded=False), trust_remote_code=False
    )
    return model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types


def prompt_length(model: PreTrainedModel) -> int:
    """Tokens of the timed prompt: 256, or fewer where prompt and new tokens would exceed the model's context."""
    context = getattr(model.config, "max_position_embeddings", None) or LANGUAGE.prompt + NEW_TOKENS
    return max(1, min(LANGUAGE.prompt, context - NEW_TOKENS))


def add_speeds(figures: ModelFigures, passes: list[tuple[float, float]], length: int) -> None:
    """Add tokens per second at batch 1.

    Args:
        figures: changed in place.
        passes: seconds of the prompt and of `NEW_TOKENS` new tokens, of each repetition.
        length: tokens of the prompt.
    """
    prefill, decode = (statistics.median(seconds) for seconds in zip(*passes, strict=True))
    figures["prefill_tokens_per_second"] = length / prefill
    figures["decode_tokens_per_second"] = NEW_TOKENS / decode
    figures["generated_tokens_per_second"] = NEW_TOKENS / (prefill + decode)


def samples(run: RunConfig, base: Base, data: Data, before: PreTrainedModel, after: PreTrainedModel) -> list[Sample]:
    """The first `--report_samples` questions of the evaluation set, with the answers of both models."""
    questions = data.held_out_examples[: run.output.report_samples]
    prompts_of_questions = [prompt_ids(question, base.tokenizer, data.now) for question in questions]
    return [
        {
            "question": question.messages[-2]["content"],
            "before": answer(before, base, prompt),
            "after": answer(after, base, prompt),
        }
        for question, prompt in zip(questions, prompts_of_questions, strict=True)
    ]


@torch.no_grad()
def answer(model: PreTrainedModel, base: Base, prompt: list[int]) -> str:
    """The greedy answer of at most `NEW_TOKENS` tokens."""
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(  # type: ignore[operator]  # transformers adds it by a mixin that mypy cannot follow
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=resolve_pad_id(base.tokenizer),
        eos_token_id=base.tokenizer.eos_token_id,
    )
    return str(base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()
