"""Sizes by the divergence from the dense model (METHOD.md section 14): which sites keep how many blocks.

The search starts from a decision of the scores. Every candidate is again a decision of `budget_search.search`, so that
it obeys budget and rules. Inside a site the scores alone choose the blocks.

adaptive: the sites' scores get factors. A round removes a few blocks of one site after another (the next round restores
    some) and compares what that does to the divergence with what the scores say. Sites whose scores promise too
    little get a higher factor, and groups of blocks move to them from the others.
uniform: the candidates are the largest numbers of heads, neurons and hidden dimensions that fit.

Candidates pass a funnel of ever more tokens. The tokens that propose a candidate never measure it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from apt_ds.models.blocks import Anatomy, block_slices, kept_sizes
from apt_ds.pruning.budget_search import best_of_each, search, uniform_frontier
from apt_ds.pruning.limits import Rules

PROBE = 1 / 8  # of the kept parameters of a mean site: what one probe removes or restores
STEPS = (1.0, 0.5, 0.25)  # shares of the factors that candidates take
SURVIVORS = (1 << 30, 3, 1)  # candidates that each stage of the funnel looks at
MARGIN = 1e-4  # by which a divergence must fall. Differences below it may be rounding
CLIP = math.log(4)  # of the logarithm of a factor in one round
GRID = 20  # factors are multiples of 1 / GRID in logarithms, which rounding does not change
FEWEST_PROBES = 2


class CandidateMeter(Protocol):
    """Measures the mean divergence of the model under masks of 0 and 1 from the dense model. Collective.

    Attributes:
        stages: parts of the calibration tokens that measure candidates, from few tokens to many.
    """

    stages: int

    @property
    def left(self) -> int:
        """Evaluations that may still be spent."""
        ...

    def cost(self, stage: int) -> int:
        """Evaluations that one pass over a stage costs."""
        ...

    def probe_cost(self, number: int) -> int:
        """Evaluations that one pass over the tokens of round `number` costs."""
        ...

    def divergence(self, keep: np.ndarray, stage: int) -> float:
        """Mean divergence in nats, infinite if it is not finite. keep: bool [blocks]."""
        ...

    def probe(self, keep: np.ndarray, number: int) -> float:
        """The same over the tokens that propose candidates in round `number`."""
        ...


@dataclass(frozen=True)
class Allocated:
    """The result of a search.

    Attributes:
        keep: bool [blocks].
        before, after: divergences over the tokens of the last stage, of the start and of the result.
        moves: groups of blocks that other sites keep than before.
        accepted: candidates that took the place of the one before.
    """

    keep: np.ndarray
    before: float
    after: float
    moves: int
    accepted: int


def allocate(
    scores: np.ndarray, start: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float, meter: CandidateMeter
) -> Allocated:
    """Improve the sizes of a decision. All ranks that measure the same decide the same. Collective.

    Args:
        scores: float64 [blocks], not all zero.
        start: bool [blocks], the decision of the scores.
        anatomy: the model before the cut. It has no experts.
        rules: the limits of the plan.
        budget: parameters.
        meter: measures candidates.
    """
    funnel = Funnel(meter, start)
    if rules.structure == "uniform":
        sizes = uniform_frontier(scores, anatomy, rules, budget)
        # the start may be among them
        funnel.offer([best_of_each(scores, anatomy, each) for each in sizes[: max(0, meter.left) + 1]])
    else:
        _Factors(scores, anatomy, rules, budget, funnel).search()
    return Allocated(
        funnel.keep, funnel.first, funnel.values[-1], _moves(start, funnel.keep, anatomy, rules), funnel.accepted
    )


def _moves(start: np.ndarray, end: np.ndarray, anatomy: Anatomy, rules: Rules) -> int:
    """Groups of blocks that leave some site."""
    before, after = kept_sizes(anatomy.sizes, start), kept_sizes(anatomy.sizes, end)
    kinds = [site.kind for site in anatomy.sites] + ["hidden"]
    pairs = zip(kinds, [*before.counts, before.hidden], [*after.counts, after.hidden], strict=True)
    return sum(-(-max(0, old - new) // rules.unit(kind)) for kind, old, new in pairs)


class Funnel:
    """The best decision so far, and the candidates that must beat it at every stage.

    Attributes:
        keep: bool [blocks].
        values: its divergence at each stage.
        first: the divergence of the start at the last stage.
        accepted: how often a candidate has won.
    """

    def __init__(self, meter: CandidateMeter, start: np.ndarray) -> None:
        self.meter, self.keep = meter, start
        self.values = [meter.divergence(start, stage) for stage in range(meter.stages)]
        self.first = self.values[-1]
        self.accepted = 0
        self._tried = {start.tobytes()}

    def offer(self, candidates: list[np.ndarray]) -> int | None:
        """Measure candidates. Collective.

        A stage that the evaluations left do not pay for ends the comparison without a winner.

        Returns:
            The number of the candidate that is the best now, None where none is better.
        """
        numbers = []
        for number, keep in enumerate(candidates):
            if keep.tobytes() not in self._tried:
                self._tried.add(keep.tobytes())
                numbers.append(number)
        values: dict[int, list[float]] = {number: [] for number in numbers}
        for stage, most in zip(range(self.meter.stages), SURVIVORS, strict=False):
            numbers = numbers[: min(most, max(0, self.meter.left) // self.meter.cost(stage))]
            for number in numbers:
                values[number].append(self.meter.divergence(candidates[number], stage))
            limit = self.values[stage] * (1 - MARGIN)
            numbers = [number for number in numbers if values[number][-1] < limit]
            numbers.sort(key=lambda number: values[number][-1])
        if not numbers:
            return None
        winner = numbers[0]
        self.keep, self.values = candidates[winner], values[winner]
        self.accepted += 1
        return winner


class _Factors:
    """The search for a factor of every site's scores."""

    def __init__(self, scores: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float, funnel: Funnel) -> None:
        self.scores, self.anatomy, self.rules, self.budget, self.funnel = scores, anatomy, rules, budget, funnel
        self.spans = [span for _, span in block_slices(anatomy.sizes)]
        self.kinds = [site.kind for site in anatomy.sites] + ["hidden"]
        self.prices = anatomy.params_per_block_of_site(anatomy.sizes)
        self.free = [n for n, kind in enumerate(self.kinds) if rules.may_go(kind) and scores[self.spans[n]].any()]
        self.logs = np.zeros(len(self.spans))

    def search(self) -> None:
        """Rounds of probes and candidates, until evaluations run out or the factors get small. Collective."""
        meter, size, rounds = self.funnel.meter, 1.0, 0
        seen: list[np.ndarray] = []
        while size >= STEPS[-1]:
            most = (meter.left // 2) // meter.probe_cost(rounds) - 2
            if most < FEWEST_PROBES:
                return
            direction_now = self._direction(rounds, most)
            rounds += 1
            # what earlier rounds found at the same decision counts too
            seen = seen if direction_now is None else [*seen, direction_now]
            if not seen:
                size /= 2
                continue
            direction = np.round(np.mean(seen, axis=0) * GRID) / GRID
            options = [self.logs + size * each for each in self._directions(direction)]
            winner = self.funnel.offer([self._decision(logs) for logs in options])
            if winner is None:
                size /= 2
            else:
                self.logs, seen = options[winner], []

    def _directions(self, direction: np.ndarray) -> list[np.ndarray]:
        """Changes of the logarithms of all factors, and of those of one kind."""
        kinds = sorted({self.kinds[n] for n in self.free})
        single = [direction * np.array([own == kind for own in self.kinds]) for kind in kinds if len(kinds) > 1]
        return [*(step * direction for step in STEPS), *(STEPS[1] * each for each in single)]

    def _decision(self, logs: np.ndarray) -> np.ndarray:
        """The decision of the scores times factors."""
        scores = self.scores * np.repeat(np.exp(logs), [span.stop - span.start for span in self.spans])
        keep = search(scores, self.anatomy, self.rules, self.budget)
        # products round, so that the scores themselves choose the blocks of a site
        return best_of_each(self.scores, self.anatomy, kept_sizes(self.anatomy.sizes, keep))

    def _direction(self, number: int, most: int) -> np.ndarray | None:
        """Logarithms of how much more blocks matter than their scores say, by site. None: the probes say nothing.

        Args:
            number: the round. Even rounds remove blocks, odd ones restore some.
            most: probes that may be spent.
        """
        meter, restores = self.funnel.meter, number % 2 == 1
        probes = [(group, *self._probe(group, restores)) for group in self._groups(most)]
        probes = [probe for probe in probes if probe[2]]
        if not probes:
            return None
        now = meter.probe(self.funnel.keep, number)
        ratios = np.array([(meter.probe(keep, number) - now) / score for _, keep, score in probes])
        known = np.isfinite(ratios)
        positive = ratios[known & (ratios > 0)]
        if not len(positive):
            return None
        usual = float(np.median(positive))
        logs = np.clip(np.log(np.maximum(np.where(known, ratios, usual), 1e-9 * usual) / usual), -CLIP, CLIP)
        direction = np.zeros(len(self.spans))
        for (group, _, _), value in zip(probes, logs.tolist(), strict=True):
            direction[group] = value
        return direction

    def _groups(self, most: int) -> list[list[int]]:
        """The sites that each probe changes: one, or neighbours of a kind where probes are few."""
        kinds = sorted({self.kinds[n] for n in self.free})
        groups: list[list[int]] = []
        for kind in kinds:
            own = [n for n in self.free if self.kinds[n] == kind]
            count = min(len(own), max(1, most * len(own) // len(self.free)))
            groups += [part.tolist() for part in np.array_split(np.array(own), count)]
        return groups

    def _probe(self, group: list[int], restores: bool) -> tuple[np.ndarray, float]:
        """A decision that removes the worst kept blocks of some sites, or restores the best removed ones.

        Returns:
            bool [blocks], and the scores that the change loses. 0: there is nothing to change.
        """
        keep = self.funnel.keep.copy()
        sizes = kept_sizes(self.anatomy.sizes, keep)
        target = PROBE * self.anatomy.num_parameters(sizes) / len(self.free)
        lost = 0.0
        for site in group:
            span = self.spans[site]
            own, scores = keep[span], self.scores[span]
            count = max(1, round(target / self.prices[site]))
            candidates = np.flatnonzero(own != restores)
            order = np.argsort(-scores[candidates] if restores else scores[candidates], kind="stable")
            chosen = candidates[order[:count]]
            own[chosen] = restores
            lost += float(scores[chosen].sum()) * (-1 if restores else 1)
        return keep, lost
