"""Loads a model under the adapters that this package wrote, and refuses another base."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import CLASSIFICATION
from apt_ds.models import pretrained
from apt_ds.models.architectures import language_config
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.base import name_classes
from apt_ds.models.peft_format import CONFIG, OWN, BaseNote
from apt_ds.models.stored_weights import fingerprint_of_source


def load_adapters(folder: str, base: str = "", **options: Any) -> Any:
    """The base with its adapters, as a `peft.PeftModel`. See `apt_ds.load_adapters`."""
    try:
        peft = importlib.import_module("peft")
    except ImportError:
        raise UserError("load_adapters needs the package peft: pip install 'apt_ds[peft]'") from None
    note = note_of(Path(folder))
    source = base or find_base_of(Path(folder), note)
    check_base(note, source, f"the base {source!r} of the adapters in {folder!r}")
    model_class = AUTO_CLASSES[note.task]
    config = _config(source, note)
    model = model_class.from_pretrained(source, config=config, **({"dtype": "auto"} | _resized(note) | options))
    return peft.PeftModel.from_pretrained(model, folder)


def note_of(folder: Path) -> BaseNote:
    """What a folder of `--export_adapters` says of its base.

    Raises:
        UserError: it is no such folder.
    """
    note = BaseNote.read(folder) if (folder / CONFIG).is_file() else None
    if note is None:
        absent = OWN if (folder / CONFIG).is_file() else CONFIG
        raise UserError(f"{str(folder)!r} is not a folder of --export_adapters: {absent} is missing")
    return note


def find_base_of(folder: Path, note: BaseNote) -> str:
    """The base that a folder of adapters names, or the folder `base` beside it where that one has moved along."""
    beside = folder.resolve().parent / "base"
    named = Path(note.base)
    return str(beside) if not named.is_dir() and (beside / "config.json").is_file() else note.base


def check_base(note: BaseNote, source: str, where: str) -> None:
    """Check that a model is the base of adapters.

    Args:
        note: what the adapters say of their base.
        source: the folder or hub name of the model.
        where: names the model in an error.

    Raises:
        UserError: it is another model, or its weights cannot be read.
    """
    fingerprint = fingerprint_of_source(source, where)
    if fingerprint != note.fingerprint:
        raise UserError(
            f"{where} is another model than the one they were trained on, {note.base!r}: its weights have the "
            f"fingerprint {fingerprint}, not {note.fingerprint}. Give the base that they were written with"
        )


def _config(source: str, note: BaseNote) -> PretrainedConfig:
    config = language_config(pretrained.read_config(source))
    if note.task == CLASSIFICATION:
        name_classes(config, () if note.labels == ("score",) else note.labels)
    return config


def _resized(note: BaseNote) -> dict[str, Any]:
    """A classifier of other classes than those of the base gets its last layer from the adapters' folder."""
    return {"ignore_mismatched_sizes": True} if note.task == CLASSIFICATION else {}
