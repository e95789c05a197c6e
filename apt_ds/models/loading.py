"""Loading a base model and its tokenizer, sharded while it loads where the engine will shard it."""

from __future__ import annotations

import copy
import logging
import sys
from dataclasses import dataclass
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import CLASSIFICATION, INSTRUCTIONS, LANGUAGE_MODEL
from apt_ds.data.tokenizer_checks import check_tokenizer
from apt_ds.models import pretrained, quantization, task_heads
from apt_ds.models.architectures import REGISTRY, anatomy_of, architecture_of
from apt_ds.models.architectures.spec import ADAPTIVE_PREFIX, AUTO_CLASSES
from apt_ds.models.blocks import Anatomy
from apt_ds.models.builtin_models import NAMES, source_of
from apt_ds.models.model_folder import check_files, check_sizes, first_line, read_part
from apt_ds.models.random_weights import random_model
from apt_ds.runtime import collectives, zero


@dataclass
class Base:
    """What a run starts from. `source` is the folder or hub name that `from_pretrained` reads.

    kind: see `tasks.py`; random: there is nothing to read, weights are drawn (for measurements); dtype: what its
    weights are stored in, None where nothing says.
    """

    source: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    kind: str = LANGUAGE_MODEL
    random: bool = False
    dtype: torch.dtype | None = None


def find_base(name: str, task: str = INSTRUCTIONS, labels: tuple[str, ...] = (), trust: bool = False) -> Base:
    """Configuration, tokenizer and anatomy of `name`: a folder, a hub name or one of `builtin_models.py`. Collective.

    labels: the classes' names where the task is one of classes; trust: code of the folder may run, for its tokenizer.
    The model itself is always of a class of transformers: others have no anatomy.

    Raises:
        UserError: nothing there, no tokenizer, or an architecture without an anatomy or not for this task.
    """
    source, where = source_of(name), f"--model_name_or_path {name!r}"
    advice = f"give a folder made by save_pretrained, a hub name, or {NAMES}"
    check_files(source, where)
    config = read_part(lambda: config_of(name, source), where, advice)
    kind = kind_of(task, config.model_type)
    if kind == CLASSIFICATION:
        name_classes(config, labels)
    check_sizes(config, where)
    anatomy = anatomy_of(config, kind)
    tokenizer = read_part(lambda: pretrained.read_tokenizer(source, trust), where, advice)
    check_tokenizer(tokenizer, config, architecture_of(config).special_tokens)
    return Base(source, config, tokenizer, anatomy, kind, dtype=pretrained.stated_dtype(source, config))


def config_of(name: str, source: str) -> PretrainedConfig:
    """The configuration of a model that can be tuned. No code of its folder runs.

    Raises:
        UserError: its class is in the folder's own code, or it was cut to sizes by layer.
        OSError, ValueError, KeyError: there is none, or it is broken.
    """
    try:
        config = pretrained.read_config(source)
    except pretrained.NeedsCode:
        raise UserError(
            f"--model_name_or_path {name!r}: its architecture is defined by code of its own and is not supported; "
            f"supported: {', '.join(sorted(REGISTRY))}"
        ) from None
    if config.model_type.startswith(ADAPTIVE_PREFIX):
        raise UserError(
            f"--model_name_or_path {name!r} has sizes by layer (--structure adaptive) and cannot be tuned or cut "
            "again: start from the model it was made from, or make it again with --structure uniform"
        )
    return config


def kind_of(task: str, model_type: str) -> str:
    """What a model of this type is for a task. Raises UserError where such a model is not tuned on it."""
    # an unknown type is told by the anatomy, which lists those that are known
    kinds = REGISTRY[model_type].tasks if model_type in REGISTRY else {task: LANGUAGE_MODEL}
    if task not in kinds:
        raise UserError(f"--task {task} is not for a model of type {model_type!r}; give one of {', '.join(kinds)}")
    return kinds[task]


def name_classes(config: PretrainedConfig, labels: tuple[str, ...]) -> None:
    """Have a classifier for these labels; for none of them, one that gives a number."""
    config.id2label = dict(enumerate(labels or ("score",)))
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.problem_type = "single_label_classification" if labels else "regression"


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
            f"--model_name_or_path {run.model.model_name_or_path!r} is quantized already. "
            "Give the model it was made from"
        )
    dtype, attention = run_dtype(run), run.model.attn_implementation
    if base.random:
        projections = {path for paths in base.anatomy.targets.values() for path in paths}
        try:
            model, missing = random_model(base.config, dtype, attention, projections, run.model.base_bits), []
        except ImportError as error:
            raise UserError(f"--attn_implementation {attention}: {first_line(error)}") from None
    else:
        model, missing = read_weights(
            base.source, dtype, attention, base.kind, base.anatomy.heads, base.config, bits=run.model.base_bits
        )
    if missing:
        start_heads(model, missing, run.optim.seed)
    architecture_of(base.config).prepare(model, base.anatomy)
    model.config.use_cache = False
    if not zero.is_partitioned(model):
        _off_the_file(model)
        model.to(zero.device())
    if run.optim.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def start_heads(model: PreTrainedModel, paths: list[str], seed: int) -> None:
    """Begin with new weights where a checkpoint has none for the task, and say so. Collective."""
    task_heads.start(model, paths, model.config.initializer_range, seed)
    if collectives.is_main():
        print(f"{', '.join(paths)}: not in the checkpoint, started anew", file=sys.stderr, flush=True)


