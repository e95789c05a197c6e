"""Generation with a cache of fixed size: the same tokens as eager generation, and what is said of other models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from apt_ds.eval import loading
from apt_ds.eval.inference_timing import TimingPlan, prompts, run_once
from apt_ds.eval.static_decoding import StaticDecoder, StaticTimings, describe, obstacle
from tests.support import tiny

PLAN = TimingPlan(prompt=6, new_tokens=5, batch=3)


def eager_tokens(model: PreTrainedModel, ids: torch.Tensor, count: int) -> torch.Tensor:
    """What the model says without a cache, int64 [batch, count]."""
    for _ in range(count):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[:, -count:]


@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_tokens_are_those_of_eager_generation(name: str, llamas: Path) -> None:
    """Of a model with sizes by layer too, and in every run of a decoder."""
    model = loading.load(str(llamas / name)).model
    model.config.use_cache = True
    decoder = StaticDecoder(model, 11, captured=False)
    for batch in (3, 3):
        ids = prompts(model, batch, 6)
        tokens, seconds = decoder.run(ids, 5)
        assert torch.equal(tokens, eager_tokens(model, ids, 5)) and seconds > 0
    cache = decoder.cache.layers[0].keys
    assert cache.shape[2] == 11 and decoder.cache.layers[0].keys.data_ptr() == cache.data_ptr()


def test_both_batch_sizes_are_timed(llamas: Path) -> None:
    model, timings = loading.load(str(llamas / "dense")).model, StaticTimings()
    for _ in range(2):
        figures = timings.measure("dense", model, PLAN)
        assert figures.keys() == {
            "static_tokens_per_second",
            "inference_batch_static_tokens_per_second",
            "static_is_captured",
        }
        assert min(figures["static_tokens_per_second"], figures["inference_batch_static_tokens_per_second"]) > 0
        assert figures["static_is_captured"] == 0 and not timings.obstacles
    timings.close()


def test_other_models_are_not_measured() -> None:
    assert obstacle(tiny.model()) == ""
    assert obstacle(tiny.small("t5")) == "an encoder-decoder is measured eagerly only"
    assert obstacle(tiny.small("bert-classes")).endswith("does not support a cache of fixed size")
    timings = StaticTimings()
    assert timings.measure("text", tiny.small("t5"), PLAN) == {}
    assert timings.obstacles == {"text": "an encoder-decoder is measured eagerly only"}


def test_a_model_that_fails_is_not_measured_again() -> None:
    model, timings = tiny.model(), StaticTimings()
    handle = model.register_forward_pre_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    assert timings.measure("odd", model, PLAN) == {} and "size" in timings.obstacles["odd"]
    handle.remove()
    assert timings.measure("odd", model, PLAN) == {}


def test_the_table_says_what_was_measured() -> None:
    assert [describe(captured) for captured in (None, True, False)] == [
        "static cache: not measured",
        "static cache: a captured graph a token",
        "static cache: no captured graph on a CPU",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_gives_the_same_tokens() -> None:
    model = tiny.model().to("cuda")
    decoder, ids = StaticDecoder(model, 11, captured=True), prompts(model, 3, 6)
    for _ in range(3):
        assert torch.equal(decoder.run(ids, 5)[0], eager_tokens(model, ids, 5))
    assert run_once(model, ids, 5)[1] > 0
