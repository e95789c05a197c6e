"""Jobs of `multiprocess.py` for large models: checkpoints in parts, quantized bases with offload."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from apt_ds.runtime import collectives, zero
from apt_ds.training import run
from apt_ds.training.checkpoint import ShardWriter
from tests.support.jobs import facts, resumed, run_config


def saved_in_parts(folder: str, cases: list[tuple[str, int, bool, list[str], list[int]]], limit: int) -> dict[str, Any]:
    """`jobs.resumed` with files of `limit` bytes, and the most bytes in memory or in a pickle during checkpoints."""
    ShardWriter.limit = limit
    most = {"object": 0, "waiting": 0, "held": 0}
    gather, take, add = collectives.gather_objects, zero.take_state, ShardWriter.add

    def gathering(value: Any) -> list[Any]:
        most["object"] = max(most["object"], len(pickle.dumps(value)))
        return gather(value)

    def taking(*arguments: Any, **options: Any) -> zero.EngineState:
        state = take(*arguments, **options)
        most["held"] = max(most["held"], *(len(state.tensors), 0))
        return state

    def adding(self: ShardWriter, *arguments: Any) -> None:
        add(self, *arguments)
        waiting = (t.nbytes for tensors in self._waiting.values() for t in tensors.values())
        most["waiting"] = max(most["waiting"], sum(waiting))

    collectives.gather_objects, zero.take_state, ShardWriter.add = gathering, taking, adding
    try:
        runs = resumed(folder, cases)
    finally:
        collectives.gather_objects, zero.take_state, ShardWriter.add = gather, take, add
    files = {
        name: sorted(path.name for path in (Path(folder) / name / f"checkpoint-{steps[-1]}").glob("*.safetensors"))
        for name, *_, steps in cases
    }
    return {"runs": runs, "most": collectives.gather_objects(most), "files": files}


def exported(folder: str, cases: list[tuple[str, int, bool, list[str]]]) -> dict[str, dict[str, Any]]:
    """Facts of whole runs (name, stage, offload, flags), each into a folder of its name."""
    runs = {}
    for name, stage, offload, flags in cases:
        output = ["--output_dir", str(Path(folder) / name)]
        trainer = run.prepare(run_config(folder, stage, offload, [*flags, *output]))
        runs[name] = facts(trainer, trainer.run())
        collectives.barrier()
    return runs
