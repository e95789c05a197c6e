"""Step time and memory against PEFT's LoRA: `deepspeed launchers/benchmark.py --deepspeed ds_configs/zero3.json`.

Takes the options of `train.py` and those below; with `--dry_run` it only estimates the memory of such a run. Needs the
extra [dev] (peft); bitsandbytes for what is in 4 bit.
"""

from apt_ds.commands.benchmark import main, script

__all__ = ["main"]

if __name__ == "__main__":
    script()
