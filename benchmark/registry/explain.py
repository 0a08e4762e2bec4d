"""What one registered component is, for people: its documentation, arguments, norms and a command line."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable

from advbench.registry import registry
from advbench.registry.registry import UnknownNameError
from advbench.registry.schemes import KINDS, Kind, close_names
from advbench.registry.specs import Spec

_ARGUMENTS_OF_HARNESS = frozenset({"shape", "n_classes", "data_dir", "outputs"})
"""What the harness fills in when it calls a factory."""


def explained(name: str) -> str:
    """All that is known of a component by its name, or its spec; of every kind that has the name.

    Raises UnknownNameError, with close names of every kind, for a name that no kind has.
    """
    spec = Spec.parse(name)
    kinds = [kind for kind in KINDS if spec.name in registry.of(kind)]
    kinds = kinds or [kind for kind in KINDS if registry.of(kind).scheme(spec.name) is not None]
    if not kinds:
        meant = difflib.get_close_matches(spec.name.lower(), KINDS, n=1)
        close = dict.fromkeys(itertools.chain(meant, *map(_close(spec.name), KINDS)))
        hint = f"did you mean {' or '.join(list(close)[:3])}?" if close else "`advbench list` shows all"
        raise UnknownNameError(f"Expected a kind ({', '.join(KINDS)}) or the name of a component, got {spec.name!r}: {hint}")
    return "\n\n".join(_explained(kind, spec.name) for kind in kinds)


def _close(name: str) -> Callable[[Kind], list[str]]:
    return lambda kind: close_names(kind, name, registry.of(kind).names())


def _explained(kind: Kind, name: str) -> str:
    factory = registry.of(kind).factory(name)
    lines = [f"{name} ({kind[:-1]})", "", inspect.getdoc(factory) or "It has no documentation."]
    arguments = _arguments(factory)
    lines += ["", "arguments:" if arguments else "arguments: none", *(f"  {each}" for each in arguments)]
    if kind == "attacks":
        attack = registry.attacks.create(Spec(name))
        lines += [f"norms: {', '.join(sorted(attack.norms))}", f"it asks for: {_KNOWLEDGE[attack.knowledge.__name__]}"]
        lines += ["it seeks the smallest perturbation" if attack.minimal_norm else "it seeks an adversarial within epsilon"]
    return "\n".join([*lines, "", _command(kind, name, arguments)])


_KNOWLEDGE = {"WhiteBox": "gradients", "ScoreBased": "scores alone", "DecisionBased": "labels alone"}


def _arguments(factory: Callable[..., object]) -> list[str]:
    """The arguments of a factory that a user sets, as ``name=default``."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        one.name if one.default is inspect.Parameter.empty else f"{one.name}={one.default!r}"
        for one in parameters
        if one.name not in _ARGUMENTS_OF_HARNESS and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]


def _command(kind: Kind, name: str, arguments: list[str]) -> str:
    """A command line that uses the component, with its first argument as it is."""
    first = next((each for each in arguments if "=" in each and "None" not in each), "")
    spec = f"{name}({first})" if first and kind in ("attacks", "defenses") else name
    quoted = f'"{spec}"' if "(" in spec else spec
    option = {"attacks": "--attack", "defenses": "--defense", "architectures": "--architecture", "datasets": "--dataset"}
    if kind == "parts":
        return "a part of defenses: it is trained for those that name it"
    norm = ""
    if kind == "attacks":
        norms = registry.attacks.create(Spec(name)).norms
        norm = "" if "linf" in norms else f" --norm {sorted(norms)[0]}"
    return f"advbench run {option[kind]} {quoted}{norm}"
