"""Checkpoint folders: written whole or not at all, checked byte by byte, refused by another run."""

from apt_ds.training.checkpoint.contents import Checkpoint
from apt_ds.training.checkpoint.finding import LAST, find, load
from apt_ds.training.checkpoint.folder import (
    add_evaluation,
    begin,
    evaluation,
    numbered,
    remove,
    set_aside,
    sweep,
    write,
)
from apt_ds.training.checkpoint.manifest import EVALUATION, FORMAT, MANIFEST, DamagedError, verify
from apt_ds.training.checkpoint.shards import ShardWriter

__all__ = [
    "EVALUATION",
    "FORMAT",
    "LAST",
    "MANIFEST",
    "Checkpoint",
    "DamagedError",
    "ShardWriter",
    "add_evaluation",
    "begin",
    "evaluation",
    "find",
    "load",
    "numbered",
    "remove",
    "set_aside",
    "sweep",
    "verify",
    "write",
]
