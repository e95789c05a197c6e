"""A rebuild: remove the engine, carry out a plan on the model, build an engine of the new shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from apt_ds.losses.teacher_phase import TeacherPhase
from apt_ds.pruning import surgery
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import zero
from apt_ds.training.repairing import Repairer
from apt_ds.training.run_engine import RunEngine


@contextmanager
def engine_removed(run_engine: RunEngine, moments: bool, scoring: bool) -> Iterator[tuple[nn.Module, zero.EngineState]]:
    """Remove the engine for the body, then build another and give it the state. Collective.

    No reference to the old engine is left in the body, so that its memory can be freed.

    Args:
        run_engine: has the engine.
        moments: whether the state carries Adam's moments.
        scoring: whether the next engine starts with the scorer's hooks.

    Yields:
        The model without hooks, and the state of what the engine trained. The body brings the state to the new shapes.
    """
    if run_engine.trains_weights_for_scoring_only():
        state = zero.EngineState({}, 0.0)
    else:
        state = zero.take_state(run_engine.engine, moments=moments)
    model = run_engine.remove()
    yield model, state
    zero.free_memory()
    run_engine.build(model, scoring)
    zero.put_state(run_engine.engine, state)


def rebuild(
    run_engine: RunEngine,
    pruner: Pruner,
    phase: TeacherPhase,
    repairer: Repairer,
    plan: Plan,
    step: int,
    generator: torch.Generator,
    fresh: bool = False,
) -> None:
    """Carry out a plan after `step` updates. Collective.

    Args:
        run_engine: has the engine.
        pruner: made the plan.
        phase: its teacher is cut as the student is.
        repairer: repairs what reads the removed blocks.
        plan: the same on all ranks.
        step: number of updates so far.
        generator: draws the weights by which ranks grow.
        fresh: start with new moments and counters, whatever --optimizer_state says.
    """
    moments = not fresh and run_engine.run_config.pruning.optimizer_state == "carry"
    scoring = pruner.needs_scores(step) and not fresh
    trained_for_scoring = run_engine.trains_weights_for_scoring_only()
    with engine_removed(run_engine, moments, scoring) as (model, state):
        if fresh:
            state.counters = dict.fromkeys(state.counters, 0)
        repairer.before_cut(model, pruner.anatomy, plan.keep, state)
        pruner.compensate(model, plan.keep, state)
        with phase.teacher_follows_surgery(state):
            anatomy = surgery.apply_plan(model, pruner.anatomy, plan, state, generator)
        pruner.follow(plan, anatomy, step)
        if phase.due(step):
            pruner.anatomy = phase.end(model, pruner.anatomy)
        if trained_for_scoring:
            run_engine.attach_trainables(model, pruner.scores_by_weight_gradients())
