"""The bytes of a repair, against those that are alive while one runs."""

from __future__ import annotations

import pytest

from apt_ds.analysis.live_bytes import LiveBytes
from apt_ds.analysis.repair_memory import repair_bytes
from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning.repair import repair
from tests.pruning.test_layer_walk import batches
from tests.pruning.test_masks import random_keep
from tests.pruning.test_repair import without_hidden
from tests.support import tiny


@pytest.mark.parametrize(
    ("count", "wide"), [(2, {"hidden_size": 128, "intermediate_size": 1024}), (60, {"hidden_size": 128})]
)
def test_the_estimate_is_what_a_repair_keeps_alive(count: int, wide: dict[str, int]) -> None:
    model = tiny.model("gqa", **wide)
    anatomy = anatomy_of(model.config)
    keep = without_hidden(anatomy, random_keep(anatomy, 0))
    data = batches(anatomy, count, rows=8, length=32)
    with LiveBytes(model) as live:
        repair(model, anatomy, keep, data)
    estimated = repair_bytes(anatomy, [(8, 32)] * count, 4)
    assert estimated == pytest.approx(live.peak, rel=0.25), (estimated, live.peak)
