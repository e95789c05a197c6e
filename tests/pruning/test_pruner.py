"""When gradual pruning moves masks, cuts, measures kurtosis and takes masks off (section 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.analysis.dry_run import dry_run
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.models import quantization_checks
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.rules import mask_notice
from apt_ds.pruning.surgery import apply_plan
from apt_ds.training import run
from tests.support import tiny
from tests.support.paths import ROOT

CPU = torch.device("cpu")
GRADUAL = {"pruning": "gradual", "structure": "adaptive", "sparsity": 0.4, "align": 4, "rank_growth": "none"}
BLOCKS = "heads,neurons,hidden"
PAPER = ["--recipe", "paper", "--sparsity", "0.4", "--calibration_steps", "3"]


def table() -> Anatomy:
    return anatomy_of(tiny.config("mha"))


def wandering(draw: np.random.Generator, scores: np.ndarray) -> np.ndarray:
    """Scores of the next step: most stay near, some are drawn again, so that decisions turn round."""
    again = draw.random(len(scores)) < 0.05
    return np.where(again, draw.random(len(scores)), scores * draw.uniform(0.9, 1.1, len(scores)))


def drive(
    pruner: Pruner, model: torch.nn.Module, steps: int, seed: int, late: float = 1.0
) -> list[tuple[int, float, bool]]:
    """Advance and carry out plans: (step, how far logits moved, whether masks are off) of each step with a change.

    late: where kept masks are at most when the phase ends, those to remove being at 0.
    """
    draw, changes = np.random.default_rng(seed), []
    scores = draw.random(pruner.anatomy.sizes.total())
    generator = torch.Generator()
    pruner.install_hooks(model, scoring=False)
    for step in range(1, steps + 1):
        scores = wandering(draw, scores)
        pruner.scorer.average = torch.from_numpy(scores).float()
        pruner.advance(step)
        if step == pruner.phase and late < 1.0:
            pruner.masks.set(np.where(pruner.decision, np.minimum(pruner.masks.values, late), 0.0))
        masks, was_settled = pruner.masks.values.copy(), pruner.pruning_finished
        before = model(tiny.ids()).logits
        plan = pruner.plan(step, steps, model)
        if plan:
            pruner.remove_hooks()
            anatomy = apply_plan(model, pruner.anatomy, plan, None, generator)
            pruner.follow(plan, anatomy, step)
            pruner.install_hooks(model, scoring=False)
            scores = scores[plan.keep]
        if pruner.pruning_finished and not was_settled and step < steps:
            kept = plan.keep if plan else np.ones(len(masks), dtype=bool)
            assert (masks[kept] == 1.0).all() and (masks[~kept] == 0.0).all()
        if plan or pruner.pruning_finished != was_settled:
            moved = (model(tiny.ids()).logits - before).abs().max().item()
            changes.append((step, moved, pruner.pruning_finished))
    return changes


@torch.no_grad()
@pytest.mark.parametrize("structure", ["adaptive", "uniform"])
@pytest.mark.parametrize("hold", [False, True])
def test_masks_come_off_where_they_change_nothing(structure: str, hold: bool) -> None:
    """Over wandering scores, no cut and no end of the masks moves a logit."""
    ends = set()
    for seed in range(8):
        model = tiny.model("mha")
        flags = GRADUAL | {"structure": structure, "prune_blocks": BLOCKS, "mask_step": 0.07}
        run = RunConfig(**flags, defer_cuts=hold, prune_every=5 + seed % 3)
        pruner = Pruner(run, table(), 60, CPU)
        changes = drive(pruner, model, 60, seed)
        assert max(moved for _, moved, _ in changes) < 1e-5, (seed, changes)
        assert pruner.pruning_finished and pruner.at_target()
        assert not any(len(module._forward_pre_hooks) for module in model.modules())
        ends.add(changes[-1][0])
    # 15 moves after the last decision at step 30 suffice; some runs need fewer
    assert max(ends) <= 45 and len(ends) > 1


@torch.no_grad()
@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("every", [5, 7])
def test_masks_stay_on_until_the_kept_ones_are_back_at_1(every: int, hold: bool) -> None:
    """Also where all that goes is dead, or cut already, when the phase ends."""
    model = tiny.model("mha")
    run = RunConfig(**GRADUAL, prune_blocks=BLOCKS, mask_step=0.1, prune_every=every, defer_cuts=hold)
    pruner = Pruner(run, table(), 40, CPU)
    changes = drive(pruner, model, 40, 3, late=0.25)
    assert max(moved for _, moved, _ in changes) < 1e-5, changes
    # from 0.25 to 1 in 8 steps after step 20
    assert [step for step, _, settled in changes if settled] == [28] and pruner.at_target()


@torch.no_grad()
def test_a_run_without_steps_for_its_masks_ends_with_them_at_0_and_1() -> None:
    model = tiny.model("mha")
    pruner = Pruner(RunConfig(**GRADUAL, mask_step=0.01), table(), 20, CPU)
    *_, (step, moved, settled) = drive(pruner, model, 20, 0)
    assert step == 20 and settled and pruner.at_target() and moved > 1e-3


def test_mask_step_means_what_it_says() -> None:
    for asked, total, expected in ((0.027, 150, 0.027), (0.01, 20, 0.01), (0.0, 1000, 0.01), (0.0, 20, 0.2)):
        assert Pruner(RunConfig(**GRADUAL, mask_step=asked), table(), total, CPU).mask_step == expected
    whole = RunConfig(**GRADUAL, pruning_phase=1.0)
    assert Pruner(whole, table(), 20, CPU).mask_step == 1.0 and not mask_notice(whole, 20)


@torch.no_grad()
def test_the_suggested_mask_step_is_enough() -> None:
    model, run = tiny.model("mha"), RunConfig(**GRADUAL, mask_step=0.02)
    changes = drive(Pruner(run, table(), 100, CPU), model, 100, 1)
    assert max(moved for _, moved, _ in changes) < 1e-5 and changes[-1][2]


@pytest.mark.parametrize("hold", [False, True])
def test_kurtosis_is_measured_again_at_every_adjustment(hold: bool) -> None:
    model = tiny.model("mha")
    pruner = Pruner(RunConfig(**GRADUAL, defer_cuts=hold, prune_every=4), table(), 20, CPU)
    pruner.install_hooks(model, scoring=False)
    measured = []
    for step in range(pruner.phase):
        pruner.scorer.abs_sums.fill_(1.0)
        if pruner.scorer.stale:
            pruner.scorer.measure_outliers(model)
            measured.append(step)
        pruner.scorer.update(1.0)
        pruner.advance(step + 1)
    assert pruner.phase == 10 and measured == [0, 4, 8]
    assert pruner.kept() == 1.0


def test_measuring_kurtosis_again_replaces_it() -> None:
    model = tiny.model("mha")
    scorer = Pruner(RunConfig(**GRADUAL, prune_blocks=BLOCKS), table(), 20, CPU).scorer
    scorer.abs_sums.fill_(1.0)
    scorer.measure_outliers(model)
    first = scorer.outliers.clone()
    scorer.measure_outliers(model)
    assert torch.equal(scorer.outliers, first) and first.sum() > 0


def test_masks_wait_for_the_first_finite_step() -> None:
    pruner = Pruner(RunConfig(**GRADUAL, mask_step=0.1), table(), 20, CPU)
    for step in (1, 2, 3):
        pruner.discard()
        pruner.advance(step)
        assert (pruner.masks.values == 1.0).all() and pruner.decision.all()
    pruner.scorer.average = torch.rand(pruner.anatomy.sizes.total())
    pruner.advance(4)
    assert (pruner.masks.values[~pruner.decision] == 0.9).all() and not pruner.decision.all()


def test_a_phase_without_a_finite_step_is_refused() -> None:
    pruner = Pruner(RunConfig(**GRADUAL), table(), 8, CPU)
    for step in range(1, pruner.phase):
        pruner.advance(step)
    with pytest.raises(UserError, match="no step of the pruning phase of 4 steps had a finite loss") as caught:
        pruner.advance(pruner.phase)
    assert "\n" not in str(caught.value)


def test_only_sublayers_with_an_adapter_compete_where_the_option_says_so() -> None:
    anatomy = table()
    neurons = np.concatenate(
        [np.arange(s.start, s.stop) for site, s in block_slices(anatomy.sizes) if anatomy.kind(site) == "neuron"]
    )
    expected = {"q,v": (True, False), "up": (False, True), "o,down": (True, True)}
    for targets, (heads_go, neurons_go) in expected.items():
        run = RunConfig(**(GRADUAL | {"sparsity": 0.2}), prune_scope="adapted", adapter_targets=targets)
        pruner = Pruner(run, anatomy, 20, CPU)
        density = torch.rand(anatomy.sizes.total(), generator=torch.Generator().manual_seed(1))
        pruner.scorer.average = density * torch.from_numpy(anatomy.params_per_block(anatomy.sizes))
        gone = np.flatnonzero(~pruner.decide(pruner.scores(), 0.2))
        assert (np.isin(gone, neurons).any(), (~np.isin(gone, neurons)).any()) == (neurons_go, heads_go), targets
        # the budget counts every prunable parameter
        assert pruner.budget(0.2) == 0.8 * anatomy.num_parameters(anatomy.sizes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"adapter_targets": "q,v", "prune_blocks": "neurons"}, "leaves nothing to prune: .*--prune_blocks neurons"),
        ({"adapter_targets": "q,v", "sparsity": 0.6}, "pruning heads with alignment .* or --prune_scope"),
    ],
)
def test_a_scope_that_cannot_meet_the_budget_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        Pruner(RunConfig(**(GRADUAL | {"prune_scope": "adapted"} | changes)), table(), 20, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("outlier", "weight"), [("normalized", 0.1), ("literal", 1.0), ("off", 0.1)])
def test_the_outlier_weight_follows_the_outlier_term(outlier: str, weight: float) -> None:
    assert Pruner(RunConfig(kurtosis=outlier), table(), 20, CPU).scorer.weight == weight
    assert Pruner(RunConfig(kurtosis=outlier, kurtosis_weight=0.3), table(), 20, CPU).scorer.weight == 0.3
    assert Pruner(RunConfig(kurtosis=outlier, kurtosis_weight=0.0), table(), 20, CPU).scorer.weight == 0.0


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A short run of a small model on the CPU."""
    place = tmp_path_factory.mktemp("pruner")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return [
        *("--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--model_name_or_path", str(place / "model")),
        *("--data_path", str(place / "data.json"), "--eval_size", "4", "--max_seq_length", "64", "--report", "false"),
        *("--per_device_train_batch_size", "2", "--max_steps", "8", "--sparsity", "0.2", "--align", "4"),
        *("--structure", "adaptive", "--output_dir", str(place / "out"), "--overwrite_output_dir"),
    ]


