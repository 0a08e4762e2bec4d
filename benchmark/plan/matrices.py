"""The matrices of a plan as crafts and cells: each attacker, its knowledge and its targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advbench.attacks.access import DecisionBased
from advbench.attacks.capabilities import GIVEN
from advbench.plan.planner import PlannedAttack, Planner
from advbench.plan.targets import Target, View
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.tasks.score import SourceFacts

_EVASION = Spec("selective-pgd")
"""The attack that stands beside every other one where there is a detector."""
_IGNORING = "base"
"""The surrogate of an attacker who ignores a defense's test-time parts."""


def cross(planner: Planner, targets: list[Target], substitutes: Sequence[Spec]) -> None:
    """The cells of every matrix that the run asks for, of targets of one training seed."""
    wanted = set(planner.config.matrix)
    if "white-box" in wanted:
        for target in targets:
            white_box(planner, target)
    if {"white-box", "black-box"} & wanted:
        for target in targets:
            queries(planner, target)
    if "black-box" in wanted and planner.gradient_attacks:
        for target in targets:
            for substitute in substitutes:
                black_box(planner, target, substitute)
    if "transfer" in wanted:
        transfer(planner, targets)


def white_box(planner: Planner, target: Target) -> None:
    """Attacks on the target itself through each surrogate; a cell is the worst over them."""
    for attack in planner.gradient_attacks:
        for epsilon in planner.epsilons:
            found = _crafts(planner, target, attack, epsilon, target.surrogates) | _evasions(planner, target, epsilon)
            looked, tested = planner.diagnose(target, epsilon), planner.unit_test(target, attack, epsilon, found)
            known = planner.known_noise(target, attack, found)
            planner.score(
                "white-box", target, attack, epsilon, found, None, diagnosis=looked, unit_test=tested, known_noise=known
            )
            if _IGNORING in found:
                alone = {_IGNORING: found[_IGNORING]}
                planner.score("oblivious", target, attack, epsilon, alone, SourceFacts(_IGNORING, "surrogate"))


def queries(planner: Planner, target: Target) -> None:
    """Attacks that ask for scores or labels alone need no surrogate: they ask the model itself, its detector with it."""
    for attack in planner.attacks:
        if not attack.by_gradients:
            source = SourceFacts(_asked(attack), "queries")
            for epsilon in planner.epsilons:
                found = _crafts(planner, target, attack, epsilon, (target.itself,))
                tested = None if attack.given else planner.unit_test(target, attack, epsilon, found)
                planner.score("black-box", target, attack, epsilon, found, source, unit_test=tested)


def _asked(attack: PlannedAttack) -> str:
    """What an attack without gradients asks the target for."""
    if attack.given:
        return GIVEN
    return "label queries" if issubclass(attack.attack.knowledge, DecisionBased) else "score queries"


def _crafts(
    planner: Planner, target: Target, attack: PlannedAttack, epsilon: float | None, views: Iterable[View]
) -> dict[str, str]:
    """Images crafted to fool the target itself, by what was asked.

    Inexact surrogates get the full budget: a marginal success would be undone by the purifier.
    """
    found = {}
    for view in views:
        name = view.name or "itself"
        found[name] = planner.craft(
            target.key,
            target.label if len(target.surrogates) == 1 else f"{target.label} ({name})",
            attack,
            None if attack.minimal_norm else epsilon,
            batch=target.batch,
            seed=target.seed,
            view=view,
            transfer=not view.exact and not attack.minimal_norm,
        )
    if attack.minimal_norm and target.stochastic:
        # The smallest perturbation fools a random model about every other time: one that spends the whole budget stands
        # beside it, so that the model does not look robust at epsilon for that reason.
        found["whole budget"] = _craft_for_transfer(planner, target, attack, epsilon)
    return found


def _evasions(planner: Planner, target: Target, epsilon: float | None) -> dict[str, str]:
    """Images crafted past a target's detector, by surrogate; they stand beside every attack's."""
    evading = [view for view in target.surrogates if view.evading]
    if not evading or planner.config.norm not in registry.attacks.create(_EVASION).norms:
        return {}
    found = _crafts(planner, target, planner.attack(_EVASION), epsilon, evading)
    return {f"{name}, {_EVASION}": craft for name, craft in found.items()}


def black_box(planner: Planner, target: Target, architecture: Spec) -> None:
    """A substitute trained on the target's labels, attacked for the target."""
    substitute = planner.substitute(target, architecture)
    label = f"substitute {architecture}"
    source = SourceFacts(label, "substitute", architecture=architecture.name)
    batch = planner.substitute_batch(substitute)
    for attack in planner.gradient_attacks:
        for epsilon in planner.epsilons:
            craft = planner.craft(
                substitute,
                f"{label} for {target.label}",
                attack,
                epsilon,
                batch=batch,
                seed=target.seed,
                view=View(),
                transfer=True,
            )
            found = {"substitute": craft}
            planner.score("black-box", target, attack, epsilon, found, source, handed=True, substitute=substitute)


def _craft_for_transfer(planner: Planner, source: Target, attack: PlannedAttack, epsilon: float | None) -> str:
    """Images crafted on a model to be shown to any: every example, the whole budget, the faithful surrogate.

    Those of an attack that asks for scores or labels alone come from the model itself.
    """
    return planner.craft(
        source.key,
        source.label,
        attack,
        epsilon,
        batch=source.batch,
        seed=source.seed,
        view=source.surrogates[0] if attack.by_gradients else source.itself,
        transfer=True,
    )


def transfer(planner: Planner, targets: list[Target]) -> None:
    """Every target's images shown to all of them."""
    for attack in planner.attacks:
        for epsilon in planner.epsilons:
            for source in targets:
                craft = _craft_for_transfer(planner, source, attack, epsilon)
                facts = SourceFacts(source.label, "model", model=source.facts)
                for target in targets:
                    found = {source.label: craft}
                    planner.score("transfer", target, attack, epsilon, found, facts, handed=True)
