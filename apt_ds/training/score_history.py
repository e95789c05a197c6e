"""Scores over time, and when they came near a reference: the measure of training speed (METHOD.md section 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from apt_ds.training.training_figures import Evaluated

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 0.97  # fraction of the reference that counts as near it


class _Scores(TypedDict):
    history: list[Evaluated]


class Scores(_Scores, total=False):
    """What the summary says of a run's scores. The last three exist only with a reference."""

    reference_score: float
    reached_97_percent: Evaluated | None
    reached_97_percent_pruned: Evaluated | None


class ScoreHistory:
    """Every score of a run.

    Attributes:
        reference: score to compare with. 0 without one.
        history: all scores so far.
        outdated: whether the model has changed since the newest score without a step.
    """

    def __init__(self, reference: float) -> None:
        self.reference = reference
        self.history: list[Evaluated] = []
        self.outdated = False

    @property
    def score(self) -> float:
        """The newest score."""
        return self.history[-1]["score"]

    def knows(self, step: int) -> bool:
        """Whether the newest score is that of the model after `step` updates."""
        return bool(self.history) and self.history[-1]["step"] == step and not self.outdated

    def take(self, step: int, score: float, seconds: float, at_target: bool) -> None:
        """Record a score.

        Args:
            step: number of updates so far.
            score: more is better.
            seconds: training time so far.
            at_target: whether the model has the size that the run prunes to.
        """
        self.history.append({"step": step, "score": score, "seconds": seconds, "pruned": at_target})
        self.outdated = False

    def model_cut(self, step: int, at_target: bool) -> None:
        """A cut after `step` updates has left the outputs as they were. Arguments as of `take`."""
        if self.knows(step):
            self.history[-1]["pruned"] = at_target

    def model_changed(self) -> None:
        """The model is another one than that of the newest score, at the same step."""
        self.outdated = True

    def summary(self) -> Scores:
        """Scores for the summary."""
        scores: Scores = {"history": self.history}
        if self.reference > 0:
            # of the whole history: a resumed run may have another reference
            near = [entry for entry in self.history if entry["score"] >= NEAR * self.reference]
            scores["reference_score"] = self.reference
            scores["reached_97_percent"] = next(iter(near), None)
            scores["reached_97_percent_pruned"] = next((entry for entry in near if entry["pruned"]), None)
        return scores

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All scores. No tensors."""
        return {"history": self.history, "outdated": self.outdated}, {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Resume from what `state_dict` returned."""
        self.history, self.outdated = values["history"], values.get("outdated", False)
