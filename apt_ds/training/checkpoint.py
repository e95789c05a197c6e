"""Checkpoint folders: written whole or not at all, checked byte by byte, refused when they belong to another run.

`output_dir/checkpoint-STEP` holds `manifest.json` (what it is, and a checksum of every file), `state.json` (numbers),
tensors as safetensors, in parts where they are many, and the metrics so far. It appears under its name only once all
of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import OPTIONS, RunConfig
from apt_ds.models.base_config import first_difference
from apt_ds.runtime import collectives
from apt_ds.training import checkpoint_shards
from apt_ds.training.checkpoint_shards import Parts

FORMAT = 5
LAST = "last"
MANIFEST, STATE, METRICS = "manifest.json", "state.json", "metrics.jsonl"
EVALUATION = "evaluation.json"  # comes once the model of the last step was evaluated; has a checksum of its own
NAME = re.compile(r"checkpoint-(\d+)")
# what may change from one run to the next; what a path or a count stands for is compared by itself
FREE = {
    *("preset", "recipe", "model_name_or_path", "data_path", "eval_data_path", "perplexity_path", "output_dir"),
    *("overwrite_output_dir", "deepspeed", "gradient_checkpointing", "attn_implementation", "logging_steps"),
    *("max_nonfinite_steps", "report", "report_samples", "per_device_eval_batch_size", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "packing", "profile", "export_bits"),
    *("save_steps", "save_total_limit", "resume_from_checkpoint", "timeout", "eval_steps", "reference_score"),
    *("trust_remote_code", "dry_run", "world_size", "device_memory", "host_memory"),
}
COUNTS = {
    "global_batch": "processes x --per_device_train_batch_size x --gradient_accumulation_steps",
    "total_steps": "--max_steps or --num_train_epochs, in steps,",
}
PRINTS = {
    "train": "the training data",
    "held_out": "the evaluation data",
    "corpus": "the text of --perplexity_path",
    "model": "the base model",
}


class Damaged(UserError):
    """A checkpoint that is not what was written."""


@dataclass
class Checkpoint:
    """A run at a step boundary. values: what JSON holds; tensors: file name without its ending to tensors by name.

    fingerprints: fingerprints of what the run reads (see `PRINTS`); they and `counts` must be those of the resuming
    run. base: what decides the base model's function beside its weights (see `base_config.py`); must be the same, too.
    evaluation: figures of the model at `step`, where they were taken after it was written.
    """

    step: int
    run: dict[str, Any]
    counts: dict[str, int]
    fingerprints: dict[str, str]
    values: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    shape: dict[str, Any] = field(default_factory=dict)
    metrics: bytes = b""
    path: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None

    @property
    def started(self) -> datetime | None:
        """When the run was first started, by rank 0's clock; None of a checkpoint that does not say."""
        said = self.values.get("started")
        return datetime.fromisoformat(said) if said else None

    def check(self, run: RunConfig, counts: dict[str, int], fingerprints: dict[str, str]) -> None:
        """Raise UserError for the first thing that matters and differs."""
        for name, spec in OPTIONS.items():
            then, now = self.run.get(name, spec.default), run.flag(name)
            if name not in FREE and then != now:
                raise UserError(f"{self.path} was made with --{name} {then!r}, this run says {now!r}: use the former")
        for name, what in COUNTS.items():
            then, now = self.counts.get(name), counts[name]
            if then != now:
                raise UserError(f"{self.path}: {what} made {then}, this run makes {now}: they must be equal")
        for name, now in fingerprints.items():
            if self.fingerprints.get(name) != now:
                raise UserError(f"{self.path}: {PRINTS[name]} is not what the checkpoint was made with; give the same")

    def check_base(self, now: dict[str, Any]) -> None:
        """Raise UserError where the base model's configuration, as `decisive` gives it, is not the checkpoint's."""
        if differing := first_difference(self.base, now):
            name, before, after = differing
            raise UserError(
                f"{self.path} was made from a base model with {name} {before!r} in its config.json. That of "
                f"--model_name_or_path has {after!r}. Give the same model"
            )


def begin(output: Path, step: int) -> Parts:
    """Where the tensors of a checkpoint go that `write` will complete. On one rank."""
    partial = _folder(output, step, partial=True)
    shutil.rmtree(partial, ignore_errors=True)
    return Parts(partial)


def _folder(output: Path, step: int, partial: bool = False) -> Path:
    return output / f"checkpoint-{step}{'.tmp' if partial else ''}"


def write(output: Path, checkpoint: Checkpoint, keep: int, begun: Parts | None = None) -> Path:
    """Write `output/checkpoint-STEP`, then remove the oldest beyond `keep` (0: none). On one rank.

    begun: what `begin` gave and holds tensors besides those of `checkpoint`.

    Raises:
        UserError: it cannot be written; earlier checkpoints are untouched and nothing is left of this one.
    """
    folder, partial = (_folder(output, checkpoint.step, partial) for partial in (False, True))
    begun = begun or begin(output, checkpoint.step)
    try:
        for name, tensors in checkpoint.tensors.items():
            for key, value in tensors.items():
                begun.add(name, key, value)
        begun.close()
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
            f"cannot write the checkpoint {folder}: {reason}; earlier ones are intact: free space and go on with "
            "--resume_from_checkpoint last"
        ) from None
    others = sorted(path for path in numbered(output) if path[0] != checkpoint.step)
    for number, _ in others[: max(0, len(others) + 1 - keep)] if keep else []:
        remove(output, number)
    return folder


