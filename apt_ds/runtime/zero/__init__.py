"""What DeepSpeed is to the rest of the package. Nothing outside this folder imports deepspeed."""

from apt_ds.runtime.zero.compilers import missing_compilers
from apt_ds.runtime.zero.engine import (
    Config,
    Engine,
    build,
    build_for_inference,
    check_config,
    describe_cpu_once,
    destroy,
    device,
    free_memory,
    inference_config,
    loss_scale,
    release_gathered,
    set_learning_rate,
    shard_while_loading,
    stage,
    step,
    unwrap,
    whole_while_making,
)
from apt_ds.runtime.zero.gradients import full_gradient, weight_times_gradient
from apt_ds.runtime.zero.monitor import Monitor
from apt_ds.runtime.zero.optimizer_state import (
    EngineState,
    put_state,
    take_state,
    unstepped_state,
)
from apt_ds.runtime.zero.partitioned import (
    full_numel,
    full_shape,
    gathered,
    held_part,
    is_partitioned,
    own_part,
    release,
    shard,
)
from apt_ds.runtime.zero.replaced import values_replaced
from apt_ds.runtime.zero.sections import check_sections
from apt_ds.runtime.zero.whole_layers import layer_stacks
from apt_ds.runtime.zero.world import init_distributed, temporary_world

__all__ = [
    "Config",
    "Engine",
    "EngineState",
    "Monitor",
    "build",
    "build_for_inference",
    "check_config",
    "check_sections",
    "describe_cpu_once",
    "destroy",
    "device",
    "free_memory",
    "full_gradient",
    "full_numel",
    "full_shape",
    "gathered",
    "held_part",
    "inference_config",
    "init_distributed",
    "is_partitioned",
    "layer_stacks",
    "loss_scale",
    "missing_compilers",
    "own_part",
    "put_state",
    "release",
    "release_gathered",
    "set_learning_rate",
    "shard",
    "shard_while_loading",
    "stage",
    "step",
    "take_state",
    "temporary_world",
    "unstepped_state",
    "unwrap",
    "values_replaced",
    "weight_times_gradient",
    "whole_while_making",
]
