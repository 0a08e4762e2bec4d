"""What an attack is."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from advbench.attacks.access import Access
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel


class Attack(Protocol):
    """A frozen dataclass of hyper-parameters, called with images, that proposes adversarial ones.

    What it is and needs are class variables of these names.
    """

    @property
    def norms(self) -> frozenset[str]:
        """The norms of threat that the attack knows."""
        ...

    @property
    def minimal_norm(self) -> bool:
        """Whether it seeks the smallest perturbation and disregards epsilon."""
        ...

    @property
    def knowledge(self) -> type[Access]:
        """The access that it needs."""
        ...

    @property
    def targeted(self) -> bool:
        """Whether it takes a `Targeted` goal."""
        ...

    def __call__(self, access: Any, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Adversarial images, shape (n, c, h, w), around `x`; `access` is an instance of `knowledge`."""
        ...


def check_norm(attack: Attack, threat: ThreatModel) -> None:
    """Raise ValueError if `attack` cannot work in the threat's norm, or needs an epsilon that the threat lacks."""
    name = type(attack).__name__
    if threat.norm not in attack.norms:
        raise ValueError(f"Expected a threat in {', '.join(sorted(attack.norms))} for {name}, got {threat.norm}")
    if threat.epsilon is None and not attack.minimal_norm:
        raise ValueError(f"Expected a threat with an epsilon for {name}, got None: only minimal-norm attacks need none")


def check_positive(attack: object, *fields: str) -> None:
    """Raise ValueError for the first of `fields` that is not above zero."""
    for field in fields:
        value = getattr(attack, field)
        if not value > 0:
            raise ValueError(f"Expected `{field}` > 0, got {value}")
