"""Attention of packed rows by the starts of examples, against a dense mask."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from apt_ds.config.option_groups import FLASH, VARLEN
from apt_ds.data.packing import pack
from apt_ds.losses.task_losses import summed_loss
from apt_ds.models.packed_attention import flash, one_by_one, packed_inputs
from tests.data.test_packing import LIMIT, rows
from tests.support import tiny

EXAMPLES = rows([9, 4, 21, 13, 2, 17, 30, 6])


def windowed() -> MistralForCausalLM:
    """A model whose tokens see themselves and the four before."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 5}
    return MistralForCausalLM(MistralConfig(**sizes, **heads, initializer_range=0.3))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("window", [False, True])
def test_the_starts_of_examples_replace_the_dense_mask(window: bool, single: bool) -> None:
    batch = pack(EXAMPLES, 0, LIMIT, single)
    losses, gradients = [], []
    for kernel in ("sdpa", VARLEN):
        model = windowed() if window else tiny.model("gqa")
        model.set_attn_implementation(kernel)
        loss = summed_loss(model, batch)
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, model.model.embed_tokens.weight)[0])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_rows_without_starts_are_attended_as_by_sdpa() -> None:
    """With padding on the left and a cache, as evaluation and generation need it."""
    ids, mask, outputs = tiny.ids(2, 9), torch.ones(2, 9, dtype=torch.int64), []
    mask[1, :4] = 0
    for kernel in ("sdpa", VARLEN):
        model = tiny.model("gqa", attn_implementation=kernel)
        outputs.append(model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0))
    assert torch.equal(outputs[0], outputs[1])


def test_a_model_that_drops_the_starts_is_refused() -> None:
    batch = pack(EXAMPLES, 0, LIMIT, True)
    inputs = packed_inputs(VARLEN, batch)
    for name in ("cu_seq_lens_q", "max_length_q"):
        del inputs[name]
    with pytest.raises(AssertionError, match="the starts of examples are lost"):
        tiny.model("gqa", attn_implementation=VARLEN)(input_ids=batch.input_ids, **inputs)


def test_only_variable_length_kernels_get_the_starts() -> None:
    batch = pack(EXAMPLES, 0, LIMIT, True)
    assert set(packed_inputs("sdpa", batch)) == set(packed_inputs("eager", batch)) == {"position_ids"}
    lengths = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert set(packed_inputs(FLASH, batch)) == {"position_ids", *lengths}
    assert set(packed_inputs(VARLEN, batch)) == {"position_ids", "attention_mask", *lengths}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("groups", [8, 2])
def test_the_kernel_of_a_gpu_is_that_of_the_cpu(groups: int, window: int | None) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    starts = torch.tensor([0, 5, 24, 64], dtype=torch.int32, device="cuda")
    inputs = [
        torch.randn(64, n, 64, generator=generator, device="cuda", dtype=torch.bfloat16) for n in (8, groups, groups)
    ]
    outputs = []
    for kernel in (flash, one_by_one):
        q, k, v = (tensor.clone().requires_grad_() for tensor in inputs)
        output = kernel(q, k, v, starts, 40, 0.125, window)
        outputs.append([output, *torch.autograd.grad(output.float().square().sum(), (q, k, v))])
    for own, expected in zip(*outputs, strict=True):
        assert (own - expected).float().norm() < 0.02 * expected.float().norm()
