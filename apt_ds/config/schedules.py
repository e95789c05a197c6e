"""What depends on the step alone: sparsity, rank budget, learning rate, distillation weight, adjustments.

Pure functions of optimizer steps counted from 0, the step being the number of updates done. They carry the
schedules of METHOD.md sections 4, 5, 6 and 7.
"""

from __future__ import annotations

import math

GATE_WARMUP = 0.5  # fraction of the pruning phase after which the target of learned gates is reached
GATE_RATE = 0.1  # CoFi's learning rate
GATE_TRAVEL = 12.0  # change of log alpha that takes a gate from open to closed, with room to return
MULTIPLIER_TRAVEL = 100.0  # the size at which multipliers outweigh the noise of a gate's gradient
ADAM = (0.9, 0.999)  # its usual betas
MEMORY = (1.0 / 200.0, 1.0 / 2.0)  # updates that the two moments of a gate remember, as fractions of the phase
LEAST_MEMORY = (1.5, 10.0)  # the fewest updates that they remember
SNAP = 1e-3  # fraction of a mask's step, below which a mask has arrived


def kept_fraction(step: int, total: int, sparsity: float) -> float:
    """Fraction of the model's parameters kept at `step` of a pruning phase of `total` steps (METHOD.md section 4).

    kept = 1 - gamma_t, gamma_t = gamma_T - gamma_T (1 - t/T)^3: 1 at step 0, 1 - sparsity from `total` on.
    """
    return 1.0 - sparsity * (1.0 - (1.0 - _progress(step, total)) ** 3)


def gate_target(step: int, phase: int, sparsity: float) -> float:
    """The removed fraction t that the Lagrangian of learned gates asks for (CoFi, METHOD.md section 16).

    Linear from 0 at step 0 to `sparsity` after `GATE_WARMUP` of the phase, then constant.
    """
    return sparsity * _progress(step, math.ceil(GATE_WARMUP * phase))


def gate_rate(asked: float, phase: int) -> float:
    """Adam's learning rate of learned gates.

    `asked` is exact. 0 chooses CoFi's 0.1, or more in a short phase, so that log alpha may travel `GATE_TRAVEL`.
    """
    return asked or max(GATE_RATE, GATE_TRAVEL / phase)


def multiplier_rate(phase: int) -> float:
    """Adam's learning rate of the Lagrangian's multipliers: as `gate_rate`, for `MULTIPLIER_TRAVEL`."""
    return max(GATE_RATE, MULTIPLIER_TRAVEL / phase)


def gate_betas(phase: int) -> tuple[float, float]:
    """Adam's betas for gates and multipliers: the usual ones from 2,000 steps on.

    A short phase has large steps. Moments that remember many of them carry the gates far past their target.
    """
    memories = (max(least, part * phase) for part, least in zip(MEMORY, LEAST_MEMORY, strict=True))
    first, second = (1.0 - 1.0 / memory for memory in memories)
    return min(ADAM[0], first), min(ADAM[1], second)


def pruning_phase(total: int, ratio: float) -> int:
    """Steps of the pruning phase: `ratio` of `total` steps, at least one."""
    return max(1, round(ratio * total))


def pruning_start(total: int, ratio: float) -> int:
    """Steps before the pruning phase: `ratio` of `total` steps, fewer than all."""
    return min(round(ratio * total), total - 1)


def pruning_end(total: int, start: float, phase: float) -> int:
    """The step after which the pruning phase ends. start, phase: fractions of `total` steps."""
    return min(total, pruning_start(total, start) + pruning_phase(total, phase))


def mask_step(asked: float, total: int, phase: int) -> float:
    """Change of a mask per step.

    `asked` is exact. 0 chooses 0.01, or more, so that masks arrive in half of the steps after `phase`, where the
    pruning phase ends.
    """
    return asked or min(1.0, max(0.01, 2.0 / max(1, total - phase)))


def mask_moves(step_size: float) -> int:
    """Moves of `step_size` that take a mask from one end to the other."""
    # Masks.move_towards snaps to an end that is this near
    return math.ceil(1.0 / step_size - SNAP)


def mask_notice(asked: float, total: int, phase: int) -> str:
    """One line for a run in which masks cannot reach 0 and 1 after the last decision, else ''.

    total: steps of the run. phase: the step after which the pruning phase ends.
    """
    needed, there = mask_moves(mask_step(asked, total, phase)), total - phase + 1
    if needed <= there:
        return ""
    fitting = math.ceil(1000 / there) / 1000
    return (
        f"--mask_step {asked:g} is too small: masks need {needed} steps from the last decision on, at step {phase}. "
        f"The run has {there}. Masks jump to 0 and 1 at its end. "
        f"Give --mask_step {fitting:g} or more, or a lower --pruning_phase."
    )


def rank_budget(step: int, total: int, initial: int, factor: float) -> int:
    """Adapter parameters allowed at `step` of a growth phase of `total` steps (METHOD.md section 5).

    Linear from `initial` parameters at step 0 to `factor * initial` from `total` on, rounded down.
    """
    return math.floor(initial * (1.0 + (factor - 1.0) * _progress(step, total)))


def warmup_steps(total: int, ratio: float, steps: int) -> int:
    """Warm-up steps of a run of `total` steps: `steps` when above 0, else `ratio` of them, rounded up."""
    return steps if steps > 0 else math.ceil(total * ratio)


def learning_rate(step: int, total: int, base: float, kind: str, warmup: int) -> float:
    """Learning rate of the update that follows `step` updates (METHOD.md section 6), as in transformers' schedules.

    Linear from 0 to `base` over `warmup` steps, then by `kind`: 'constant', 'linear' to 0 at `total`, or
    'cosine', half a wave to 0 at `total`. Raises KeyError for another kind.
    """
    if step < warmup:
        return base * step / warmup
    done = _progress(step - warmup, total - warmup)
    return base * {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[kind]


def distill_weight(step: int, total: int) -> float:
    """mu, distillation's share of the objective (METHOD.md section 7): linear from 0 to 1 at `total`, then 1."""
    return _progress(step, total)


def is_adjustment(step: int, every: int, last: int, start: int = 0) -> bool:
    """True when blocks are cut and ranks grow after `step` updates (METHOD.md sections 4 and 5).

    Every `every` steps after `start` and up to `last`, and at `last` itself, so that the phase ends on its target.
    """
    return start < step <= last and (step % every == 0 or step == last)


def _progress(step: int, total: int) -> float:
    """The fraction of the phase that is over, from 0 to 1. A phase without steps is over."""
    return min(max(step / total, 0.0), 1.0) if total > 0 else 1.0
