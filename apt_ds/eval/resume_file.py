"""Answers kept while a long evaluation runs, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.runtime import collectives
from apt_ds.runtime.files import write_json


class ResumeFile:
    """A JSON file with what the answers depend on (`key`) and the answers of every finished subject."""

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        """Read what is there. Collective.

        Raises:
            UserError: the file is broken or belongs to another model, other data or other settings.
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
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"progress file {self.path} cannot be read; delete it to start anew") from None
        changed = [name for name in {**key, **self.key} if key.get(name) != self.key.get(name)]
        if changed:
            raise UserError(
                f"progress file {self.path} belongs to an evaluation that differs in {', '.join(changed)}; "
                "delete it to start anew, or give another --resume_file"
            )
        return answers

    def find(self, subject: str) -> list[int] | None:
        """The answers of a finished subject; the same on all ranks."""
        return self._answers.get(subject)

    def keep(self, subject: str, answers: list[int]) -> None:
        """Write the file anew, whole or not at all, with one more subject. Collective."""
        self._answers[subject] = answers
        collectives.on_main(lambda: write_json(self.path, {"key": self.key, "answers": self._answers}))

    def remove(self) -> None:
        """Delete the file. Collective."""
        collectives.on_main(lambda: self.path.unlink(missing_ok=True))
