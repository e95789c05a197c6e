"""Methods under one budget, one table: `python launchers/compare.py --deepspeed ds_configs/zero2.json --max_steps 100`.

Takes the options of `train.py` for all runs beside its own. Needs the extra [eval].
"""

from apt_ds.commands.compare import main, script

__all__ = ["main"]

if __name__ == "__main__":
    script()
