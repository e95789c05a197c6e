"""What a decision costs between two steps: `python -m apt_ds.analysis.bench.decision_cost [SHAPE ...]`.

A GPU has no work meanwhile, since masks decide the next step. The shapes are published LLaMAs, the scores are drawn.
No weight is made. Milliseconds of one core, best of several rounds. Time that other processes take does not count.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from apt_ds.analysis.bench.llamas import LLAMAS, llama_config
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.export.configs import writable_sizes
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import collectives, exit_status

SHAPES = ("llama2-7b", "llama2-13b")
# structure, kinds of block, alignment (0: the default of the shape)
RULES = (
    ("uniform", "heads,neurons", 0),
    ("uniform", "heads,neurons,hidden", 0),
    ("uniform", "heads,neurons,hidden", 1),
    ("adaptive", "heads,neurons", 0),
    ("adaptive", "heads,neurons,hidden", 0),
    ("adaptive", "heads,neurons,hidden", 1),
)
STEPS, SPARSITY = 1000, 0.3
STEP = STEPS // 4  # in the middle of the pruning phase
ROUNDS = 7


class Milliseconds(NamedTuple):
    """Cost of parts of a decision.

    Attributes:
        search: from scores to blocks.
        advance: all that follows a step: scores to the host, search, masks.
        digest: the hash by which ranks compare decision and masks, at a rebuild.
    """

    search: float
    advance: float
    digest: float


def pruner_of(shape: str, structure: str, kinds: str, align: int) -> Pruner:
    """A pruner of a published shape with drawn scores, in the middle of gradual pruning (`STEP`)."""
    run = RunConfig(
        pruning="gradual", structure=structure, prune_blocks=kinds, align=align, sparsity=SPARSITY, max_steps=STEPS
    )
    config = llama_config(shape)
    anatomy = anatomy_of(config)
    pruner = Pruner(run, anatomy, STEPS, torch.device("cpu"), writable_sizes(config))
    prices = torch.from_numpy(anatomy.params_per_block(anatomy.sizes))
    drawn = torch.empty(len(prices), dtype=torch.float64).log_normal_(generator=torch.Generator().manual_seed(0))
    pruner.scorer.average = (drawn * prices).float()  # type: ignore[attr-defined]
    return pruner


def measure(pruner: Pruner) -> Milliseconds:
    """The cost of decisions of a pruner after `STEP` updates."""
    budget = pruner.budget(1.0 - pruner.policy.kept_fraction(STEP, False))
    scores = pruner.scores()

    def best(action: Callable[[], object]) -> float:
        seconds = []
        for _ in range(ROUNDS):
            start = time.thread_time()
            action()
            seconds.append(time.thread_time() - start)
        return 1e3 * min(seconds)

    return Milliseconds(
        best(lambda: search(scores, pruner.anatomy, pruner.rules, budget)),
        best(lambda: pruner.advance(STEP)),
        best(lambda: collectives.digest(pruner.decision, pruner.masks.values)),
    )


def main() -> None:
    """Print a table of the shapes that the command line names. Raises UserError."""
    shapes = sys.argv[1:] or SHAPES
    if unknown := [shape for shape in shapes if shape not in LLAMAS]:
        raise UserError(f"{unknown[0]} is an unknown shape. Give one of {', '.join(LLAMAS)}")
    print("| shape | structure | blocks | align | search, ms | with scores and masks, ms | digest, ms |")
    print("|---|---|---|---|---|---|---|")
    for shape in shapes:
        for structure, kinds, align in RULES:
            pruner = pruner_of(shape, structure, kinds, align)
            cost = measure(pruner)
            figures = " | ".join(f"{value:.1f}" for value in cost)
            unit = pruner.rules.align_neurons
            print(f"| {shape} | {structure} | {kinds.replace(',', ', ')} | {unit} | {figures} |", flush=True)


if __name__ == "__main__":
    exit_status.main(main)
