"""The command that repeats a run, without what is nobody's business."""

from __future__ import annotations

import shlex
from pathlib import Path

from apt_ds.config.run_config import OPTIONS, SECRETS, RunConfig

# what says where a run wrote and reported, but decides none of its numbers
LEFT_OUT = {
    *SECRETS,
    *("push_to_hub", "hub_model_id", "hub_private_repo", "report_to", "run_name", "logging_dir"),
    *("overwrite_output_dir", "resume_from_checkpoint", "timeout", "dry_run"),
}


def command_of(run: RunConfig, world_size: int) -> str:
    """The command of a run on `world_size` processes: every option that differs from what a new run takes.

    Of an absolute path, only the last component is shown: folders name people and machines.
    """
    stated = run.flags()
    words = ["deepspeed", "--num_accelerators", str(world_size), "launchers/train.py"]
    for name in OPTIONS:
        if name in LEFT_OUT:
            continue
        # what the others imply, such as --repair, depends on all of them
        value, others = run.flag(name), {other: stated[other] for other in stated if other != name}
        if value == RunConfig(**others).flag(name):
            continue
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else shown(str(value))]
    return shlex.join(words)


def shown(value: str) -> str:
    """A value without the folders of an absolute path. Of a comma-separated list: each part."""
    return ",".join(_last(part) for part in value.split(","))


def _last(value: str) -> str:
    path = Path(value)
    return path.name if path.is_absolute() or value.startswith("~") else value
