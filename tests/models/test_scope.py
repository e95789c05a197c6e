"""Which kinds of block compete for removal."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.scope import check_experts, competing_kinds
from tests.support import tiny, tiny_experts


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [("q,v", ("heads", "hidden")), ("up", ("neurons", "hidden")), ("o,down", ("heads", "neurons", "hidden"))],
)
def test_adapted_sublayers_compete(targets: str, kinds: tuple[str, ...]) -> None:
    run = RunConfig(model_name_or_path="m", data_path="d", prune_blocks="heads,neurons,hidden")
    run, anatomy = run.replace(adapter_targets=targets), anatomy_of(tiny.config())
    assert competing_kinds(run.replace(prune_scope="all"), anatomy) == ("heads", "neurons", "hidden")
    assert competing_kinds(run.replace(prune_scope="adapted"), anatomy) == kinds


def test_blocks_that_the_run_keeps_never_compete() -> None:
    run = RunConfig(model_name_or_path="m", data_path="d", prune_blocks="neurons", prune_scope="adapted")
    assert competing_kinds(run.replace(adapter_targets="q,v"), anatomy_of(tiny.config())) == ()


@pytest.mark.parametrize("score", ["flap", "wanda_sp"])
def test_scores_of_inputs_keep_hidden_dimensions(score: str) -> None:
    run = RunConfig(model_name_or_path="m", data_path="d", prune_blocks="heads,neurons,hidden", score=score)
    assert competing_kinds(run, anatomy_of(tiny.config())) == ("heads", "neurons")


def test_experts_have_no_adapters_and_compete_only_in_the_widest_scope() -> None:
    run = RunConfig(model_name_or_path="m", data_path="d", prune_blocks="heads,neurons,experts", adapter_targets="q,v")
    anatomy = anatomy_of(tiny_experts.model("mixtral").config)
    assert competing_kinds(run.replace(prune_scope="all"), anatomy) == ("heads", "neurons", "experts")
    assert competing_kinds(run.replace(prune_scope="adapted"), anatomy) == ("heads",)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"adapter_targets": "q,up"}, "--adapter_targets up: the experts .* give some of q,k,v,o"),
        ({"align": 12}, "--align 12: .* give a multiple of 8, or 0"),
        ({"score": "l0", "pruning": "gradual"}, "--score l0 does not support a mixture of experts"),
        ({"score": "fisher"}, "--score fisher does not support a mixture of experts; give salience, taylor or random"),
        ({"score": "obs"}, "--score obs does not support a mixture of experts; give salience, taylor or random"),
        ({"score": "flap"}, "--score flap does not support a mixture of experts; give salience, taylor or random"),
        ({"base_bits": 4}, "--base_bits 4: bitsandbytes quantizes linear layers only, .* give --base_bits 16"),
    ],
)
def test_options_that_do_not_support_experts_are_refused(flags: dict[str, object], text: str) -> None:
    run = RunConfig(model_name_or_path="m", data_path="d", pruning="pretuning", prune_blocks="experts")
    mixture, dense = anatomy_of(tiny_experts.model("olmoe").config), anatomy_of(tiny.config())
    check_experts(run, mixture)
    check_experts(run.replace(prune_blocks="neurons", **flags), dense)
    with pytest.raises(UserError, match=text):
        check_experts(run.replace(**flags), mixture)


def test_experts_of_a_model_without_any_are_refused_where_the_run_prunes() -> None:
    run = RunConfig(model_name_or_path="m", data_path="d", pruning="none", prune_blocks="experts")
    check_experts(run, anatomy_of(tiny.config()))
    with pytest.raises(UserError, match="--prune_blocks experts: the model has no experts; give some of heads"):
        check_experts(run.replace(pruning="gradual"), anatomy_of(tiny.config()))
