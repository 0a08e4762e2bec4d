"""What scripts set on the attacks of an `AutoAttack` before they run it, by the names that they use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from advbench.registry.specs import Spec


class _Checked:
    """Attributes that exist can be set, to whole numbers of at least 1; any other is refused in one line."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        known = [field.name for field in fields(self)]  # type: ignore[arg-type]
        if name not in known:
            raise AttributeError(f"Expected one of {', '.join(known)}, which advbench can honour, got {name!r}")
        if name != "p_init" and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            raise ValueError(f"Expected `{name}` to be a whole number >= 1, got {value!r}")
        object.__setattr__(self, name, value)


@dataclass(slots=True)
class ApgdSettings(_Checked):
    """APGD without targets. n_iter: steps. n_restarts: starts. eot_iter: passes averaged by a gradient of a random model."""

    n_iter: int = 100
    n_restarts: int = 1
    eot_iter: int = 1

    def spec(self, name: str) -> Spec:
        """The attack. name: ``apgd-ce`` or ``apgd-dlr``."""
        return Spec.of(name, {"steps": self.n_iter, "restarts": self.n_restarts})


@dataclass(slots=True)
class TargetedApgdSettings(_Checked):
    """APGD towards the likeliest wrong classes, `n_target_classes` of them; the rest as in `ApgdSettings`."""

    n_iter: int = 100
    n_restarts: int = 1
    n_target_classes: int = 9
    eot_iter: int = 1

    def spec(self, name: str) -> Spec:
        """The attack. name: ``apgd-t``."""
        given = {"steps": self.n_iter, "restarts": self.n_restarts, "targets": self.n_target_classes}
        return Spec.of(name, dict(given))


@dataclass(slots=True)
class FabSettings(_Checked):
    """FAB. n_iter: steps. n_target_classes: of ``fab-t``. n_restarts: 1, as advbench's FAB has one start."""

    n_iter: int = 100
    n_restarts: int = 1
    n_target_classes: int = 9

    def spec(self, name: str) -> Spec:
        """The attack. name: ``fab`` or ``fab-t``. ValueError for several starts."""
        _once(name, self.n_restarts)
        return Spec.of(name, {"steps": self.n_iter} | ({"targets": self.n_target_classes} if name == "fab-t" else {}))


@dataclass(slots=True)
class SquareSettings(_Checked):
    """Square. n_queries: at most so many for an image. p_init: the first share of pixels. n_restarts: 1."""

    n_queries: int = 5000
    p_init: float = 0.8
    n_restarts: int = 1

    def spec(self, name: str) -> Spec:
        """The attack, whose schedule is not rescaled. name: ``square``. ValueError for several starts."""
        _once(name, self.n_restarts)
        return Spec.of(name, {"queries": self.n_queries, "p_init": self.p_init, "rescale": False})


def _once(name: str, restarts: int) -> None:
    if restarts != 1:
        raise ValueError(f"Expected `n_restarts` = 1 for {name}, which has one start in advbench, got {restarts}")


STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
RAND = ("apgd-ce", "apgd-dlr")
KNOWN = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
"""The attacks that `attacks_to_run` may name."""
_RAND_DRAWS = 20
_REGISTERED = {"standard": ("autoattack", STANDARD), "rand": ("autoattack-rand", RAND)}
"""By version, the registered attack that it is, and its parts."""


@dataclass(frozen=True, slots=True)
class AttackSettings:
    """The settings of all attacks."""

    apgd: ApgdSettings = field(default_factory=ApgdSettings)
    apgd_targeted: TargetedApgdSettings = field(default_factory=TargetedApgdSettings)
    fab: FabSettings = field(default_factory=FabSettings)
    square: SquareSettings = field(default_factory=SquareSettings)

    @property
    def draws(self) -> int:
        """Passes that a gradient of a random model averages; 1 where the model is taken for deterministic."""
        return max(self.apgd.eot_iter, self.apgd_targeted.eot_iter)

    def spec(self, name: str) -> Spec:
        """The attack of a name of `KNOWN`, or ``auto``. ValueError for settings that it cannot honour."""
        if name == "auto":
            return Spec(name)
        if name == "apgd-t":
            return self.apgd_targeted.spec(name)
        if name == "square":
            return self.square.spec(name)
        return self.fab.spec(name) if name in ("fab", "fab-t") else self.apgd.spec(name)


def settings_of(version: str, norm: str) -> AttackSettings:
    """The settings that a version begins with. norm: ``Linf``, ``L2`` or ``L1``."""
    if version == "rand":
        return AttackSettings(apgd=ApgdSettings(eot_iter=_RAND_DRAWS))
    if norm == "L1":
        return AttackSettings(apgd=ApgdSettings(n_restarts=5), apgd_targeted=TargetedApgdSettings(n_target_classes=5))
    return AttackSettings()


def ensemble_of(named: Sequence[str], settings: AttackSettings, norm: str) -> Spec:
    """Attacks as one: the registered ensemble if they are it with the settings it has, else the worst case over them."""
    specs = [settings.spec(name) for name in named]
    for version, (registered, parts) in _REGISTERED.items():
        usual = settings_of(version, norm)
        if tuple(named) == parts and specs == [usual.spec(name) for name in parts] and settings.draws == usual.draws:
            return Spec(registered)
    if len(specs) == 1:
        return specs[0]
    return Spec.of("worst-case", {"attacks": tuple(spec.text for spec in specs), "order": "given"})
