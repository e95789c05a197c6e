"""Stores the answers of finished subjects, so that an interrupted evaluation resumes after them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.runtime import collectives
from apt_ds.runtime.files import write_json


class ResumeFile:
    """A JSON file with the answers of every finished subject.

    Attributes:
        path: The file.
        key: Everything that the answers depend on.
    """

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        """Read the file, or create it. Collective.

        Args:
            path: The file.
            key: Model, data and settings. JSON values.

        Raises:
            UserError: The file cannot be read, or its key differs.
        """
        self.path, self.key = path, key
        self._answers: dict[str, list[int]] = collectives.on_main(self._read)

    def _read(self) -> dict[str, list[int]]:
        if not self.path.exists():
            write_json(self.path, {"key": self.key, "answers": {}})
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf8"))
            key, answers = content["key"], content["answers"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"resume file {self.path} cannot be read. Delete it to start again") from None
        changed = [name for name in {**key, **self.key} if key.get(name) != self.key.get(name)]
        if changed:
            raise UserError(
                f"resume file {self.path} belongs to an evaluation that differs in {', '.join(changed)}. "
                "Delete it to start again, or give another --resume_file"
            )
        return answers

    def find(self, subject: str) -> list[int] | None:
        """The answers of a finished subject, or None. The same on all ranks."""
        return self._answers.get(subject)

    def add(self, subject: str, answers: list[int]) -> None:
        """Store the answers of a subject. The file is replaced atomically. Collective."""
        self._answers[subject] = answers
        collectives.on_main(lambda: write_json(self.path, {"key": self.key, "answers": self._answers}))

    def remove(self) -> None:
        """Delete the file. Collective."""
        collectives.on_main(lambda: self.path.unlink(missing_ok=True))
