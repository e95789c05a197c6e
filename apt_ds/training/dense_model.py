"""The base model of a run as it is before training, for forward passes: no adapters, no cut."""

from __future__ import annotations

from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.eval.loading import read_inference_config
from apt_ds.models import loading
from apt_ds.models.loading import Base
from apt_ds.runtime import zero


class DenseModel:
    """Loads the base once it is needed. Under ZeRO-3 an engine shards it, else every rank has the whole model."""

    def __init__(self, run: RunConfig, base: Base) -> None:
        # no kernel of packed rows, and no pass that recomputes
        self.run = run.replace(attn_implementation="sdpa", packing=False, gradient_checkpointing=False)
        self.base = base
        self._runner: nn.Module | None = None

    def runner(self) -> nn.Module:
        """What to call for a forward pass: the model, or the engine that shards it. Collective."""
        if self._runner is None:
            self._runner = self._load()
        return self._runner

    def _load(self) -> nn.Module:
        config = read_inference_config(self.run.distributed.deepspeed, self.run.optim.bf16)
        run = self.run
        if zero.stage(config) == 3 and run.optim.fp16:
            # an engine without loss scaling computes in bfloat16 or float32
            run = run.replace(fp16=False)
        sharding = zero.shard_while_loading(config) if run.model.base_bits == 16 else None
        model = loading.load_model(self.base, run).eval()
        runner: nn.Module = model
        if sharding is not None:
            runner = zero.build_for_inference(model, config)
        del sharding
        return runner

    def close(self) -> None:
        """Free the model."""
        if self._runner is not None and zero.unwrap(self._runner) is not self._runner:
            zero.destroy(self._runner)
        self._runner = None
        zero.free_memory()
