"""Rounding of pinned memory, against figures worked out by hand."""

from __future__ import annotations

from typing import Any

from apt_ds.analysis.memory_estimate import CODE, estimate
from apt_ds.analysis.memory_trace import Footprint, Weight
from apt_ds.analysis.pinned import optimizer_rounding, parameter_rounding, rounding
from apt_ds.analysis.sharding import Bytes, Layout, Sharding

# frozen: 3 and 4 million elements; trained: 1 million
MODEL = Footprint(
    (Weight("a", 3_000_000, False), Weight("b", 4_194_304, False), Weight("c", 1_000_000, True)),
    5_000,
    3_000,
    4_194_304,
)
BF16 = Layout(world=2, item=2, stored=2)
CPU = {"device": "cpu"}
MIB = 1 << 20


def sharding(stage: int, layout: Layout = BF16, **sections: Any) -> Sharding:
    return Sharding(MODEL, {"stage": stage, **sections}, layout)


def test_every_piece_is_rounded_up_to_a_power_of_two() -> None:
    assert rounding([1, 2, 3, 1024, 1025]) == 0 + 0 + 1 + 0 + 1023
    assert rounding([]) == rounding([0]) == 0


def test_stage_2_rounds_each_part_of_the_optimizer() -> None:
    # half of a million trained elements: master and gradients of 2,000,000 bytes, a copy of 1,000,000
    expected = 2 * (2 * MIB - 2_000_000) + (MIB - 1_000_000)
    assert optimizer_rounding(sharding(2, offload_optimizer=CPU)) == expected
    assert optimizer_rounding(sharding(1, offload_optimizer=CPU | {"pin_memory": True})) == expected
    assert parameter_rounding(sharding(2, offload_optimizer=CPU, offload_param=CPU)) == 0


def test_stage_3_rounds_each_weight_and_group() -> None:
    both = sharding(3, offload_optimizer=CPU, offload_param=CPU)
    # shares of both frozen weights, one by one, and of the trained ones; gradients in bf16 and fp32
    assert parameter_rounding(both) == (4 * MIB - 3_000_000) + 0 + (MIB - 1_000_000)
    assert optimizer_rounding(both) == (MIB - 1_000_000) + (2 * MIB - 2_000_000)
    pieces = sharding(3, offload_optimizer=CPU, sub_group_size=300_000)
    assert optimizer_rounding(pieces) == (MIB - 1_000_000) + (2 * MIB - 1_200_000) + (MIB - 800_000)


def test_without_pinned_offload_nothing_is_rounded() -> None:
    unpinned = {"device": "cpu", "pin_memory": False}
    for case in (
        sharding(3),
        sharding(3, offload_optimizer=unpinned, offload_param=unpinned),
        sharding(3, BF16._replace(on_cpu=True), offload_optimizer=CPU, offload_param=CPU),
    ):
        assert parameter_rounding(case) == optimizer_rounding(case) == 0


def test_the_estimate_counts_it_on_the_host() -> None:
    offload = {"offload_optimizer": CPU, "offload_param": CPU}
    config = {"zero_optimization": {"stage": 3} | offload}
    on_gpu, on_cpu = estimate(MODEL, config, BF16), estimate(MODEL, config, BF16._replace(on_cpu=True))
    params, optimizer = (f(sharding(3, **offload)) for f in (parameter_rounding, optimizer_rounding))
    assert on_gpu.parts["rounding of pinned memory"] == Bytes(0, params + optimizer)
    assert "rounding of pinned memory" not in on_cpu.parts
    assert on_gpu.phases["step"].host == sum(part.host for part in on_gpu.parts.values()) + CODE
    assert on_gpu.phases["step"].host - on_cpu.phases["step"].host == params + optimizer
    # a rebuild has no engine, but the weights stay pinned
    assert on_gpu.phases["rebuild"].host - on_cpu.phases["rebuild"].host == params
