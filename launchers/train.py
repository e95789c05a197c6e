"""Fine-tune and prune in one run: `deepspeed launchers/train.py --deepspeed ds_configs/zero3.json`.

`apt-ds-train --dry_run --world_size 8 ...` estimates beforehand how much memory a rank of such a run needs.
"""

from apt_ds.commands.train import main, script

__all__ = ["main"]

if __name__ == "__main__":
    script()
