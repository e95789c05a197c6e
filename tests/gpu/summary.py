"""What the check found: a line for each stage, the targets, and tables in Markdown for `launchers/BENCHMARKS.md`.

    python -m tests.gpu.summary FOLDER COMMAND STAGES

Writes `targets.md`, `benchmarks.md` and `summary.json` to the folder, and prints all of it. A figure that was not
measured keeps its row. Exit status 1 if a stage did not run or failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from apt_ds.analysis.bench.table import FASTER, REBUILD_SECONDS
from apt_ds.analysis.bench.variants import LORA, VARIANTS
from apt_ds.runtime.files import write_json
from tests.gpu.see import card, driver, versions
from tests.support.paths import ROOT

# stages of the command to the processes that they start
PROCESSES = {
    "make": ("compile", "model"),
    "modes": ("bf16", "bf16-cpu", "fp16", "fp16-cpu", "bits", "bits-cpu", "memory", "resume", "losses"),
}
BITS_LIMIT = 12.0  # GiB of 7B in 4 bits
LINES = ("OK ", "FAIL")
Figures = dict[str, Any]


class Stage(NamedTuple):
    """How a process of the check ended.

    Attributes:
        name: Its name.
        state: OK, FAIL, TIMEOUT, SKIPPED, or MISSING if it never started.
        seconds: What it took.
        limit: What it may take, in seconds.
    """

    name: str
    state: str
    seconds: str
    limit: str


class Target(NamedTuple):
    """A figure with its target.

    Attributes:
        what: its name.
        value: None if it was not measured.
        limit: the target.
        unit: its unit, '' for a ratio.
        above: whether the value must be at least the limit. Otherwise at most.
    """

    what: str
    value: float | None
    limit: float
    unit: str = ""
    above: bool = False

    @property
    def verdict(self) -> str:
        """Met, MISSED or not measured."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.limit if self.above else self.value <= self.limit
        return "met" if met else "MISSED"


def stages_of(folder: Path, wanted: list[str]) -> list[Stage]:
    """The ends of all processes of the stages `wanted`, in order."""
    path = folder / "stages.tsv"
    lines = path.read_text(encoding="utf8").splitlines() if path.is_file() else []
    ended = {line.split("\t")[0]: Stage(*line.split("\t")) for line in lines}
    names = [name for stage in wanted for name in PROCESSES.get(stage, (stage,))]
    return [ended.get(name, Stage(name, "MISSING", "0", "0")) for name in names]


def read(folder: Path, name: str) -> Figures:
    """Figures of a stage, {} if it wrote none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}


def ratio(values: dict[str, float], variant: str) -> float | None:
    """A variant's figure relative to PEFT's LoRA in the same run."""
    return values[variant] / values[LORA] if variant in values and LORA in values else None


def reserved(figures: Figures) -> dict[str, float]:
    """Bytes that the allocator of the GPU reserved for each variant. In a dry run the resident memory."""
    reserved_bytes = figures.get("reserved_bytes", {})
    return figures.get("peak_memory_bytes", {}) if not reserved_bytes and os.environ.get("DRY") else reserved_bytes


def generated(figures: Figures, batch: str, way: str) -> float | None:
    """Speed of generation with 30 % removed, relative to dense."""
    speeds = figures.get(batch)
    return speeds["cut30"][way] / speeds["dense"][way] if speeds else None


def targets_of(folder: Path) -> list[Target]:
    """All targets, measured or not."""
    train, four = read(folder, "train7"), read(folder, "bits7")
    generation, offload = read(folder, "generate"), read(folder, "offload13")
    seconds = train.get("step_seconds", {})
    rows = [Target("scoring on: time to LoRA", ratio(seconds, "dense"), VARIANTS["dense"].time or 0)]
    for name, removed in (("cut30", "30 %"), ("cut50", "50 %")):
        variant = VARIANTS[name]
        rows.append(Target(f"{removed} removed: time to LoRA", ratio(seconds, name), variant.time or 0))
        memory = ratio(reserved(train), name)
        rows.append(Target(f"{removed} removed: reserved memory to LoRA", memory, variant.memory or 0))
    for batch in ("batch 1", "batch 32"):
        speed = generated(generation, batch, "captured")
        rows.append(Target(f"30 % removed: captured generation to dense, {batch}", speed, FASTER, above=True))
    rebuilds = train.get("rebuild_seconds", {}).values()
    rows.append(Target("rebuild of 7B", max(rebuilds, default=None), REBUILD_SECONDS, "s"))
    taken = reserved(four).get("dense4")
    rows.append(Target("7B in 4 bits: reserved memory", taken and taken / 2**30, BITS_LIMIT, "GiB"))
    ran = float(len(offload["step_seconds"])) if "step_seconds" in offload else None
    rows.append(Target("13B under ZeRO-3 with offload: variants that ran", ran, 2, above=True))
    return rows


def targets_table(rows: list[Target]) -> str:
    """The targets in Markdown."""
    lines = ["| | measured | target | |", "|---|---|---|---|"]
    for row in rows:
        value = "-" if row.value is None else f"{row.value:.3f} {row.unit}".strip()
        limit = f"{'>=' if row.above else '<='} {row.limit:g} {row.unit}".strip()
        lines.append(f"| {row.what} | {value} | {limit} | {row.verdict} |")
    return "\n".join(lines)


HEAD = ("", "s/step", "to LoRA", "tokens/s", "peak MB", "reserved MB", "to LoRA", "utilisation", "rebuild, s")


def training_table(figures: Figures) -> str:
    """A benchmark's figures in Markdown, a row for each variant."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name, seconds in figures["step_seconds"].items():
        time, memory = ratio(figures["step_seconds"], name), ratio(reserved(figures), name)
        cells = [VARIANTS[name].what, f"{seconds:.3f}", "-" if time is None else f"{time:.3f}"]
        cells.append(f"{figures['tokens_per_second'][name]:,.0f}")
        for memory_of in (figures["peak_memory_bytes"], reserved(figures)):
            cells.append(f"{memory_of[name] / 1e6:,.0f}" if name in memory_of else "-")
        cells += ["-" if memory is None else f"{memory:.3f}", f"{100 * figures['utilisation'][name]:.0f} %"]
        rebuild = figures["rebuild_seconds"].get(name)
        lines.append(f"| {' | '.join([*cells, '' if rebuild is None else f'{rebuild:.2f}'])} |")
    return "\n".join(lines)


