"""Adam moments in 8 bits, as bitsandbytes keeps them, and in fp32, as everything else here reads and writes them.

Blocks of 256 moments share a scale (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"). A block
lies where the engine's flat buffers put it, so that a change of shapes or ranks moves all of them: moments are then
quantized again. Where nothing has moved the blocks themselves are put back, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import bnb

BLOCK = 256
CLASSES = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
# bitsandbytes' number of a moment
NUMBERS = {"exp_avg": 1, "exp_avg_sq": 2}

Maker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def maker(run: RunConfig) -> Maker | None:
    """What makes the run's optimizer for given parameters. None where DeepSpeed makes its own."""
    if run.optim.optimizer not in CLASSES:
        return None
    kind = getattr(bnb.library(f"--optim {run.optim.optimizer}").optim, CLASSES[run.optim.optimizer])

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        betas = (run.optim.adam_beta1, run.optim.adam_beta2)
        return kind(
            parameters,
            lr=run.optim.learning_rate,
            betas=betas,
            eps=run.optim.adam_epsilon,
            weight_decay=run.optim.weight_decay,
        )

    return make


def is_ours(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an engine's optimizer is one that `maker` makes."""
    return type(optimizer).__name__ in CLASSES.values()


def unpack(optimizer: torch.optim.Optimizer, flat: Tensor) -> None:
    """Add a parameter's moments in fp32, under AdamW's names, to its state: on the host, being four times as large."""
    state = optimizer.state[flat]
    functional = bnb.library().functional
    for name, number in NUMBERS.items():
        # paged ones lie in memory that says it is the host's
        codes = state[f"state{number}"].to(flat.device)
        if codes.dtype == torch.uint8:
            scales = functional.QuantState(
                state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=BLOCK, dtype=torch.float32
            )
            state[name] = functional.dequantize_blockwise(codes, scales).cpu()
        else:
            # few numbers stay in fp32
            state[name] = codes.cpu()


def drop(optimizer: torch.optim.Optimizer, flat: Tensor) -> None:
    """Take away what `unpack` added."""
    for name in NUMBERS:
        del optimizer.state[flat][name]


def pack(optimizer: Any, flat: Tensor, blocks: dict[str, Tensor]) -> None:
    """Replace a parameter's AdamW state (step and moments in fp32) by one in 8 bits.

    Args:
        optimizer: one that `maker` made, which has bitsandbytes' `init_state`.
        flat: the parameter.
        blocks: what `raw` gave where the layout has not changed since. Empty: quantize.
    """
    given = optimizer.state.pop(flat)
    group = optimizer.param_groups[0]
    # stage 3 lends its shards to the optimizer only while it steps
    lent, group["params"] = group["params"], [flat]
    optimizer.init_state(group, flat, 0, 0)
    group["params"] = lent
    state = optimizer.state[flat]
    state["step"] = int(given["step"])
    for name, number in NUMBERS.items():
        codes = state[f"state{number}"]
        if codes.dtype != torch.uint8:
            codes.copy_(given[name])
        elif not blocks:
            quantized, scales = bnb.library().functional.quantize_blockwise(
                given[name].to(flat.device), code=state[f"qmap{number}"], blocksize=BLOCK
            )
            codes.copy_(quantized)
            state[f"absmax{number}"].copy_(scales.absmax)
    for name, value in blocks.items():
        state[name].copy_(value)


def raw(optimizer: torch.optim.Optimizer, flat: Tensor) -> dict[str, Tensor]:
    """A parameter's blocks as they are, on the host: codes and scales. Empty where moments are in fp32."""
    state = optimizer.state[flat]
    if state["state1"].dtype != torch.uint8:
        return {}
    names = (f"{part}{number}" for part in ("state", "absmax") for number in NUMBERS.values())
    return {name: state[name].cpu().clone() for name in names}
