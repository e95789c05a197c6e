"""The output folder of a run: checked early, made late, removed where nothing came of it."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import collectives
from apt_ds.training import checkpoint

OWN = ("model", "model.tmp", "metrics.jsonl", "summary.json", "summary.json.tmp", "config.yaml")


def check_output(run: RunConfig, resumes: bool) -> list[Path] | None:
    """Check that the run may write into the output folder; writes nothing. Collective.

    resumes: the run goes on from a checkpoint, so that the folder may be full.
    Returns the folders that are still to be made, the inner ones first; None where the folder has something in it.

    Raises:
        UserError: it holds a run already and may not be overwritten, or it cannot be written.
    """
    return collectives.on_main(lambda: _check_output(Path(run.output.output_dir), run, resumes))


def _check_output(folder: Path, run: RunConfig, resumes: bool) -> list[Path] | None:
    try:
        held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"--output_dir {str(folder)!r} cannot be written: {error.strerror}") from None
    if held and not resumes and not run.output.overwrite_output_dir:
        raise UserError(
            f"--output_dir {str(folder)!r} already holds {', '.join(held[:3])}; "
            "choose another folder or pass --overwrite_output_dir"
        )
    return None if held else [path for path in (folder, *folder.parents) if not path.exists()]


def prepare_output(run: RunConfig, metrics: bytes | None = None) -> None:
    """Make the output folder and write the resolved configuration into it. Collective.

    metrics: those of the checkpoint the run goes on from; checkpoints then stay, and the folder may be full.

    Raises:
        UserError: it cannot be written.
    """
    collectives.on_main(lambda: _prepare(Path(run.output.output_dir), run, metrics))


def _prepare(folder: Path, run: RunConfig, metrics: bytes | None) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in OWN:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        checkpoint.sweep(folder, everything=metrics is None)
        (folder / "metrics.jsonl").write_bytes(metrics or b"")
        run.save(folder / "config.yaml")
    except OSError as error:
        raise UserError(f"--output_dir {str(folder)!r} cannot be written: {error.strerror}") from None


def discard_output(folder: Path, made: list[Path] | None) -> None:
    """Remove what `prepare_output` wrote, where the run ends with nothing to keep: no step, no checkpoint.

    made: what `check_output` returned. A folder that had or has anything else in it stays as it is. On one rank.
    """
    if made is None or not folder.is_dir():
        return
    found = {path.name: path.stat().st_size for path in folder.iterdir()}
    if found.keys() <= {"config.yaml", "metrics.jsonl"} and not found.get("metrics.jsonl"):
        with suppress(OSError):  # another process may have put something there meanwhile
            for name in found:
                (folder / name).unlink()
            for path in made:
                path.rmdir()
