"""A run at a step boundary as values and tensors, and back: what a checkpoint holds (see `checkpoint.py`).

Frozen base weights are not in it: the base model is cut again, once for every cut of the saved run, since a weight of
few bits that was cut twice, and quantized anew each time, is not the one that was cut once.
Every tensor is whole, so that a run may go on with other ranks and in another ZeRO stage; each is made whole, written
and forgotten before the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.adapter import adapters
from apt_ds.pruning import surgery
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, zero
from apt_ds.training.checkpoint import Checkpoint
from apt_ds.training.checkpoint_shards import Parts

Values = dict[str, Any]
Tensors = dict[str, Tensor]
State = tuple[Values, dict[str, Tensors]]  # values, and tensors by file


def capture_run_state(engine: zero.Engine, pruner: Pruner, surgeon: torch.Generator) -> State:
    """A run at a step boundary, all but what the engine trains. Collective.

    They are small. surgeon: draws what ranks grow by. The engine is told of as one that has not taken a step.
    """
    values: Values = {"engine": _values(zero.unstepped_state(engine))}
    tensors: dict[str, Tensors] = {}
    values["pruner"], tensors["pruner"] = pruner.state_dict()
    values["random"], tensors["random"] = random_state()
    tensors["random"]["surgery"] = surgeon.get_state()
    return values, tensors


def add_trained(values: Values, engine: zero.Engine, parts: Parts | None) -> None:
    """Complete what `capture_run_state` gave at this step boundary with counters; `parts` takes weights and moments.
    Collective.

    One tensor at a time: no rank holds those of others, but for the first, which has what is not written yet.
    """
    state = zero.take_state(engine, sink=_into(parts))
    for rank, key, value in collectives.to_main(state.blocks, zero.device()):
        parts.add("blocks", f"{rank}:{key}", value)
    values["engine"] = _values(state)


def add_unscored(engine: zero.Engine, trains_weights_for_scoring_only: bool, parts: Parts | None) -> None:
    """Give `parts` what is trained, as it was before scoring that has begun since. Collective.

    At a learning rate of 0 it moves only moments and counters, which the cut forgets. trains_weights_for_scoring_only:
    it trains what no cut keeps, for its gradients alone.
    """
    if not trains_weights_for_scoring_only:
        zero.take_state(engine, moments=False, sink=_into(parts))


def _into(parts: Parts | None) -> Callable[[str, Tensors], None]:
    """Puts tensors of a parameter where a checkpoint has them, on the first rank."""

    def put(name: str, entry: Tensors) -> None:
        for key, value in entry.items() if parts else ():
            parts.add("trained", f"{key}:{name}", value)

    return put


def _values(state: zero.EngineState) -> Values:
    return {"adam_step": state.adam_step, "scaler": state.scaler, "counters": state.counters, "layout": state.layout}


def restore(engine: zero.Engine, surgeon: torch.Generator, saved: Checkpoint, accumulation: int) -> None:
    """Set what `reshape` has not: moments, counters and generators. Collective."""
    held = saved.tensors
    state = read_engine_state(saved.values["engine"], held.get("trained", {}), held.get("blocks", {}))
    # DeepSpeed finds the boundary of an optimizer step from this one, and accumulation may have changed
    done = state.counters["micro_steps"] // saved.run["gradient_accumulation_steps"]
    state.counters["micro_steps"] = done * accumulation
    zero.put_state(engine, state)
    surgeon.set_state(saved.tensors["random"]["surgery"])
    put_random_state(saved.values["random"], saved.tensors["random"])


def read_engine_state(values: Values, flat: Tensors, blocks: Tensors) -> zero.EngineState:
    """What `zero.put_state` takes, from what `add_trained` gave."""
    tensors: dict[str, Tensors] = {}
    for label, value in flat.items():
        key, _, name = label.partition(":")
        tensors.setdefault(name, {})[key] = value
    place = f"{collectives.rank()}:"
    own = {label.removeprefix(place): value for label, value in blocks.items() if label.startswith(place)}
    scaler, counters = dict(values["scaler"]), dict(values["counters"])
    return zero.EngineState(tensors, values["adam_step"], scaler, counters, own, values["layout"])


def reshape(model: nn.Module, pruner: Pruner, saved: Checkpoint) -> None:
    """Give a freshly loaded model with adapters the shapes and trained values of the checkpoint. Collective.

    One module is gathered at a time. The pruner takes its state over; it must not be on the model yet.
    """
    held = saved.tensors["pruner"]
    anatomy, gone = pruner.anatomy, held["removed_in_cut"].numpy()
    scale = np.ones(len(gone))
    scale[held["kept_ids"].numpy()] = held["scale"].numpy()
    for number in range(1, gone.max() + 1):
        there = (gone == 0) | (gone >= number)
        # only runs that cut once scale what is left
        plan = Plan(gone[there] != number, scale=scale[there] if number == gone.max() else None)
        anatomy = surgery.apply_plan(model, anatomy, plan, None, torch.Generator())
    pruner.load_state_dict(anatomy, saved.values["pruner"], held)
    replaced: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for label, value in saved.tensors.get("trained", {}).items():
        key, _, name = label.partition(":")
        if key == "master":
            path, _, attribute = name.rpartition(".")
            old = getattr(model.get_submodule(path), attribute)
            # the weight is its master rounded; of its own memory: a mapped file's is aligned otherwise, and kernels
            # round by that
            new = nn.Parameter(value.to(old.device, old.dtype, copy=True))
            zero.shard([new], like=old)
            replaced[id(old)] = old, new
    # a tied weight has several places
    for module in model.modules():
        for attribute, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in replaced:
                setattr(module, attribute, replaced[id(parameter)][1])


def random_state() -> tuple[list[Values], Tensors]:
    """Every rank's generators: Python, NumPy, torch on CPU and device. Collective."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    own = {
        "python": torch.tensor(words),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    values = {"python": [version, gauss], "numpy": [int(position), int(has_gauss), float(cached)]}
    gathered = collectives.gather_objects((values, own))
    return [v for v, _ in gathered], {f"{rank}:{k}": t for rank, (_, ts) in enumerate(gathered) for k, t in ts.items()}


def put_random_state(values: list[Values], tensors: Tensors) -> None:
    """Set this rank's generators; a rank that the saved run did not have keeps its own."""
    rank = collectives.rank()
    if rank >= len(values):
        return
    own = {name.partition(":")[2]: value for name, value in tensors.items() if name.startswith(f"{rank}:")}
    version, gauss = values[rank]["python"]
    random.setstate((version, tuple(own["python"].tolist()), gauss))
    np.random.set_state(("MT19937", own["numpy"].numpy().astype(np.uint32), *values[rank]["numpy"]))
    torch.set_rng_state(own["cpu"])
    if torch.cuda.is_available() and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"])


def shape(model: nn.Module, pruner: Pruner) -> Values:
    """What is left, for people: sizes and ranks."""
    ranks = {path: zero.full_shape(a.lora_A)[0] for path, a in adapters(model)}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    sizes = pruner.anatomy.sizes
    return {"counts": list(sizes.counts), "hidden": sizes.hidden, "ranks": ranks, "dtype": dtype}
