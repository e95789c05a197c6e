"""Reading the weights of a model folder, with every failure in one line."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import pretrained, quantization
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.model_folder import first_line

OLD_BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias", ".position_ids")


def read_weights(
    source: str,
    dtype: torch.dtype,
    attention: str,
    task_type: str = LANGUAGE_MODEL,
    optional: tuple[str, ...] = (),
    config: PretrainedConfig | None = None,
    flag: str = "--model_name_or_path",
    bits: int = 16,
    trust: bool = False,
    model_class: Any = None,
    plain: tuple[str, ...] = (),
    device: torch.device | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """Read a model with `from_pretrained`.

    Args:
        source: a folder or hub name.
        dtype: the dtype of the weights that are not quantized.
        attention: the attention kernel.
        task_type: a constant of `config/tasks.py`.
        optional: paths of layers that the checkpoint may lack, or have for other classes.
        config: the configuration to use instead of the folder's own.
        flag: the flag that an error names.
        bits: below 16, linear layers are quantized as they are read, so no second model is in memory.
        trust: code of the folder may run.
        model_class: the class to read with. None: the stock class of `task_type`.
        plain: paths of linear layers that are not quantized.
        device: where the weights go, see `device_map`. None: where `from_pretrained` puts them.

    Returns:
        The model, and the paths of `optional` without weights.

    Raises:
        UserError: weights are absent, unknown, broken or do not fit the configuration, or the attention kernel is
            missing.
    """
    where = f"{flag} {source!r}"
    with mistakes_named(where, task_type, attention):
        model, info = (model_class or AUTO_CLASSES[task_type]).from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=attention,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            trust_remote_code=trust,
            device_map=device_map(device, is_deepspeed_zero3_enabled()),
            # a layer for other classes counts as missing
            ignore_mismatched_sizes=bool(optional),
            **({"config": copy.deepcopy(config)} if config else {}),
            **({"quantization_config": quantization.loading(bits, dtype, plain)} if bits < 16 else {}),
        )
    absent = check_names(where, model, info, optional)
    quantization.convert_bnb_layers(model, dtype)
    return model, [path for path in optional if any(key.rpartition(".")[0] == path for key in absent)]


@contextmanager
def mistakes_named(where: str, task_type: str, attention: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises for a broken or unsuitable model into a UserError.

    Args:
        where: the flag and the source, with which the line begins.
        task_type: a constant of `config/tasks.py`.
        attention: the attention kernel.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"--attn_implementation {attention}: {first_line(error)}") from None
    except (OSError, SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(f"{where}: its weights cannot be read: {first_line(error)}") from None
    except ValueError as error:
        if pretrained.needs_code(error):
            raise UserError(f"{where}: {pretrained.NeedsCodeError('model')}") from None
        raise UserError(f"{where} is not for {task_type}: {first_line(error)}") from None
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):
            raise UserError(f"{where}: its weights cannot be read: {first_line(error)}") from None
        # transformers raises no class of its own for a mismatch of shapes
        if "mismatch" not in str(error):
            raise
        raise UserError(f"{where}: its weights have other shapes than its config.json says") from error
    except (KeyError, TypeError, AttributeError, AssertionError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: transformers can make no model of its config.json and weights: {reason}") from error


def check_names(where: str, model: nn.Module, info: dict[str, Any], optional: tuple[str, ...]) -> list[str]:
    """Check that model and checkpoint have the same weights.

    Args:
        where: the flag and the source, with which an error begins.
        model: the model.
        info: the report of `from_pretrained`.
        optional: paths of layers that the checkpoint may lack, or have for other classes.

    Returns:
        The names of weights that the checkpoint lacks or has in another shape.

    Raises:
        UserError: a weight is missing that is not optional, or unknown.
    """
    absent = [*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])]
    missing = sorted(key for key in absent if key.rpartition(".")[0] not in optional)
    unknown = unknown_weights(model, info["unexpected_keys"])
    if missing:
        # transformers would draw these
        what = "missing" if set(missing) <= set(info["missing_keys"]) else "missing or of another shape"
        instead = f", and {len(unknown)} are unknown, such as {unknown[0]}" if unknown else ""
        raise UserError(f"{where}: {len(missing)} weights are {what}, such as {missing[0]}{instead}")
    if unknown:
        # transformers would ignore these
        raise UserError(f"{where}: {len(unknown)} weights are unknown to {type(model).__name__}, such as {unknown[0]}")
    return absent


def unknown_weights(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """The weights of a checkpoint that the model's layers do not have, sorted.

    Weights outside of layers belong to other heads. Buffers that older versions of transformers wrote do not count.

    Args:
        model: the model.
        unexpected: names of the checkpoint that no parameter of the model has.
    """
    stacks = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    layers = tuple(f"{path}.{name}." for path in stacks for name, _ in model.get_submodule(path).named_children())
    return sorted(name for name in unexpected if name.startswith(layers) and not name.endswith(OLD_BUFFERS))


def device_map(device: torch.device | None, sharded: bool) -> dict[str, torch.device] | None:
    """Where `from_pretrained` puts weights. None: into the host's memory, or into shards.

    An accelerator takes every tensor from the mapped file as it is read. So no rank keeps a second model on the host.

    Args:
        device: the device of this rank.
        sharded: whether transformers shards weights while it reads them (ZeRO-3). It then takes no map.
    """
    return None if device is None or device.type == "cpu" or sharded else {"": device}


def quiet_transformers() -> None:
    """Turn off progress bars and advice of transformers: several ranks would print them at once."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("datasets").setLevel(logging.ERROR)
