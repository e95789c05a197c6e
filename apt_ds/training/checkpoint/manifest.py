"""`manifest.json` of a checkpoint: its format, its contents, and a SHA-256 checksum of every file."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.training.checkpoint.contents import Checkpoint

FORMAT = 7
MANIFEST, STATE, METRICS = "manifest.json", "state.json", "metrics.jsonl"
# The run adds this file after the last step's evaluation. The file has a checksum of its own.
EVALUATION = "evaluation.json"


class DamagedError(UserError):
    """A checkpoint whose files differ from what was written."""


def manifest_text(folder: Path, checkpoint: Checkpoint) -> str:
    """The content of `manifest.json` for the files that `folder` has now."""
    manifest = {
        "format": FORMAT,
        "step": checkpoint.step,
        "versions": versions(),
        "run": checkpoint.run,
        "counts": checkpoint.counts,
        "fingerprints": checkpoint.fingerprints,
        "shape": checkpoint.shape,
        "base": checkpoint.base,
        "files": {path.name: file_checksum(path) for path in sorted(folder.iterdir())},
    }
    return _text(manifest | {"checksum": checksum(manifest)})


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    return {name: version(name) for name in ("torch", "deepspeed", "transformers")}


def verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint and return its manifest.

    Raises:
        DamagedError: a file is absent or differs from what was written. The message names it.
        UserError: the checkpoint has another format.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
    except OSError as error:
        raise DamagedError(f"checkpoint {path} is not complete: {MANIFEST}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DamagedError(f"checkpoint {path} is damaged: {MANIFEST} is not JSON") from None
    whole = isinstance(manifest, dict) and content == _text(manifest).encode()
    if not whole or manifest.pop("checksum", None) != checksum(manifest):
        raise DamagedError(f"checkpoint {path} is damaged: {MANIFEST} is not what was written")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {manifest.get('format')}, this version reads {FORMAT}. Resume it with the "
            "version of apt_ds that wrote it, or start again in another --output_dir"
        )
    for name, expected in manifest["files"].items():
        try:
            actual = file_checksum(path / name)
        except OSError as error:
            raise DamagedError(f"checkpoint {path} is damaged: {name}: {error.strerror}") from None
        if actual != expected:
            raise DamagedError(f"checkpoint {path} is damaged: {name} is not what was written")
    return manifest


def checksum(value: dict[str, Any]) -> str:
    """SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1)
