"""Weights quantized to 4 or 8 bits.

Not in the paper: QLoRA (Dettmers et al. 2023) keeps the frozen base in NF4: blocks of 64 weights with a scale each, and
the scales in 8 bits. LLM.int8 (Dettmers et al. 2022) keeps it in int8 with a scale per row. Departure from the latter:
activations are not rounded. A product dequantizes its weight, forward and backward. Autograd keeps the parameter
instead of its values, so that ZeRO-3 may shard it between the two.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from apt_ds.models.blocks import Anatomy
from apt_ds.models.modules import linear_at
from apt_ds.runtime.bnb import _imported, library
from apt_ds.runtime.packed import QuantizedParameter

BLOCK = 64  # weights that share a scale in 4 bits
ROWS = 32  # rows that bitsandbytes takes together when it runs a 4-bit model on the CPU
LARGEST = 127.0


class QuantizedLinear(nn.Linear):
    """A linear layer over a quantized weight."""

    def __init__(self, weight: QuantizedParameter, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.full
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """X W^T + b. [..., in_features] -> [..., out_features]."""
        return linear(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedParameter) -> Tensor:
        ctx.weight = weight
        return x @ dense(weight, x.dtype).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ dense(ctx.weight, gradient.dtype), None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b, of a quantized weight or a plain one. [..., in] -> [..., out]."""
    if not isinstance(weight, QuantizedParameter):
        return F.linear(x, weight, bias)
    product = _Product.apply(x, weight)
    return product if bias is None else product + bias


