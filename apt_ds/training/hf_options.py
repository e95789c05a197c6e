"""What `AptCallback` accepts: its options, the model of a Trainer, and the Trainer's arguments."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel

from apt_ds.config import schedules
from apt_ds.config.errors import UserError
from apt_ds.config.option_types import converted, option
from apt_ds.config.pruning_options import AdapterOptions, PruningOptions
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import architecture_of

# what a callback cannot do inside another loop, beside what is left out of `FLAGS`
REFUSED = {
    "pruning": "AptCallback prunes while the model trains: pruning is always gradual",
    **dict.fromkeys(
        ("distill", "distill_weight", "distill_temperature", "distill_top_k", "teacher_cache", "teacher_source"),
        "AptCallback has no teacher: the loss is the Trainer's",
    ),
    **dict.fromkeys(
        ("repair", "repair_examples"),
        "AptCallback has no calibration data to repair with: use apt_ds.train with repair",
    ),
    **dict.fromkeys(
        ("allocate", "allocate_evaluations", "scale_steps"),
        "AptCallback has no calibration data to search or learn with: use apt_ds.train with it",
    ),
    "gate_learning_rate": "AptCallback trains no gates: use apt_ds.train with score='l0'",
    "init_adapters": "AptCallback starts new adapters: use apt_ds.train with init_adapters",
}
FLAGS = {
    spec.metadata["flag"] or spec.name
    for group in (PruningOptions, AdapterOptions)
    for spec in fields(group)
    if spec.metadata
} | {"recipe", "seed"}

STEPS: Any = option(0, "optimizer steps of the pruning phase")


def options(sparsity: float, flags: dict[str, Any]) -> RunConfig:
    """The options of a callback as those of a run of gradual pruning.

    Raises:
        UserError: an option that a callback has not, or a value that is not allowed.
    """
    for name in flags:
        if name in REFUSED:
            raise UserError(REFUSED[name])
        if name not in FLAGS:
            raise UserError(f"AptCallback has no option {name!r}: give some of {', '.join(sorted(FLAGS - {*REFUSED}))}")
    run = RunConfig(**(flags | {"sparsity": sparsity, "pruning": "gradual"}))
    run.check_options()
    if run.pruning.learns_gates:
        raise UserError(
            "AptCallback does not support score='l0', whose gates are trained with the model: use apt_ds.train"
        )
    return run


def steps_of(prune_steps: object) -> int:
    """`prune_steps` as a whole number.

    Raises:
        UserError: it is none, or below 0.
    """
    steps = int(converted("prune_steps", STEPS, prune_steps))
    if steps < 0:
        raise UserError(f"prune_steps {steps} is not allowed: give at least 1, or 0 for pruning_phase")
    return steps


def with_prune_steps(run: RunConfig, prune_steps: int, total: int) -> RunConfig:
    """The run whose pruning phase has `prune_steps` of `total` optimizer steps. 0: the run as it is.

    Raises:
        UserError: the training has fewer steps.
    """
    start = schedules.pruning_start(total, run.pruning.pruning_start)
    if prune_steps > total - start:
        after = f" after pruning_start {run.pruning.pruning_start:g}" if start else ""
        raise UserError(f"prune_steps {prune_steps} is more than the {total - start} steps of the training{after}")
    return run.replace(pruning_phase=prune_steps / total) if prune_steps else run


def task_of(model: PreTrainedModel) -> tuple[str, str]:
    """(value of `--task`, task type) of a model, by its class.

    Raises:
        UserError: the class is not one that a run would train, or the weights are quantized.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if name.startswith("Peft"):
        raise UserError(f"the model is a {name}: give AptCallback the plain model, it adds adapters of its own")
    if not isinstance(model, PreTrainedModel) or config is None:
        raise UserError(f"AptCallback needs a model of transformers, the Trainer has a {name}")
    if getattr(model, "is_quantized", False):
        raise UserError("AptCallback does not support a quantized model: load it without quantization_config")
    spec = architecture_of(config)
    for kind, stock in spec.stock_classes.items():
        trained = spec.training_classes.get(kind)
        if trained is not None and name == stock:
            raise UserError(
                f"AptCallback needs the split projections of {trained.__name__}: load the model with "
                f"{trained.__module__}.{trained.__name__}.from_pretrained"
            )
        if name == (trained.__name__ if trained is not None else stock):
            return next(task for task, answer in spec.tasks.items() if answer == kind), kind
    known = ", ".join(spec.stock_classes.values())
    raise UserError(f"AptCallback does not support the class {name}: give one of {known}")


def check_arguments(args: Any, step: int) -> None:
    """Check the arguments of a Trainer before its first step.

    Raises:
        UserError: an argument that a change of shapes or masks does not survive.
    """
    problems = {
        "resume_from_checkpoint: AptCallback cannot continue a run, as checkpoints of the Trainer lack masks and "
        "sizes. Start again, or use apt_ds.train": step > 0,
        "load_best_model_at_end: an earlier checkpoint has other masks and sizes than the model. Leave it out": (
            args.load_best_model_at_end
        ),
        "torch_compile: hooks and sizes of the model change while it trains. Leave it out": args.torch_compile,
        "FSDP: AptCallback supports one process, DDP and DeepSpeed": bool(args.fsdp),
        f"{args.n_gpu} GPUs in one process: start one process per GPU with torchrun, or set CUDA_VISIBLE_DEVICES": (
            args.n_gpu > 1
        ),
    }
    for problem, applies in problems.items():
        if applies:
            raise UserError(problem)


def cuts_while_training(args: Any) -> bool:
    """Whether shapes may change between two steps of the Trainer's loop.

    DDP registers each parameter with its reducer once. A DeepSpeed engine copies parameters into flat buffers. Both are
    held by the loop's local variable `model`, by `trainer.model_wrapped` and by `accelerator._models`. DeepSpeed's
    optimizer and scheduler are also held by the accelerator. A callback can replace none of them. Only in one plain
    process is the wrapped model the model itself, whose parameters a callback may replace.
    """
    deepspeed = AcceleratorState().distributed_type == DistributedType.DEEPSPEED
    return args.world_size == 1 and not deepspeed
