"""The defended models of a plan, and what an attacker may ask of each."""

from __future__ import annotations

from dataclasses import dataclass

from advbench.defenses.defended import Surrogate
from advbench.tasks.score import TargetFacts


@dataclass(frozen=True, slots=True)
class View:
    """The model an attack queries: a named surrogate, or the target itself if None.

    stochastic: whether its answers are random. evading: whether a detector is to be evaded too. exact: whether its answers
    are those of the scored model.
    """

    name: str | None = None
    stochastic: bool = False
    evading: bool = False
    exact: bool = True

    @staticmethod
    def of(name: str | None, surrogate: Surrogate) -> View:
        """The view of a surrogate."""
        detector = surrogate.detector
        random = surrogate.stochastic or (detector is not None and detector.stochastic)
        return View(name, random, detector is not None, surrogate.exact)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A defended model of the plan.

    key: of its training. seed: of the training. facts: its names and components, as records show them. itself, surrogates:
    what can be asked. batch: images per compute batch. draws: passes that a question averages, where nothing finds how many.
    """

    key: str
    seed: int
    facts: TargetFacts
    itself: View
    surrogates: tuple[View, ...]
    batch: int
    draws: int

    @property
    def label(self) -> str:
        """Its name in the run."""
        return self.facts.label

    @property
    def stochastic(self) -> bool:
        """Whether its answers are random."""
        return self.facts.stochastic
