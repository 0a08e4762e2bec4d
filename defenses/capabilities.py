"""What a defense can declare about itself beyond `Defense`, and what holds for one that declares nothing.

Each capability is a protocol, recognised by its members. Callers ask the functions below, which know the fallbacks:

* `open_norm`: the norm of an `epsilon` that is left open (`WithEpsilon`, `WithNorm`); without a `norm`, the caller's.
* `fits_any_architecture`: whether one training serves every classifier (`ForAnyArchitecture`); without it, none does.
* `passes_per_image`: what a training costs (`TrainingPriced`); without it, a pass, and one more for each of its ``steps``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

from advbench.attacks.capabilities import Configured

DefenseT = TypeVar("DefenseT")


@runtime_checkable
class WithEpsilon(Protocol):
    """A defense that is made for a budget."""

    @property
    def epsilon(self) -> float | None:
        """The budget; None is that of the run."""
        ...


@runtime_checkable
class WithNorm(Protocol):
    """A defense that is made for a norm."""

    @property
    def norm(self) -> str:
        """The norm of its budget."""
        ...


@runtime_checkable
class ForAnyArchitecture(Protocol):
    """A part that may not see the classifier's architecture."""

    @property
    def any_architecture(self) -> bool:
        """Whether it does not: it is trained once for all classifiers."""
        ...


@runtime_checkable
class TrainingPriced(Protocol):
    """A defense that declares what its training costs."""

    @property
    def training_passes(self) -> float:
        """Forwards with a backward, for each image and epoch; 0 for a defense that trains nothing."""
        ...


@runtime_checkable
class _WithSteps(Protocol):
    @property
    def steps(self) -> int: ...


def open_norm(defense: object, norm: str) -> str | None:
    """The norm of the epsilon that a defense leaves open, `norm` where it names none; None where nothing is open."""
    if not isinstance(defense, WithEpsilon) or defense.epsilon is not None:
        return None
    return defense.norm if isinstance(defense, WithNorm) else norm


def with_epsilon(defense: DefenseT, epsilon: float) -> DefenseT:
    """The defense with this epsilon. Raises TypeError for one that is not a dataclass."""
    if not isinstance(defense, Configured):
        raise TypeError(f"Expected a dataclass with an epsilon, got {type(defense).__name__}")
    return replace(defense, epsilon=epsilon)


def fits_any_architecture(defense: object) -> bool:
    """Whether a part is trained once for all classifiers."""
    return isinstance(defense, ForAnyArchitecture) and defense.any_architecture


def passes_per_image(defense: object) -> float:
    """Forwards with a backward that a training takes for each image and epoch, roughly."""
    if isinstance(defense, TrainingPriced):
        return defense.training_passes
    return 1.0 + (defense.steps if isinstance(defense, _WithSteps) else 0)