def test_a_run_prunes_where_its_adapters_are_and_tells_of_masks_that_jump(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    scope = ["--prune_scope", "adapted", "--adapter_targets", "down", "--pruning", "gradual", "--mask_step", "0.1"]
    figures = run.train(resolve([*words, *scope]))
    sizes = figures["pruning"]["sizes"]
    assert figures["pruning"]["kept"] <= 0.8
    assert sizes["heads"] == 2 and sizes["hidden"] == 32 and np.max(sizes["neurons"]) < 48
    errors = capfd.readouterr().err
    assert errors.count("--mask_step 0.1 is too small: masks need 10 steps") == 1 and "The run has 5." in errors


def test_a_run_by_the_papers_recipe(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    figures = run.train(resolve([*words[: words.index("--align")], *words[words.index("--output_dir") :], *PAPER]))
    sizes = figures["pruning"]["sizes"]
    assert figures["pruning"]["align"] == 1 and 0.59 < figures["pruning"]["kept"] <= 0.6
    # layers differ, and no multiple of anything
    assert len(set(sizes["neurons"])) == 2 and any(count % 2 for count in sizes["neurons"])
    assert "--mask_step" not in capfd.readouterr().err


def test_a_dry_run_tells_of_masks_that_jump(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert dry_run(resolve([*words, "--pruning", "gradual", "--mask_step", "0.1"])) is not None
    assert "--mask_step 0.1 is too small" in capfd.readouterr().err
    assert dry_run(resolve([*words, "--pruning", "gradual", "--mask_step", "0.25"])) is not None
    assert "--mask_step" not in capfd.readouterr().err


def test_blocks_that_do_not_compete_need_no_sizes_that_can_be_quantized() -> None:
    anatomy = anatomy_of(tiny.config("mha", hidden_size=64, intermediate_size=128, num_attention_heads=8,
                                     num_key_value_heads=8))  # fmt: skip
    run = RunConfig(base_bits=4, align=64, adapter_targets="up")
    with pytest.raises(UserError, match="pruning head blocks would leave"):
        quantization_checks._check_sizes(run, anatomy)
    quantization_checks._check_sizes(run.replace(prune_scope="adapted"), anatomy)


@torch.no_grad()
def test_a_repaired_gradual_cut_leaves_the_masks_at_1_until_it_comes() -> None:
    """What is evaluated between plan and cut is the model before the cut."""
    model, every = tiny.model("mha"), 5
    pruner = Pruner(RunConfig(**GRADUAL, prune_every=every, repair="ls"), table(), 40, CPU)
    scores, cuts = np.random.default_rng(0).random(pruner.anatomy.sizes.total()), []
    for step in range(1, 41):
        pruner.scorer.average = torch.from_numpy(scores).float()
        pruner.advance(step)
        plan = pruner.plan(step, 40, model)
        assert (pruner.masks.values == 1.0).all()
        if plan.keep is not None:
            cuts.append(step)
            anatomy = apply_plan(model, pruner.anatomy, plan, None, torch.Generator())
            scores = scores[plan.keep]
            pruner.follow(plan, anatomy, step)
    assert cuts == [5, 10, 15, 20] and pruner.pruning_finished and pruner.at_target()
