"""Jobs of `multiprocess.py` about single steps: the time and the bytes that a step costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from apt_ds.runtime import collectives, profiler, zero
from apt_ds.training import run
from tests.support.jobs import facts, run_config, stage_name


class Collective(NamedTuple):
    """A function that starts a collective.

    Attributes:
        owner: the object that has the function.
        name: the name of the function.
        position: the position of the argument that is the whole tensor, or the list of its parts.
        keyword: the name of that argument.
        purpose: the key under which its bytes are counted.
        factor: bytes that a rank of a ring sends for a byte of the tensor.
    """

    owner: Any
    name: str
    position: int
    keyword: str
    purpose: str
    factor: float


def profiled(folder: str, stages: list[tuple[int, bool]]) -> dict[str, Any]:
    """What runs report of their steps, and the same runs without a profile."""
    flags = ["--pruning", "gradual", "--max_steps", "10", "--align", "4", "--mask_step", "0.5", "--prune_every", "7"]
    results = {}
    for stage, offload in stages:
        runs = {}
        for on in ("false", "true"):
            trainer = run.prepare(run_config(folder, stage, offload, [*flags, "--profile", on]))
            figures = trainer.run()
            collectives.barrier()
            runs[on] = facts(trainer, figures)
        spent = [sum(step.values()) for step in profiler.NOW._steps[profiler.DENSE]]
        results[stage_name(stage, offload)] = {
            "profile": figures["profile"],
            "unprofiled": runs["false"],
            "spent": spent,
            "steps": trainer.meter.state_dict()[0]["dense"],
            "losses": runs["true"]["losses"],
        }
    return results


def watched_collectives() -> list[Collective]:
    """The functions through which DeepSpeed and the scores send tensors."""
    import torch.distributed as td
    from deepspeed.comm import comm

    # in a ring of n ranks, a rank sends (n - 1) / n of the tensor to gather or to reduce it, and both for all_reduce
    share = (collectives.world_size() - 1) / collectives.world_size()
    return [
        Collective(comm.cdb, "all_gather_function", 0, "output_tensor", "gather", share),
        Collective(td.distributed_c10d, "all_gather_into_tensor", 0, "output_tensor", "gather", share),
        Collective(td, "all_gather", 0, "tensor_list", "gather", share),
        Collective(comm.cdb, "reduce_scatter_function", 1, "input", "reduce", share),
        Collective(td, "all_reduce", 0, "tensor", "reduce", 2 * share),
    ]


@contextmanager
def counting_bytes(num_sums: int) -> Iterator[dict[str, float]]:
    """Count the bytes that this rank sends meanwhile, where collectives start.

    Args:
        num_sums: number of elements of the tensor that reduces the scores.

    Yields:
        Bytes by purpose: `gather`, `reduce` and `salience`. They grow while the block runs.
    """
    import torch.distributed as td

    counts = {"gather": 0.0, "reduce": 0.0, "salience": 0.0}

    def counted(call: Collective, original: Any) -> Any:
        def count(*arguments: Any, **options: Any) -> Any:
            tensor = options[call.keyword] if call.keyword in options else arguments[call.position]
            parts = tensor if isinstance(tensor, list) else [tensor]
            # the small ones are DeepSpeed's norms
            if parts[0].numel() > 8:
                scored = original is td.distributed_c10d.all_reduce and parts[0].numel() == num_sums
                counts["salience" if scored else call.purpose] += call.factor * sum(part.nbytes for part in parts)
            return original(*arguments, **options)

        return count

    watched = watched_collectives()
    originals = [getattr(call.owner, call.name) for call in watched]
    for original, call in zip(originals, watched, strict=True):
        setattr(call.owner, call.name, counted(call, original))
    yield counts
    for original, call in zip(originals, watched, strict=True):
        setattr(call.owner, call.name, original)


def sent(folder: str, stages: list[tuple[int, bool]]) -> dict[str, Any]:
    """Bytes that this rank sends in one scored step, by purpose, with the shape and the load that predict them."""
    from apt_ds.analysis.bench.synthetic import shape_of

    zero.init_distributed()
    results = {}
    for stage, offload in stages:
        flags = ["--pruning", "gradual", "--rank_growth", "none", "--max_steps", "8"]
        trainer = run.prepare(run_config(folder, stage, offload, flags))
        num_sums = trainer.pruner.scorer.abs_sums.numel() + 2
        trainer.train_step(0)
        with counting_bytes(num_sums) as counts:
            trainer.train_step(1)
        load = {"tokens": 1.0, "trained": 1.0, "context": 1.0, "scoring": True}
        load["micro_batches"] = trainer.run_config.optim.gradient_accumulation_steps
        shape = vars(shape_of(trainer.base, trainer.base.anatomy, trainer.run_config))
        results[str(stage)] = counts | {"shape": shape, "load": load}
        trainer.finish()
        collectives.barrier()
    return results