def _off_the_file(model: nn.Module) -> None:
    """Copy what is mapped from the file: one weight that is would hold all of the file in memory, after cuts too."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def read_weights(
    source: str,
    dtype: torch.dtype,
    attention: str,
    kind: str = LANGUAGE_MODEL,
    optional: tuple[str, ...] = (),
    config: PretrainedConfig | None = None,
    flag: str = "--model_name_or_path",
    bits: int = 16,
    trust: bool = False,
) -> tuple[PreTrainedModel, list[str]]:
    """(model, those of `optional` it has no weights for) of a folder or hub name, where `from_pretrained` puts it.

    kind: see `tasks.py`; optional: heads that may be absent, or made for other classes; config: to use instead of the
    folder's own; flag: what an error names.

    bits: below 16 every weight is quantized as it is read, so that no second model is ever held.
    trust: code of the folder may run.

    Raises:
        UserError: as `load_model`.
    """
    where = f"{flag} {source!r}"
    try:
        model, found = AUTO_CLASSES[kind].from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=attention,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            trust_remote_code=trust,
            # a head of other classes is no head for these
            ignore_mismatched_sizes=bool(optional),
            **({"config": copy.deepcopy(config)} if config else {}),
            **({"quantization_config": quantization.loading(bits, dtype)} if bits < 16 else {}),
        )
    except ImportError as error:
        raise UserError(f"--attn_implementation {attention}: {first_line(error)}") from None
    except (OSError, SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(f"{where}: its weights cannot be read: {first_line(error)}") from None
    except ValueError as error:
        if pretrained.needs_code(error):
            raise UserError(f"{where}: {pretrained.NeedsCode('model')}") from None
        raise UserError(f"{where} is not for {kind}: {first_line(error)}") from None
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):
            raise UserError(f"{where}: its weights cannot be read: {first_line(error)}") from None
        # transformers has no class of its own for this one
        if "mismatch" not in str(error):
            raise
        raise UserError(f"{where}: its weights have other shapes than its config.json says") from error
    except (KeyError, TypeError, AttributeError, AssertionError, ArithmeticError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: transformers can make no model of its config.json and weights: {told}") from error
    absent = [*found["missing_keys"], *(key if isinstance(key, str) else key[0] for key in found["mismatched_keys"])]
    missing = sorted(key for key in absent if key.rpartition(".")[0] not in optional)
    if missing:
        # transformers would start these at random
        what = "missing" if set(missing) <= set(found["missing_keys"]) else "missing or of another shape"
        raise UserError(f"{where}: {len(missing)} weights are {what}, such as {missing[0]}")
    quantization.convert_bnb_layers(model, dtype)
    return model, [path for path in optional if any(key.rpartition(".")[0] == path for key in absent)]


def run_dtype(run: RunConfig) -> torch.dtype:
    """The dtype weights and activations have."""
    return torch.bfloat16 if run.optim.bf16 else torch.float16 if run.optim.fp16 else torch.float32


def written_dtype(base: Base, run: RunConfig) -> torch.dtype:
    """The dtype that weights are written in: the one a run computes in 16 bits in, else the base's own."""
    return run_dtype(run) if run.optim.bf16 or run.optim.fp16 else base.dtype or torch.float32


def bytes_written(base: Base, run: RunConfig) -> int:
    """About what a run writes at its least: one checkpoint, and the model at the end."""
    width = base.anatomy.sizes.hidden * base.config.vocab_size * (1 if base.config.tie_word_embeddings else 2)
    pruned = run.pruning.mode != "none"
    kept = base.anatomy.num_parameters(base.anatomy.sizes) * (1 - run.pruning.sparsity * pruned)
    model = (kept + width) * written_dtype(base, run).itemsize
    trained = (
        base.anatomy.num_parameters(base.anatomy.sizes) + width
        if run.optim.trainable == "all"
        else adapter_parameters(base, run)
    )
    # their values in float32 and two moments
    return int(model + 3 * 4 * trained)


def adapter_parameters(base: Base, run: RunConfig) -> int:
    """Parameters of the run's adapters at their initial rank, on the model before any cut."""
    paths = {path for name in run.targets for path in base.anatomy.targets.get(name, ())}
    counts = [*base.anatomy.sizes.counts, base.anatomy.sizes.hidden]
    widths = [
        counts[axis.site] * axis.unit
        for slot in base.anatomy.slots
        if slot.path in paths
        for axis in (slot.rows, slot.columns)
        if axis is not None
    ]
    return run.adapter.rank * sum(widths)


def quiet_transformers() -> None:
    """No progress bars or advice from loading: several ranks would print them at once."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("datasets").setLevel(logging.ERROR)


def count_parameters(model: PreTrainedModel, export_bits: int = 16, dtype: torch.dtype | None = None) -> dict[str, int]:
    """Parameters of the model as it will be written (adapters merged), with and without embeddings, and its bytes.

    dtype: what is not quantized is written in it; None: in its own.
    """
    own = {id(p): p for name, p in model.named_parameters() if not name.rpartition(".")[2].startswith("lora_")}
    total = sum(zero.full_numel(p) for p in own.values())
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    ends = {id(e.weight): e.weight for e in embeddings if e is not None}
    return {
        "parameters": total,
        "parameters_without_embeddings": total - sum(zero.full_numel(p) for p in ends.values()),
        "checkpoint_bytes": sum(
            quantization.written_bytes(p, zero.full_numel(p), export_bits, dtype) for p in own.values()
        ),
    }
