"""Compares losses of the stage `modes` on the GPU with those of the same runs on the CPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# relative differences. Before the first step nothing has been decided yet. After a cut, blocks of nearly equal scores
# may differ
BEFORE, LOSS = 0.01, 0.05
GROUPS = ("bf16", "fp16", "bits")


def differences(gpu: dict[str, Any], cpu: dict[str, Any]) -> tuple[float, float]:
    """Relative differences of two runs: of the held-out loss before training, and the largest of all step losses."""
    pairs = zip(gpu["losses"], cpu["losses"], strict=True)
    return abs(gpu["before"] / cpu["before"] - 1), max(abs(a / b - 1) for a, b in pairs)


def compare(folder: Path, group: str) -> tuple[list[str], int]:
    """Lines on all modes of a group, and how many of them differ by too much or could not be compared."""
    paths = [folder / f"{kind}_{group}.json" for kind in ("modes", "cpu")]
    if not all(path.is_file() for path in paths):
        return [f"FAIL {group}: no figures of {'GPU' if not paths[0].is_file() else 'CPU'}"], 1
    gpu, cpu = (json.loads(path.read_text(encoding="utf8")) for path in paths)
    lines, failed = [], 0
    if not cpu and not os.environ.get("ONLY"):
        return [f"FAIL {group}: no mode ran on the CPU"], 1
    for label in sorted(cpu):
        if label not in gpu:
            lines.append(f"FAIL {group}: {label}: did not run on the GPU")
            failed += 1
            continue
        before, loss = differences(gpu[label], cpu[label])
        good = before <= BEFORE and loss <= LOSS
        failed += not good
        text = f"before training {100 * before:.2f} % (limit {100 * BEFORE:g}), steps {100 * loss:.2f} %"
        lines.append(f"{'OK  ' if good else 'FAIL'} {group}: {label}: off from the CPU {text} (limit {100 * LOSS:g})")
    return lines, failed


def main() -> None:
    """Compare all groups. Status 1 if any differs."""
    failed = 0
    for group in GROUPS:
        lines, count = compare(Path(sys.argv[1]), group)
        failed += count
        print("\n".join(lines), flush=True)
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
