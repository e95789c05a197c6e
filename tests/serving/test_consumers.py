"""Every consumer that is installed answers as the model, for every family in every form: `pytest -m serving`.

`python -m tests.serving.matrix` makes the table of the README.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from apt_ds.analysis.consumers.consumers import CONSUMERS, Consumer, LlamaCpp
from apt_ds.analysis.consumers.entry import Case
from apt_ds.analysis.consumers.table import FORMS
from apt_ds.models.consumers import vllm_problems
from tests.serving.folders import FAMILIES, all_cases, make_case
from tests.support import tiny_experts

pytestmark = pytest.mark.serving
Cases = dict[tuple[str, str], Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return all_cases(tmp_path_factory.mktemp("folders"))


def available(name: str) -> Consumer:
    consumer = next(consumer for consumer in CONSUMERS if consumer.name == name)
    if reason := consumer.absent():
        pytest.skip(reason)
    return consumer


def of_form(cases: Cases, form: str) -> dict[str, Case]:
    return {family: case for (own, family), case in cases.items() if own == form}


# (consumer, form, family): why its answers differ, which no folder can change
KNOWN = {
    **{("transformers 4.57", form, "gemma2"): "its default attention has no soft cap" for form in FORMS},
    **{
        ("transformers 4.57", "adaptive", family): "a mixture with sizes by layer needs transformers 5"
        for family in tiny_experts.FAMILIES
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [c.name for c in CONSUMERS if c.name not in ("vLLM", "llama.cpp")])
def test_a_consumer_answers_as_the_model(name: str, form: str, cases: Cases) -> None:
    consumer, chosen = available(name), of_form(cases, form)
    entries = dict(zip(chosen, consumer.check_all(list(chosen.values())), strict=True))
    wrong = {family: entry for family, entry in entries.items() if not entry.equal}
    assert {family: entry for family, entry in wrong.items() if (name, form, family) not in KNOWN} == {}


@pytest.mark.parametrize(("form", "least"), [("uniform", 10), ("adaptive", 5), ("padded", 11)])
def test_llama_cpp_answers_as_the_model_or_the_rules_say_why_not(form: str, least: int, cases: Cases) -> None:
    """The export refuses a family that llama.cpp cannot load. Only those without problems have equal answers."""
    consumer, chosen = available("llama.cpp"), of_form(cases, form)
    assert isinstance(consumer, LlamaCpp)
    entries = dict(zip(chosen, consumer.check_all(list(chosen.values())), strict=True))
    for family, entry in entries.items():
        if not entry.reason.startswith("error: "):
            problems = consumer.problems(chosen[family])
            assert entry.equal == (not problems), (family, entry, problems)
    assert sum(entry.equal for entry in entries.values()) >= least


@pytest.mark.parametrize("form", FORMS)
def test_vllm_loads_what_the_rules_say(form: str, cases: Cases) -> None:
    """A configuration without problems is served with equal tokens. One with problems is not."""
    consumer, chosen = available("vLLM"), of_form(cases, form)
    entries = dict(zip(chosen, consumer.check_all(list(chosen.values())), strict=True))
    for family, entry in entries.items():
        config = AutoConfig.from_pretrained(chosen[family].folder)
        assert entry.equal == (not vllm_problems(config)), (family, entry, vllm_problems(config))


def test_vllm_serves_a_split_qwen2(tmp_path: Path) -> None:
    """Two key/value heads of two query heads each divide between two processes. The Qwen2 is written as a LLaMA."""
    consumer, case = available("vLLM"), make_case("qwen2", "uniform", tmp_path, (2, 0))
    config = AutoConfig.from_pretrained(case.folder)
    assert config.architectures == ["LlamaForCausalLM"] and vllm_problems(config, 2) == []
    assert consumer.check_all([case], gpus=2)[0].equal


def test_vllm_refuses_heads_that_do_not_divide(tmp_path: Path) -> None:
    consumer, case = available("vLLM"), make_case("qwen3", "uniform", tmp_path, (1, 0))
    assert len(vllm_problems(AutoConfig.from_pretrained(case.folder), 2)) == 1
    (entry,) = consumer.check_all([case], gpus=2)
    assert entry.status == "fails" and "NUMA" not in entry.reason


def test_every_family_is_there(cases: Cases) -> None:
    assert {family for form, family in cases if form == "uniform"} == set(FAMILIES)
