"""Numbers of heads and neurons that divide between the GPUs of a served model."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, query_heads
from apt_ds.models.tensor_parallel import WHOLE, Split, check_vocabulary, check_whole, heads_divide, split_of
from tests.support import tiny, tiny_experts
from tests.support.published import SHAPES, published_config


def table(name: str) -> Anatomy:
    return anatomy_of(published_config(name))


def test_one_gpu_takes_every_number() -> None:
    assert split_of(table("qwen2.5-0.5b"), 1) is WHOLE
    assert [WHOLE.most(kind, 7) for kind in ("head", "neuron", "hidden", "expert")] == [7, 7, 7, 7]


@pytest.mark.parametrize("name", SHAPES)
def test_query_heads_are_those_of_the_configuration(name: str) -> None:
    config = published_config(name)
    queries = config.num_attention_heads // config.num_key_value_heads
    assert {query_heads(site) for site in table(name).sites if site.kind == "head"} == {queries}


@pytest.mark.parametrize(
    ("name", "gpus", "split"),
    [
        ("mistral-7b-v0.3", 2, Split(2, 2, 8, 2)),
        ("mistral-7b-v0.3", 4, Split(4, 4, 8, 4)),
        # two GPUs have a copy of each key/value head, one head has 8 query heads
        ("qwen2.5-3b", 4, Split(4, 1, 2, 4)),
        # 4 heads of one key/value head divide, the key/value head is copied
        ("gemma-3-270m", 4, Split(4, 1, 1, 4)),
        # 15 heads do not divide, 12 do
        ("smollm2-360m", 2, Split(2, 2, 4, 2)),
    ],
)
def test_which_numbers_of_heads_divide(name: str, gpus: int, split: Split) -> None:
    if name == "smollm2-360m":
        config = tiny.config(
            hidden_size=960, intermediate_size=2560, num_attention_heads=15, num_key_value_heads=5, head_dim=64
        )
        assert split_of(anatomy_of(config), gpus) == split
    else:
        assert split_of(table(name), gpus) == split


def test_every_number_that_a_split_allows_divides() -> None:
    for name in SHAPES:
        config = published_config(name)
        queries = config.num_attention_heads // config.num_key_value_heads
        for gpus in (2, 3, 4, 8):
            try:
                split = split_of(table(name), gpus)
            except UserError as error:
                assert f"give a divisor of {config.num_attention_heads}" in str(error)
                assert not any(heads_divide(n + 1, queries, gpus) for n in range(config.num_key_value_heads))
                continue
            for groups in range(split.heads, split.most_heads + 1, split.heads):
                assert heads_divide(groups, queries, gpus), (name, gpus, groups)


def test_what_cannot_divide_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^--tensor_parallel 3: no number of heads divides between 3 GPUs, .* 14$"):
        split_of(table("qwen2.5-0.5b"), 3)
    odd = anatomy_of(tiny.config(hidden_size=60, num_attention_heads=6, num_key_value_heads=3, intermediate_size=47))
    split = split_of(odd, 2)
    with pytest.raises(UserError, match="the 47 neurons of a layer do not divide between 2 GPUs; allow neurons in"):
        check_whole(split, odd, ("heads",))
    check_whole(split, odd, ("heads", "neurons"))
    check_vocabulary(32_000, 4)
    with pytest.raises(UserError, match=r"the vocabulary of 32,000 tokens to 32,000, which 3 does not divide"):
        check_vocabulary(32_000, 3)


def test_neurons_of_each_expert_divide() -> None:
    experts = anatomy_of(tiny_experts.model("olmoe").config)
    check_whole(split_of(experts, 2), experts, ())
    with pytest.raises(UserError, match=f"the {tiny_experts.NEURONS} neurons of a layer do not divide"):
        check_whole(Split(7, 1, 0, 7), experts, ())
