"""MMLU, five shots: `deepspeed launchers/eval_mmlu.py --model out/model`, or `python` for one process."""

from __future__ import annotations

from apt_ds.eval.mmlu_script import main
from apt_ds.runtime import exit_status

if __name__ == "__main__":
    exit_status.main(main)
