"""Folders of random weights in the shape of a published model, with a tokenizer whose ids the model embeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from apt_ds.analysis.bench.synthetic import random_config
from apt_ds.config.errors import UserError
from apt_ds.data.conversations import builtin_path
from apt_ds.data.tokenizer_checks import check_tokenizer
from apt_ds.models.builtin_models import source_of
from apt_ds.models.export.write import ShardWriter
from apt_ds.models.loading import first_line
from apt_ds.models.random_weights import DRAWN, pour

BUILTIN = "builtin"
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
BYTES = 256  # a byte-level vocabulary has a token for each byte
TEMPLATE = (
    "{% for message in messages %}{{ bos_token if loop.first else '' }}[{{ message['role'] }}]\n"
    "{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def write_random_model(folder: Path, shape: str, dtype: torch.dtype, layers: int = 0, tokenizer: str = BUILTIN) -> int:
    """Write a model folder that `from_pretrained` reads. Returns the bytes of its weights.

    Weights are drawn and written one at a time, so that memory holds no more than one file of them. The same
    arguments always give the same folder.

    Args:
        folder: where to write. It must not exist, or be empty.
        shape: a name of `synthetic.SIZES`, or the path of a config.json.
        dtype: of the weights.
        layers: number of layers. 0 means as many as the published model has.
        tokenizer: `builtin`, or what `AutoTokenizer.from_pretrained` reads, or a builtin model's name.

    Raises:
        UserError: the shape is unknown, the tokenizer does not fit, or the folder cannot be written.
    """
    config = config_of(shape, layers)
    words = tokenizer_of(tokenizer, config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(words, name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    config.dtype, config.architectures = dtype, [type(model).__name__]
    needed = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    check_folder(folder, needed)
    partial = folder.with_name(f"{folder.name}.tmp")
    try:
        writer = ShardWriter(partial)
        writer.start()
        write_weights(writer, model, dtype, config.initializer_range)
        writer.finish()
        config.save_pretrained(partial)
        GenerationConfig.from_model_config(config).save_pretrained(partial)
        words.save_pretrained(partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None
    return needed


def config_of(shape: str, layers: int) -> PretrainedConfig:
    """The configuration of a shape, with its own number of layers if `layers` is 0. Raises UserError."""
    config = random_config(shape, "--shape")
    config.num_hidden_layers = layers or config.num_hidden_layers
    return config


def check_folder(folder: Path, needed: int) -> None:
    """Raise UserError if `folder` has content, or its disk has less than `needed` bytes free."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; give the path of a new folder")
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{place} has {free / 1e6:,.0f} MB free and the weights take {needed / 1e6:,.0f} MB; free space, choose "
            "another folder, or give fewer --layers"
        )


@torch.no_grad()
def write_weights(writer: ShardWriter, model: nn.Module, dtype: torch.dtype, deviation: float) -> None:
    """Draw and write each weight of a model that has only shapes. Norms are 1. Tied weights are written once."""
    generator = torch.Generator().manual_seed(0)
    pool, at = torch.empty(DRAWN).normal_(0, deviation, generator=generator).to(dtype), 0
    for name, shape in model.named_parameters():
        weight = nn.Parameter(torch.empty(shape.shape, dtype=dtype), requires_grad=False)
        at = pour(pool, at, weight)
        writer.add(name, weight.detach())


def tokenizer_of(name: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer `name`. Raises UserError where it cannot be read or has ids that the model does not embed."""
    if name == BUILTIN:
        return trained_tokenizer(config.vocab_size)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source_of(name))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--tokenizer {name!r}: no tokenizer found ({first_line(error)}); give {BUILTIN} or a model's folder"
        ) from None
    check_tokenizer(tokenizer, config)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def trained_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `size` ids, trained on the builtin instructions, with a chat template.

    Raises:
        UserError: the vocabulary has no room for all bytes.
    """
    special = [PAD, BOS, EOS, UNKNOWN]
    if size < BYTES + len(special):
        raise UserError(
            f"--tokenizer {BUILTIN} needs a vocabulary of at least {BYTES + len(special)} ids, the model has {size}; "
            "give another --tokenizer"
        )
    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    lines = builtin_path().read_text(encoding="utf8").splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    inner.train_from_iterator((str(text) for record in records for text in record.values()), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