def _fill(folder: Path, checkpoint: Checkpoint) -> None:
    (folder / STATE).write_text(json.dumps(checkpoint.values), encoding="utf8")
    (folder / METRICS).write_bytes(checkpoint.metrics)
    manifest = {
        "format": FORMAT,
        "step": checkpoint.step,
        "versions": versions(),
        "run": checkpoint.run,
        "counts": checkpoint.counts,
        "fingerprints": checkpoint.fingerprints,
        "shape": checkpoint.shape,
        "base": checkpoint.base,
        "files": {path.name: _checksum(path) for path in sorted(folder.iterdir())},
    }
    manifest["checksum"] = _seal(manifest)
    (folder / MANIFEST).write_text(_text(manifest), encoding="utf8")
    for path in [*folder.iterdir(), folder]:
        _sync(path)


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {name: version(name) for name in ("torch", "deepspeed", "transformers")}


def numbered(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything under `output` that is named as a checkpoint, complete or not."""
    if not output.is_dir():
        return []
    found = [(NAME.fullmatch(path.name), path) for path in output.iterdir()]
    return [(int(match[1]), path) for match, path in found if match]


def sweep(output: Path, everything: bool) -> None:
    """Remove what an interrupted save left, or all checkpoints. Raises OSError."""
    for path in output.glob("checkpoint-*"):
        name = path.name.removesuffix(".tmp")
        if NAME.fullmatch(name) and (everything or name != path.name):
            _remove(path)


def find(wanted: str, output: Path) -> Checkpoint | None:
    """The checkpoint `--resume_from_checkpoint` names, on every rank; None where it names none. Collective.

    Raises:
        UserError: there is none, it is damaged, or some rank does not see it.
    """
    if not wanted:
        return None
    path = collectives.on_main(lambda: _newest(output) if wanted == LAST else _named(Path(wanted)))
    unseen = [rank for rank, seen in enumerate(collectives.gather_objects((path / MANIFEST).is_file())) if not seen]
    if unseen:
        raise UserError(f"rank {unseen} does not see {path}: put --output_dir on a disk that all nodes share")
    return load(path)


def _named(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"--resume_from_checkpoint {str(path)!r} is no folder: give {LAST} or a checkpoint's folder")
    verify(path)
    return path


def _newest(output: Path) -> Path:
    """The newest whole checkpoint; damaged ones are named and passed over."""
    for _, path in sorted(numbered(output), reverse=True):
        try:
            verify(path)
        except Damaged as error:
            print(f"skipped: {error}", file=sys.stderr, flush=True)
        else:
            return path
    raise UserError(
        f"--resume_from_checkpoint {LAST}: no whole checkpoint under {str(output)!r}; leave it out to start anew"
    )


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all as they were written.

    Raises:
        Damaged: something is absent or other than written; the message names it.
    """
    try:
        written = (path / MANIFEST).read_bytes()
        manifest = json.loads(written)
    except OSError as error:
        raise Damaged(f"checkpoint {path} is not complete: {MANIFEST}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Damaged(f"checkpoint {path} is damaged: {MANIFEST} is not JSON") from None
    whole = isinstance(manifest, dict) and written == _text(manifest).encode()
    if not whole or manifest.pop("checksum", None) != _seal(manifest):
        raise Damaged(f"checkpoint {path} is damaged: {MANIFEST} is not what was written")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {manifest.get('format')}, this version reads {FORMAT}. Resume it with the "
            "version of apt_ds that wrote it, or start again in another --output_dir"
        )
    for name, expected in manifest["files"].items():
        try:
            found = _checksum(path / name)
        except OSError as error:
            raise Damaged(f"checkpoint {path} is damaged: {name}: {error.strerror}") from None
        if found != expected:
            raise Damaged(f"checkpoint {path} is damaged: {name} is not what was written")
    return manifest


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that `verify` has passed."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf8"))
        return Checkpoint(
            manifest["step"],
            manifest["run"],
            manifest["counts"],
            manifest["fingerprints"],
            json.loads((path / STATE).read_text(encoding="utf8")),
            checkpoint_shards.read(path, list(manifest["files"])),
            manifest["shape"],
            (path / METRICS).read_bytes(),
            str(path),
            manifest["base"],
            evaluation(path),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {' '.join(str(error).split())}") from None


def add_evaluation(output: Path, step: int, figures: dict[str, Any]) -> None:
    """Put the figures of the model at `step` beside its checkpoint, whole or not at all. On one rank.

    Raises:
        OSError: they cannot be written; the checkpoint is untouched.
    """
    path = _folder(output, step) / EVALUATION
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(_text({"figures": figures, "checksum": _seal(figures)}), encoding="utf8")
    _sync(partial)
    partial.replace(path)


def evaluation(folder: Path) -> dict[str, Any] | None:
    """What `add_evaluation` wrote; None where it did not, or where that is damaged: it can be taken again."""
    try:
        found = json.loads((folder / EVALUATION).read_text(encoding="utf8"))
        return found["figures"] if found["checksum"] == _seal(found["figures"]) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def remove(output: Path, step: int) -> None:
    """Remove the checkpoint of `step`; what cannot be removed is named. On one rank."""
    folder = _folder(output, step)
    try:
        _remove(folder)
    except OSError as error:
        # NFS keeps a file that some process still reads
        print(f"{folder} is not a checkpoint any more, but could not be removed: {error}", file=sys.stderr, flush=True)


def _remove(folder: Path) -> None:
    """Without its manifest it is no checkpoint any more, however far the rest gets."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Have a file or folder on the disk, not just on its way there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1)


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
