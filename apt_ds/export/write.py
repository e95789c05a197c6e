"""The result as an ordinary Hugging Face folder: adapters merged, masks gone, safetensors (section 1, last line).

Models with the same sizes in every layer load with plain `from_pretrained`. The others carry a small modelling
file, copied from this package, that `trust_remote_code=True` picks up.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from apt_ds import dist, quantized, zero
from apt_ds.adapter import AptLinear
from apt_ds.anatomy import Anatomy
from apt_ds.config import UserError
from apt_ds.export.modeling_apt_llama import AptLlamaConfig

SHARD_BYTES = 4 * 2**30
ADAPTIVE = "modeling_apt_llama"


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


def exported_config(
    config: PretrainedConfig, anatomy: Anatomy, quantization: BitsAndBytesConfig | None = None
) -> PretrainedConfig:
    """The configuration of the cut model, head_dim explicit; per-layer sizes where they differ."""
    config = copy.deepcopy(config)
    heads = [n for s, n in zip(anatomy.sites, anatomy.sizes.counts, strict=True) if s.kind == "head"]
    neurons = [n for s, n in zip(anatomy.sites, anatomy.sizes.counts, strict=True) if s.kind == "neuron"]
    queries = config.num_attention_heads // config.num_key_value_heads
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.hidden_size = anatomy.sizes.hidden
    config.num_key_value_heads, config.num_attention_heads = max(heads), max(heads) * queries
    config.intermediate_size = max(neurons)
    config.use_cache = True
    if quantization is not None:
        config.quantization_config = quantization.to_dict()
    if len(set(heads)) > 1 or len(set(neurons)) > 1:
        values = config.to_dict() | {"layer_key_value_heads": heads, "layer_intermediate_sizes": neurons}
        values.pop("model_type")
        config = AptLlamaConfig(**values)
        config.architectures = ["AptLlamaForCausalLM"]
        config.auto_map = {
            "AutoConfig": f"{ADAPTIVE}.AptLlamaConfig",
            "AutoModelForCausalLM": f"{ADAPTIVE}.AptLlamaForCausalLM",
        }
    return config


def export(
    model: nn.Module,
    anatomy: Anatomy,
    base_config: PretrainedConfig,
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    bits: int = 16,
) -> None:
    """Write the model to `folder`, whole or not at all. No masks may be soft. Collective.

    bits: below 16 projections of a base held in as many bits stay quantized.

    Raises:
        UserError: it cannot be written (no space, no permission); nothing is left under `folder`.
    """
    partial = folder.with_name(f"{folder.name}.tmp")
    dtype = next(model.parameters()).dtype
    config = exported_config(base_config, anatomy, quantized.loading(bits, dtype))
    writer = ShardWriter(partial)
    dist.on_main(lambda: _writing(partial, writer.start))
    failure: UserError | None = None
    for name, tensor in merged_state(model, bits):
        # the other ranks go on gathering: a failure waits until all have arrived
        if tensor is not None and failure is None:
            try:
                _writing(partial, partial_add(writer, name, tensor))
            except UserError as error:
                failure = error

    def finish() -> None:
        if failure is not None:
            raise failure
        writer.finish()
        config.save_pretrained(partial)
        if config.model_type == "apt_llama":
            source = resources.files("apt_ds.export") / f"{ADAPTIVE}.py"
            (partial / f"{ADAPTIVE}.py").write_text(source.read_text(encoding="utf8"), encoding="utf8")
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
