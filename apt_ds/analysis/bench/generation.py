"""Generation speed of dense and cut models. They have no engine, share the memory, and run in turn."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from apt_ds.config.run_config import RunConfig
from apt_ds.eval.inference_timing import TimingPlan, prompts, run_once
from apt_ds.eval.static_decoding import StaticTimings
from apt_ds.models import loading
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.loading import Base
from apt_ds.pruning import surgery
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.rules import rules_of
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import zero

BATCHES = (1, 32)
Speeds = dict[str, dict[str, float]]


@dataclass(frozen=True)
class GenerationSettings:
    """What is generated.

    Attributes:
        prompt: tokens of the prompt.
        new: tokens to generate.
        rounds: how often every model runs at every batch size.
    """

    prompt: int
    new: int
    rounds: int


def inference(run: RunConfig, base: Base, sparsities: dict[str, float], asked: GenerationSettings) -> Speeds:
    """Speeds of each model.

    Args:
        run: the configuration of the run.
        base: the dense model.
        sparsities: removed fraction of each model, by name. Removed blocks are drawn, since speed depends on their
            number alone.
        asked: what is generated.

    Returns:
        By name and `batch N`: median tokens per second, prompt included. By name and `first N`: seconds to the first
        token. By name and `decode N`: tokens per second, prompt excluded. By name and `static N`: the same with a cache
        of fixed size, in captured graphs on a GPU. It is absent for a model that has none.
    """
    run = run.replace(gradient_checkpointing=False)
    loaded = {name: plain_model(run, base, sparsity) for name, sparsity in sparsities.items()}
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in loaded}
    timings = StaticTimings()
    for turn in range(asked.rounds + 1):
        figures = {name: one_turn(name, model, asked, timings) for name, model in loaded.items()}
        for name, values in figures.items() if turn else ():  # the first warms up
            for key, value in values.items():
                taken[name].setdefault(key, []).append(value)
    timings.close()
    return {name: {key: statistics.median(values) for key, values in rates.items()} for name, rates in taken.items()}


def one_turn(name: str, model: PreTrainedModel, asked: GenerationSettings, timings: StaticTimings) -> dict[str, float]:
    """The figures of one model in one round."""
    figures: dict[str, float] = {}
    for batch in BATCHES:
        read, written = run_once(model, prompts(model, batch, asked.prompt), asked.new)
        figures |= {f"batch {batch}": batch * asked.new / (read + written), f"first {batch}": read}
        figures[f"decode {batch}"] = batch * asked.new / written
    static = timings.measure(name, model, TimingPlan(asked.prompt, asked.new, batch=BATCHES[1]))
    keys = ("static_tokens_per_second", "inference_batch_static_tokens_per_second")
    return figures | {f"static {batch}": static[key] for batch, key in zip(BATCHES, keys, strict=True) if key in static}


def plain_model(run: RunConfig, base: Base, sparsity: float) -> PreTrainedModel:
    """The base model after a cut of `sparsity` by the rules of the run."""
    model = loading.load_model(base, run)
    if sparsity:
        surgery.apply_plan(model, base.anatomy, Plan(keep=drawn(run, base, sparsity)), None, torch.Generator())
        zero.free_memory()
    model.config.use_cache = True
    return model.eval()


def drawn(run: RunConfig, base: Base, sparsity: float) -> np.ndarray:
    """Blocks to keep, bool [blocks], by random scores and the rules of the run."""
    prices = base.anatomy.params_per_block(base.anatomy.sizes)
    scores = np.random.default_rng(run.optim.seed).random(len(prices)) * prices
    budget = (1 - sparsity) * base.anatomy.num_parameters(base.anatomy.sizes)
    return search(scores, base.anatomy, rules_of(run, base.anatomy, writable_sizes(base.config)), budget)
