"""The formats that `quantize.py` writes: fp8 and w4a16 as compressed-tensors, nf4 as bitsandbytes.

compressed-tensors is the format of vLLM, which runs it with its own kernels. transformers reads it too. torchao was the
alternative: vLLM accepts its folders, but importing torchao takes transformers seconds in every process.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.config.output_options import QUANTIZATIONS
from apt_ds.models import quantization
from apt_ds.runtime.bnb import library

GROUPS = (128, 64, 32)  # weights of a row that share a scale in w4a16
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # candidates for a group's largest value


class QuantizedFormat(ABC):
    """How linear layers are stored.

    Attributes:
        layers: paths of the linear layers that are quantized.
        plain: paths of the linear layers that are not.
        errors: relative error of each matrix that was written.
    """

    def __init__(self, layers: dict[str, tuple[int, int]], plain: list[str], dtype: torch.dtype) -> None:
        self.layers, self.plain, self.dtype = layers, plain, dtype
        self.errors: list[float] = []

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The field `quantization_config` of config.json."""

    @abstractmethod
    def tensors(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """The tensors to write for a weight [out, in]."""

    def note_error(self, weight: Tensor, restored: Tensor) -> None:
        """Record the relative error of a matrix."""
        weight = weight.float()
        self.errors.append(float((restored.float() - weight).norm() / weight.norm().clamp(min=1e-12)))


class CompressedTensors(QuantizedFormat):
    """fp8: 8-bit floats, a scale a row, inputs rounded while the model runs. w4a16: 4-bit integers, a scale a group."""

    def __init__(
        self, layers: dict[str, tuple[int, int]], plain: list[str], dtype: torch.dtype, four_bits: bool
    ) -> None:
        super().__init__(layers, plain, dtype)
        from compressed_tensors.compressors.base import BaseCompressor
        from compressed_tensors.quantization import preset_name_to_scheme

        self.scheme = preset_name_to_scheme("W4A16" if four_bits else "FP8_DYNAMIC", ["Linear"])
        if four_bits:
            self.scheme.weights.group_size = group_size(layers)
        self.name = "pack-quantized" if four_bits else "float-quantized"
        self.four_bits = four_bits
        self.compressor = BaseCompressor.get_value_from_registry(self.name)

    def config(self) -> dict[str, Any]:
        """One group of all linear layers but `plain`."""
        scheme = self.scheme.model_dump(mode="json", exclude={"format"}) | {"format": self.name}
        return {
            "quant_method": "compressed-tensors",
            "format": self.name,
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": self.plain,
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def tensors(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Codes and scales, under the names of compressed-tensors."""
        state = {"weight": weight.float(), "weight_scale": self.scales(weight)}
        packed = self.compressor.compress(state, self.scheme)
        self.note_error(weight, self.compressor.decompress(packed, self.scheme)["weight"])
        path = name.removesuffix("weight")
        # transformers keeps scales in the dtype of the model
        return {
            f"{path}{part}": value.to(self.dtype) if part == "weight_scale" else value.contiguous()
            for part, value in packed.items()
        }

    def scales(self, weight: Tensor) -> Tensor:
        """Scales [out, groups] in float32, rounded to the dtype in which they are written."""
        from compressed_tensors.quantization.utils import calculate_qparams

        columns = self.scheme.weights.group_size or weight.shape[1]
        groups = weight.float().reshape(weight.shape[0], -1, columns)
        low, high = groups.amin(2), groups.amax(2)
        candidates = SHRINK if self.four_bits else (1.0,)
        best, least = torch.empty(0), torch.empty(0)
        for factor in candidates:
            scales, _ = calculate_qparams(low * factor, high * factor, self.scheme.weights)
            scales = scales.to(self.dtype).float()
            if len(candidates) == 1:
                return scales
            rounded = (groups / scales.unsqueeze(2)).round().clamp(-8, 7) * scales.unsqueeze(2)
            error = (rounded - groups).square().sum(2)
            if not best.numel():
                best, least = scales, error
            best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
        return best


class NormalFloat(QuantizedFormat):
    """nf4 of bitsandbytes: blocks of 64 weights with a scale each, and the scales in 8 bits (QLoRA)."""

    def config(self) -> dict[str, Any]:
        """As `--export_bits 4` writes it."""
        return quantization.loading(4, self.dtype, tuple(self.plain)).to_dict()

    def tensors(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Codes and scales, under the names of bitsandbytes."""
        packed = quantization.pack(weight.float(), 4, self.dtype)
        self.note_error(weight, quantization.dense(packed, torch.float32))
        return {part: value.clone() for part, value in quantization.files(name, packed, self.dtype).items()}


def check_library(kind: str) -> None:
    """Raise UserError where the library of a format is missing."""
    flag = f"--export_quantization {kind}"
    if kind == "nf4":
        library(flag)
    elif kind in QUANTIZATIONS and importlib.util.find_spec("compressed_tensors") is None:
        raise UserError(f"{flag} needs compressed-tensors: pip install 'apt_ds[quantize]'")


def make(kind: str, layers: dict[str, tuple[int, int]], plain: Iterable[str], dtype: torch.dtype) -> QuantizedFormat:
    """The format `kind`.

    Args:
        kind: fp8, w4a16 or nf4.
        layers: shape [out, in] of each linear layer to quantize, by path.
        plain: paths of all other linear layers.
        dtype: dtype of the weights that are not quantized, and of scales.

    Raises:
        UserError: the library is missing, or a matrix has no whole blocks.
    """
    check_library(kind)
    if kind == "nf4":
        check_nf4(layers)
        return NormalFloat(layers, list(plain), dtype)
    return CompressedTensors(layers, list(plain), dtype, four_bits=kind == "w4a16")


def group_size(layers: dict[str, tuple[int, int]]) -> int:
    """The largest group that divides the rows of all matrices. Raises UserError."""
    for size in GROUPS:
        if all(columns % size == 0 for _, columns in layers.values()):
            return size
    path, columns = next((path, columns) for path, (_, columns) in layers.items() if columns % GROUPS[-1])
    raise UserError(
        f"w4a16 needs rows of a multiple of {GROUPS[-1]} weights, but those of {path} have {columns}. "
        f"Prune with --align {GROUPS[-1]}, or use fp8"
    )


def check_nf4(layers: dict[str, tuple[int, int]]) -> None:
    """Blocks must not cross rows, and bitsandbytes takes rows by 32 on a CPU. Raises UserError."""
    for path, (rows, columns) in layers.items():
        if columns % quantization.BLOCK or rows % quantization.ROWS:
            raise UserError(
                f"nf4 needs rows of a multiple of {quantization.BLOCK} weights, and a multiple of {quantization.ROWS} "
                f"rows, but {path} has {rows} rows of {columns}. Prune with --align {quantization.BLOCK}, or use fp8"
            )
