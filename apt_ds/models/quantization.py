"""Weights held in 4 or 8 bits. This module alone imports bitsandbytes, when it is needed.

Not in the paper: QLoRA (Dettmers et al. 2023) keeps the frozen base in NF4, blocks of 64 weights with a scale each and
the scales in 8 bits; LLM.int8 (Dettmers et al. 2022) in int8 with a scale per row. Departure from the latter:
activations are not rounded. A product dequantizes its weight, forward and backward, so that it is the one of the
dequantized weight, and keeps the parameter rather than its values, so that ZeRO-3 may shard it in between.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from apt_ds.runtime.bnb import _imported, library
from apt_ds.runtime.packed import QuantizedParameter

BLOCK = 64  # weights that share a scale in 4 bits
ROWS = 32  # rows that bitsandbytes takes together when it runs a 4-bit model on the CPU
LARGEST = 127.0


class QuantizedLinear(nn.Linear):
    """A linear layer over a packed weight."""

    def __init__(self, weight: QuantizedParameter, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.full
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedParameter) -> Tensor:
        ctx.weight = weight
        return x @ dense(weight, x.dtype).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ dense(ctx.weight, gradient.dtype), None


def linear(x: Tensor, weight: nn.Parameter, bias: nn.Parameter | None = None) -> Tensor:
    """X W^T + b, of a packed weight or a plain one. [..., in] -> [..., out]"""
    if not isinstance(weight, QuantizedParameter):
        return F.linear(x, weight, bias)
    product = _Product.apply(x, weight)
    return product if bias is None else product + bias


def dense(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A weight's values, [out, in], in `dtype` or the weight's own; a plain weight as it is. It must be gathered."""
    if not isinstance(weight, QuantizedParameter):
        return weight
    dtype, codes = dtype or weight.dtype, weight.codes()
    if weight.bits == 8:
        return codes.view(torch.int8).view(weight.full).to(dtype).mul_(weight.scales.unsqueeze(1) / LARGEST)
    state, functional = weight.scales, _imported().functional
    scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return torch.ops.bitsandbytes.dequantize_4bit.default(
        codes.unsqueeze(1), scales, BLOCK, state.quant_type, weight.full, dtype
    )


def pack(values: Tensor, bits: int, dtype: torch.dtype) -> QuantizedParameter:
    """Quantize [out, in] to `bits` bits, on the device where it is; `dtype` is the run's."""
    functional = _imported().functional
    if bits == 8:
        codes, scales, _ = functional.int8_vectorwise_quant(values.half())
        return QuantizedParameter(codes.view(torch.uint8), 8, values.shape, scales, dtype)
    codes, state = functional.quantize_4bit(
        values.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return QuantizedParameter(codes, 4, values.shape, state, dtype)


def requantize_like(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A parameter that holds `values` as `old` holds its own: in as many bits, or plain."""
    if not isinstance(old, QuantizedParameter):
        return nn.Parameter(values, requires_grad=old.requires_grad)
    made = pack(values, old.bits, old.dtype)
    error = (dense(made, values.dtype) - values).norm() / values.norm().clamp(min=1e-12)
    made.requantization_error = math.hypot(old.requantization_error, float(error))
    return made


def hold(model: nn.Module, paths: list[str], bits: int, dtype: torch.dtype) -> None:
    """Quantize a plain model's linear layers in place, one at a time; 16 bits: nothing to do."""
    for path in paths if bits < 16 else []:
        module = model.get_submodule(path)
        model.set_submodule(path, QuantizedLinear(pack(module.weight.detach(), bits, dtype), module.bias))


def convert_bnb_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Make bitsandbytes' linear layers in a model just loaded ours, weights untouched; others stay as they are."""
    if "bitsandbytes" not in {type(module).__module__.partition(".")[0] for module in model.modules()}:
        return
    kinds = _imported().nn
    for path, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        if isinstance(module, kinds.Linear4bit):
            state = weight.quant_state
            packed = QuantizedParameter(weight.data.view(torch.uint8), 4, state.shape, state, dtype)
        elif isinstance(module, kinds.Linear8bitLt):
            scales = weight.SCB
            packed = QuantizedParameter(weight.data.view(torch.uint8), 8, weight.shape, scales, dtype)
        else:
            continue
        model.set_submodule(path, QuantizedLinear(packed, module.bias))
    # it is no model of the quantizer's any more: transformers would refuse to move it
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = model.is_quantized = False
    del model.hf_quantizer, model.config.quantization_config


def loading(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What makes `from_pretrained` quantize each weight as it reads it; also what a quantized folder says of itself."""
    if bits == 16:
        return None
    library(f"--base_bits {bits}")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_threshold=0.0,
    )


def files(name: str, weight: QuantizedParameter, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors that stand for a weight called `name` in a quantized folder. It must be gathered.

    dtype: the one that 4 bits are said to stand for, None: the one they were made from.
    """
    codes = weight.codes()
    if weight.bits == 8:
        module = name.removesuffix(".weight")
        held = {name: codes.view(torch.int8).view(weight.full), f"{module}.SCB": weight.scales}
        return held | {f"{module}.weight_format": torch.zeros((), dtype=torch.uint8)}
    state = copy.copy(weight.scales)
    state.dtype = dtype or state.dtype
    state = state.as_dict(packed=True)
    return {name: codes.unsqueeze(1)} | {f"{name}.{key}": value for key, value in state.items()}


def small_parts(weight: Tensor) -> list[Tensor]:
    """A packed weight's scales; nothing for a plain one."""
    if not isinstance(weight, QuantizedParameter):
        return []
    state = weight.scales
    return [state] if weight.bits == 8 else [state.absmax, state.state2.absmax, state.offset.reshape(1)]


def written_bytes(weight: nn.Parameter, numel: int, bits: int, dtype: torch.dtype | None = None) -> int:
    """Bytes of a weight in a folder of `bits`; numel: what it stands for; dtype: of one in 16 bits, None: its own."""
    if bits == 16 or not isinstance(weight, QuantizedParameter):
        return numel * (dtype or weight.dtype).itemsize
    return numel * bits // 8 + sum(part.numel() * part.element_size() for part in small_parts(weight))


def room(full: torch.Size, bits: int) -> tuple[int, int]:
    """Bytes of the codes and of the scales of a weight [out, in] held in `bits` bits; rows are whole blocks."""
    if bits == 8:
        return full.numel(), 4 * full[0]
    blocks = full.numel() // BLOCK
    # scales of the blocks in 8 bits, 256 of them with a scale of their own, and what was taken off them all
    return full.numel() // 2, blocks + 4 * -(-blocks // 256) + 4


def summary(model: nn.Module) -> dict[str, float]:
    """For people: what cuts have lost by quantizing anew, relative to the weights, over all of them."""
    lost = [p.requantization_error for p in model.parameters() if isinstance(p, QuantizedParameter)]
    return {"requantization_error_mean": sum(lost) / len(lost), "requantization_error_max": max(lost)} if lost else {}
