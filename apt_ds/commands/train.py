"""Fine-tune and prune in one run: `deepspeed launchers/train.py --deepspeed ds_configs/zero3.json`.

`apt-ds-train --dry_run --world_size 8 ...` estimates beforehand how much memory a rank of such a run needs.
"""

from __future__ import annotations

import gc
import sys

from apt_ds.config.resolve import resolve
from apt_ds.runtime import exit_status


def main() -> None:
    """Train as the command line says. Raises UserError."""
    run = resolve(sys.argv[1:])
    # torch and deepspeed take seconds to import: a wrong flag should not wait for them
    if run.distributed.dry_run:
        from apt_ds.analysis.dry_run import dry_run

        dry_run(run)
        return
    from apt_ds.training.environment import without_secrets
    from apt_ds.training.run import train

    # libraries such as W&B record the words of the process
    sys.argv[1:] = without_secrets(sys.argv[1:])
    # the libraries stay to the end: the collection at every rebuild need not look at their million objects
    gc.freeze()
    train(run)
    from apt_ds.analysis.run_report.writing import write_after_run

    write_after_run(run)


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