def generation_table(figures: Figures) -> str:
    """Tokens per second in Markdown, relative to dense in brackets."""
    columns = [(batch, way) for batch in ("batch 1", "batch 32") for way in ("eager", "captured")]
    lines = [f"| | {' | '.join(f'{way}, {batch}' for batch, way in columns)} |", "|---|---|---|---|---|"]
    for name in figures["batch 1"]:
        cells = []
        for batch, way in columns:
            speeds = figures[batch]
            cells.append(f"{speeds[name][way]:,.1f} ({speeds[name][way] / speeds['dense'][way]:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def profile_table(figures: Figures) -> str:
    """Milliseconds of each phase of a scored dense step in Markdown."""
    rows = [f"| {name} | {1e3 * seconds:,.1f} |" for name, seconds in figures["phases"].items()]
    rows.append(f"| **step** | {1e3 * figures['step_seconds']:,.1f} |")
    rows.append(f"| device busy, watched | {1e3 * figures['busy_seconds']:,.1f} |")
    return "\n".join(["| phase | ms |", "|---|---|", *rows])


SECTIONS = {
    "train7": ("7B, ZeRO-2, bf16", training_table),
    "zero3": ("7B, ZeRO-3, bf16", training_table),
    "bits7": ("7B in 4 bits, one example", training_table),
    "offload13": ("13B, ZeRO-3 with offload, gradient checkpointing", training_table),
    "generate": ("Generation of 7B in bf16, tokens per second", generation_table),
    "profile": ("Where a scored step of dense 7B goes", profile_table),
}


def commit() -> str:
    """The commit that was measured, '' outside of a repository."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def benchmarks(folder: Path, command: str) -> str:
    """The page for `launchers/BENCHMARKS.md`."""
    packages = versions()
    named = ", ".join(f"{name} {packages[name]}" for name in ("torch", "deepspeed", "transformers", "peft"))
    parts = [f"## On a GPU: {card()}", f"{date.today()}, commit {commit() or '-'}, driver {driver() or '-'}, {named}."]
    parts.append(f"```bash\n{command}\n```")
    parts += ["A dry run: all sizes are tiny, whatever a title says."] if os.environ.get("DRY") else []
    for name, (title, table) in SECTIONS.items():
        figures = read(folder, name)
        parts += [f"**{title}**", table(figures) if figures else "Not measured."]
    return "\n\n".join(parts) + "\n"


def facts_of(folder: Path, stage: Stage) -> list[str]:
    """The lines of a process's log that begin with OK or FAIL. The end of the log if the process failed without one."""
    path = folder / f"{stage.name}.log"
    lines = path.read_text(encoding="utf8", errors="replace").splitlines() if path.is_file() else []
    facts = [line for line in lines if line.startswith(LINES)]
    silent = stage.state in ("FAIL", "TIMEOUT") and not any(line.startswith("FAIL") for line in facts)
    return facts + [f"     {line[:200]}" for line in lines[-5:]] if silent else facts


def main() -> None:
    """Write and print everything."""
    folder, command, wanted = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split()
    stages, rows = stages_of(folder, wanted), targets_of(folder)
    targets, page = targets_table(rows), benchmarks(folder, command)
    (folder / "targets.md").write_text(targets + "\n", encoding="utf8")
    (folder / "benchmarks.md").write_text(page, encoding="utf8")
    facts = {"card": card(), "stages": [stage._asdict() for stage in stages], "command": command}
    write_json(folder / "summary.json", facts | {"targets": [row._asdict() | {"verdict": row.verdict} for row in rows]})
    for stage in stages:
        print(f"== {stage.name}: {stage.state}, {stage.seconds} s of {stage.limit}")
        print("".join(f"{line}\n" for line in facts_of(folder, stage)), end="")
    print(f"\n{page}\n{targets}\n")
    failed = [stage for stage in stages if stage.state != "OK"]
    print("all stages said OK" if not failed else "not OK: " + ", ".join(f"{s.name} {s.state}" for s in failed))
    sys.exit(min(len(failed), 1))


if __name__ == "__main__":
    main()
