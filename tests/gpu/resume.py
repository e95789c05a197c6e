"""Runs as users start them: one to its end, one continued from its middle, one that a signal stops. And inference."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.gpu.small_model import RUN_STEPS, flags_of
from tests.support.paths import ROOT

HALF = RUN_STEPS // 2
TOLERANCE = 0.01  # of a loss on a GPU, where the backward pass of attention adds in any order. None on the CPU
SHORT = ["--bf16", "--calibration_steps", "2"]


def command(work: Path, name: str, *flags: str) -> list[str]:
    """`launchers/train.py` on the small model under ZeRO-3."""
    return [sys.executable, "launchers/train.py", *flags_of(work, name, "zero3", [*SHORT, *flags])]


def losses(work: Path, name: str) -> dict[int, float]:
    """The loss of each step of a run."""
    lines = (work / "runs" / name / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def check_resume(work: Path) -> bool:
    """Continue a run from its middle, and compare the losses of the second half."""
    subprocess.run(command(work, "whole", "--save_steps", str(HALF)), cwd=ROOT, check=True)
    saved = work / "runs" / "whole" / f"checkpoint-{HALF}"
    subprocess.run(command(work, "rest", "--resume_from_checkpoint", str(saved)), cwd=ROOT, check=True)
    whole, rest = losses(work, "whole"), losses(work, "rest")
    later = [step for step in whole if step > HALF]
    off = max(abs(rest[step] / whole[step] - 1) for step in later)
    good = bool(later) and off <= (TOLERANCE if torch.cuda.is_available() else 0.0)
    text = "bit for bit" if off == 0 else f"within {100 * off:.4f} %"
    print(f"{'OK  ' if good else 'FAIL'} resume: the second half of a run again, {text}", flush=True)
    return good


def check_signal(work: Path) -> bool:
    """Stop a run by SIGTERM. It must save and end with status 143."""
    folder = work / "runs" / "stopped"
    process = subprocess.Popen(command(work, "stopped", "--max_steps", "100000"), cwd=ROOT)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    status = process.wait(60)
    saved = len(list(folder.glob("checkpoint-*")))
    good = status == 128 + signal.SIGTERM and saved == 1
    print(f"{'OK  ' if good else 'FAIL'} signal: status {status} (143 is right), {saved} checkpoint", flush=True)
    return good


def check_inference(work: Path) -> bool:
    """Compare the written model with its base by the command of users."""
    models = ["--model", str(work / "runs" / "whole" / "model"), "--baseline", str(work / "model")]
    sizes = ["--efficiency", "--bf16", "--rounds", "1", "--max_batch", "2", "--prompt_length", "16"]
    done = subprocess.run(
        [sys.executable, "launchers/evaluate.py", *models, *sizes, "--new_tokens", "4"], cwd=ROOT, check=False
    )
    print(f"{'OK  ' if done.returncode == 0 else 'FAIL'} inference: the written model next to its base", flush=True)
    return done.returncode == 0


def main() -> None:
    """Run all three. Status 1 if one fails."""
    work = Path(sys.argv[1])
    good = [check_resume(work), check_signal(work), check_inference(work)]
    sys.exit(int(not all(good)))


if __name__ == "__main__":
    main()
