"""What an attack can declare about itself beyond `Attack`, and what holds for one that declares nothing.

Each capability is a protocol, recognised by its members: an attack has it if it defines them, without a base class or a
registration. Callers ask the functions below, which know the fallback of every capability:

* `passes_of`: the expected cost (`Priced`); without it, a guess from the names of the attack's arguments.
* `short_of`: a cheap setting for tests (`Shortened`); without it, arguments with known names are cut down.
* `family_of`: the family that reports show (`Grouped`); without it, the one that the access and the goal suggest.
* `need_of`: values to be found on held-out images (`Calibrated`); without it, none.
* `returned_by`: which of its iterates it returns (`Defined`); without it, the best by distance or margin.
* `with_stop`: a dataclass field `stop` can be set; without it, the attack stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Protocol, TypeVar, runtime_checkable

from advbench.attacks.access import DecisionBased, ScoreBased, WhiteBox
from advbench.attacks.attack import Attack

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor

    from advbench.attacks.access import Access
    from advbench.attacks.calibration import HeldOut
    from advbench.attacks.iterates import Stop
    from advbench.attacks.rng import ExampleRNG
    from advbench.attacks.threat import Goal, ThreatModel

AttackT = TypeVar("AttackT", bound="DataclassInstance")

NOISE: Final = "noise"
ONE_STEP: Final = "one gradient step"
ASCENT: Final = "gradient ascent"
MINIMAL_NORM: Final = "minimal norm"
SCORES: Final = "score-based"
DECISIONS: Final = "decision-based"
ENSEMBLE: Final = "ensemble"
GIVEN: Final = "given images"
"""The families of advbench's attacks; a plug-in may name another one."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes through the model for one example that withstands an attack, at one draw per question.

    forwards: with every query. backwards: through the loss, or through one logit or score. at_most: whether the attack can
    end earlier on its own, where it makes no progress or sees no chance; then the numbers are upper bounds.
    """

    forwards: float
    backwards: float = 0.0
    at_most: bool = False

    def __add__(self, other: Passes) -> Passes:
        """The passes of two attacks, one after the other."""
        return Passes(self.forwards + other.forwards, self.backwards + other.backwards, self.at_most or other.at_most)

    def __mul__(self, times: float) -> Passes:
        """The passes of `times` runs."""
        return Passes(times * self.forwards, times * self.backwards, self.at_most)


LOOK: Final = Passes(1)
"""A forward without a gradient."""


@runtime_checkable
class Priced(Protocol):
    """An attack that declares its cost."""

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """The passes for an example that it does not break, of a deterministic model with `classes` classes."""
        ...


@runtime_checkable
class Shortened(Protocol):
    """An attack that declares a cheap setting of itself."""

    def short(self) -> Attack:
        """The same attack with few iterations, for tests that take seconds: it runs every branch, but is weak."""
        ...


@runtime_checkable
class Configured(Protocol):
    """A dataclass of hyper-parameters, as all attacks of advbench are."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]


@runtime_checkable
class Grouped(Protocol):
    """An attack that names its family."""

    @property
    def family(self) -> str:
        """What reports call its kind, one of the families above or a new one."""
        ...


@dataclass(frozen=True, slots=True)
class Need:
    """What the open values of an attack are found from.

    split: the images, ``train`` or ``validation``, never those that are scored. model: whether the attacked model is asked,
    so that every model has values of its own. optional: whether the attack runs without them, if no images are held out.
    """

    split: Literal["train", "validation"]
    model: bool
    optional: bool = False


@runtime_checkable
class Calibrated(Protocol):
    """An attack that may have open values."""

    @property
    def need(self) -> Need | None:
        """What the open values are found from; None if none is open."""
        ...

    def calibrate(self, held_out: HeldOut) -> dict[str, Tensor]:
        """The open values, by name."""
        ...

    def calibrated(self, values: Mapping[str, Tensor]) -> Attack:
        """The attack with the values that `calibrate` found."""
        ...


@runtime_checkable
class Claiming(Attack, Protocol):
    """An attack that says itself which images fool the model, as attacks of other libraries do."""

    def attacked(
        self, access: Access, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG
    ) -> tuple[Tensor, Tensor | None]:
        """The images, (n, c, h, w), and its claims, (n,) bool, or None where it makes none."""
        ...


@runtime_checkable
class Defined(Protocol):
    """An attack whose definition says which iterate it returns, the nearest or not."""

    returns: ClassVar[str]
    """What it returns, such as ``the iterate of lowest objective``."""


