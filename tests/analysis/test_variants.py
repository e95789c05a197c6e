"""The methods of a comparison, as an option names them."""

from __future__ import annotations

import pytest

from apt_ds.analysis.variants import Variant, parse_variants
from apt_ds.config.errors import UserError
from apt_ds.config.methods import METHODS, PRUNING_METHODS


def test_a_method_may_have_options_of_its_own() -> None:
    plain, own, wide = parse_variants("apt, apt[repair=ls,adapter_targets=q,v, align=8] ,lora[rank=4]")
    assert plain == Variant("apt") and (plain.label, plain.folder) == ("apt", "apt")
    assert own == Variant("apt", (("repair", "ls"), ("adapter_targets", "q,v"), ("align", "8")))
    assert own.label == "apt[repair=ls,adapter_targets=q,v,align=8]"
    # names of folders have no brackets, which programs expand
    assert own.folder == "apt-repair=ls-adapter_targets=q,v-align=8"
    assert wide.label == "lora[rank=4]" and parse_variants(own.label) == (own,)
    assert parse_variants("apt[calibration_path=]")[0].options == (("calibration_path", ""),)


def test_what_removes_nothing_is_known_by_its_options() -> None:
    unpruned = [name for name in METHODS if not Variant(name).prunes]
    assert {"lora", "full", "apt_unpruned"} <= set(unpruned) and "apt" not in unpruned
    assert not Variant("apt", (("pruning", "none"),)).prunes
    assert Variant("lora", (("pruning", "pretuning"),)).prunes


def test_one_word_names_all_methods_that_prune() -> None:
    assert {"apt", "prune_lora", "lora_prune"} <= set(PRUNING_METHODS)
    assert not {"lora", "full", "apt_unpruned", "apt_fixed_ranks"} & set(PRUNING_METHODS)
    names = [variant.label for variant in parse_variants("apt[align=8],pruning,lora")]
    assert names == ["apt[align=8]", *PRUNING_METHODS, "lora"]
    assert next(variant.label for variant in parse_variants("prune_lora,pruning")) == "prune_lora"
    assert len(parse_variants("prune_lora,pruning")) == len(PRUNING_METHODS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lora,magic", "'magic' is not allowed: give some of apt, lora"),
        ("", "'' is not allowed"),
        ("apt[repair=ls", "'apt[repair=ls' is not allowed: give a method, or one with options"),
        ("apt[]", "'' is an unknown option"),
        ("apt[repare=ls]", "'repare' is an unknown option (did you mean repair"),
        ("apt[repair]", "repair has no value: give repair=VALUE"),
        ("apt[seed=3]", "seed is not allowed here: it is given elsewhere"),
        ("apt[align=3,align=4]", "align is not allowed here"),
        ("apt,apt", "apt is named twice"),
    ],
)
def test_mistakes_name_the_item(text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_variants(text)
    assert str(caught.value).startswith("--methods") and problem in str(caught.value)
