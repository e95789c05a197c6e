"""The table that can be pasted into the benchmarks' page."""

from __future__ import annotations

from apt_ds.analysis.bench.markdown import render
from apt_ds.analysis.bench.table import Timed, summarize
from apt_ds.analysis.cluster_model import Load
from tests.analysis.test_benchmark import SHAPE

SECONDS = {"lora": 1.0, "dense": 0.95, "cut30": 0.7}


def rounds(reserved: int = 0, attention: str = "sdpa") -> dict[str, list[Timed]]:
    """One round of each variant, which allocates 1 GB a second of its step."""
    return {
        name: [Timed([s], round(1e9 * s), None, SHAPE, [2.5] if "cut" in name else [], 8, 9, reserved, attention)]
        for name, s in SECONDS.items()
    }


def rows(text: str) -> list[list[str]]:
    """The cells of a table, which must have a head, a rule, and rows of one length."""
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text.splitlines()]
    assert all(len(row) == len(cells[0]) for row in cells) and set(cells[1]) == {"---"}
    return [cells[0], *cells[2:]]


def test_a_cpu_has_neither_reserved_bytes_nor_captured_graphs() -> None:
    figures = summarize(rounds(), Load(100, 0, 1), 1, 1e6)
    head, lora, _, cut = rows(render(figures))
    assert head[1:9] == [
        *("attention", "s/step", "to LoRA", "target", "tokens/s"),
        *("allocated, MB", "allocated, to LoRA", "target, memory"),
    ]
    assert lora[:7] == ["PEFT LoRA", "sdpa", "1.000", "1.000", "", "100", "1,000"]
    assert cut[:9] == ["apt_ds, 30 % cut", "sdpa", "0.700", "0.700", "0.75", "143", "700", "0.700", "0.72"]
    assert cut[-1] == "2.50" and head[-1] == "rebuild, s"


def test_a_gpu_shows_its_kernel_its_allocator_and_captured_generation() -> None:
    figures = summarize(rounds(2_500_000_000, "varlen"), Load(100, 0, 1), 1, 1e6)
    speeds = {"decode 1": 50.0, "static 1": 100.0, "decode 32": 800.0, "static 32": 900.0}
    figures["inference"] = {"dense": speeds, "cut30": {key: 1.3 * value for key, value in speeds.items()}}
    figures["inference"]["cut50"] = {"decode 1": 51.0, "decode 32": 1000.0}
    figures["static_is_captured"] = True
    table = rows(render(figures))
    lora, dense, cut30, cut50 = (dict(zip(table[0], row, strict=True)) for row in table[1:])
    assert lora["attention"] == "varlen" and lora["reserved, MB"] == "2,500" and lora["captured at 1"] == ""
    assert dense["decode at 1, tokens/s"] == "50.0" and dense["captured at 32"] == "900.0"
    assert cut30["captured at 1"] == "130.0 (1.30)" and cut30["decode at 32, tokens/s"] == "1,040.0 (1.30)"
    assert cut50["s/step"] == "" and cut50["captured at 1"] == "not measured"
    assert cut50["decode at 1, tokens/s"] == "51.0 (1.02)"
