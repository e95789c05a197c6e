"""Jobs of `multiprocess.py` that evaluate a finished model."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from apt_ds.data import squad
from apt_ds.eval.continuation_scores import Continuation, continuation_scores
from apt_ds.eval.task_evaluators import SpanEvaluator
from apt_ds.runtime import collectives, zero
from tests.support import text_fixtures, tiny
from tests.support.jobs import zero_json


def mmlu_choices(folder: str, limit: int, max_length: int) -> dict[str, Any]:
    """The answers of a model, whole on every rank and sharded, and the parameters on a rank when it is sharded."""
    from apt_ds.data import mmlu as data
    from apt_ds.eval import loading, mmlu

    place = Path(folder)
    subjects = ("anatomy", "college_physics", "world_religions")
    asked = data.load(str(place / "data"), subjects, limit=limit)
    settings = mmlu.Settings(batch_size=2, max_length=max_length)
    choices: dict[str, Any] = {}
    for name, config in (("plain", ""), ("sharded", zero_json(folder, 3))):
        judged = loading.load(str(place / "model"), deepspeed=config)
        choices[name] = mmlu.evaluate(judged.runner, judged.tokenizer, asked, settings).choices
        scores, greedy = continuation_scores(judged.runner, continuations(), 2, judged.device)
        choices[f"{name}_scores"] = [scores.tolist(), greedy.tolist()]
    choices["total"] = sum(zero.full_numel(p) for p in judged.model.parameters())
    choices["held"] = sum(p.numel() + p.ds_tensor.numel() for p in judged.model.parameters())
    return choices


def continuations() -> list[Continuation]:
    """Five texts, so that the second rank runs out in batches of 2."""
    return [Continuation([5, 6, *tiny.ids(1, 3 + n, n)[0].tolist()], 1 + n % 3) for n in range(5)]


def harness_figures(folder: str, stages: list[int]) -> dict[str, Any]:
    """Figures of the harness on ARC, by ZeRO stage. Stage 0 is the model without an engine."""
    from apt_ds.eval import lm_eval_harness, loading

    zero.init_distributed()
    by_stage = {}
    for stage in stages:
        judged = loading.load(str(Path(folder) / "model"), deepspeed=zero_json(folder, stage) if stage else "")
        request = lm_eval_harness.Request({"arc_challenge": (2, "acc_norm")}, folder, batch_size=2)
        figures = lm_eval_harness.run(judged, request)["arc_challenge"]
        by_stage[str(stage)] = {name: value for name, value in figures.items() if not name.endswith("stderr")}
    return by_stage


def span_evaluator() -> SpanEvaluator:
    """25 questions about texts of different lengths."""
    words = "the big cat sees a red dog on the tree and a small house by the river".split()
    texts = [" ".join(words[i % 7 :]) for i in range(25)]
    answers = [((text, 0),) if i % 3 else () for i, text in enumerate(texts)]
    questions = [squad.Question(f"q{i}", "t", text, "the cat", answers[i]) for i, text in enumerate(texts)]
    return SpanEvaluator(questions, squad.windows(questions, text_fixtures.pair_tokenizer(), 32, 4))


def span_scores() -> dict[str, Any]:
    """The metrics of a SQuAD model over all ranks, and the bytes that rank 0 sends to the others."""
    zero.init_distributed()
    sizes: list[int] = []
    gather = collectives.gather_objects

    def weighed(value: Any) -> Any:
        sizes.append(len(pickle.dumps(value)))
        return gather(value)

    collectives.gather_objects = weighed
    scores = span_evaluator().evaluate(tiny.small("bert-answers").eval(), 4, 0)
    collectives.gather_objects = gather
    return {"scores": scores, "sent": max(sizes)}
