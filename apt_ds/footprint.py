"""What one micro-batch needs beside the weights, from a model's configuration alone.

The model is built of fake tensors, which have shapes and no content, and runs forward and backward once; every storage
counts from the operation that makes it to the moment nothing refers to it. So each architecture, attention kernel and
checkpointing counts as it is, and no weight is read. Workspace inside a kernel does not show. A base of few bits counts
with its codes and scales, and with one weight at a time as it computes.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM

from apt_ds import adapter, models, quantized
from apt_ds.config import RunConfig
from apt_ds.models import Base


class Shape(NamedTuple):
    """A micro-batch: rows of `length` tokens, logits made at `positions` of each, `trained` of them in the loss."""

    rows: int
    length: int
    positions: int
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
    their gradients not counted, of a training micro-batch and of an evaluation batch; largest: elements of the largest
    module's own parameters.
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
    with fake():
        model = skeleton(base, run)
        if everything:
            model.requires_grad_(True)
        else:
            adapter.attach(model, base.anatomy, run.targets, rank, run.seed)
        model.train()
        activations = _peak(model, batch, backward=True)
        with torch.no_grad():
            evaluation = max(_peak(model.eval(), shape, backward=False) for shape in judged)
        packed = {f"{path}.weight" for paths in base.anatomy.targets.values() for path in paths if run.base_bits < 16}
        weights = tuple(
            _weight(name, p, run.base_bits if name in packed else 16) for name, p in model.named_parameters()
        )
        modules: Counter[str] = Counter()
        for weight in weights:
            modules[weight.name.rpartition(".")[0]] += weight.numel
        largest = max(modules.values())
    return Footprint(weights, activations, evaluation, largest)


def _weight(name: str, parameter: nn.Parameter, bits: int) -> Weight:
    """What is held of a parameter, in `bits` bits where that is less than it computes in."""
    if bits == 16:
        return Weight(name, parameter.numel(), parameter.requires_grad)
    codes, scales = quantized.room(parameter.shape, bits)
    return Weight(name, -(-codes // parameter.element_size()), parameter.requires_grad, parameter.numel(), scales)


@contextmanager
def fake() -> Iterator[None]:
    """Tensors made inside have no content."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def skeleton(base: Base, run: RunConfig) -> nn.Module:
    """The model as `models.load_model` gives it, without content. Inside `fake`."""
    # a copy: the configuration says what the files hold, and would take over what is asked for here
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(base.config), dtype=models.run_dtype(run), attn_implementation=run.attn_implementation
    )
    model.config.use_cache = False
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _peak(model: nn.Module, shape: Shape, backward: bool) -> int:
    """Most bytes of a pass."""
    with Live(model) as live:
        loss = _loss(model, shape)
        if backward:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop)
            loss.backward()
    return live.peak


def _drop(parameter: Tensor) -> None:
    """The engine takes a gradient as soon as it is there."""
    parameter.grad = None


def _loss(model: nn.Module, shape: Shape) -> Tensor:
    """`objective.summed_loss` with the numbers of positions in place of the positions."""
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.int64)
    positions, trained = (torch.zeros(n, dtype=torch.int64) for n in (shape.positions, shape.trained))
    logits = model(input_ids=ids, logits_to_keep=positions, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1)[trained].float(), trained, reduction="sum")
