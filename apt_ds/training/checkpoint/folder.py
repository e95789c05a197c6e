"""The folder of a checkpoint: `output_dir/checkpoint-STEP`. One rank writes it.

It holds `manifest.json`, `state.json` (JSON values), tensors as safetensors and the metrics so far. The folder gets its
name only once all of it is on the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from apt_ds.config.errors import UserError
from apt_ds.runtime.files import write_json
from apt_ds.training.checkpoint.contents import Checkpoint
from apt_ds.training.checkpoint.manifest import EVALUATION, MANIFEST, METRICS, STATE, checksum, manifest_text
from apt_ds.training.checkpoint.shards import ShardWriter

NAME = re.compile(r"checkpoint-(\d+)")
LEFT = "left-checkpoint-"  # begins the name of a checkpoint that a run has left by going back to an earlier one


def begin(output: Path, step: int) -> ShardWriter:
    """Start a checkpoint that `write` completes. The writer takes its large tensors. On one rank."""
    partial = _folder(output, step, partial=True)
    shutil.rmtree(partial, ignore_errors=True)
    return ShardWriter(partial)


def _folder(output: Path, step: int, partial: bool = False) -> Path:
    return output / f"checkpoint-{step}{'.tmp' if partial else ''}"


def write(output: Path, checkpoint: Checkpoint, limit: int, shards: ShardWriter | None = None) -> Path:
    """Write `output/checkpoint-STEP`, then remove the oldest checkpoints. On one rank.

    Args:
        output: the run's output folder.
        checkpoint: the content.
        limit: how many checkpoints stay. 0 keeps all.
        shards: what `begin` returned, with tensors besides those of `checkpoint`.

    Raises:
        UserError: the checkpoint cannot be written. Earlier checkpoints are untouched and this one is removed.
    """
    folder, partial = _folder(output, checkpoint.step), _folder(output, checkpoint.step, partial=True)
    shards = shards or begin(output, checkpoint.step)
    try:
        for name, tensors in checkpoint.tensors.items():
            for key, value in tensors.items():
                shards.add(name, key, value)
        shards.close()
        partial.mkdir(exist_ok=True)
        _fill(partial, checkpoint)
        if folder.exists():
            _remove(folder)
        partial.rename(folder)
        _sync(output)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot write the checkpoint {folder}: {reason}. Earlier ones are intact. Free space and go on with "
            "--resume_from_checkpoint last"
        ) from None
    others = sorted(path for path in numbered(output) if path[0] != checkpoint.step)
    for number, _ in others[: max(0, len(others) + 1 - limit)] if limit else []:
        remove(output, number)
    return folder


def _fill(folder: Path, checkpoint: Checkpoint) -> None:
    (folder / STATE).write_text(json.dumps(checkpoint.values), encoding="utf8")
    (folder / METRICS).write_bytes(checkpoint.metrics)
    (folder / MANIFEST).write_text(manifest_text(folder, checkpoint), encoding="utf8")
    for path in [*folder.iterdir(), folder]:
        _sync(path)


def numbered(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything under `output` that has a checkpoint's name, complete or not."""
    if not output.is_dir():
        return []
    matches = [(NAME.fullmatch(path.name), path) for path in output.iterdir()]
    return [(int(match[1]), path) for match, path in matches if match]


def sweep(output: Path, everything: bool) -> None:
    """Remove what an interrupted save left, or all checkpoints.

    Raises:
        OSError: a folder cannot be removed.
    """
    for path in output.glob("checkpoint-*"):
        name = path.name.removesuffix(".tmp")
        if NAME.fullmatch(name) and (everything or name != path.name):
            _remove(path)
    for path in output.glob(f"{LEFT}*") if everything else ():
        _remove(path)


def set_aside(output: Path, step: int) -> None:
    """Rename the checkpoints after `step`, for a run that goes back to it. A line on stderr names each. On one rank.

    `last` would resume from one of them, and not from what the run writes from now on. Names are `left-checkpoint-600`,
    and `left-checkpoint-600-2` where that exists.

    Raises:
        OSError: a folder cannot be renamed.
    """
    for number, path in sorted(numbered(output)):
        if number > step:
            names = (f"{LEFT}{number}{'' if i == 1 else f'-{i}'}" for i in count(1))
            aside = next(place for place in map(path.with_name, names) if not os.path.lexists(place))
            path.rename(aside)
            print(f"the run goes on from step {step}: {path} is now {aside.name}", file=sys.stderr, flush=True)


def add_evaluation(output: Path, step: int, evaluation: dict[str, Any]) -> None:
    """Add the evaluation of the model at `step` to its checkpoint, whole or not at all. On one rank.

    Raises:
        UserError: the file cannot be written. The checkpoint is untouched.
    """
    content = {"figures": evaluation, "checksum": checksum(evaluation)}
    write_json(_folder(output, step) / EVALUATION, content)


def evaluation(folder: Path) -> dict[str, Any] | None:
    """What `add_evaluation` wrote. None if the file is absent or damaged: the run then evaluates again."""
    try:
        content = json.loads((folder / EVALUATION).read_text(encoding="utf8"))
        return content["figures"] if content["checksum"] == checksum(content["figures"]) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def remove(output: Path, step: int) -> None:
    """Remove the checkpoint of `step`. A line on stderr names a folder that cannot be removed. On one rank."""
    folder = _folder(output, step)
    try:
        _remove(folder)
    except OSError as error:
        # NFS keeps a file that another process still reads
        print(f"{folder} is not a checkpoint any more, but could not be removed: {error}", file=sys.stderr, flush=True)


def _remove(folder: Path) -> None:
    # a folder without a manifest is no checkpoint, even if the rest cannot be removed
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Write a file or folder through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
