"""Answers in batches: equal to one prompt at a time, cut at their limits, ended at the end tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from apt_ds.data.conversations import Example
from apt_ds.data.instructions import encode
from apt_ds.eval import generated_answers
from apt_ds.eval.generated_answers import Answer, GenerationOptions, answer_of, generate, left_padded, stop_ids
from tests.data.test_instructions import TEMPLATE, tokenizer
from tests.support import tiny
from tests.support.launcher import own_world

ENDS = [2, *range(150, 170)]
PROMPTS = [[5], [6, 7, 8, 9, 10, 11, 12], [30, 31], [1, 40, 41, 42], [50, 51, 52, 53, 54], [60, 61, 62]]
MOST = 12


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaForCausalLM]:
    with own_world():
        tiny_model = tiny.model()
        # the folder of a model may ask for what rewriting must not do
        tiny_model.generation_config = GenerationConfig(
            eos_token_id=ENDS, repetition_penalty=3.0, do_sample=True, temperature=9.0, min_new_tokens=9
        )
        yield tiny_model


@torch.no_grad()
def one_by_one(model: LlamaForCausalLM, prompt: list[int], most: int) -> list[int]:
    """The greedy tokens of one prompt, without padding and cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ENDS:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("per_device", [1, 4])
def test_batches_answer_as_single_prompts(model: LlamaForCausalLM, per_device: int) -> None:
    limits = [MOST, MOST, 2, MOST, MOST, MOST + 5]
    words, before = tiny.tokenizer(), model.generation_config
    answers = generate(model, words, PROMPTS, limits, GenerationOptions(MOST, per_device=per_device))
    alone = [one_by_one(model, p, min(MOST, limit)) for p, limit in zip(PROMPTS, limits, strict=True)]
    assert answers == [answer_of(p, ids, frozenset(ENDS), words) for p, ids in zip(PROMPTS, alone, strict=True)]
    assert [answer.finished for answer in answers] == [ids[-1] in ENDS for ids in alone]
    assert len({answer.finished for answer in answers}) == 2 and answers[2].tokens == 2
    assert model.generation_config is before


def test_sampling_depends_on_the_seed_and_leaves_the_generator(model: LlamaForCausalLM) -> None:
    words, state = tiny.tokenizer(), torch.get_rng_state()
    options = [GenerationOptions(MOST, 1.0, seed, 4) for seed in (1, 1, 2)]
    answers = [generate(model, words, PROMPTS, [MOST] * 6, option) for option in options]
    assert answers[0] == answers[1] != answers[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_answer_ends_before_its_end_token() -> None:
    words = tiny.tokenizer()
    ids = words("the cat sees")["input_ids"]
    assert answer_of([0], [*ids, 2, 0, 0], frozenset({2}), words) == Answer("the cat sees", 4, True)
    assert answer_of([0], ids, frozenset({2}), words) == Answer("the cat sees", 3, False)
    # the blank after the prompt belongs to the answer
    assert answer_of([7], ids, frozenset({2}), words).text == " the cat sees"
    assert answer_of([7], [2, 0], frozenset({2}), words) == Answer("", 1, True)


def test_a_cut_inside_a_character_leaves_no_part_of_it() -> None:
    words = tokenizer()
    ids = words("Hello \u00e9")["input_ids"]
    assert answer_of(ids[:1], ids[1:-1], frozenset({0}), words).text == words.decode(ids[1:-1]).rstrip("\ufffd ")


def test_end_tokens_are_those_of_model_tokenizer_and_training() -> None:
    assert stop_ids(tiny.tokenizer(), GenerationConfig(eos_token_id=[2, 9])) == {2, 9}
    words = tokenizer(TEMPLATE)
    end = encode(Example.from_instruction("a", "", "b"), words, 99)["input_ids"][-1]
    expected = {words.eos_token_id, end} if words.added_tokens_decoder[end].special else {words.eos_token_id}
    assert words.decode([end]) == "<|im_end|>" and stop_ids(words, GenerationConfig()) == expected


def test_prompts_end_together() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_progress_is_shown(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generated_answers, "PROGRESS", 0.0)
    generate(model, tiny.tokenizer(), PROMPTS, [2] * 6, GenerationOptions(2, per_device=4))
    assert "4 of 6 answers, 0 s" in capfd.readouterr().err
