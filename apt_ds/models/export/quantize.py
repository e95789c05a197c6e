"""Quantize a finished model folder: `python -m apt_ds.models.export.quantize OUT/model --to fp8`.

Weights are rounded one matrix at a time, without calibration data. The 16-bit folder stays as it is.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig

from apt_ds.config import cli
from apt_ds.config.errors import UserError
from apt_ds.config.output_options import QUANTIZATIONS
from apt_ds.models import pretrained
from apt_ds.models.export import quantize_formats
from apt_ds.models.export.configs import AUTO_NAMES
from apt_ds.models.export.write import ShardWriter
from apt_ds.models.model_folder import check_weights

USAGE = "python -m apt_ds.models.export.quantize DIR --to fp8|w4a16|nf4 [--into DIR]"
# what a quantized folder does not take from the 16-bit one
LEFT_OUT = ("config.json", "model.safetensors.index.json", "README.md", "apt_ds.json")


def quantize_folder(folder: Path, kind: str, into: Path | None = None) -> tuple[Path, dict[str, float]]:
    """Write a quantized copy of a model folder, whole or not at all.

    Args:
        folder: a folder with weights of 16 or 32 bits.
        kind: fp8, w4a16 or nf4.
        into: the folder to write. None: beside `folder`, such as model-fp8. An existing one is replaced at the end.

    Returns:
        The folder, and figures: bytes of weights before and after, mean and largest relative error of a matrix.

    Raises:
        UserError: the model cannot be quantized so, a library is missing, or the folder cannot be written.
    """
    into = into or folder.with_name(f"{folder.resolve().name}-{kind}")
    check_place(folder, into)
    config = read_folder(folder)
    layers, plain = linear_layers(config, folder)
    dtype = pretrained.stated_dtype(str(folder), config)
    form = quantize_formats.make(kind, layers, plain, dtype)
    partial = into.with_name(f"{into.name}.tmp")
    writer = ShardWriter(partial)
    try:
        writer.start()
        for name, tensor in weights_of(folder):
            path = name.removesuffix(".weight")
            tensors = form.tensors(name, tensor) if path in layers else {name: tensor}
            for part, value in tensors.items():
                writer.add(part, value)
        writer.finish()
        copy_rest(folder, partial, form.config())
        shutil.rmtree(into, ignore_errors=True)
        partial.rename(into)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or cli.one_line(str(error))
        raise UserError(f"cannot write the quantized model to {into}: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    before, after = (sum(f.stat().st_size for f in place.glob("*.safetensors")) for place in (folder, into))
    errors = {"mean_weight_error": sum(form.errors) / len(form.errors), "largest_weight_error": max(form.errors)}
    return into, {"bytes_before": float(before), "bytes": float(after), **errors}


def check_place(folder: Path, into: Path) -> None:
    """Check that writing to `into` removes nothing but an earlier copy. Raises UserError."""
    if into.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"--into {into} is the 16-bit folder itself, or contains it. Name another one")
    if into.exists() and not is_copy(into) and not (into.is_dir() and not any(into.iterdir())):
        raise UserError(f"--into {into} exists and is no quantized copy. Name another one, or remove it")


def is_copy(folder: Path) -> bool:
    """Whether a folder has quantized weights, so that a new copy may replace it."""
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return False


def read_folder(folder: Path) -> PretrainedConfig:
    """The configuration of a folder that can be quantized. Raises UserError."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has no *.safetensors files")
    check_weights(str(folder), str(folder))
    try:
        config = pretrained.read_config(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {cli.one_line(str(error))}") from None
    if getattr(config, "quantization_config", None):
        raise UserError(f"{folder} has quantized weights already. Name the folder with 16-bit weights")
    return config


def linear_layers(config: PretrainedConfig, folder: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Shapes [out, in] of the linear layers inside numbered layers, by path, and the paths of all others.

    Raises:
        UserError: a mixture of experts, whose matrices transformers loads as one.
    """
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=False)
    layers: dict[str, tuple[int, int]] = {}
    plain = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if re.search(r"\.\d+\.", path):
                layers[path] = module.out_features, module.in_features
            else:
                plain.append(path)
        elif any(parameter.dim() > 2 for parameter in module.parameters(recurse=False)):
            raise UserError(
                f"{folder} is a mixture of experts, which cannot be quantized here. Use GGUF: "
                f"python -m apt_ds.models.export.gguf {folder} --outtype q8_0"
            )
    return layers, plain


def auto_class(config: PretrainedConfig) -> Any:
    """The automatic class of transformers that loads a model."""
    name = (config.architectures or [""])[0]
    for ending, auto in reversed(AUTO_NAMES.items()):
        if name.endswith(ending):
            return getattr(transformers, auto)
    raise UserError(f"config.json names {name!r}, which no automatic class of transformers loads")


def weights_of(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all weights of a folder, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                yield name, tensors.get_tensor(name)


def copy_rest(folder: Path, into: Path, quantized: dict[str, Any]) -> None:
    """Copy what a folder has beside weights, and add the field of quantization to its configuration."""
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name not in LEFT_OUT:
            shutil.copyfile(file, into / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf8")) | {"quantization_config": quantized}
    (into / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf8")


def main() -> None:
    """Do what the command line says. Raises UserError."""
    parser = cli.Parser(USAGE)
    parser.add_argument("folder", type=Path, help="the model folder, such as OUT/model")
    parser.add_argument("--to", choices=QUANTIZATIONS[1:], required=True, help="format of the linear layers")
    parser.add_argument("--into", type=Path, default=None, help="the folder to write; default: beside the first one")
    given = parser.read(sys.argv[1:])
    into, figures = quantize_folder(given.folder, given.to, given.into)
    print(
        f"wrote {into}: {figures['bytes'] / 1e6:.1f} MB of weights instead of {figures['bytes_before'] / 1e6:.1f}. "
        f"Relative error of a matrix: {figures['mean_weight_error']:.4f} on average, "
        f"{figures['largest_weight_error']:.4f} at most"
    )
    print(f"measure what that costs: python launchers/evaluate.py --model {into} --perplexity FILE", flush=True)


if __name__ == "__main__":
    from apt_ds.runtime import exit_status

    exit_status.main(main)
