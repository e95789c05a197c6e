"""A decision at the sizes of LLaMA-2 7B and 13B costs milliseconds and megabytes, also for the finest alignment."""

from __future__ import annotations

import sys
import tracemalloc

import pytest

from apt_ds.analysis.bench import decision_cost
from apt_ds.config.errors import UserError
from apt_ds.models.blocks import kept_sizes
from apt_ds.pruning.budget_search import search

# milliseconds on a core that other processes may slow down: several times what an idle one needs, and less than the
# 20 to 120 ms of whole sorts at alignment 64, or the seconds of a whole grid at alignment 1
LIMITS = {("llama2-7b", 0): 12, ("llama2-13b", 0): 18, ("llama2-7b", 1): 60, ("llama2-13b", 1): 90}


@pytest.mark.parametrize("shape", decision_cost.SHAPES)
@pytest.mark.parametrize(("structure", "kinds", "align"), decision_cost.RULES)
def test_a_decision_is_cheap(shape: str, structure: str, kinds: str, align: int) -> None:
    pruner = decision_cost.pruner_of(shape, structure, kinds, align)
    assert pruner.rules.align_neurons == (align or 64)
    cost = decision_cost.measure(pruner)
    assert 0 < cost.search < LIMITS[shape, align]
    assert cost.search < 1.5 * cost.advance < 1.5 * (LIMITS[shape, align] + 12)
    budget = pruner.budget(1 - pruner.policy.kept_fraction(decision_cost.STEP, False))
    kept = pruner.anatomy.num_parameters(kept_sizes(pruner.anatomy.sizes, pruner.decision))
    assert 0.99 * budget <= kept <= budget < pruner.original


@pytest.mark.parametrize("shape", decision_cost.SHAPES)
@pytest.mark.parametrize(("structure", "kinds", "align"), decision_cost.RULES)
def test_a_search_needs_little_memory(shape: str, structure: str, kinds: str, align: int) -> None:
    """The scores alone are 3 and 4.5 MB. A grid of all triples would be gigabytes."""
    pruner = decision_cost.pruner_of(shape, structure, kinds, align)
    scores = pruner.scores()
    tracemalloc.start()
    try:
        search(scores, pruner.anatomy, pruner.rules, pruner.budget(0.2))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_the_table_has_a_row_for_each_rule(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["decision_cost", "smollm2-360m"])
    decision_cost.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(decision_cost.RULES)
    for line, (structure, _, _) in zip(lines[2:], decision_cost.RULES, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == ["smollm2-360m", structure] and all(float(cell) > 0 for cell in cells[4:])


def test_an_unknown_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["decision_cost", "llama9"])
    with pytest.raises(UserError, match="llama9 is an unknown shape"):
        decision_cost.main()
