"""Fine-tune and prune in one run: `deepspeed launchers/train.py --deepspeed ds_configs/zero3.json`.

`python launchers/train.py --dry_run --world_size 8 ...` tells beforehand what memory a rank of such a run needs.
"""

from __future__ import annotations

import sys

from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import exit_status


def main() -> None:
    run: RunConfig = resolve(sys.argv[1:])
    # torch and deepspeed take seconds to import: a wrong flag should not
    if run.distributed.dry_run:
        from apt_ds.analysis.dry_run import dry_run

        dry_run(run)
        return
    from apt_ds.training.run import train

    train(run)


if __name__ == "__main__":
    exit_status.main(main)
