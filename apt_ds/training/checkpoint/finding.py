"""From `--resume_from_checkpoint` to a checkpoint in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors import SafetensorError

from apt_ds.config.errors import UserError
from apt_ds.runtime import collectives
from apt_ds.training.checkpoint import shards
from apt_ds.training.checkpoint.contents import Checkpoint
from apt_ds.training.checkpoint.folder import LEFT, evaluation, numbered
from apt_ds.training.checkpoint.manifest import MANIFEST, METRICS, STATE, DamagedError, verify

LAST = "last"


def find(wanted: str, output: Path) -> Checkpoint | None:
    """The checkpoint that `--resume_from_checkpoint` names, on every rank. None if the option is empty. Collective.

    Raises:
        UserError: no checkpoint exists, it is damaged, or a rank does not see it.
    """
    if not wanted:
        return None
    path = collectives.on_main(lambda: _newest(output) if wanted == LAST else _named(Path(wanted)))
    unseen = [rank for rank, seen in enumerate(collectives.gather_objects((path / MANIFEST).is_file())) if not seen]
    if unseen:
        raise UserError(f"rank {unseen} does not see {path}: put --output_dir on a disk that all nodes share")
    return collectives.on_each_rank(lambda: load(path))


def _named(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"--resume_from_checkpoint {str(path)!r} is not a folder: give {LAST} or a checkpoint's folder")
    if path.resolve().name.startswith(LEFT):
        raise UserError(f"{path} was left by a run that went back: rename it to checkpoint-STEP to use it")
    verify(path)
    return path


def _newest(output: Path) -> Path:
    """The newest whole checkpoint. A line on stderr names each damaged one."""
    for _, path in sorted(numbered(output), reverse=True):
        try:
            verify(path)
        except DamagedError as error:
            print(f"skipped: {error}", file=sys.stderr, flush=True)
        else:
            return path
    raise UserError(
        f"--resume_from_checkpoint {LAST}: no whole checkpoint under {str(output)!r}. Leave it out to start again"
    )


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that `verify` has passed.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf8"))
        return Checkpoint(
            step=manifest["step"],
            run=manifest["run"],
            counts=manifest["counts"],
            fingerprints=manifest["fingerprints"],
            values=json.loads((path / STATE).read_text(encoding="utf8")),
            tensors=shards.read(path, list(manifest["files"])),
            shape=manifest["shape"],
            metrics=(path / METRICS).read_bytes(),
            path=str(path),
            base=manifest["base"],
            evaluation=evaluation(path),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {' '.join(str(error).split())}") from None
