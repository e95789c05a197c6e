"""What all ranks must have in common, compared before anything is written or trained.

Each rank states facts as label and value; a label whose value differs ends all ranks with one line that names it, the
odd ranks with their hosts, and what to do. Nothing large is read: of weight files the size, the first and the last MiB.
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
from apt_ds.config.run_config import OPTIONS, RunConfig
from apt_ds.models import quantization_checks
from apt_ds.runtime import collectives

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
# paths may differ by node; what lies there is compared
PLACES = ("deepspeed", "model_name_or_path", "data_path", "eval_data_path", "perplexity_path", "output_dir")
EDGE = 1 << 20
MENDING = {
    "version of": "install the same versions on every node",
    "--": "start every node with the same command",
    "DeepSpeed config": "give every node the same file",
    "model file": "put the same model on every node, or give one folder that all see",
    "fingerprint": "put the same data on every node, or give one file that all see",
}
Facts = dict[str, str]


def compare(facts: Facts) -> None:
    """Hold every rank's facts against the others'. Collective.

    Raises:
        UserError: on all ranks, the first label that differs.
    """
    gathered = collectives.gather_objects((socket.gethostname(), facts))
    labels = dict.fromkeys(label for _, own in gathered for label in own)
    differing = [label for label in labels if len({own.get(label) for _, own in gathered}) > 1]
    if not differing:
        return
    label = differing[0]
    values = [own.get(label, "nothing") for _, own in gathered]
    # of a draw, rank 0's
    usual = Counter(values).most_common(1)[0][0]
    odd = [rank for rank, value in enumerate(values) if value != usual]
    who = ", ".join(f"rank {rank} on {gathered[rank][0]} has {shorten(values[rank])}" for rank in odd[:3])
    more = f" (and {len(odd) - 3} more ranks)" if len(odd) > 3 else ""
    others = f"; {len(differing) - 1} more differ, such as {differing[1]}" if len(differing) > 1 else ""
    mending = next(text for start, text in MENDING.items() if label.startswith(start))
    raise UserError(f"ranks differ in {label}: {who}{more}, the others have {shorten(usual)}{others}; {mending}")


def facts_of(run: RunConfig, config: dict[str, Any], source: str, commit: str, fingerprints: dict[str, str]) -> Facts:
    """Everything that decides the numbers. source: the model's folder or hub name; prints: the data's fingerprints."""
    facts = {f"version of {name}": version(name) for name in PACKAGES}
    if quantization_checks.needed(run):
        facts["version of bitsandbytes"] = version("bitsandbytes")
    facts |= {"version of apt_ds": apt_ds.__version__, "version of python": platform.python_version()}
    facts |= {f"--{name}": str(run.flag(name)) for name in OPTIONS if name not in PLACES}
    facts |= {f"DeepSpeed config {path}": value for path, value in leaves(config)}
    facts |= model_files(Path(source)) if Path(source).is_dir() else {"model file commit": commit}
    return facts | {f"fingerprint of the {name} data": value for name, value in fingerprints.items()}


def model_files(folder: Path) -> Facts:
    """Size and a hash of both ends of every file of a model folder.

    Raises:
        UserError: one cannot be read.
    """
    found = {}
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
            raise UserError(f"model file {path} cannot be read: {error.strerror}") from None
        found[f"model file {path.name}"] = f"{size} bytes, {hasher.hexdigest()[:12]}"
    return found


def check_room(output: Path, needed: int) -> None:
    """Whether the rank that writes has room for `needed` bytes under `output`. Collective.

    Raises:
        UserError: on all ranks, when it has not.
    """

    def look() -> None:
        place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise UserError(
                f"rank 0 on {socket.gethostname()} has {free / 1e6:,.0f} MB free under {place}, the run writes about "
                f"{needed / 1e6:,.0f} MB; free space or choose another --output_dir"
            )

    collectives.on_main(look)


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, value) of a nested dictionary."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def shorten(value: str) -> str:
    """At most 60 characters of one line."""
    value = " ".join(value.split())
    return value if len(value) <= 60 else f"{value[:57]}..."
