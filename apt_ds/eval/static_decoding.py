"""Greedy generation with a cache of fixed size, each new token in a captured graph on a GPU.

Eager generation at a small batch waits for kernel launches, whose number no cut changes. A captured graph launches all
kernels of a token at once. So its speed shows what a cut saves. A CPU has no launches to save: there the cache of fixed
size is measured without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from apt_ds.eval.inference_timing import Figures, TimingPlan, prompts
from apt_ds.runtime import zero
from apt_ds.runtime.clock import seconds_after

GRAPHS = 64  # that PyTorch compiles of one function: one a model and batch size


class StaticDecoder:
    """Generates greedily with one model, batch size and capacity. Every run uses the same memory."""

    def __init__(self, model: PreTrainedModel, capacity: int, captured: bool) -> None:
        """Make an empty cache.

        Args:
            model: A causal language model for which `obstacle` finds nothing.
            capacity: Tokens of prompt and answer.
            captured: Whether a token runs as a captured graph. Requires CUDA.
        """
        self.model, self.captured = model, captured
        self.cache = StaticCache(config=model.config, max_cache_len=capacity)
        self._step: Callable[..., Any] = model
        if captured:
            torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
            self._step = torch.compile(model.__call__, mode="reduce-overhead", dynamic=False)

    @torch.no_grad()
    def run(self, ids: Tensor, new_tokens: int) -> tuple[Tensor, float]:
        """Read prompts eagerly and generate.

        Args:
            ids: int64 [batch, length].
            new_tokens: Tokens to generate for each prompt.

        Returns:
            The tokens, int64 [batch, new_tokens], and the seconds that the model took for them.
        """
        self.cache.reset()
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        tokens = [output.logits[:, -1:].argmax(-1)]
        start = seconds_after(self.model.device)
        for _ in range(new_tokens):
            if self.captured:
                torch.compiler.cudagraph_mark_step_begin()
            output = self._step(input_ids=tokens[-1], past_key_values=self.cache, use_cache=True)
            tokens.append(output.logits[:, -1:].argmax(-1))
        seconds = seconds_after(self.model.device) - start
        return torch.cat(tokens[:new_tokens], 1), seconds


def obstacle(model: PreTrainedModel) -> str:
    """Why a model cannot generate with a cache of fixed size. Empty if it can."""
    if model.config.is_encoder_decoder:
        return "an encoder-decoder is measured eagerly only"
    if not model.can_generate() or not getattr(model, "_can_compile_fullgraph", False):
        return f"{type(model).__name__} does not support a cache of fixed size"
    return ""


class StaticTimings:
    """Times models at batch 1 and at the plan's batch, with one decoder for each.

    Attributes:
        obstacles: Why a model was not measured, by its name.
    """

    def __init__(self) -> None:
        self.obstacles: dict[str, str] = {}
        self._decoders: dict[tuple[str, int], StaticDecoder] = {}

    def measure(self, name: str, model: PreTrainedModel, plan: TimingPlan) -> Figures:
        """The speeds of one round. The first call warms up. Empty if the model cannot be measured."""
        if reason := obstacle(model):
            self.obstacles[name] = reason
        if name in self.obstacles:
            return {}
        try:
            figures: Figures = {"static_tokens_per_second": self.speed(name, model, 1, plan)}
            if plan.batch > 1:
                figures["inference_batch_static_tokens_per_second"] = self.speed(name, model, plan.batch, plan)
        except RuntimeError as error:
            # compilers raise errors of many lines, and memory may end
            self.obstacles[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return {}
        return figures | {"static_is_captured": int(model.device.type == "cuda")}

    def speed(self, name: str, model: PreTrainedModel, batch: int, plan: TimingPlan) -> float:
        """Tokens per second of all sequences."""
        if (name, batch) not in self._decoders:
            capacity, captured = plan.prompt + plan.new_tokens, model.device.type == "cuda"
            self._decoders[name, batch] = StaticDecoder(model, capacity, captured)
        _, seconds = self._decoders[name, batch].run(prompts(model, batch, plan.prompt), plan.new_tokens)
        return batch * plan.new_tokens / seconds

    def close(self) -> None:
        """Free all caches and graphs."""
        captured = any(decoder.captured for decoder in self._decoders.values())
        self._decoders.clear()
        if captured:
            torch.compiler.reset()
        zero.free_memory()


def describe(captured: bool | None) -> str:
    """What `static_tokens_per_second` measures, for the foot of a table. None: not measured."""
    if captured is None:
        return "static cache: not measured"
    return "static cache: a captured graph a token" if captured else "static cache: no captured graph on a CPU"
