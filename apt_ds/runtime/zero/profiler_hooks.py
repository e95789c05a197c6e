"""What DeepSpeed does inside forward, backward and step, made visible to the profile."""

from __future__ import annotations

import deepspeed
from deepspeed.runtime.zero import stage_1_and_2

from apt_ds.runtime.profiler import NOW, seen, timed

GATHER = stage_1_and_2.all_gather_dp_groups
REDUCERS = {
    0: "buffered_allreduce_fallback",
    1: "reduce_ipg_grads",
    2: "reduce_ipg_grads",
    3: "_DeepSpeedZeroOptimizer_Stage3__reduce_and_partition_ipg_grads",
}


def mark(engine: deepspeed.DeepSpeedEngine) -> None:
    """Have this engine's backward, gathers and reductions recorded, if anything is."""
    if not NOW.on:
        return
    stage = engine.zero_optimization_stage()
    engine.backward = seen("backward", engine.backward)
    owner = engine.optimizer if stage else engine
    setattr(owner, REDUCERS[stage], seen("reduce", getattr(owner, REDUCERS[stage])))
    if stage == 3:
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        coordinator.fetch_sub_module = seen("gather", coordinator.fetch_sub_module)
    elif stage:
        # a function the optimizer finds by its name in the module
        stage_1_and_2.all_gather_dp_groups = timed("gather")(GATHER)
