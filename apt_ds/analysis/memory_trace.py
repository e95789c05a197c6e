"""What one micro-batch needs besides the weights, from the configuration of a model alone.

The model consists of fake tensors and runs forward and backward once (`live_bytes.py`), so no weight is read. Each
architecture, attention kernel, soft mask, activation hook and teacher counts as the run uses it, with or without
gradient checkpointing. A quantized base counts with its codes and scales, and with one dequantized weight at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights
from transformers.quantizers.quantizers_utils import should_convert_module

from apt_ds.analysis.fake_batches import Shape, batch_of, counted, summed_loss, with_teacher
from apt_ds.analysis.live_bytes import fake, peak_bytes
from apt_ds.config.run_config import RunConfig
from apt_ds.losses import cross_entropy
from apt_ds.losses.layer_matching import LayerMatcher
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import loading, quantization
from apt_ds.models.architectures import architecture_of
from apt_ds.models.attention import kernel_of
from apt_ds.models.blocks import block_slices, plural
from apt_ds.models.loading import Base
from apt_ds.models.scope import competing_kinds
from apt_ds.models.trainables import attach_trainables
from apt_ds.pruning.activation_hooks import CountedTokens as Tokens
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.salience import Salience
from apt_ds.runtime import zero

CPU = torch.device("cpu")


class Weight(NamedTuple):
    """A parameter of the model.

    Attributes:
        name: its name in the model.
        numel: elements that the engine sees. Of a quantized weight, those of its codes.
        trained: whether it is trained.
        full: elements that a quantized weight stands for. 0 for all others.
        scales: bytes of the scales of a quantized weight. Every rank stores all of them.
    """

    name: str
    numel: int
    trained: bool
    full: int = 0
    scales: int = 0


@dataclass(frozen=True)
class Footprint:
    """What a model needs.

    Attributes:
        weights: every parameter, adapters included.
        activations: peak bytes of a training micro-batch. Weights and their gradients do not count. The snapshot of a
            teacher counts here and in `evaluation`.
        evaluation: peak bytes of an evaluation batch.
        largest: elements of the own parameters of the largest module.
        layer: elements of the largest transformer layer, which ZeRO-3 gathers at once. 0 without layers.
    """

    weights: tuple[Weight, ...]
    activations: int
    evaluation: int
    largest: int
    layer: int = 0


class UnpaddedSalience(Salience):
    """The scorer on fake tensors, whose padding cannot be counted. They have none."""

    def _counted_tokens(self, mask: Tensor, dtype: torch.dtype, members: Tensor | None = None) -> Tokens:
        lean, self.lean = self.lean, False
        tokens = super()._counted_tokens(mask, dtype, members)
        self.lean = lean
        return replace(tokens, blank=mask.new_zeros(0)) if lean else tokens


class UnmatchedLayers(LayerMatcher):
    """Layer matching on fake tensors. Their distances have no values, so it maps no layer to another."""

    def rematch(self) -> None:
        """Do nothing."""


def measure(
    base: Base,
    run: RunConfig,
    batch: Shape,
    evaluation_shapes: list[Shape],
    rank: int,
    trains_all_weights: bool,
    device_type: str = "cpu",
) -> Footprint:
    """The footprint of `base` as `run` trains it.

    Args:
        base: the model.
        run: the configuration of the run.
        batch: a training micro-batch.
        evaluation_shapes: evaluation batches. The largest counts.
        rank: rank of all adapters.
        trains_all_weights: whether all weights are trained. The model then has no adapters.
        device_type: type of the device of the run. Fake tensors are the CPU's, but losses and scores work in pieces
            whose sizes depend on the device.
    """
    hooks = scoring_hooks(base, run)
    hooks.lean = device_type != "cpu"
    with fake(), cross_entropy.chunks_of(device_type):
        model = skeleton(base, run, device_type)
        attach_trainables(model, base.anatomy, run, rank, trains_all_weights)
        training_loss, masks = unmatched_loss(base, run), half_masked(base, run)
        training_loss.phase.prepare(model, base.anatomy)
        masks.install(model.train())
        if run.pruning.learns_gates:
            masks.learn(masks.values)
        hooks.abs_sums = torch.zeros_like(hooks.abs_sums)
        if run.pruning.prunes and run.pruning.score not in ("taylor", "random", "l0"):
            hooks.install(model)
        training_loss.install_hooks(model)
        snapshot = sum(tensor.nbytes for tensor in training_loss.phase.teacher.snapshot.values())
        waiting = teacher_outputs(training_loss, model, masks, batch) * (run.optim.gradient_accumulation_steps - 1)
        forward = partial(micro_batch_loss, training_loss, model, masks, hooks, batch)
        activations = snapshot + waiting + peak_bytes(model, forward, backward=True) + grams(base, run)
        hooks.end()
        with torch.no_grad():
            model.eval()
            forwards = [partial(summed_loss, model, base.task_type, shape) for shape in evaluation_shapes]
            evaluation = snapshot + max(peak_bytes(model, forward, backward=False) for forward in forwards)
        weights = weights_of(model, base, run.model.base_bits)
    return Footprint(weights, activations, evaluation, *largest_units(model, weights))


def unmatched_loss(base: Base, run: RunConfig) -> TrainingLoss:
    """The loss of the run, whose teacher matches no layers."""
    training_loss = TrainingLoss(run, base.task_type, base.anatomy, 1, CPU)
    same_step = run.pruning.layer_match == "step"
    training_loss.distillation.matcher = UnmatchedLayers(base.anatomy, run.optim.seed, same_step, CPU)
    return training_loss


def largest_units(model: nn.Module, weights: tuple[Weight, ...]) -> tuple[int, int]:
    """Elements of the own parameters of the largest module, and of the largest transformer layer."""
    modules: Counter[str] = Counter()
    for weight in weights:
        modules[weight.name.rpartition(".")[0]] += weight.numel
    layers = [f"{path}." for stack in zero.layer_stacks(model) for path, _ in stack]
    largest = max((sum(w.numel for w in weights if w.name.startswith(layer)) for layer in layers), default=0)
    return max(modules.values()), largest


def weights_of(model: nn.Module, base: Base, bits: int) -> tuple[Weight, ...]:
    """All parameters of `model`, whose projections take `bits` bits each.

    Transformers quantizes no module that a family keeps in fp32, such as T5's `wo`.
    """
    precise = sorted(getattr(model, "_keep_in_fp32_modules", None) or ())
    paths = [path for paths in base.anatomy.targets.values() for path in paths]
    projections = {f"{path}.weight" for path in paths if should_convert_module(path, precise)}
    return tuple(_weight(name, p, bits if name in projections else 16) for name, p in model.named_parameters())


def _weight(name: str, parameter: nn.Parameter, bits: int) -> Weight:
    if bits == 16:
        return Weight(name, parameter.numel(), parameter.requires_grad)
    codes, scales = quantization.room(parameter.shape, bits)
    return Weight(name, -(-codes // parameter.element_size()), parameter.requires_grad, parameter.numel(), scales)


def skeleton(base: Base, run: RunConfig, device_type: str = "cpu") -> nn.Module:
    """The model that `loading.load_model` returns, without content. Call it inside `fake`."""
    spec = architecture_of(base.config)
    # some draws of new weights read what they draw, and fake tensors have no content
    with no_init_weights():
        attention = kernel_of(run, device_type)
        model = spec.empty_model(base.config, base.task_type, loading.run_dtype(run), attention)
    model.tie_weights()
    spec.prepare(model, base.anatomy)
    model.config.use_cache = False
    if run.optim.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def half_masked(base: Base, run: RunConfig) -> Masks:
    """Masks between 0 and 1, for a run whose masks move or are learnt. For any other run all masks are 1."""
    masks, values = Masks(base.anatomy), np.ones(base.anatomy.sizes.total())
    between = run.pruning.moves_masks or run.pruning.learns_gates
    for site, span in block_slices(base.anatomy.sizes):
        if between and plural(base.anatomy.kind(site)) in run.pruning.block_kinds:
            values[span] = 0.5
    masks.set(values)
    return masks


def scoring_hooks(base: Base, run: RunConfig) -> Salience:
    """The hooks of the run's score. Of Fisher's hooks, all but `grams`. Call it outside `fake`.

    Scores of input moments keep no activation, as the product of batch sums.
    """
    products = {"fisher": "per_example", "flap": "batch", "wanda_sp": "batch"}
    product = products.get(run.pruning.score, run.pruning.salience_product)
    kinds = competing_kinds(run, base.anatomy)
    return UnpaddedSalience(base.anatomy, run.pruning.salience_decay, "off", 0.0, CPU, product, kinds=kinds)


def grams(base: Base, run: RunConfig) -> int:
    """Bytes of the products X^T X, fp32, that the Fisher score stores until the cut, for sublayers that it prunes."""
    sites, kinds = zip(base.anatomy.sites, base.anatomy.sizes.counts, strict=True), competing_kinds(run, base.anatomy)
    widths = [site.unit * count for site, count in sites if plural(site.kind) in kinds]
    stores = run.pruning.prunes and run.pruning.score == "fisher"
    return 4 * sum(width * width for width in widths) if stores else 0


def micro_batch_loss(
    training_loss: TrainingLoss, model: nn.Module, masks: Masks, hooks: Salience, shape: Shape
) -> Tensor:
    """The loss of a training micro-batch."""
    training_loss.task_loss = training_loss.distillation.task_loss = counted(training_loss.task_type, shape)
    matcher = training_loss.distillation.matcher
    training_loss.loss_denominator, training_loss.tokens_per_stack = 1, [1] * len(matcher.stacks)
    matcher.begin(0, measuring=training_loss.phase.active)
    batch = with_teacher(batch_of(training_loss.task_type, shape), training_loss.run, shape)
    hooks.begin(batch.attention_mask, next(model.parameters()).dtype, 0, training_loss.task_loss.decoder_mask(batch))
    return training_loss.micro_batch_loss(model, batch, masks)[0]


def teacher_outputs(training_loss: TrainingLoss, model: nn.Module, masks: Masks, shape: Shape) -> int:
    """Bytes of the teacher's outputs of one micro-batch. A second pass over the micro-batches keeps them, else 0."""
    if not training_loss.distillation.previews:
        return 0
    training_loss.distillation.task_loss = counted(training_loss.task_type, shape)
    outputs = training_loss.distillation.teacher_outputs(model, batch_of(training_loss.task_type, shape), masks)
    return sum(tensor.nbytes for tensor in (*outputs.logits, *outputs.states.values()))
