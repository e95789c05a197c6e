"""MMLU of a finished model: `deepspeed launchers/eval_mmlu.py --model out/model`, or `apt-ds-mmlu` for one process."""

from apt_ds.commands.mmlu import main, script

__all__ = ["main"]

if __name__ == "__main__":
    script()
