"""What one micro-batch needs beside the weights, from a model's configuration alone.

The model is built of fake tensors, which have shapes and no content, and runs forward and backward once; every storage
counts from the operation that makes it to the moment nothing refers to it. So each architecture, attention kernel,
checkpointing, soft mask, tap and teacher counts as it is, and no weight is read. Workspace inside a kernel does not
show. A base of few bits counts with its codes and scales, and with one weight at a time as it computes.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import ANSWERS, GENERATION
from apt_ds.data.batching import Batch
from apt_ds.data.tokenized import Row
from apt_ds.losses.lm_head import pad_positions
from apt_ds.losses.task_losses import TASK_LOSSES, Inputs, LabelledTokens, TaskLoss, TokenLoss
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import adapter, loading, quantization, task_heads
from apt_ds.models.architectures import architecture_of
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.blocks import block_slices, plural
from apt_ds.models.loading import Base
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.salience import Salience

CPU = torch.device("cpu")
OUTPUTS = {ANSWERS: 2}  # targets of a row, 1 of other tasks


class Shape(NamedTuple):
    """A micro-batch: rows of `length` tokens, and of `written` tokens for a decoder; `trained` in all that have logits.

    A task of one answer for a row trains no tokens.
    """

    rows: int
    length: int
    written: int
    trained: int


class Weight(NamedTuple):
    """A parameter: its elements, as the engine sees them (of one in few bits: its codes), and whether it is trained.

    full: elements it stands for where it is held in few bits, else 0; scales: bytes beside its codes, whole on every
    rank.
    """

    name: str
    numel: int
    trained: bool
    full: int = 0
    scales: int = 0


@dataclass(frozen=True)
class Footprint:
    """weights: every parameter, adapters included; activations and evaluation: bytes at their most, weights and
    their gradients not counted, of a training micro-batch and of an evaluation batch, what a teacher remembers in both;
    largest: elements of the largest module's own parameters.
    """

    weights: tuple[Weight, ...]
    activations: int
    evaluation: int
    largest: int


class Live(TorchDispatchMode):
    """Bytes of the storages made inside it that something refers to; `peak` is the most there were."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, object] = {}
        for parameter in known.parameters():
            self._hold(parameter, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda t: self._hold(t, t.untyped_storage().nbytes()), made)
        return made

    def _hold(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        self._held[key] = weakref.finalize(storage, self._let_go, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _let_go(self, key: int, size: int) -> None:
        self.now -= size
        del self._held[key]


def measure(base: Base, run: RunConfig, batch: Shape, judged: list[Shape], rank: int, everything: bool) -> Footprint:
    """What `run` makes of `base` with adapters of `rank`, or with `everything` trained.

    batch: a training micro-batch; judged: batches of evaluation.
    """
    taps = taps_of(base, run)
    with fake():
        model = skeleton(base, run)
        if everything:
            model.requires_grad_(True)
        else:
            adapter.attach(model, base.anatomy, run.targets, rank, run.optim.seed)
            task_heads.attach(model, base.anatomy)
        training_loss, masks = TrainingLoss(run, base.kind, base.anatomy, 1, CPU), half_masked(base, run)
        training_loss.prepare(model, base.anatomy)
        masks.install(model.train())
        taps.abs_sums = torch.zeros_like(taps.abs_sums)
        if run.pruning.mode != "none" and run.pruning.score in ("salience", "fisher"):
            taps.install(model)
        training_loss.install_hooks(model)
        past = sum(tensor.nbytes for tensor in training_loss.teacher.snapshot.values())
        ahead = previewed(training_loss, model, masks, batch) * (run.optim.gradient_accumulation_steps - 1)
        activations = (
            past + ahead + _peak(model, lambda: _lesson(training_loss, model, masks, taps, batch), backward=True)
        )
        taps.end()
        with torch.no_grad():
            model.eval()
            peaks = [_peak(model, lambda s=shape: _loss(model, base.kind, s), backward=False) for shape in judged]
        packed = {
            f"{path}.weight" for paths in base.anatomy.targets.values() for path in paths if run.model.base_bits < 16
        }
        weights = tuple(
            _weight(name, p, run.model.base_bits if name in packed else 16) for name, p in model.named_parameters()
        )
        modules: Counter[str] = Counter()
        for weight in weights:
            modules[weight.name.rpartition(".")[0]] += weight.numel
        largest = max(modules.values())
    return Footprint(weights, activations + grams(base, run), past + max(peaks), largest)


def _weight(name: str, parameter: nn.Parameter, bits: int) -> Weight:
    """What is held of a parameter, in `bits` bits where that is less than it computes in."""
    if bits == 16:
        return Weight(name, parameter.numel(), parameter.requires_grad)
    codes, scales = quantization.room(parameter.shape, bits)
    return Weight(name, -(-codes // parameter.element_size()), parameter.requires_grad, parameter.numel(), scales)


@contextmanager
def fake() -> Iterator[None]:
    """Tensors made inside have no content."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def skeleton(base: Base, run: RunConfig) -> nn.Module:
    """The model as `loading.load_model` gives it, without content. Inside `fake`."""
    # a copy: the configuration says what the files hold, and would take over what is asked for here
    model = AUTO_CLASSES[base.kind].from_config(
        copy.deepcopy(base.config), dtype=loading.run_dtype(run), attn_implementation=run.model.attn_implementation
    )
    architecture_of(base.config).prepare(model, base.anatomy)
    model.config.use_cache = False
    if run.optim.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def half_masked(base: Base, run: RunConfig) -> Masks:
    """Masks on their way, where blocks go while the model is tuned; else none."""
    masks, values = Masks(base.anatomy), np.ones(base.anatomy.sizes.total())
    for site, span in block_slices(base.anatomy.sizes):
        if run.pruning.mode == "gradual" and plural(base.anatomy.kind(site)) in run.pruning.block_kinds:
            values[span] = 0.5
    masks.set(values)
    return masks


def taps_of(base: Base, run: RunConfig) -> Salience:
    """What a run scores by. Outside of `fake`, since it reads its own offsets. Of Fisher's, all but `grams`."""
    product = "per_example" if run.pruning.score == "fisher" else run.pruning.salience_product
    return Salience(base.anatomy, run.pruning.salience_decay, "off", 0.0, CPU, product)


def grams(base: Base, run: RunConfig) -> int:
    """Bytes of the products X^T X, fp32, that Fisher holds at every place blocks go from until the cut."""
    widths = [site.unit * n for site, n in zip(base.anatomy.sites, base.anatomy.sizes.counts, strict=True)]
    return 4 * sum(width * width for width in widths) if run.pruning.score == "fisher" else 0


def _peak(model: nn.Module, forward: Callable[[], Tensor], backward: bool) -> int:
    """Most bytes of a pass."""
    with Live(model) as live:
        loss = forward()
        if backward:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop)
            loss.backward()
    return live.peak


def _drop(parameter: Tensor) -> None:
    """The engine takes a gradient as soon as it is there."""
    parameter.grad = None


def _lesson(training_loss: TrainingLoss, model: nn.Module, masks: Masks, taps: Salience, shape: Shape) -> Tensor:
    """What a training micro-batch goes backward from."""
    training_loss.task_loss = counted(training_loss.task_type, shape)
    training_loss.loss_denominator, training_loss.tokens_per_stack = 1, [1] * len(training_loss.matcher.stacks)
    # distances without content map no layer to another
    training_loss.matcher.rematch = lambda: None
    batch = batch_of(training_loss.task_type, shape)
    taps.begin(batch.attention_mask, next(model.parameters()).dtype, 0, training_loss.task_loss.decoder_mask(batch))
    return training_loss.micro_batch_loss(model, batch, masks)[0]


def previewed(training_loss: TrainingLoss, model: nn.Module, masks: Masks, shape: Shape) -> int:
    """Bytes of the teacher's outputs that wait for a micro-batch whose distances were measured beforehand."""
    if not training_loss.previews:
        return 0
    training_loss.task_loss = counted(training_loss.task_type, shape)
    outputs = training_loss.teacher_outputs(model, batch_of(training_loss.task_type, shape), masks)
    return sum(tensor.nbytes for tensor in (*outputs.logits, *outputs.states.values()))


def _loss(model: nn.Module, kind: str, shape: Shape) -> Tensor:
    """`task_losses.summed_loss` of an evaluation batch."""
    return counted(kind, shape).summed_loss(model, batch_of(kind, shape))


def batch_of(kind: str, shape: Shape) -> Batch:
    """A batch of a shape. Inside `fake`."""
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.int64)
    labels = torch.zeros(shape.rows, shape.written, dtype=torch.int64) if kind == GENERATION else None
    targets = torch.zeros(shape.rows, OUTPUTS.get(kind, 1), dtype=torch.int64)
    return Batch(ids, torch.ones_like(ids), labels, targets=targets)


class CountedTokens(TokenLoss):
    """A task's loss on a number of labelled tokens. It reads no labels, because fake tensors have no content."""

    def __init__(self, task_loss: TokenLoss, count: int) -> None:
        self.task_loss, self.targets = task_loss, torch.zeros(count, dtype=torch.int64)
        self.positions = pad_positions(self.targets)

    def labelled_tokens(self, batch: Batch) -> LabelledTokens:
        """The first token, `count` times."""
        return LabelledTokens(self.positions, self.targets)

    def inputs(self, model: nn.Module, batch: Batch) -> Inputs:
        """As the task's."""
        return self.task_loss.inputs(model, batch)

    def token_targets(self, batch: Batch) -> Tensor:
        """As the task's."""
        return self.task_loss.token_targets(batch)

    def loss_denominator(self, row: Row) -> int:
        """As the task's."""
        return self.task_loss.loss_denominator(row)

    def decoder_mask(self, batch: Batch) -> Tensor | None:
        """As the task's."""
        return self.task_loss.decoder_mask(batch)


def counted(kind: str, shape: Shape) -> TaskLoss:
    """The loss of a kind with a number of tokens in place of the tokens, which would need content."""
    task_loss = TASK_LOSSES[kind]
    return CountedTokens(task_loss, shape.trained) if isinstance(task_loss, TokenLoss) else task_loss
