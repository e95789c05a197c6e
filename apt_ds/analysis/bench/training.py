"""Times training steps of PEFT's LoRA and QLoRA with the loss of transformers, and of apt_ds, on the same batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from apt_ds.analysis.bench.meters import energy_counter, now, reserved_bytes
from apt_ds.analysis.bench.synthetic import shape_of
from apt_ds.analysis.bench.table import Timed
from apt_ds.analysis.bench.variants import Variant, options
from apt_ds.analysis.cluster_model import Shape
from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.option_groups import FLASH, VARLEN
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import collate
from apt_ds.data.special_tokens import resolve_pad_id
from apt_ds.models import loading
from apt_ds.models.attention import SDPA
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.loading import Base
from apt_ds.models.modules import replace_module
from apt_ds.models.unwrap import pretrained_model
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import collectives, zero
from apt_ds.runtime.bnb import library
from apt_ds.runtime.memory import peak_memory, reset_peak
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.run_data import Data
from apt_ds.training.trainer import Trainer


def measure(variant: Variant, run: RunConfig, base: Base, data: Data, steps: int) -> Timed:
    """Build a variant, warm it up with one step, time `steps`, drop it. Collective."""
    run = run.replace(**options(variant, run))
    return (
        measure_peft(variant, run, base, data, steps) if variant.peft else measure_apt(variant, run, base, data, steps)
    )


def measure_peft(variant: Variant, run: RunConfig, base: Base, data: Data, steps: int) -> Timed:
    """Time PEFT as the Hugging Face Trainer runs it. Collective."""
    config = load_config(run, collectives.world_size(), base.config.hidden_size)
    sharding = zero.shard_while_loading(config)
    model = loading.load_model(base, run)
    if variant.bits == 4:
        hold_in_four_bits(model, loading.run_dtype(run))
    targets = [f"{target}_proj" for target in run.targets]
    lora = LoraConfig(
        r=run.adapter.rank, lora_alpha=2 * run.adapter.rank, target_modules=targets, task_type="CAUSAL_LM"
    )
    # a bf16 engine under stage 3 does not support adapters in fp32
    wrapped = get_peft_model(model, lora, autocast_adapter_dtype=False).train()
    engine = zero.build(wrapped, as_trainer_fills(config, base.config.hidden_size), gather_layers=False)
    del sharding, model, wrapped
    pad_id = resolve_pad_id(base.tokenizer)

    def step(number: int) -> None:
        size, indices = run.optim.per_device_train_batch_size, data.order.indices(number)
        for micro in range(run.optim.gradient_accumulation_steps):
            first = (micro * collectives.world_size() + collectives.rank()) * size
            batch = collate([data.train[i] for i in indices[first : first + size]], pad_id).to(zero.device())
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
            engine.backward(engine(**inputs, use_cache=False).loss)
            engine.step()

    measurement = timed(step, steps, shape_of(base, base.anatomy, run))
    measurement.attention = kernel_of(engine, packed=False)
    zero.destroy(engine)
    return measurement


def as_trainer_fills(config: dict[str, Any], hidden_size: int) -> dict[str, Any]:
    """A copy with what the Hugging Face Trainer puts in place of "auto" for the prefetched weights of stage 3."""
    zero = config.get("zero_optimization", {})
    if zero.get("stage3_prefetch_bucket_size") != "auto":
        return config
    return config | {"zero_optimization": zero | {"stage3_prefetch_bucket_size": int(0.9 * hidden_size**2)}}


def hold_in_four_bits(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Quantize every linear layer but the head to NF4 with double quantization, one at a time, as QLoRA does."""
    bnb = library("the benchmark's QLoRA")
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or module is model.get_output_embeddings():
            continue
        packed = bnb.nn.Linear4bit(
            module.in_features, module.out_features, module.bias is not None, dtype, quant_type="nf4", device="meta"
        )
        weight: Any = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
        packed.weight = weight.to(zero.device())
        packed.bias = module.bias
        packed.support_avx512bf16_for_cpu = False  # this would repack weights in place
        replace_module(model, path, packed)
    marked: Any = model  # PEFT reads this attribute, which transformers sets on models that it quantizes
    marked.is_loaded_in_4bit = True


def measure_apt(variant: Variant, run: RunConfig, base: Base, data: Data, steps: int) -> Timed:
    """Time apt_ds: scoring the dense model, or training a dense or a cut one. Collective."""
    config = load_config(run, collectives.world_size(), base.config.hidden_size)
    pruner = Pruner(run, base.anatomy, data.total_steps, zero.device(), writable_sizes(base.config))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, base, config, data, pruner, MetricsLogger(Path(folder), 0, quiet=True))
        trainer.begin()
        if pruner.cut_step is not None:
            trainer.cut_at_once(0)

        def step(number: int) -> None:
            trainer.train_step(number)
            pruner.advance(number + 1)

        measurement = timed(step, steps, shape_of(base, pruner.anatomy, run))
        measurement.attention = kernel_of(trainer.engine, run.data.packing)
        meter = trainer.meter
        measurement.rebuild = list(meter.rebuilds)
        if meter.rebuilds:
            steady = meter.dense()["peak_memory_bytes"] or 0
            measurement.steady = max(collectives.gather_objects(int(steady)))
            measurement.rebuild_peak = max(collectives.gather_objects(meter.rebuild_peaks[-1]))
        pruner.remove_hooks()
        zero.destroy(trainer.engine)
        trainer.metrics_logger.close()
    return measurement


def timed(step: Callable[[int], None], steps: int, shape: Shape) -> Timed:
    """Time `steps` steps after one step of warm-up. Collective.

    What the allocator keeps from loading and from the warm-up is freed first. It would count as reserved.
    """
    step(0)
    zero.free_memory()
    reset_peak(zero.device())
    seconds = []
    counter = energy_counter()
    before = counter() if counter else 0.0
    for number in range(1, steps + 1):
        collectives.barrier()
        start = now()
        step(number)
        seconds.append(now() - start)
    joules = (counter() - before) / steps if counter else None
    peak, reserved = (
        max(collectives.gather_objects(count)) for count in (peak_memory(zero.device()), reserved_bytes())
    )
    return Timed(seconds, peak, joules, shape, reserved=reserved)


def kernel_of(engine: nn.Module, packed: bool) -> str:
    """The attention kernel that rows of a model use, and whether packed rows make it use a dense mask."""
    name = str(pretrained_model(engine).config._attn_implementation)
    if not packed and name == VARLEN:
        return SDPA
    return f"{name}, dense mask" if packed and name not in (FLASH, VARLEN) else name
