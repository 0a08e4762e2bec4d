"""The worst case over several attacks: what one has broken, the next need not attack."""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from advbench.attacks import ATTACKS, balls
from advbench.attacks.access import Access, ScoreBased, WhiteBox
from advbench.attacks.attack import Attack, check_norm
from advbench.attacks.iterates import Search, Stop, look
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel


def worst_case(
    attacks: Sequence[Attack],
    access: WhiteBox | ScoreBased,
    x: Tensor,
    goal: Goal,
    threat: ThreatModel,
    rng: ExampleRNG,
    stop: Stop = "success",
) -> Tensor:
    """The best image, by (goal achieved, margin), that any of `attacks` finds for each example, shape (n, c, h, w).

    They run one after the other; with ``stop="success"`` each sees only the examples that withstood those before it, and
    examples that are wrong from the outset stay as they are. The random numbers of an attack do not depend on its place, so
    neither the order nor what else runs changes which examples a deterministic model loses. A minimal-norm attack is given
    the threat with its epsilon; what it returns is projected. Each attack costs one forward more for a look at its images.

    Raises ValueError where an attack leaves the threat's ball or box.
    """
    search = Search(access, x, goal, rng, stop)
    if stop == "success":
        look(search, x, margin)
    seen: Counter[str] = Counter()
    for attack in attacks:
        if not search:
            break
        name = repr(attack)
        seen[name] += 1
        x_adv = attack(search.access, search.x, search.goal, threat, search.rng.fork(name, seen[name]))
        _verify(attack, x_adv, search.x, threat)
        look(search, balls.project(x_adv, search.x, threat), margin)
    return search.best.x_adv


def _verify(attack: Attack, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    bad = balls.violations(x_adv, x, replace(threat, epsilon=None) if attack.minimal_norm else threat)
    if bad.any():
        raise ValueError(f"Expected images inside {threat} from {attack}, got {int(bad.sum())} of {len(bad)} outside")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """The worst case over a list of attacks, per example (after Croce & Hein 2020, arXiv:2003.01690).

    attacks: as registered, with arguments such as ``pgd(steps=100)``, in the order in which they run; each works on the
    examples that withstood those before it. stop: of all of them.

    Raises ValueError for an empty list, an unknown attack, one with other arguments, or one that knows labels alone.
    """

    attacks: tuple[str, ...] = ("apgd-ce", "fab-t", "square")
    stop: Stop = "success"

    minimal_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        given: Any = self.attacks
        if isinstance(given, str) or not given:
            raise ValueError(f"Expected `attacks` to be a list of one attack or more, got {given!r}")
        for text, attack in zip(self.attacks, self.components, strict=True):
            if not issubclass(attack.knowledge, WhiteBox | ScoreBased):
                raise ValueError(f"Expected attacks that know gradients or scores, got {text!r}, which knows labels")

    @property
    def components(self) -> list[Attack]:
        """The attacks themselves."""
        return [with_stop(named(text), self.stop) for text in self.attacks]

    @property
    def norms(self) -> frozenset[str]:
        """The norms that all of them know."""
        return frozenset.intersection(*(attack.norms for attack in self.components))

    @property
    def knowledge(self) -> type[Access]:
        """Scores where they are enough for all, else everything."""
        return ScoreBased if all(attack.knowledge is ScoreBased for attack in self.components) else WhiteBox

    @property
    def targeted(self) -> bool:
        """Whether all of them take targets."""
        return all(attack.targeted for attack in self.components)

    def __call__(self, access: WhiteBox | ScoreBased, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the worst image found for each example, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        return worst_case(self.components, access, x, goal, threat, rng, self.stop)


def with_stop(attack: Attack, stop: Stop) -> Attack:
    """The attack with this `stop`, where it has one."""
    if not hasattr(attack, "stop"):
        return attack
    run: Any = attack
    stopping: Attack = replace(run, stop=stop)
    return stopping


def named(text: str) -> Attack:
    """The attack of a text such as ``pgd`` or ``pgd(steps=100)``, arguments as Python literals.

    Raises ValueError for another form, an unknown name, or arguments that do not fit.
    """
    name, bracket, rest = text.partition("(")
    if name not in ATTACKS:
        raise ValueError(f"Expected one of advbench's attacks, {', '.join(ATTACKS)}, got {name!r}")
    module, _, factory = ATTACKS[name].partition(":")
    make = getattr(importlib.import_module(module), factory)
    try:
        call = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) and not call.args else None
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords or ()}
    except (SyntaxError, ValueError):
        keywords = None
    if keywords is None:
        raise ValueError(f"Expected name(key=value, ...) such as pgd(steps=100), got {text!r}")
    try:
        attack: Attack = make(**arguments)
    except TypeError as error:
        raise ValueError(f"{text}: {error}") from error
    return attack
