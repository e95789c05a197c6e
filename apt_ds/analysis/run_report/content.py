"""What the files of a run's output folder hold, of a finished or an interrupted run."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apt_ds.config.errors import UserError
from apt_ds.training.checkpoint import MANIFEST
from apt_ds.training.output_folder import COMMAND
from apt_ds.training.pruning_figures import LayerSizes

Json = dict[str, Any]


@dataclass(frozen=True)
class Content:
    """The files of one run.

    Attributes:
        folder: the output folder.
        summary: `summary.json`. None while the run is unfinished.
        metrics: lines of `metrics.jsonl`.
        config: the resolved options.
        manifest: of the newest checkpoint. {} without one.
        started_by: the command line that `config.yaml` names. '' where it names none.
        unreadable: lines of `metrics.jsonl` that are not JSON.
    """

    folder: Path
    summary: Json | None
    metrics: list[Json]
    config: Json
    manifest: Json
    started_by: str = ""
    unreadable: int = 0

    @property
    def command(self) -> str:
        """The command line of the run. '' where no file has it."""
        return (self.summary or {}).get("environment", {}).get("command") or self.started_by

    @property
    def last_step(self) -> int:
        """The last step that `metrics.jsonl` has. 0 before the first one."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run. 0 where no file says it."""
        if self.summary is not None:
            return self.summary["data"]["steps"]
        counted = self.manifest.get("counts", {}).get("total_steps", 0)
        return counted or max(self.config.get("max_steps") or 0, 0)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every adapter: the final one, or that of the newest checkpoint."""
        pruning = (self.summary or {}).get("pruning", {})
        return pruning.get("ranks") or self.manifest.get("shape", {}).get("ranks") or {}

    @property
    def warnings(self) -> list[str]:
        """Warnings of the run, each once. Those of an earlier process of a resumed run come from `metrics.jsonl`."""
        logged = [text for line in self.metrics for text in line.get("warnings", [])]
        own = [f"{self.unreadable} lines of metrics.jsonl are not JSON and left out"] if self.unreadable else []
        return list(dict.fromkeys([*(self.summary or {}).get("warnings", []), *logged, *own]))

    def sizes_before(self) -> LayerSizes | None:
        """Sizes of every layer of the base model. None where no file has them."""
        if self.summary is not None and "layers" in self.summary["pruning"]:
            return self.summary["pruning"]["layers"]["before"]
        return next((line["sizes_before"] for line in self.metrics if "sizes_before" in line), None)

    def size_history(self) -> list[tuple[str, LayerSizes]]:
        """Sizes of every layer each time that they changed: the name of the time, and the sizes."""
        before = self.sizes_before()
        history: list[tuple[str, LayerSizes]] = [("base", before)] if before is not None else []
        history += [(str(line["step"]), line["sizes"]) for line in self.metrics if "sizes" in line]
        if self.summary is not None and "layers" in self.summary["pruning"]:
            history.append(("end", self.summary["pruning"]["layers"]["after"]))
        # a run that never cut has one entry
        return [entry for n, entry in enumerate(history) if n == 0 or entry[1] != history[n - 1][1]]


def read(folder: str | Path) -> Content:
    """The files of a run.

    Raises:
        UserError: the folder is no output folder of a run, or a file of it cannot be read.
    """
    place = Path(folder)
    if not os.path.isfile(place / "config.yaml"):
        raise UserError(f"{str(folder)!r} is not the output folder of a run: config.yaml is missing")
    try:
        text = (place / "config.yaml").read_text(encoding="utf8")
        summary = place / "summary.json"
        metrics, unreadable = _lines(place / "metrics.jsonl")
        return Content(
            folder=place,
            summary=json.loads(summary.read_text(encoding="utf8")) if summary.is_file() else None,
            metrics=metrics,
            config=yaml.safe_load(text) or {},
            manifest=_newest_manifest(place),
            started_by=text.partition("\n")[0].removeprefix(COMMAND) if text.startswith(COMMAND) else "",
            unreadable=unreadable,
        )
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{str(folder)!r}: a file of the run cannot be read: {error}") from None


def _lines(path: Path) -> tuple[list[Json], int]:
    """Lines of `metrics.jsonl`, and how many are not JSON. A run that was killed may leave half a line."""
    lines, unreadable = [], 0
    for text in path.read_text(encoding="utf8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            unreadable += 1
    return lines, unreadable


def _newest_manifest(folder: Path) -> Json:
    """The manifest of the checkpoint with the highest step. {} without a readable one."""
    manifests = []
    for path in folder.glob(f"checkpoint-*/{MANIFEST}"):
        try:
            manifest = json.loads(path.read_text(encoding="utf8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(manifest, dict) and isinstance(manifest.get("step"), int):
            manifests.append(manifest)
    return max(manifests, key=lambda manifest: manifest["step"], default={})
