"""MMLU of a finished model: `deepspeed launchers/eval_mmlu.py --model out/model`, or `apt-ds-mmlu` for one process."""

from __future__ import annotations

from apt_ds.eval.mmlu_script import main
from apt_ds.runtime import exit_status


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