def dense(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The values of a quantized weight, [out, in], in `dtype` or the run's. A plain weight is returned as it is.

    The weight must be gathered.
    """
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


def pack(values: Tensor, bits: int, dtype: torch.dtype, double: bool = True) -> QuantizedParameter:
    """Quantize values [out, in] to `bits` bits on their device.

    Args:
        values: the values.
        bits: 4 or 8.
        dtype: the run's.
        double: in 4 bits, quantize the scales too. False: values that were quantized once stay what they are.
    """
    functional = _imported().functional
    if bits == 8:
        codes, scales, _ = functional.int8_vectorwise_quant(values.half())
        return QuantizedParameter(codes.view(torch.uint8), 8, values.shape, scales, dtype)
    codes, state = functional.quantize_4bit(
        values.contiguous(), blocksize=BLOCK, compress_statistics=double, quant_type="nf4"
    )
    return QuantizedParameter(codes, 4, values.shape, state, dtype)


def requantize_like(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A parameter with `values`, quantized to as many bits as `old`, or plain like `old`."""
    if not isinstance(old, QuantizedParameter):
        return nn.Parameter(values, requires_grad=old.requires_grad)
    quantized = pack(values, old.bits, old.dtype)
    error = (dense(quantized, values.dtype) - values).norm() / values.norm().clamp(min=1e-12)
    quantized.requantization_error = math.hypot(old.requantization_error, float(error))
    return quantized


def hold(model: nn.Module, paths: list[str], bits: int, dtype: torch.dtype) -> None:
    """Quantize linear layers of a plain model in place, one at a time. 16 bits: nothing changes."""
    for path in paths if bits < 16 else []:
        module = linear_at(model, path)
        model.set_submodule(path, QuantizedLinear(pack(module.weight.detach(), bits, dtype), module.bias))


def convert_bnb_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace the linear layers of bitsandbytes in a loaded model by `QuantizedLinear`, with the same weights."""
    if "bitsandbytes" not in {type(module).__module__.partition(".")[0] for module in model.modules()}:
        return
    kinds = _imported().nn
    for path, module in list(model.named_modules()):
        weight: Any = getattr(module, "weight", None)
        if isinstance(module, kinds.Linear4bit):
            state = weight.quant_state
            packed = QuantizedParameter(weight.data.view(torch.uint8), 4, state.shape, state, dtype)
        elif isinstance(module, kinds.Linear8bitLt):
            scales = weight.SCB
            packed = QuantizedParameter(weight.data.view(torch.uint8), 8, weight.shape, scales, dtype)
        else:
            continue
        model.set_submodule(path, QuantizedLinear(packed, module.bias))
    # transformers would refuse to move a model that it takes for a quantizer's
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        setattr(model, name, False)
    del model.hf_quantizer, model.config.quantization_config


def plain_layers(anatomy: Anatomy) -> tuple[str, ...]:
    """Paths of the linear layers that are not quantized: task heads and projections of embeddings.

    (): the model has no task head. Transformers then decides, which leaves out the LM head.
    """
    if not anatomy.task_heads:
        return ()
    projections = (slot.path for slot in anatomy.slots if slot.rows and not slot.columns)
    return (*anatomy.task_heads, *(path for path in projections if path not in anatomy.norms))


def loading(bits: int, dtype: torch.dtype, plain: tuple[str, ...] = ()) -> BitsAndBytesConfig:
    """The configuration with which `from_pretrained` quantizes each weight as it reads it, to 4 or 8 bits.

    It is also the `quantization_config` of an exported folder. plain: paths of the layers that are not quantized.
    """
    library(f"--base_bits {bits}")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_threshold=0.0,
        llm_int8_skip_modules=list(plain) or None,
    )


def files(name: str, weight: QuantizedParameter, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a quantized folder for the weight `name`, which must be gathered.

    dtype: the dtype that the folder names for 4-bit weights. None: that of the weights before quantization.
    """
    codes = weight.codes()
    if weight.bits == 8:
        module = name.removesuffix(".weight")
        tensors = {name: codes.view(torch.int8).view(weight.full), f"{module}.SCB": weight.scales}
        return tensors | {f"{module}.weight_format": torch.zeros((), dtype=torch.uint8)}
    state = copy.copy(weight.scales)
    state.dtype = dtype or state.dtype
    state = state.as_dict(packed=True)
    return {name: codes.unsqueeze(1)} | {f"{name}.{key}": value for key, value in state.items()}


def stored(weight: nn.Parameter) -> dict[str, Tensor]:
    """All tensors that `restored_like` makes the same weight of. The weight must be gathered."""
    if not isinstance(weight, QuantizedParameter):
        return {"values": weight.detach()}
    lost = torch.tensor(weight.requantization_error, dtype=torch.float64)
    scales = {"scales": weight.scales} if weight.bits == 8 else weight.scales.as_dict(packed=True)
    return {"codes": weight.codes(), "lost": lost} | scales


def restored_like(old: nn.Parameter, tensors: dict[str, Tensor]) -> nn.Parameter:
    """The parameter that `stored` has written, on the device and in the dtype of `old`, which it replaces."""
    if not isinstance(old, QuantizedParameter):
        # memory of its own: a mapped file has another alignment, and kernels round differently by alignment
        values = tensors["values"].to(old.device, old.dtype, copy=True)
        return nn.Parameter(values, requires_grad=old.requires_grad)
    parts = {key: value.to(old.device, copy=True) for key, value in tensors.items()}
    codes, lost = parts.pop("codes"), float(parts.pop("lost"))
    if old.bits == 8:
        return QuantizedParameter(codes, 8, old.full, parts["scales"], old.dtype, lost)
    scales = _imported().functional.QuantState.from_dict(parts, old.device)
    return QuantizedParameter(codes, 4, old.full, scales, old.dtype, lost)


def small_parts(weight: Tensor) -> list[Tensor]:
    """The scales of a quantized weight. [] for a plain one."""
    if not isinstance(weight, QuantizedParameter):
        return []
    state = weight.scales
    return [state] if weight.bits == 8 else [state.absmax, state.state2.absmax, state.offset.reshape(1)]


def written_bytes(weight: nn.Parameter, numel: int, bits: int, dtype: torch.dtype | None = None) -> int:
    """Bytes of a weight in an exported folder.

    Args:
        weight: the parameter, quantized or plain.
        numel: number of weights that it stands for.
        bits: bits of the folder, 16 for a plain one.
        dtype: dtype of plain weights in the folder. None: the weight's own.
    """
    if bits == 16 or not isinstance(weight, QuantizedParameter):
        return numel * (dtype or weight.dtype).itemsize
    return numel * bits // 8 + sum(part.numel() * part.element_size() for part in small_parts(weight))


def room(full: torch.Size, bits: int) -> tuple[int, int]:
    """Bytes of the codes, and of the scales, of a weight [out, in] in `bits` bits. Rows must be whole blocks."""
    if bits == 8:
        return full.numel(), 4 * full[0]
    blocks = full.numel() // BLOCK
    # scales of the blocks in 8 bits, 256 of them with a scale of their own, and what was taken off them all
    return full.numel() // 2, blocks + 4 * -(-blocks // 256) + 4


def summary(model: nn.Module) -> dict[str, float]:
    """Mean and maximum of the relative errors that requantization after cuts has caused. {}: nothing is quantized."""
    errors = [p.requantization_error for p in model.parameters() if isinstance(p, QuantizedParameter)]
    return (
        {"requantization_error_mean": sum(errors) / len(errors), "requantization_error_max": max(errors)}
        if errors
        else {}
    )