def returned_by(attack: Attack) -> str:
    """Which of its iterates an attack returns by its definition; empty for the best by distance or margin."""
    return attack.returns if isinstance(attack, Defined) else ""


def passes_of(attack: Attack, threat: ThreatModel, classes: int) -> Passes:
    """The passes that an attack takes for an example that withstands it: as declared, else guessed.

    classes: of the model. The guess reads numbers from the attributes of the attack: ``steps`` times ``restarts``,
    ``targets``, ``search_steps`` and ``forwards_per_step``, plus ``queries`` and ``points``, summed over ``members`` or
    ``components`` of an ensemble, or taken from the ``attack`` that is wrapped. It serves the time that is left and the
    order in which attacks run, not accounts.
    """
    return attack.passes(threat, classes) if isinstance(attack, Priced) else _guessed(attack, threat, classes)


def _guessed(attack: Attack, threat: ThreatModel, classes: int) -> Passes:
    inner: Attack | None = getattr(attack, "attack", None)
    if inner is not None:
        return passes_of(inner, threat, classes)
    parts = getattr(attack, "members", None) or getattr(attack, "components", None)
    if callable(parts):
        parts = parts(threat)
    if parts:
        return sum((passes_of(one, threat, classes) for one in parts), Passes(0))
    repeats = ("restarts", "targets", "search_steps", "forwards_per_step")
    steps = math.prod(max(1.0, _number(attack, name)) for name in repeats) * _number(attack, "steps")
    return Passes(1 + max(1.0, steps + _number(attack, "queries") + _number(attack, "points")), steps)


def _number(attack: Attack, name: str) -> float:
    """An attribute that is a number, else 0: other people's attacks may mean something else by the name."""
    value = getattr(attack, name, 0)
    return float(value) if isinstance(value, int | float) else 0.0


FEW: Mapping[str, int] = {
    **{"steps": 6, "queries": 40, "restarts": 2, "points": 3, "search_steps": 3, "draws": 2, "targets": 3},
    **{"n_iter": 6, "num_steps": 6, "max_iterations": 12, "max_iter": 6, "iter": 6, "nb_iter": 2, "n_queries": 40},
    **{"binary_search_steps": 3, "search_iter": 3, "df_steps": 6, "max_gradient_eval_steps": 20, "nb_sample": 8},
    **{"initial_gradient_eval_steps": 8, "population": 4, "directions": 20, "repeats": 4, "n_samples": 3, "popsize": 5},
}
"""The largest numbers in the short setting of an attack that declares none, by the names that arguments have here and in
other libraries."""


def short_of(attack: Attack) -> Attack:
    """The cheap setting of an attack: as declared, else with its dataclass fields cut down to `FEW`."""
    if isinstance(attack, Shortened):
        return attack.short()
    if isinstance(attack, Configured):
        return cut(attack, **FEW)
    return attack


def cut(attack: AttackT, **limits: int) -> AttackT:
    """The attack with these numbers at most so large; an open one (None) gets its limit, other values stay."""
    values = {field.name: getattr(attack, field.name) for field in fields(attack) if field.name in limits}
    return replace(attack, **{name: _cut(value, limits[name]) for name, value in values.items()})


def _cut(value: object, limit: int) -> object:
    if value is None:
        return limit
    return min(value, limit) if isinstance(value, int) and not isinstance(value, bool) else value


def family_of(attack: Attack) -> str:
    """The family of an attack: as declared, else by the access that it needs and by whether it knows an epsilon."""
    if isinstance(attack, Grouped):
        return attack.family
    if issubclass(attack.knowledge, WhiteBox):
        return MINIMAL_NORM if attack.minimal_norm else ASCENT
    return {ScoreBased: SCORES, DecisionBased: DECISIONS}.get(attack.knowledge, "black-box")


def need_of(attack: object) -> Need | None:
    """What the open values of an attack are found from; None where it has none."""
    return attack.need if isinstance(attack, Calibrated) else None


def calibrated(attack: Attack, values: Mapping[str, Tensor]) -> Attack:
    """The attack with the values that its calibration found, unchanged without any.

    Raises TypeError for values of an attack that is not `Calibrated`.
    """
    if not values:
        return attack
    if not isinstance(attack, Calibrated):
        raise TypeError(f"Expected an attack with open values, got {attack}")
    return attack.calibrated(values)


def with_stop(attack: Attack, stop: Stop) -> Attack:
    """The attack with this `stop`, where it has one."""
    if isinstance(attack, Configured) and any(field.name == "stop" for field in fields(attack)):
        return replace(attack, stop=stop)
    return attack
