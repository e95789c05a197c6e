"""Weights that a repair has changed, into a checkpoint and back. A resumed run cannot make them of the base model."""

from __future__ import annotations

from torch import Tensor, nn

from apt_ds.models import quantization
from apt_ds.runtime import zero
from apt_ds.training.checkpoint import ShardWriter

GROUP = "repaired"
BIAS = "bias"


def add(model: nn.Module, paths: list[str], shards: ShardWriter | None) -> None:
    """Write the weights of modules, gathered one at a time. Those that the run trains are saved elsewhere. Collective.

    Args:
        model: the model in the engine.
        paths: the modules. Those of sublayers that a later cut has emptied are left out.
        shards: takes the tensors on the first rank. None on the others.
    """
    present = dict(model.named_modules())
    for path in paths:
        # what is left of an emptied sublayer has no readers, and its consumer has no weight
        weight = getattr(present.get(path), "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.requires_grad:
            continue
        with zero.gathered([weight]):
            if shards is not None:
                for key, value in quantization.stored(weight).items():
                    shards.add(GROUP, f"{key}:{path}", value.cpu().clone())


def add_biases(model: nn.Module, paths: list[str], shards: ShardWriter | None) -> None:
    """Write the biases of modules, trained ones too. A resumed run makes those that the base model lacks. Collective.

    Arguments are those of `add`.
    """
    for path in paths:
        bias = model.get_submodule(path).bias
        assert isinstance(bias, nn.Parameter)
        with zero.gathered([bias]):
            if shards is not None:
                shards.add(GROUP, f"{BIAS}:{path}", bias.detach().cpu().clone())


def load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Replace the weights of a cut model by those of a checkpoint. Collective.

    Args:
        model: without an engine, in the checkpoint's shapes.
        tensors: by "KEY:PATH".
    """
    entries: dict[str, dict[str, Tensor]] = {}
    for label, value in tensors.items():
        key, _, path = label.partition(":")
        entries.setdefault(path, {})[key] = value
    for path, entry in entries.items():
        module = model.get_submodule(path)
        if BIAS in entry:
            _load_bias(module, entry.pop(BIAS))
        if not entry:
            continue
        old = module.weight
        assert isinstance(old, nn.Parameter)
        with zero.gathered([old]):
            new = quantization.restored_like(old, entry)
        zero.shard([new], like=old)
        module.weight = new
        zero.release(old)


def _load_bias(module: nn.Module, values: Tensor) -> None:
    """Give a linear layer, or what is left of one without columns, a saved bias. Collective."""
    like = module.bias if isinstance(module.bias, nn.Parameter) else module.weight
    assert isinstance(like, nn.Parameter)
    # memory of its own: a mapped file has another alignment
    new = nn.Parameter(values.to(like.device, copy=True), requires_grad=like.requires_grad)
    zero.shard([new], like=like)
    module.bias = new
