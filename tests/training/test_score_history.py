"""When a score first came near the reference."""

from __future__ import annotations

import json

from apt_ds.training.score_history import ScoreHistory


def filled(reference: float) -> ScoreHistory:
    history = ScoreHistory(reference)
    for step, (score, at_target) in enumerate([(50.0, False), (97.0, False), (80.0, True), (97.5, True), (99.0, True)]):
        history.take(step, score, 2.0 * step, at_target)
    return history


def test_the_first_near_score_counts_and_the_first_at_the_target_size() -> None:
    summary = filled(100.0).summary()
    near, pruned = summary["reached_97_percent"], summary["reached_97_percent_pruned"]
    assert near is not None and pruned is not None
    assert (near["step"], near["seconds"], pruned["step"]) == (1, 2.0, 3)
    assert [entry["step"] for entry in summary["history"]] == [0, 1, 2, 3, 4]


def test_nothing_is_reached_without_a_reference_or_below_it() -> None:
    assert filled(0.0).summary().keys() == {"history"}
    far = filled(200.0).summary()
    assert far["reached_97_percent"] is None and far["reached_97_percent_pruned"] is None


def test_a_restored_history_goes_on() -> None:
    history, again = filled(100.0), ScoreHistory(100.0)
    again.load_state_dict(json.loads(json.dumps(history.state_dict()[0])), {})
    assert again.summary() == history.summary() and again.score == 99.0
    assert again.knows(4) and not again.knows(3) and not ScoreHistory(1.0).knows(0)


def test_a_restored_history_is_compared_with_the_reference_of_now() -> None:
    """Also one that an earlier version saved with what it had reached."""
    for reference in (0.0, 80.0, 100.0, 200.0):
        saved = json.loads(json.dumps(filled(reference).state_dict()[0])) | {"reached": None, "reached_pruned": None}
        for now in (0.0, 80.0, 100.0, 200.0):
            again = ScoreHistory(now)
            again.load_state_dict(saved, {})
            assert again.summary() == filled(now).summary(), (reference, now)


def test_a_cut_that_leaves_the_outputs_makes_a_score_one_of_the_final_size() -> None:
    history = ScoreHistory(100.0)
    history.take(8, 98.0, 1.0, False)
    history.model_cut(7, True)
    assert history.summary()["reached_97_percent_pruned"] is None
    history.model_cut(8, True)
    assert history.summary()["reached_97_percent_pruned"] == {"step": 8, "score": 98.0, "seconds": 1.0, "pruned": True}


def test_a_score_of_another_model_at_the_same_step_is_not_known() -> None:
    history = filled(100.0)
    history.model_changed()
    again = ScoreHistory(100.0)
    again.load_state_dict(json.loads(json.dumps(history.state_dict()[0])), {})
    for each in (history, again):
        assert not each.knows(4)
        each.take(4, 96.0, 9.0, True)
        assert each.knows(4) and each.score == 96.0 and len(each.history) == 6
