"""What a run crosses: the components that were named, and the default suite for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from advbench.config import Config
from advbench.registry.schemes import OWN
from advbench.registry.specs import Spec

DEFAULT_ARCHITECTURE = Spec("gu2014/n200-200-10")
DEFAULT_SUBSTITUTE = Spec("gu2014/n100-100-10")


@dataclass(frozen=True, slots=True)
class Suite:
    """Defenses, attacks, architectures of the targets and of the black-box attacker's substitutes."""

    defenses: tuple[Spec, ...]
    attacks: tuple[Spec, ...]
    architectures: tuple[Spec, ...]
    substitutes: tuple[Spec, ...]


def suite_of(config: Config) -> Suite:
    """The components of a run: those that were named, and the default suite for the rest."""
    norm = config.norm
    if norm == "none":
        attacks, trained = [Spec("correlated-noise")], list[Spec]()
    else:
        attacks = [Spec("fgsm" if norm == "linf" else "fgm"), Spec("pgd")]
        attacks += [Spec("deepfool")] if norm in ("linf", "l2") else []
        trained = [Spec(f"robust-{norm}"), Spec(f"pgd-{norm}")]
    defenses = (Spec("none"), *trained, Spec.of("input-noise", {"passes": 2}))
    return Suite(
        _unique(config.defense or defenses),
        _unique(config.attack or attacks),
        _unique(_architectures(config)),
        _unique(config.substitute or (DEFAULT_SUBSTITUTE,)),
    )


def _architectures(config: Config) -> tuple[Spec, ...]:
    """The architectures of the targets, the user's with what they return. ValueError for outputs of no such network."""
    given = config.architecture or (DEFAULT_ARCHITECTURE,)
    if config.outputs is None:
        return given
    if not any(spec.name.startswith(OWN) for spec in given):
        raise ValueError(f"Expected an architecture of yours, {OWN}TARGET, with `outputs`, got {', '.join(map(str, given))}")
    return tuple(
        Spec.of(spec.name, {"outputs": config.outputs} | spec.keywords) if spec.name.startswith(OWN) else spec
        for spec in given
    )


def _unique(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    return tuple(dict.fromkeys(specs))
