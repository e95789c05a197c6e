"""Short runs in every mode through `apt_ds.train`: one line each, and their losses as JSON.

    python -m tests.gpu.modes bf16|fp16|bits WORK FIGURES.json [--reference]

`--reference` runs the first of them on the CPU, for `losses.py` to compare. The CPU has no fp16. Its runs are in fp32
then.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import apt_ds
from tests.gpu.small_model import DRY, run_of

PRETUNING = ["--calibration_steps", "2" if DRY else "4"]
GRADUAL = ["--pruning", "gradual", "--mask_step", "0.34", "--prune_every", "1" if DRY else "3"]
OFFLOADED = "zero3_offload"
COMPARED = 3  # modes of each group that run on the CPU too. It takes three times as long


class Mode(NamedTuple):
    """One run: its name, its file of `ds_configs`, its flags."""

    name: str
    zero: str
    flags: list[str]


GROUPS = {
    "bf16": [
        Mode("pretuning", "zero2", PRETUNING),
        Mode("pretuning", "zero3", PRETUNING),
        Mode("pretuning", "zero2_offload", PRETUNING),
        Mode("pretuning", OFFLOADED, PRETUNING),
        Mode("hidden dimensions too", "zero3", [*PRETUNING, "--prune_blocks", "heads,neurons,hidden"]),
        Mode("gradual, teacher, sizes by layer", "zero2", [*GRADUAL, "--distill", "--structure", "adaptive"]),
        Mode("gradual, teacher", "zero3", [*GRADUAL, "--distill"]),
        Mode("gradual, product by batch", OFFLOADED, [*GRADUAL, "--salience_product", "batch"]),
        Mode("gradient checkpointing", "zero3", [*PRETUNING, "--gradient_checkpointing"]),
        Mode("packing", "zero2", [*PRETUNING, "--packing"]),
        Mode("accumulation", "zero2", [*GRADUAL, "--gradient_accumulation_steps", "2"]),
        Mode("lora_prune", "zero2", ["--method", "lora_prune", *PRETUNING]),
        Mode("prune_lora", "zero3", ["--method", "prune_lora", *PRETUNING]),
        Mode("full", "zero2", ["--method", "full"]),
    ],
    "fp16": [
        Mode("pretuning", "zero2", PRETUNING),
        Mode("pretuning", "zero3", PRETUNING),
        Mode("pretuning", OFFLOADED, PRETUNING),
        Mode("gradual, teacher", "zero2", [*GRADUAL, "--distill"]),
        Mode("gradual, product by batch", "zero3", [*GRADUAL, "--salience_product", "batch"]),
        Mode("lora_prune", "zero3", ["--method", "lora_prune", *PRETUNING]),
        Mode("prune_lora", "zero2", ["--method", "prune_lora", *PRETUNING]),
    ],
    "bits": [
        Mode("4 bits", "zero2", [*PRETUNING, "--base_bits", "4"]),
        Mode("4 bits, gradient checkpointing", "zero3", [*GRADUAL, "--base_bits", "4", "--gradient_checkpointing"]),
        Mode("4 bits", OFFLOADED, [*PRETUNING, "--base_bits", "4"]),
        Mode("8 bits", "zero2", [*PRETUNING, "--base_bits", "8", "--export_bits", "8"]),
        Mode("moments of 8 bits", "zero2", [*GRADUAL, "--optim", "adamw_8bit"]),
        Mode("moments of 8 bits", "zero3", [*GRADUAL, "--optim", "paged_adamw_8bit"]),
    ],
}


def dtype_flags(group: str, reference: bool) -> list[str]:
    """The flag of a group's dtype. fp16 on the CPU becomes fp32."""
    if group == "fp16":
        return [] if reference or DRY else ["--fp16"]
    return ["--bf16"]


def measure(mode: Mode, group: str, work: Path, reference: bool) -> dict[str, Any]:
    """Run one mode. Returns its losses and figures.

    Raises:
        AssertionError: a loss is not finite, or the model has not shrunk to its target.
    """
    name = f"{group}{'_cpu' if reference else ''}_{mode.name}_{mode.zero}".replace(" ", "_").replace(",", "")
    run = run_of(work, name, mode.zero, [*dtype_flags(group, reference), *mode.flags])
    start = time.perf_counter()
    summary = apt_ds.train(run)
    lines = (Path(run.output.output_dir) / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert None not in losses, f"losses are not finite: {losses}"
    pruning = summary["pruning"]
    assert pruning["kept"] <= pruning["target_kept"], f"kept {pruning['kept']}, target {pruning['target_kept']}"
    figures = {"before": summary["before"]["held_out_loss"], "after": summary["after"]["held_out_loss"]}
    figures |= {"losses": losses, "kept": pruning["kept"], "rebuild_seconds": pruning["rebuild_seconds"]}
    return figures | {"seconds": time.perf_counter() - start}


def describe(figures: dict[str, Any]) -> str:
    """The figures of a mode in one line."""
    rebuilds = " ".join(f"{seconds:.2f}" for seconds in figures["rebuild_seconds"]) or "none"
    return (
        f"loss {figures['losses'][0]:.3f} to {figures['losses'][-1]:.3f}, held out {figures['before']:.3f} to "
        f"{figures['after']:.3f}, kept {figures['kept']:.3f}, rebuilds {rebuilds} s, {figures['seconds']:.1f} s"
    )


def main() -> None:
    """Run a group. Status 1 if a mode fails."""
    group, work, figures, reference = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), "--reference" in sys.argv
    only = [part for part in os.environ.get("ONLY", "").split(";") if part]
    results: dict[str, Any] = {}
    failed = 0
    figures.write_text("{}", encoding="utf8")
    for mode in GROUPS[group][: COMPARED if reference else None]:
        label = f"{mode.name}, {mode.zero}"
        if only and not any(part in label for part in only):
            continue
        try:
            results[label] = measure(mode, group, work, reference)
            print(f"OK   {group}: {label}: {describe(results[label])}", flush=True)
        except Exception as error:
            # the next mode must run all the same
            traceback.print_exc()
            failed += 1
            print(f"FAIL {group}: {label}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        gc.collect()
        figures.write_text(json.dumps(results, indent=1), encoding="utf8")
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
