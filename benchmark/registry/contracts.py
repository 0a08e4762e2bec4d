"""What a component of a plug-in must have: what is missing is said in one line, what can have a default gets it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from advbench.attacks.access import Access, DecisionBased, ScoreBased, WhiteBox
from advbench.attacks.threat import NORMS
from advbench.registry.schemes import Kind

_CALL = ("access", "x", "goal", "threat", "rng")
_FIT = ("architecture", "data", "inputs", "seed", "device", "budget", "progress")
_BUILD = ("architecture", "data", "inputs")
_ACCESS: Mapping[str, type[Access]] = {"ScoreBased": ScoreBased, "DecisionBased": DecisionBased, "WhiteBox": WhiteBox}
_NO_INPUTS: Mapping[str, str] = MappingProxyType({})


class ContractError(ValueError):
    """A component lacks what every component of its kind has; the message says what, in one line."""


def completed(kind: Kind, name: str, component: object) -> object:
    """A component with the defaults of its kind, on its class: of an attack `minimal_norm` and `targeted`, which are False,
    and `knowledge`, that of the annotation of `access`, else `WhiteBox`; of a defense `inputs`, which are none.

    Raises ContractError, in one line, for an attack without `norms` or a `__call__` of five arguments, and for a defense
    without `build` and `fit`.
    """
    if kind == "attacks":
        return _attack(name, component)
    if kind in ("defenses", "parts"):
        return _defense(kind, name, component)
    return component


def _attack(name: str, attack: object) -> object:
    made = type(attack)
    if not callable(attack):
        raise ContractError(f"The attack {name!r} ({made.__name__}) lacks `__call__(self, {', '.join(_CALL)})`")
    if not _takes(attack, _CALL):
        got = ", ".join(inspect.signature(attack).parameters) or "no arguments"
        raise ContractError(f"The attack {name!r} ({made.__name__}) must be called with {', '.join(_CALL)}, got {got}")
    if not hasattr(attack, "norms"):
        raise ContractError(
            f"The attack {name!r} ({made.__name__}) lacks `norms`, those that it knows: "
            'norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2"})'
        )
    norms: object = attack.norms
    if isinstance(norms, str) or not isinstance(norms, Iterable) or not set(norms) <= set(NORMS) or not set(norms):
        known = f"a frozenset of some of {', '.join(NORMS)}"
        raise ContractError(f"The attack {name!r} ({made.__name__}) must have `norms`, {known}, got {norms!s:.60}")
    if not isinstance(norms, frozenset | set):
        made.norms = frozenset(norms)  # type: ignore[attr-defined]
    _default(made, "minimal_norm", False)
    _default(made, "targeted", False)
    _default(made, "knowledge", _knowledge(attack))
    return attack


def _knowledge(attack: Callable[..., object]) -> type[Access]:
    """The access that an attack's first argument is annotated with."""
    first = next(iter(inspect.signature(attack).parameters.values()))
    text = first.annotation if isinstance(first.annotation, str) else getattr(first.annotation, "__name__", "")
    return _ACCESS.get(text.rpartition(".")[2], WhiteBox)


def _defense(kind: Kind, name: str, defense: object) -> object:
    made = type(defense)
    missing = [f"`{each}`" for each in ("build", "fit") if not callable(getattr(defense, each, None))]
    if missing:
        raise ContractError(
            f"The {kind[:-1]} {name!r} ({made.__name__}) lacks {' and '.join(missing)}: define them, or subclass "
            "advbench.defenses.training.trained.Trained (with `objective`) or "
            "advbench.defenses.inference.at_test_time.TestTimeDefense (with `wrap`)"
        )
    for method, wanted in (("build", _BUILD), ("fit", _FIT)):
        bound = getattr(defense, method)
        if not _takes(bound, wanted, keywords=wanted[2:] if method == "fit" else ()):
            got = ", ".join(inspect.signature(bound).parameters) or "no arguments"
            shown = f"{method}({', '.join(wanted)})" if method == "build" else "fit(architecture, data, *, inputs, seed, "
            shown += "" if method == "build" else "device, budget, progress)"
            raise ContractError(f"The {kind[:-1]} {name!r} ({made.__name__}) must have `{shown}`, got {got}")
    _default(made, "inputs", _NO_INPUTS)
    return defense


def _takes(function: Callable[..., object], names: Sequence[str], keywords: Sequence[str] = ()) -> bool:
    """Whether a function can be called with arguments of these names, the last ones by name; True if nobody can tell."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*names[: len(names) - len(keywords)], **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def _default(made: type, name: str, value: object) -> None:
    if not hasattr(made, name):
        setattr(made, name, value)
