"""Writes a model as an ordinary Hugging Face folder: adapters merged, no masks, safetensors (METHOD.md section 1).

Models that a stock configuration can describe load with plain `from_pretrained`. The others come with a small
modelling file, copied from this package, that `trust_remote_code=True` uses.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.config.output_options import AUTO_FORM
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import quantization
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import companions
from apt_ds.models.export.configs import written
from apt_ds.models.export.facts import Facts, write_facts
from apt_ds.models.export.form import Written
from apt_ds.models.export.weight_format import Format
from apt_ds.models.pretrained import without_code
from apt_ds.runtime import collectives, zero

SHARD_BYTES = 2 * 2**30  # the memory that an export needs beside the model itself
T = TypeVar("T")


class Exported(NamedTuple):
    """What was written.

    Attributes:
        format: stock, adaptive or padded.
        bytes: of the weights.
        padding_bytes: those of them that are padding.
    """

    format: str
    bytes: int
    padding_bytes: int


def whole_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """(name, module, parameter) of every weight of a plain model, gathered while it is the current one.

    One module is gathered at a time. Tied weights come once, under their first name. Collective under stage 3: every
    rank must iterate to the end, even after a failure.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        with zero.gathered(own):
            for name, parameter in module.named_parameters(prefix=path, recurse=False):
                if id(parameter) not in seen and not name.rpartition(".")[2].startswith("lora_"):
                    yield name, module, parameter
        seen.update(id(p) for p in own)


@torch.no_grad()
def export(
    model: nn.Module,
    anatomy: Anatomy,
    base_config: PretrainedConfig,
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    task: str = LANGUAGE_MODEL,
    bits: int = 16,
    dtype: torch.dtype | None = None,
    form: str = AUTO_FORM,
    facts: Facts | None = None,
    merge: bool = True,
) -> Exported:
    """Write the model to `folder`, whole or not at all. No masks may be soft. Collective.

    Args:
        model: the cut model, with or without adapters, partitioned or not.
        anatomy: its blocks.
        base_config: the configuration of the model before any cut.
        generation: the generation settings to write, None for a model that does not generate.
        tokenizer: the tokenizer to write.
        folder: the folder to write. An existing one is replaced at the end.
        task: the task type, a constant of `config/tasks.py`.
        bits: below 16, the linear layers of a base quantized to as many bits stay quantized.
        dtype: dtype of all other weights. None: the model's own.
        form: the value of `--export_format`.
        facts: what apt_ds.json says, but for the form. None: the folder has no such file.
        merge: whether adapters are merged. False writes the base of unmerged adapters (`peft_adapters.py`).

    Returns:
        What was written, on all ranks.

    Raises:
        UserError: the folder cannot be written, for lack of space or permission, or transformers refuses the
            configuration. An earlier `folder` is unchanged. All other errors are raised on all ranks too.
    """
    unfinished = folder.with_name(f"{folder.name}.tmp")
    content = written(model, without_code(base_config), anatomy, task, form)
    dtype = dtype or next(model.parameters()).dtype
    _describe_weights(content.config, anatomy, bits, dtype)
    writer = ShardWriter(unfinished)
    format_ = Format.of(content, model, dtype, bits, merge)
    collectives.on_main(lambda: _writing(unfinished, writer.start))
    failure = _add_weights(model, writer, format_)

    def finish() -> Exported:
        if failure is not None:
            raise failure
        _add_rest(model, writer, format_, content)
        writer.finish()
        result = Exported(content.name, writer.total, format_.padding_bytes)
        if facts is not None:
            write_facts(unfinished, {**facts, "export_format": result.format})
        _write_rest(unfinished, content, generation, tokenizer)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
        return result

    return collectives.on_main(lambda: _writing(unfinished, finish))


def _describe_weights(config: PretrainedConfig, anatomy: Anatomy, bits: int, dtype: torch.dtype) -> None:
    """Write dtype and quantization into the configuration. Arguments as of `export`."""
    config.dtype = dtype
    if bits < 16:
        quantized = quantization.loading(bits, dtype, quantization.plain_layers(anatomy))
        config.quantization_config = quantized.to_dict()


def _add_weights(model: nn.Module, writer: ShardWriter, format_: Format) -> Exception | None:
    """Give all weights of the model to `writer`, on rank 0. Collective. Returns what went wrong."""
    failure: Exception | None = None
    for weight in whole_weights(model):
        # the other ranks continue to gather: a failure is raised after the last weight
        if collectives.is_main() and failure is None:
            try:
                _writing(writer.folder, partial(_add_weight, writer, format_, weight))
            except Exception as error:
                failure = error
    return failure


def _add_rest(model: nn.Module, writer: ShardWriter, format_: Format, content: Written) -> None:
    """Give `writer` the weights that the form has and the model lacks."""
    for name, tensor in format_.missing(model):
        writer.add(name, tensor)
    for name, (shape, value) in content.added.items():
        writer.add(name, torch.full(shape, value, dtype=format_.dtype))


def _write_rest(
    folder: Path, form: Written, generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write what a model folder has besides weights. See `export`."""
    companions.write_config(form.config, folder)
    for module in form.modules:
        name = module.__name__.rpartition(".")[2]
        (folder / f"{name}.py").write_text(inspect.getsource(module), encoding="utf8")
    if generation is not None:
        companions.write_generation(generation, folder)
    companions.write_tokenizer(tokenizer, form.config, folder)
    companions.open_to_readers(folder)


def _add_weight(writer: ShardWriter, format_: Format, weight: tuple[str, nn.Module, nn.Parameter]) -> None:
    """Give `writer` all tensors of a weight, which must be gathered. weight: of `whole_weights`."""
    for name, tensor in format_.tensors(*weight):
        writer.add(name, tensor)


def _writing(unfinished: Path, action: Callable[[], T]) -> T:
    """Run `action`. A failure removes the folder `unfinished`. A failure to write becomes a UserError."""
    try:
        return action()
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not isinstance(error, OSError | SafetensorError | ValueError) or isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        advice = "; free space or change --output_dir" if isinstance(error, OSError | SafetensorError) else ""
        raise UserError(f"cannot write the model to {unfinished.parent}: {reason}{advice}") from None


class ShardWriter:
    """Safetensors files of at most `SHARD_BYTES`, written as tensors come, named as transformers expects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: dict[str, Tensor] = {}
        self._files: list[list[str]] = []
        self._bytes = 0
        self.total = 0

    def start(self) -> None:
        """Make an empty folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor, and write a file if there are enough."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > SHARD_BYTES:
            self._flush()
        self._pending[name] = tensor
        self._bytes += size
        self.total += size

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
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf8")

    def _flush(self) -> None:
        save_file(self._pending, self.folder / f"part-{len(self._files)}", metadata={"format": "pt"})
        self._files.append(list(self._pending))
        self._pending, self._bytes = {}, 0
