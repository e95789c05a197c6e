"""Turns measurements into figures, and figures into the table with its targets."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from apt_ds.analysis.bench.variants import LORA, VARIANTS
from apt_ds.analysis.cluster_model import Load, Shape, training_flops

REBUILD_SECONDS = 5.0  # at 7B on a GPU
FASTER = 1.35  # target of generation with 30 % removed, relative to dense
Figures = dict[str, Any]


@dataclass
class Timed:
    """The cost of one round of a variant. Bytes are the maximum over ranks, joules those of rank 0's device.

    Attributes:
        seconds: of each timed step.
        peak: bytes.
        joules: per step. None where the device does not report energy.
        shape: sizes of the model.
        rebuild: seconds of each rebuild.
        steady: peak bytes of a dense step before the rebuild.
        rebuild_peak: peak bytes of the rebuild.
        reserved: peak bytes that the allocator of a GPU reserved. 0 on the CPU.
        attention: the attention kernel.
    """

    seconds: list[float]
    peak: int
    joules: float | None
    shape: Shape
    rebuild: list[float] = field(default_factory=list)
    steady: int = 0
    rebuild_peak: int = 0
    reserved: int = 0
    attention: str = ""


def summarize(rounds: dict[str, list[Timed]], load: Load, devices: int, peak_flops: float, process: int = 0) -> Figures:
    """Figures by kind and variant: medians of seconds, maxima of bytes.

    Args:
        rounds: the rounds of each variant.
        load: work of one device in a step.
        devices: number of devices. Tokens per second are those of all devices.
        peak_flops: of one device. Utilisation is the arithmetic of a step over what the device could do in its time.
        process: bytes of a process without a model. They are subtracted from every peak, since a GPU lacks them.
    """
    figures: Figures = {"step_seconds": {}, "tokens_per_second": {}, "peak_memory_bytes": {}, "utilisation": {}}
    figures |= {"joules_per_step": {}, "rebuild_seconds": {}, "rebuild_peak_bytes": {}, "steady_peak_bytes": {}}
    figures |= {"reserved_bytes": {}, "attention": {}}
    for name, taken in rounds.items():
        seconds = statistics.median(s for one in taken for s in one.seconds)
        figures["step_seconds"][name] = seconds
        figures["tokens_per_second"][name] = load.tokens * devices / seconds
        figures["peak_memory_bytes"][name] = max(one.peak for one in taken) - process
        figures["attention"][name] = taken[0].attention
        if reserved := max(one.reserved for one in taken):
            figures["reserved_bytes"][name] = reserved
        figures["utilisation"][name] = training_flops(taken[0].shape, load) / (seconds * peak_flops)
        joules = [one.joules for one in taken if one.joules is not None]
        if joules:
            figures["joules_per_step"][name] = statistics.median(joules)
        rebuilds = [s for one in taken for s in one.rebuild]
        if rebuilds:
            figures["rebuild_seconds"][name] = statistics.median(rebuilds)
            figures["rebuild_peak_bytes"][name] = max(one.rebuild_peak for one in taken) - process
            figures["steady_peak_bytes"][name] = max(one.steady for one in taken) - process
    return figures


def render(figures: Figures) -> str:
    """The table. Ratios and verdicts require that LoRA was measured too."""
    lines = [_training(figures)]
    if figures["rebuild_seconds"]:
        lines += ["", _rebuilds(figures)]
    if figures.get("rounding"):
        lines += ["", _rounding(figures["rounding"])]
    if figures.get("inference"):
        lines += ["", _inference(figures["inference"])]
    return "\n".join([*lines, "", *_verdicts(figures), *figures.get("notes", [])])


def _training(figures: Figures) -> str:
    joules = figures["joules_per_step"]
    head = ["step s", "tokens/s", "peak MB", "MFU", *(["J/step"] if joules else [])]
    head += ["time/lora", "memory/lora"] if LORA in figures["step_seconds"] else []
    lines = [f"{'training':28}" + "".join(f"{title:>12}" for title in head)]
    step, peak = figures["step_seconds"], figures["peak_memory_bytes"]
    for name in step:
        cells = [f"{step[name]:.3f}", f"{figures['tokens_per_second'][name]:,.0f}", f"{peak[name] / 1e6:,.0f}"]
        cells.append(f"{100 * figures['utilisation'][name]:.1f} %")
        cells += [f"{joules.get(name, 0):,.1f}"] if joules else []
        if LORA in step:
            cells += [f"{step[name] / step[LORA]:.3f}", f"{peak[name] / peak[LORA]:.3f}"]
        lines.append(f"{VARIANTS[name].what:28}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _rebuilds(figures: Figures) -> str:
    lines = [f"{'rebuild':28}{'seconds':>12}{'in steps':>12}{'peak MB':>12}{'dense step':>12}"]
    for name, seconds in figures["rebuild_seconds"].items():
        peak, steady = figures["rebuild_peak_bytes"][name], figures["steady_peak_bytes"][name]
        lines.append(
            f"{VARIANTS[name].what:28}{seconds:>12.2f}{seconds / figures['step_seconds'][name]:>12.2f}"
            f"{peak / 1e6:>12,.0f}{steady / 1e6:>12,.0f}"
        )
    return "\n".join(lines)


def _rounding(errors: dict[str, dict[str, float]]) -> str:
    lines = [f"{'error of weights, %':28}{'cut':>12}{'largest':>12}{'sliced first':>14}{'largest':>12}"]
    for name, error in errors.items():
        cells = [f"{100 * error[key]:.2f}" for key in ("cut", "cut_max", "sliced_first", "sliced_first_max")]
        lines.append(f"{VARIANTS[name].what:28}{cells[0]:>12}{cells[1]:>12}{cells[2]:>14}{cells[3]:>12}")
    return "\n".join(lines)


def _inference(speeds: dict[str, dict[str, float]]) -> str:
    batches = [key for key in next(iter(speeds.values())) if key.startswith("batch")]
    head = [title for batch in batches for title in (f"{batch}, tok/s", "to dense", "first, ms")]
    lines = [f"{'generation':28}" + "".join(f"{title:>17}" for title in head)]
    for name, speed in speeds.items():
        cells = []
        for batch in batches:
            first = speed[batch.replace("batch", "first")]
            cells += [f"{speed[batch]:,.1f}", f"{speed[batch] / speeds['dense'][batch]:.3f}", f"{1e3 * first:,.1f}"]
        lines.append(f"{name:28}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def _verdicts(figures: Figures) -> list[str]:
    lines = []
    for what, key in (("time", "step_seconds"), ("memory", "peak_memory_bytes")):
        values = figures[key]
        for name, value in values.items() if LORA in values else ():
            limit = getattr(VARIANTS[name], what)
            if limit is not None:
                ratio = value / values[LORA]
                lines.append(f"{name}: {ratio:.3f} of LoRA's {what}, target at most {limit}: {_word(ratio <= limit)}")
    for name, seconds in figures["rebuild_seconds"].items():
        met = _word(seconds <= REBUILD_SECONDS)
        lines.append(f"rebuild to {name}: {seconds:.2f} s, target at most {REBUILD_SECONDS:g}: {met}")
    speeds = figures.get("inference") or {}
    for batch in (1, 32) if "cut30" in speeds else ():
        ratio = speeds["cut30"][f"batch {batch}"] / speeds["dense"][f"batch {batch}"]
        lines.append(
            f"generation at batch {batch}, cut30: {ratio:.3f}x, target at least {FASTER}: {_word(ratio >= FASTER)}"
        )
    return lines


def _word(met: bool) -> str:
    return "met" if met else "MISSED"
