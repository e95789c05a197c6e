"""The result as an ordinary Hugging Face folder: adapters merged, masks gone, safetensors (section 1, last line).

Models that a stock configuration can describe (see `configs.py`) load with plain `from_pretrained`. The others carry
a small modelling file, copied from this package, that `trust_remote_code=True` picks up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from apt_ds import dist, quantized, zero
from apt_ds.adapter import AptLinear
from apt_ds.anatomy import Anatomy
from apt_ds.architectures import LANGUAGE_MODEL
from apt_ds.config import UserError
from apt_ds.export.configs import written

SHARD_BYTES = 2 * 2**30  # what a written model takes in memory beside the model itself


def merged_state(model: nn.Module, bits: int = 16) -> Iterator[tuple[str, Tensor | None]]:
    """(name, tensor on the host) of every weight a plain model has, adapters merged in; None on other ranks.

    bits: below 16 packed weights stay packed, several tensors each; one that has an adapter is quantized anew.

    One module is gathered at a time; tied weights come once, under their first name. Collective under stage 3.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        with zero.gathered(own), torch.no_grad():
            for name, parameter in module.named_parameters(prefix=path, recurse=False):
                if id(parameter) in seen or name.rpartition(".")[2].startswith("lora_"):
                    continue
                merge = isinstance(module, AptLinear) and parameter is module.weight
                if not dist.is_main():
                    yield name, None
                    continue
                for part, value in _values(module, name, parameter, merge, bits):
                    yield part, value.cpu().clone()
        seen.update(id(p) for p in own)


def _values(
    module: nn.Module, name: str, parameter: nn.Parameter, merge: bool, bits: int
) -> Iterable[tuple[str, Tensor]]:
    if bits == 16 or not isinstance(parameter, quantized.Packed):
        return [(name, module.merged() if merge else quantized.dense(parameter))]
    packed = quantized.like(parameter, module.merged()) if merge else parameter
    return quantized.files(name, packed).items()


def export(
    model: nn.Module,
    anatomy: Anatomy,
    base_config: PretrainedConfig,
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    task: str = LANGUAGE_MODEL,
    bits: int = 16,
) -> None:
    """Write the model to `folder`, whole or not at all. No masks may be soft. Collective.

    base_config: that of the model before any cut; task: what is asked of the model, a constant of `tasks.py`; bits:
    below 16 projections of a base held in as many bits stay quantized.

    Raises:
        UserError: it cannot be written (no space, no permission); nothing is left under `folder`.
    """
    partial = folder.with_name(f"{folder.name}.tmp")
    form = written(model, base_config, anatomy, task)
    if bits < 16:
        form.config.quantization_config = quantized.loading(bits, next(model.parameters()).dtype).to_dict()
    writer = ShardWriter(partial)
    dist.on_main(lambda: _writing(partial, writer.start))
    failure: UserError | None = None
    for name, tensor in merged_state(model, bits):
        # the other ranks go on gathering: a failure waits until all have arrived
        if tensor is not None and failure is None:
            try:
                edit = form.edits.get(name)
                _writing(partial, partial_add(writer, name, edit(tensor) if edit else tensor))
            except UserError as error:
                failure = error

    def finish() -> None:
        if failure is not None:
            raise failure
        writer.finish()
        form.config.save_pretrained(partial)
        if form.module:
            source = resources.files("apt_ds.export") / f"{form.module}.py"
            (partial / f"{form.module}.py").write_text(source.read_text(encoding="utf8"), encoding="utf8")
        if generation is not None:
            generation.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)

    dist.on_main(lambda: _writing(partial, finish))


def partial_add(writer: ShardWriter, name: str, tensor: Tensor) -> Callable[[], None]:
    """`writer.add` with its arguments bound."""
    return lambda: writer.add(name, tensor)


def _writing(partial: Path, action: Callable[[], None]) -> None:
    """Run `action`; a failure to write removes what was written and becomes one line."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot write the model to {partial.parent}: {reason}; free space or change --output_dir"
        ) from None


class ShardWriter:
    """Safetensors files of at most `SHARD_BYTES`, written as tensors come, named as transformers expects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: dict[str, Tensor] = {}
        self._files: list[list[str]] = []
        self._bytes = 0
        self._total = 0

    def start(self) -> None:
        """Make an empty folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; writes a file when enough have come."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > SHARD_BYTES:
            self._flush()
        self._pending[name] = tensor
        self._bytes += size
        self._total += size

    def finish(self) -> None:
        """Write the rest, give the files their final names, write the index if there are several."""
        self._flush()
        count = len(self._files)
        final = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        final = ["model.safetensors"] if count == 1 else final
        for number, name in enumerate(final):
            (self.folder / f"part-{number}").rename(self.folder / name)
        if count > 1:
            weight_map = {t: name for name, tensors in zip(final, self._files, strict=True) for t in tensors}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf8")

    def _flush(self) -> None:
        save_file(self._pending, self.folder / f"part-{len(self._files)}", metadata={"format": "pt"})
        self._files.append(list(self._pending))
        self._pending, self._bytes = {}, 0
