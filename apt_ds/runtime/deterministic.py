"""`--deterministic`: the same command gives the same bits on GPUs too, and so does a run that is resumed.

On the CPU a run always does. On a GPU many kernels add in any order, and cuBLAS may choose another kernel each time.
What decides, by the sources of torch:

- `torch.use_deterministic_algorithms(True)`: every operation takes its deterministic kernel or raises an error.
  The backward of flash attention and of memory-efficient attention is then deterministic (without `warn_only` alone),
  that of the math kernel always is. cuDNN's attention has no such backward, and is switched off.
- `CUBLAS_WORKSPACE_CONFIG`: cuBLAS reads it when CUDA starts. Without it, torch refuses matrix products in this mode.
- `cudnn.deterministic` and no `cudnn.benchmark`: no choice of a convolution by its measured time.
- `FLASH_ATTENTION_DETERMINISTIC`: transformers hands it to the flash-attn package.

NCCL adds in an order that follows from the number of ranks and their nodes: both must stay the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from apt_ds.config.errors import UserError

CUBLAS, REPEATABLE = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
FLASH = "FLASH_ATTENTION_DETERMINISTIC"


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Have torch compute deterministically inside, where it is asked for. Enter it before CUDA starts.

    Raises:
        UserError: cuBLAS has other settings, or CUDA has started without these.
    """
    if not asked:
        yield
        return
    _check()
    before, environment = _settings(), {name: os.environ.get(name) for name in (CUBLAS, FLASH)}
    os.environ.setdefault(CUBLAS, REPEATABLE[0])
    os.environ[FLASH] = "1"
    # memory that is filled first shows mistakes and costs time: it makes nothing deterministic
    _set(algorithms=True, warn_only=False, fill=False, cudnn=True, benchmark=False, cudnn_attention=False)
    try:
        yield
    finally:
        _set(**before)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check() -> None:
    """Raise UserError where cuBLAS cannot be deterministic."""
    given = os.environ.get(CUBLAS)
    if given is not None and given not in REPEATABLE:
        raise UserError(f"--deterministic: {CUBLAS} is {given!r}: give {' or '.join(REPEATABLE)}, or unset it")
    if given is None and torch.cuda.is_initialized():
        raise UserError(
            f"--deterministic: CUDA has started in this process already: set {CUBLAS}={REPEATABLE[0]} before it does"
        )


def _settings() -> dict[str, bool]:
    """The settings of this process, as `_set` takes them."""
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # a property of the module
        "cudnn": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
    }


def _set(algorithms: bool, warn_only: bool, fill: bool, cudnn: bool, benchmark: bool, cudnn_attention: bool) -> None:
    torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn, benchmark
    torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
