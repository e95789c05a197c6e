"""The names and values of a PEFT folder that this package writes and reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.models.model_folder import first_line

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
OWN = "apt_ds.json"  # what this package notes of the base
PREFIX = "base_model.model."  # of every tensor's name
TASK_TYPES = {
    LANGUAGE_MODEL: "CAUSAL_LM",
    CLASSIFICATION: "SEQ_CLS",
    ANSWERS: "QUESTION_ANS",
    GENERATION: "SEQ_2_SEQ_LM",
}
VERSION = 1


@dataclass(frozen=True)
class BaseNote:
    """What the file `OWN` of an adapter folder says of the base.

    Attributes:
        base: the base's folder or hub name.
        fingerprint: that of the base's stored weights (`stored_weights.py`).
        task: the task type, a constant of `config/tasks.py`.
        labels: names of the classes of a classifier. () for all other models.
    """

    base: str
    fingerprint: str
    task: str
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "version": VERSION,
            "base_model_name_or_path": self.base,
            "base_fingerprint": self.fingerprint,
            "task": self.task,
            "labels": list(self.labels),
        }

    @classmethod
    def read(cls, folder: Path) -> BaseNote | None:
        """The note of an adapter folder, None if another program has written the folder.

        Raises:
            UserError: the file is broken.
        """
        path = folder / OWN
        if not path.is_file():
            return None
        content = read_json(path)
        try:
            labels = tuple(content["labels"])
            return cls(content["base_model_name_or_path"], content["base_fingerprint"], content["task"], labels)
        except (KeyError, TypeError):
            raise UserError(f"{path} does not say which base the adapters are of: write the adapters again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content
