"""What options mean for plans: the blocks that compete, alignment, and the steps that masks need."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.pruning_options import PruningOptions
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning.rules import coarse_notice, mask_notice, rules_of
from tests.support import tiny

GRADUAL = {"pruning": "gradual", "structure": "adaptive", "sparsity": 0.4, "align": 4, "rank_growth": "none"}


def test_too_few_steps_for_masks_are_reported_in_one_line() -> None:
    text = mask_notice(RunConfig(**GRADUAL, mask_step=0.01), 100)
    assert text.startswith("--mask_step 0.01 is too small: masks need 100 steps") and "\n" not in text
    assert "The run has 51." in text and "Give --mask_step 0.02 or more" in text
    fitting = RunConfig(**GRADUAL, mask_step=0.02)
    assert not mask_notice(fitting, 100)
    assert not mask_notice(RunConfig(mask_step=0.01), 100)  # a cut all at once moves no masks


def test_hidden_dimensions_compete_in_any_scope() -> None:
    run = RunConfig(**GRADUAL, prune_scope="adapted", adapter_targets="q", prune_blocks="neurons,hidden")
    assert rules_of(run, anatomy_of(tiny.config("mha"))).kinds == ("hidden",)


def test_a_scope_without_blocks_is_refused_only_where_the_run_prunes() -> None:
    anatomy = anatomy_of(tiny.config("mha"))
    nothing = {"prune_scope": "adapted", "adapter_targets": "q,v", "prune_blocks": "neurons"}
    with pytest.raises(UserError, match="leaves nothing to prune"):
        rules_of(RunConfig(**GRADUAL, **nothing), anatomy)
    for flags in ({"pruning": "none"}, {"sparsity": 0.0}):
        assert rules_of(RunConfig(**(GRADUAL | flags), **nothing), anatomy).kinds == ()


def test_rules_take_structure_and_alignment() -> None:
    rules = rules_of(RunConfig(**GRADUAL, prune_blocks="neurons,heads"), anatomy_of(tiny.config("mha")))
    assert rules.kinds == ("heads", "neurons") and rules.structure == "adaptive"
    assert [rules.unit(kind) for kind in ("head", "neuron", "hidden")] == [1, 4, 4]
    assert [rules.may_go(kind) for kind in ("head", "neuron", "hidden")] == [True, True, False]


@pytest.mark.parametrize(("kept", "warns"), [(0.7, False), (0.681, False), (0.679, True), (0.2, True)])
def test_a_cut_far_beyond_the_budget_is_named(kept: float, warns: bool) -> None:
    text = coarse_notice(PruningOptions(sparsity=0.3, structure="uniform", prune_blocks="heads"), kept)
    assert bool(text) == warns
    if warns:
        assert text.startswith(f"{100 * kept:.1f} % of the prunable parameters remain where 70.0 % may")
        assert "--structure uniform, --prune_blocks heads and --align" in text
