"""What a run leaves behind while it runs: `metrics.jsonl` and progress bar; and peaks of memory."""

from __future__ import annotations

import json
import math
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from apt_ds.config.errors import UserError
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives


class MetricsLogger:
    """Metrics file and progress bar; silent on all ranks but the first."""

    def __init__(self, folder: Path, total_steps: int, quiet: bool = False) -> None:
        self.folder = folder
        self._total, self._quiet = total_steps, quiet or not collectives.is_main()
        self._writes = collectives.is_main()

    @cached_property
    def _file(self) -> TextIO:
        # not before there is something to write: a mistake found while the model loads leaves no folder
        return (self.folder / "metrics.jsonl").open("a", encoding="utf8")

    @cached_property
    def _bar(self) -> tqdm:
        # not before there is something to show: a mistake found while the model loads has a line of its own
        return tqdm(total=self._total, unit="step", disable=self._quiet, file=sys.stderr, smoothing=0.1)

    def step(self, row: dict[str, Any]) -> None:
        """One line of metrics; moves the bar to the row's step."""
        if not self._writes:
            return
        try:
            # JSON has no NaN
            shown = row | {"loss": row["loss"] if math.isfinite(row["loss"]) else None}
            self._file.write(json.dumps(shown) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self.folder / 'metrics.jsonl'}: {error.strerror}; free some space"
            ) from None
        self._bar.set_postfix(
            loss=f"{row['loss']:.3f}", kept=f"{100 * row['kept']:.1f}%", ranks=f"{row['ranks']['mean']:.1f}"
        )
        self._bar.update(row["step"] - self._bar.n)

    def metrics(self) -> bytes:
        """All lines so far; on the first rank."""
        return (self.folder / "metrics.jsonl").read_bytes()

    def adjusted(self, step: int, kept: float, plan: Plan) -> None:
        """Tell of a cut or of rank growth."""
        if not self._bar.disable:
            grown = f"; {len(plan.grow)} adapters grew" if plan.grow else ""
            self._bar.write(f"step {step}: {100 * kept:.2f} % of the prunable parameters kept{grown}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """One line on stderr."""
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End bar and file."""
        self._bar.close()
        if "_file" in vars(self):
            self._file.close()
