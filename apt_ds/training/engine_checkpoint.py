"""What an engine trains, into a checkpoint and back: fp32 weights, Adam moments, loss scale, counters.

Every tensor is whole, so that a run may resume with other ranks and in another ZeRO stage. Tensors are gathered,
written and freed one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from apt_ds.runtime import collectives, zero
from apt_ds.training.checkpoint import Checkpoint, ShardWriter

Values = dict[str, Any]
Tensors = dict[str, Tensor]


def add_trained(engine: zero.Engine, shards: ShardWriter | None) -> Values:
    """Write trained weights and moments, and return the engine's JSON values. Collective.

    Args:
        engine: trains the model.
        shards: takes the tensors on the first rank. None on the others.
    """
    state = zero.take_state(engine, sink=_sink(shards))
    # the loop is empty on all ranks but the first
    for rank, key, value in collectives.to_main(state.blocks, zero.device()):
        if shards is not None:
            shards.add("blocks", f"{rank}:{key}", value)
    return engine_values(state)


def add_unscored(engine: zero.Engine, shards: ShardWriter | None) -> None:
    """Write trained weights as they were before the scoring that has begun. Collective.

    Scoring at a learning rate of 0 changes moments and counters only. The cut discards both.
    """
    zero.take_state(engine, moments=False, sink=_sink(shards))


def _sink(shards: ShardWriter | None) -> Callable[[str, Tensors], None]:
    """Writes the tensors of one parameter on the first rank. Discards them on the others."""

    def put(name: str, entry: Tensors) -> None:
        if shards is not None:
            for key, value in entry.items():
                shards.add("trained", f"{key}:{name}", value)

    return put


def engine_values(state: zero.EngineState) -> Values:
    """The JSON values of an engine's state."""
    return {"adam_step": state.adam_step, "scaler": state.scaler, "counters": state.counters, "layout": state.layout}


def load_engine(engine: zero.Engine, saved: Checkpoint, accumulation: int) -> None:
    """Set masters, moments, loss scale and counters. Collective.

    Args:
        engine: trains a model of the checkpoint's shapes.
        saved: the checkpoint.
        accumulation: micro-batches per step in this run. It may differ from the saved run's.
    """
    state = read_engine_state(saved.values["engine"], saved.tensors.get("trained", {}), saved.tensors.get("blocks", {}))
    # DeepSpeed derives the boundary of an optimizer step from the number of micro-batches so far
    steps = state.counters["micro_steps"] // saved.run["gradient_accumulation_steps"]
    state.counters["micro_steps"] = steps * accumulation
    zero.put_state(engine, state)


def read_engine_state(values: Values, trained: Tensors, blocks: Tensors) -> zero.EngineState:
    """The state that `zero.put_state` takes.

    Args:
        values: what `engine_values` returned.
        trained: tensors by "KEY:PARAMETER".
        blocks: quantized moments by "RANK:KEY".
    """
    tensors: dict[str, Tensors] = {}
    for label, value in trained.items():
        key, _, name = label.partition(":")
        tensors.setdefault(name, {})[key] = value
    prefix = f"{collectives.rank()}:"
    own = {label.removeprefix(prefix): value for label, value in blocks.items() if label.startswith(prefix)}
    scaler, counters = dict(values["scaler"]), dict(values["counters"])
    return zero.EngineState(tensors, values["adam_step"], scaler, counters, own, values["layout"])


def load_trained(model: nn.Module, trained: Tensors) -> None:
    """Give a model without an engine the trained weights of a checkpoint, in the checkpoint's shapes. Collective.

    Args:
        model: has its cut shapes. Trained weights may have other ranks than the checkpoint's.
        trained: tensors by "KEY:PARAMETER".
    """
    replaced: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for label, value in trained.items():
        key, _, name = label.partition(":")
        if key == "master":
            path, _, attribute = name.rpartition(".")
            old = getattr(model.get_submodule(path), attribute)
            # The weight is its master, rounded. It gets memory of its own: a mapped file has another alignment, and
            # kernels round differently by alignment.
            new = nn.Parameter(value.to(old.device, old.dtype, copy=True))
            zero.shard([new], like=old)
            replaced[id(old)] = old, new
    # several modules may share a tied weight
    for module in model.modules():
        for attribute, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in replaced:
                setattr(module, attribute, replaced[id(parameter)][1])
