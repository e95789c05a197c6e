"""Which attention packed rows use: a variable-length kernel where device and model support it, else a dense mask."""

from __future__ import annotations

import importlib.util
import sys
from typing import NamedTuple

import torch
from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.option_groups import FLASH, VARLEN
from apt_ds.config.run_config import RunConfig
from apt_ds.models.packed_attention import flash, one_by_one, parameters_of, varlen_kernel
from apt_ds.runtime import collectives

SDPA = "sdpa"
HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256  # of a flash kernel, whose heads are multiples of 8
AMPERE = (8, 0)


class Machine(NamedTuple):
    """What decides about the kernel.

    Attributes:
        device: type of the device.
        capability: compute capability of a CUDA device.
        varlen: whether this PyTorch has a variable-length kernel with windows.
        flash_attn: whether the package flash-attn is installed.
    """

    device: str
    capability: tuple[int, int] = (0, 0)
    varlen: bool = False
    flash_attn: bool = False


class Choice(NamedTuple):
    """A kernel for packed rows.

    Attributes:
        name: the kernel, as transformers names it.
        why: the reason, for people.
    """

    name: str
    why: str


def kernel_of(run: RunConfig, device_type: str) -> str:
    """The attention kernel of a run, as transformers names it. `auto` depends on the type of the device."""
    if run.model.attn_implementation != "auto":
        return run.model.attn_implementation
    return "eager" if device_type == "cpu" else SDPA


def machine_of(device: torch.device) -> Machine:
    """The facts of this machine."""
    if device.type != "cuda" or torch.version.hip is not None:
        return Machine(device.type)
    flash_attn = importlib.util.find_spec("flash_attn") is not None
    return Machine(
        "cuda", torch.cuda.get_device_capability(device), "window_size" in parameters_of(varlen_kernel()), flash_attn
    )


def choose(asked: str, dtype: torch.dtype, config: PretrainedConfig, machine: Machine) -> Choice:
    """The kernel for packed rows.

    Args:
        asked: `--attn_implementation`, see `kernel_of`. Only `sdpa` leaves a choice.
        dtype: dtype of the activations.
        config: the model.
        machine: facts of the machine.
    """
    if asked != SDPA:
        return Choice(asked, "as --attn_implementation says")
    reason = unsupported(dtype, config, machine)
    if not reason and machine.varlen:
        return Choice(VARLEN, "the variable-length kernel of PyTorch")
    if not reason and machine.flash_attn:
        return Choice(FLASH, "the variable-length kernel of flash-attn")
    return Choice(
        SDPA, f"a dense mask, since {reason or 'neither PyTorch nor flash-attn has a variable-length kernel'}"
    )


def unsupported(dtype: torch.dtype, config: PretrainedConfig, machine: Machine) -> str:
    """Why a flash kernel cannot run a model on a machine. Empty if it can."""
    head = head_size(config)
    if machine.device != "cuda":
        return f"a device of type {machine.device} has no variable-length kernel"
    if machine.capability < AMPERE:
        return f"a GPU of compute capability {machine.capability[0]}.{machine.capability[1]} has no flash kernel"
    if dtype not in HALF:
        return "a flash kernel needs --bf16 or --fp16"
    if head > LARGEST_HEAD or head % 8:
        return f"no flash kernel supports heads of size {head}"
    if getattr(config, "attn_logit_softcapping", None):
        return "the model caps its attention scores"
    return "the model drops attention weights" if getattr(config, "attention_dropout", 0) else ""


def resolve(run: RunConfig, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> RunConfig:
    """The run with the kernel that its packed rows use on all ranks. Prints the choice. Collective.

    Args:
        run: the options.
        config: the model.
        dtype: dtype of the activations.
        device: device of this rank.

    Raises:
        UserError: the user asks for `VARLEN`, and a rank cannot run it.
    """
    if not run.data.packing:
        return run
    asked, machine = kernel_of(run, device.type), machine_of(device)
    choice = choose(asked, dtype, config, machine)
    if choice.name == VARLEN and device.type != "cpu":
        problem = unsupported(dtype, config, machine) or failure(config, dtype, device)
        if problem:
            choice = Choice(SDPA, f"a dense mask, since {problem}")
    # all ranks pack alike, so one rank without the kernel decides
    every = collectives.gather_objects(choice)
    choice = next((each for each in every if each.name == SDPA), choice)
    if asked == VARLEN and choice.name != VARLEN:
        raise UserError(f"--attn_implementation {VARLEN}: {choice.why.partition('since ')[2]}; give {SDPA}")
    if collectives.is_main():
        print(f"attention of packed rows: {choice.name}, {choice.why}", file=sys.stderr, flush=True)
    return run.replace(attn_implementation=choice.name)


def assume(run: RunConfig, config: PretrainedConfig, dtype: torch.dtype, on_gpu: bool) -> RunConfig:
    """The run with the kernel that its packed rows use on a recent GPU or on a CPU. Tries nothing, for estimates."""
    if not run.data.packing:
        return run
    machine = Machine("cuda", AMPERE, varlen=True) if on_gpu else Machine("cpu")
    return run.replace(attn_implementation=choose(kernel_of(run, machine.device), dtype, config, machine).name)


def failure(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> str:
    """Try the kernel on a few random tokens, forward and backward. Returns what is wrong with it, or nothing."""
    heads, size = config.num_attention_heads, head_size(config)
    groups = getattr(config, "num_key_value_heads", None) or heads
    draw = torch.Generator(device).manual_seed(0)
    starts = torch.tensor([0, 5, 24], dtype=torch.int32, device=device)
    inputs = [torch.randn(24, n, size, generator=draw, device=device, dtype=dtype) for n in (heads, groups, groups)]
    outputs = []
    try:
        for kernel in (flash, one_by_one):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            output = kernel(leaves[0], leaves[1], leaves[2], starts, 19, size**-0.5, None)
            outputs.append([output, *torch.autograd.grad(output.float().square().sum(), leaves)])
    except RuntimeError as error:
        return f"the variable-length kernel fails: {(str(error).splitlines() or ['without a message'])[0]}"
    near = all((a - b).float().norm() < 0.03 * b.float().norm() for a, b in zip(*outputs, strict=True))
    return "" if near else "the variable-length kernel gives wrong values"


def head_size(config: PretrainedConfig) -> int:
    """Size of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
