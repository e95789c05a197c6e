"""The output folder of a run: checked early, made late, removed if the run leaves nothing in it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from apt_ds.config.errors import UserError
from apt_ds.config.output_options import QUANTIZATIONS
from apt_ds.config.run_config import RunConfig
from apt_ds.data.sources import parse_sources
from apt_ds.data.text_slices import text_part
from apt_ds.runtime import collectives
from apt_ds.training import checkpoint
from apt_ds.training.checkpoint import Checkpoint
from apt_ds.training.checkpoint.folder import LEFT, NAME
from apt_ds.training.environment import command
from apt_ds.training.trackers import collection as trackers

REPORT = "report.html"  # `analysis.run_report` writes it
# what trackers write. A resumed run goes on with it
TRACKED = (trackers.FOLDER, trackers.IDS)
OWN = (
    *("adapters", "adapters.tmp", "base", "base.tmp", "model", "model.tmp"),
    *(f"model-{name}{end}" for name in QUANTIZATIONS if name != "none" for end in ("", ".tmp")),
    *("metrics.jsonl", "summary.json", "summary.json.tmp", "config.yaml", REPORT, f"{REPORT}.tmp"),
)
COMMAND = "# command: "  # the beginning of the first line of config.yaml
# flags whose values are read
FOLDERS = ("model_name_or_path", "mmlu_path", "init_adapters", "teacher_cache")
SOURCES = ("data_path", "eval_data_path", "calibration_path", "perplexity_path")


def check_output(run: RunConfig, saved: Checkpoint | None = None) -> list[Path] | None:
    """Check that the run may write into the output folder. Writes nothing. Collective.

    Args:
        run: the options.
        saved: the checkpoint that the run resumes from. Its own output folder may have content.

    Returns:
        The folders to make, inner ones first. None if the folder has content.

    Raises:
        UserError: the folder has content that may not be overwritten, holds what the run reads where it would be
            removed, or cannot be written.
    """
    return collectives.on_main(lambda: _check_output(Path(run.output.output_dir), run, saved))


def _check_output(folder: Path, run: RunConfig, saved: Checkpoint | None) -> list[Path] | None:
    try:
        content = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"--output_dir {str(folder)!r} cannot be written: {error.strerror}") from None
    for flag, path in _read(run):
        if _replaces(folder, path):
            raise UserError(
                f"--{flag} {str(path)!r} lies where this run would remove it: "
                f"give another --output_dir than {str(folder)!r}"
            )
    if content and not _continues(folder, saved) and not run.output.overwrite_output_dir:
        raise UserError(
            f"--output_dir {str(folder)!r} already holds {', '.join(content[:3])}; "
            "choose another folder or pass --overwrite_output_dir"
        )
    return None if content else [path for path in (folder, *folder.parents) if not path.exists()]


def _continues(folder: Path, saved: Checkpoint | None) -> bool:
    """Whether the run goes on with the run of this folder."""
    return saved is not None and Path(saved.path).resolve().parent == folder.resolve()


def _read(run: RunConfig) -> Iterator[tuple[str, Path]]:
    """The files and folders that the run reads, after the names of their flags."""
    for flag in FOLDERS:
        if run.flag(flag):
            yield flag, Path(run.flag(flag))
    for flag in SOURCES:
        for source in parse_sources(run.flag(flag), f"--{flag}") if run.flag(flag) else ():
            yield flag, text_part(source.name).path


def _replaces(folder: Path, path: Path) -> bool:
    """Whether a run into `folder` may remove the file or folder `path`."""
    if not path.exists() or folder.resolve() not in path.resolve().parents:
        return False
    name = path.resolve().relative_to(folder.resolve()).parts[0]
    return name in (*OWN, *TRACKED) or NAME.fullmatch(name) is not None or name.startswith(LEFT)


def prepare_output(run: RunConfig, saved: Checkpoint | None = None) -> None:
    """Make the output folder and write the resolved configuration into it. Collective.

    Args:
        run: the options.
        saved: the checkpoint that the run resumes from. If it is one of the folder's, earlier ones stay, and later ones
            get another name.

    Raises:
        UserError: the folder cannot be written.
    """
    collectives.on_main(lambda: _prepare(Path(run.output.output_dir), run, saved))


def _prepare(folder: Path, run: RunConfig, saved: Checkpoint | None) -> None:
    continues, configuration = _continues(folder, saved), f"{COMMAND}{command()}\n{run.to_yaml()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if continues and saved is not None:
            # first, so that the folder is as it was if a checkpoint cannot be renamed
            checkpoint.set_aside(folder, saved.step)
        for name in (*OWN, *(() if continues else TRACKED)):
            path = folder / name
            # a link to another disk is removed, and what is there stays
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        checkpoint.sweep(folder, everything=not continues)
        (folder / "metrics.jsonl").write_bytes(saved.metrics if saved is not None else b"")
        (folder / "config.yaml").write_text(configuration, encoding="utf8")
    except OSError as error:
        raise UserError(f"--output_dir {str(folder)!r} cannot be written: {error.strerror or error}") from None


def discard_output(folder: Path, new_folders: list[Path] | None) -> None:
    """Remove what `prepare_output` wrote if the run ends without a step or a checkpoint. On one rank.

    Args:
        folder: the output folder. It stays if it had or has other content.
        new_folders: what `check_output` returned.
    """
    if new_folders is None or not folder.is_dir():
        return
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    if sizes.keys() <= {"config.yaml", "metrics.jsonl", *TRACKED} and not sizes.get("metrics.jsonl"):
        with suppress(OSError):  # another process may have written into it
            for name in sizes:
                shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
            for path in new_folders:
                path.rmdir()
