"""The scores of a run over time, and when they came near a reference: the measure of training speed (section 10)."""

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
        reached: the first score near the reference.
        reached_pruned: the first score near the reference at the target size.
    """

    def __init__(self, reference: float) -> None:
        self.reference = reference
        self.history: list[Evaluated] = []
        self.reached: Evaluated | None = None
        self.reached_pruned: Evaluated | None = None

    @property
    def score(self) -> float:
        """The newest score."""
        return self.history[-1]["score"]

    def knows(self, step: int) -> bool:
        """Whether the newest score is that of the model after `step` updates."""
        return bool(self.history) and self.history[-1]["step"] == step

    def take(self, step: int, score: float, seconds: float, at_target: bool) -> None:
        """Record a score.

        Args:
            step: number of updates so far.
            score: more is better.
            seconds: training time so far.
            at_target: whether the model has the size that the run prunes to.
        """
        self.history.append({"step": step, "score": score, "seconds": seconds, "pruned": at_target})
        if self.reference <= 0 or score < NEAR * self.reference:
            return
        self.reached = self.reached or self.history[-1]
        if at_target:
            self.reached_pruned = self.reached_pruned or self.history[-1]

    def summary(self) -> Scores:
        """Scores for the summary."""
        scores: Scores = {"history": self.history}
        if self.reference > 0:
            scores["reference_score"] = self.reference
            scores["reached_97_percent"] = self.reached
            scores["reached_97_percent_pruned"] = self.reached_pruned
        return scores

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All scores. No tensors."""
        return {"history": self.history, "reached": self.reached, "reached_pruned": self.reached_pruned}, {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Resume from what `state_dict` returned."""
        self.history, self.reached = values["history"], values["reached"]
        self.reached_pruned = values["reached_pruned"]
