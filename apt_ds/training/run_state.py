"""All that a run may change, at a step boundary: who has it, and how a checkpoint saves and restores it.

Frozen base weights are not part of it, except those that a repair has changed. A resumed run cuts the base model again,
once for each cut of the saved run: quantized weights that were cut twice differ from weights that were cut once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models.blocks import Anatomy
from apt_ds.pruning import surgery
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import zero
from apt_ds.training import engine_checkpoint, repaired_weights
from apt_ds.training.checkpoint import Checkpoint, ShardWriter
from apt_ds.training.repairing import Repairer

Tensors = dict[str, Tensor]


class Stateful(Protocol):
    """Has a state of JSON values and tensors."""

    def state_dict(self) -> tuple[Any, Tensors]:
        """(JSON values, tensors) of the state. Collective for some members."""
        ...

    def load_state_dict(self, values: Any, tensors: Tensors, /) -> None:
        """Resume from what `state_dict` returned."""
        ...


@dataclass
class Content:
    """A run at a step boundary.

    Attributes:
        values: JSON values by member.
        tensors: tensors by member and name.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensors]


class RunState:
    """Lists every object of a run that has a state, and makes a checkpoint's content of them.

    Args:
        pruner: restored with the model's shapes, before the engine exists.
        training_loss: restored before the model gets its trainable weights.
        repairer: the weights that it has changed are saved and restored, too.
        members: the other objects, by their name in a checkpoint. Restored last.
        started: time of the run's first start.
    """

    def __init__(
        self,
        pruner: Pruner,
        training_loss: TrainingLoss,
        repairer: Repairer,
        members: Mapping[str, Stateful],
        started: datetime | None,
    ) -> None:
        self.pruner, self.training_loss, self.repairer = pruner, training_loss, repairer
        self.members, self.started = {**members, "repairer": repairer}, started

    def capture(self, engine: zero.Engine) -> Content:
        """The state at this step boundary, with the engine as if it had not taken a step. Collective.

        What the engine trains is not in it: `complete` adds it.
        """
        content = Content({"engine": engine_checkpoint.engine_values(zero.unstepped_state(engine))}, {})
        states: dict[str, tuple[Any, Tensors]] = {
            "pruner": self.pruner.state_dict(),
            "training_loss": self.training_loss.state_dict(),
            **{name: member.state_dict() for name, member in self.members.items()},
        }
        for name, (values, tensors) in states.items():
            content.values[name] = values
            if tensors:
                content.tensors[name] = tensors
        content.values["started"] = self.started.isoformat() if self.started else ""
        return content

    def snapshot(self, engine: zero.Engine) -> Content:
        """A copy of `capture` that later steps do not change. Collective."""
        return copy.deepcopy(self.capture(engine))

    def complete(self, content: Content, engine: zero.Engine, shards: ShardWriter | None) -> None:
        """Add trained and repaired weights to what `capture` returned at this step boundary. Collective."""
        content.values["engine"] = engine_checkpoint.add_trained(engine, shards)
        repaired_weights.add(engine.module, self.repairer.paths, shards)
        repaired_weights.add_biases(engine.module, self.pruner.compensated, shards)

    def load_training_loss(self, saved: Checkpoint) -> None:
        """Restore the training loss, before the model gets its trainable weights."""
        self.training_loss.load_state_dict(saved.values["training_loss"], saved.tensors.get("training_loss", {}))

    def load_model(self, model: nn.Module, saved: Checkpoint) -> None:
        """Replay the saved run's cuts on a freshly loaded model, then load pruner and trained weights. Collective.

        The model has its trainable weights. It has no hooks and no engine.
        """
        tensors = saved.tensors["pruner"]
        anatomy = replay_cuts(model, self.pruner.anatomy, tensors)
        repaired_weights.load(model, saved.tensors.get(repaired_weights.GROUP, {}))
        self.pruner.load_state_dict(anatomy, saved.values["pruner"], tensors)
        engine_checkpoint.load_trained(model, saved.tensors.get("trained", {}))

    def load(self, engine: zero.Engine, saved: Checkpoint, accumulation: int) -> None:
        """Restore the engine and all members, once the engine is on the restored model. Collective."""
        engine_checkpoint.load_engine(engine, saved, accumulation)
        for name, member in self.members.items():
            member.load_state_dict(saved.values[name], saved.tensors.get(name, {}))


def saved_after_cut(saved: Checkpoint) -> bool:
    """Whether the saved run had cut the model at once, so that it no longer trained weights for their scores alone."""
    return saved.values["pruner"]["cut_done"]


def replay_cuts(model: nn.Module, anatomy: Anatomy, tensors: Tensors) -> Anatomy:
    """Apply every cut of a saved run to a freshly loaded model, one module gathered at a time. Collective.

    Args:
        model: has its trainable weights and no engine.
        anatomy: that of `model`.
        tensors: the pruner's: `removed_in_cut`, the number of the cut that removed each block (0: kept), and `kept_ids`
            with `scale`, what the cut multiplied each kept block with.

    Returns:
        The anatomy after the last cut.
    """
    removed_in_cut = tensors["removed_in_cut"].numpy()
    scale = np.ones(len(removed_in_cut))
    scale[tensors["kept_ids"].numpy()] = tensors["scale"].numpy()
    last = removed_in_cut.max()
    for number in range(1, last + 1):
        present = (removed_in_cut == 0) | (removed_in_cut >= number)
        # only runs with a single cut scale the blocks that they keep
        plan = Plan(removed_in_cut[present] != number, scale=scale[present] if number == last else None)
        anatomy = surgery.apply_plan(model, anatomy, plan, None, torch.Generator())
    return anatomy
