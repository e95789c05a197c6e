"""How a run's score came along, and when it first came near a reference: the measure of training speed (section 10)."""

from __future__ import annotations

from typing import Any

NEAR = 0.97  # of the reference


class ScoreHistory:
    """reference: a score, 0 without one; history: step, score, seconds of training, and whether it is `pruned`
    to the size aimed at, at every evaluation so far.

    reached: where the score first was near the reference; reached_pruned: the same at the size aimed at.
    """

    def __init__(self, reference: float) -> None:
        self.reference = reference
        self.history: list[dict[str, Any]] = []
        self.reached: dict[str, Any] | None = None
        self.reached_pruned: dict[str, Any] | None = None

    @property
    def score(self) -> float:
        """The last one taken."""
        return self.history[-1]["score"]

    def knows(self, step: int) -> bool:
        """Whether the model after `step` updates has been evaluated."""
        return bool(self.history) and self.history[-1]["step"] == step

    def take(self, step: int, score: float, seconds: float, at_target: bool) -> None:
        """Take an evaluation after `step` updates and `seconds` of training; at_target: nothing is left to prune."""
        self.history.append({"step": step, "score": score, "seconds": seconds, "pruned": at_target})
        if self.reference <= 0 or score < NEAR * self.reference:
            return
        self.reached = self.reached or self.history[-1]
        if at_target:
            self.reached_pruned = self.reached_pruned or self.history[-1]

    def summary(self) -> dict[str, Any]:
        """For the report."""
        found: dict[str, Any] = {"history": self.history}
        if self.reference > 0:
            found |= {"reference_score": self.reference, "reached_97_percent": self.reached}
            found["reached_97_percent_pruned"] = self.reached_pruned
        return found

    def state(self) -> dict[str, Any]:
        """What `load_state` takes."""
        return {"history": self.history, "reached": self.reached, "reached_pruned": self.reached_pruned}

    def load_state(self, values: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.history, self.reached = values["history"], values["reached"]
        self.reached_pruned = values["reached_pruned"]
