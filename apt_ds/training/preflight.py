"""What all ranks must have in common, compared before anything is written or trained.

Each rank states facts as label and value. If a value differs, all ranks end with one line. It names the label, the odd
ranks with their hosts, and what to do. Of weight files only the size, the first and the last MiB are read.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apt_ds
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import OPTIONS, SECRETS, RunConfig
from apt_ds.models import quantization_checks
from apt_ds.runtime import collectives, zero

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
# paths may differ by node: their content is compared
PATHS = (
    *("deepspeed", "model_name_or_path", "output_dir", "mmlu_path", "init_adapters", "teacher_cache"),
    *("data_path", "eval_data_path", "perplexity_path", "calibration_path"),
)
IGNORED = (*PATHS, *SECRETS, "logging_dir")
EDGE = 1 << 20
ADVICE = {
    "version of": "install the same versions on every node",
    "--": "start every node with the same command",
    "DeepSpeed config": "give every node the same file",
    "adapter file": "put the same adapters on every node, or give one folder that all see",
    "model file": "put the same model on every node, or give one folder that all see",
    "fingerprint": "put the same data on every node, or give one file that all see",
}
Facts = dict[str, str]


def compare(facts: Facts) -> None:
    """Compare the facts of all ranks. Collective.

    Raises:
        UserError: a value differs. All ranks raise it, for the first such label.
    """
    gathered = collectives.gather_objects((socket.gethostname(), facts))
    labels = dict.fromkeys(label for _, own in gathered for label in own)
    differing = [label for label in labels if len({own.get(label) for _, own in gathered}) > 1]
    if not differing:
        return
    label = differing[0]
    values = [own.get(label, "nothing") for _, own in gathered]
    # rank 0's value wins a draw
    usual = Counter(values).most_common(1)[0][0]
    odd = [rank for rank, value in enumerate(values) if value != usual]
    who = ", ".join(f"rank {rank} on {gathered[rank][0]} has {shorten(values[rank])}" for rank in odd[:3])
    more = f" (and {len(odd) - 3} more ranks)" if len(odd) > 3 else ""
    others = f"; {len(differing) - 1} more differ, such as {differing[1]}" if len(differing) > 1 else ""
    advice = next(text for start, text in ADVICE.items() if label.startswith(start))
    raise UserError(f"ranks differ in {label}: {who}{more}, the others have {shorten(usual)}{others}; {advice}")


def facts_of(run: RunConfig, config: dict[str, Any], source: str, commit: str, fingerprints: dict[str, str]) -> Facts:
    """Everything that decides the numbers, by label.

    Args:
        run: the options.
        config: DeepSpeed's configuration.
        source: the model's folder or hub name.
        commit: commit of the model on the hub.
        fingerprints: the data's fingerprints by name.
    """
    facts = {f"version of {name}": version(name) for name in PACKAGES}
    if quantization_checks.needed(run):
        facts["version of bitsandbytes"] = version("bitsandbytes")
    facts |= {"version of apt_ds": apt_ds.__version__, "version of python": platform.python_version()}
    facts |= {f"--{name}": str(run.flag(name)) for name in OPTIONS if name not in IGNORED}
    facts |= {f"DeepSpeed config {path}": value for path, value in leaves(config)}
    facts |= model_files(Path(source)) if Path(source).is_dir() else {"model file commit": commit}
    if run.adapter.init_adapters and Path(run.adapter.init_adapters).is_dir():
        facts |= model_files(Path(run.adapter.init_adapters), "adapter file")
    return facts | {f"fingerprint of the {name} data": value for name, value in fingerprints.items()}


def model_files(folder: Path, label: str = "model file") -> Facts:
    """Size and a hash of both ends of every file of a folder of weights, by label.

    Raises:
        UserError: a file cannot be read.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".bin", ".model"):
            continue
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                hasher = hashlib.sha256(file.read(EDGE))
                file.seek(max(0, size - EDGE))
                hasher.update(file.read(EDGE))
        except OSError as error:
            raise UserError(f"{label} {path} cannot be read: {error.strerror}") from None
        files[f"{label} {path.name}"] = f"{size} bytes, {hasher.hexdigest()[:12]}"
    return files


def check_compilers(config: zero.Config) -> None:
    """Check on every node that it can compile the optimizer of the run, before anything is read. Collective.

    Raises:
        UserError: a node lacks a tool. All ranks raise it.
    """

    def check() -> None:
        if problem := zero.missing_compilers(config):
            raise UserError(f"{socket.gethostname()}: {problem}")

    collectives.on_each_node(check)


def check_room(output: Path, needed: int) -> None:
    """Check that rank 0 has room for `needed` bytes under `output`. Collective.

    Raises:
        UserError: rank 0 has not enough room. All ranks raise it.
    """

    def check() -> None:
        folder = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(
                f"rank 0 on {socket.gethostname()} has {free / 1e6:,.0f} MB free under {folder}, the run writes about "
                f"{needed / 1e6:,.0f} MB. Free space or choose another --output_dir"
            )

    collectives.on_main(check)


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, value) of every leaf of a nested dictionary."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def shorten(value: str) -> str:
    """The value on one line of at most 60 characters."""
    value = " ".join(value.split())
    return value if len(value) <= 60 else f"{value[:57]}..."
