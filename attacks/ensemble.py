"""The worst case over several attacks: what one has broken, the next need not attack."""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from advbench.attacks import ATTACKS, balls
from advbench.attacks.access import Access, ScoreBased, WhiteBox
from advbench.attacks.attack import Attack, check_norm
from advbench.attacks.calibration import HeldOut, open_values
from advbench.attacks.capabilities import ENSEMBLE, LOOK, Need, Passes, calibrated, need_of, passes_of, with_stop
from advbench.attacks.iterates import Search, Stop, look, settle
from advbench.attacks.losses import margin
from advbench.attacks.nearest import keep_nearest
from advbench.attacks.progress import part
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel

Order: TypeAlias = Literal["measured", "given"]


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
    inputs that are already misclassified are returned unchanged. The random numbers of an attack do not depend on its
    place, so neither the order nor what else runs changes which examples a deterministic model loses. A minimal-norm attack
    is given the threat with its epsilon; what it returns is projected. Each attack costs one forward more for a look at its
    images.

    Raises ValueError if an attack leaves the threat's ball or box.
    """
    search = Search(access, x, goal, rng, stop)
    if stop == "success":
        look(search, x, margin)
    for x_adv in _proposals(attacks, search, threat):
        look(search, balls.project(x_adv, search.x, threat), margin)
    return settle(search, margin)


def _proposals(attacks: Sequence[Attack], search: Search[WhiteBox | ScoreBased], threat: ThreatModel) -> Iterator[Tensor]:
    """What each attack makes of the examples live when its turn comes, (m, c, h, w), inside the ball and the box."""
    seen: Counter[str] = Counter()
    for attack in attacks:
        if not search:
            return
        name = repr(attack)
        seen[name] += 1
        with part(type(attack).__name__):
            x_adv = attack(search.access, search.x, search.goal, threat, search.rng.fork(name, seen[name]))
        _verify(attack, x_adv, search.x, threat)
        yield x_adv


def _verify(attack: Attack, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    bad = balls.violations(x_adv, x, replace(threat, epsilon=None) if attack.minimal_norm else threat)
    if bad.any():
        raise ValueError(f"Expected images inside {threat} from {attack}, got {int(bad.sum())} of {len(bad)} outside")


def nearest_case(
    attacks: Sequence[Attack],
    access: WhiteBox | ScoreBased,
    x: Tensor,
    goal: Goal,
    threat: ThreatModel,
    rng: ExampleRNG,
) -> Tensor:
    """The nearest adversarial image that any of the minimal-norm `attacks` finds for each example, shape (n, c, h, w).

    All of them attack every example except those that are already misclassified. Where none finds an adversarial, the image
    with the highest margin. Each attack costs one forward more for a look at its images.

    Raises ValueError if an attack leaves the box.
    """
    search = Search(access, x, goal, rng, "success")
    if search:
        keep_nearest(search, x, search.access.logits(x), threat)
    for x_adv in _proposals(attacks, search, threat):
        keep_nearest(search, x_adv, search.access.logits(x_adv), threat)
    return search.best.x_adv


def passes_together(attacks: Sequence[Attack], threat: ThreatModel, classes: int, stop: Stop = "success") -> Passes:
    """The passes of `worst_case`, and with ``stop="success"`` of `nearest_case`, for an example that withstands."""
    looks = LOOK if stop == "success" else Passes(0)
    return sum((passes_of(attack, threat, classes) + LOOK for attack in attacks), looks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Attacks in the order in which they run, as one attack (after Croce & Hein 2020, arXiv:2003.01690).

    stop: of all of them, in place of their own. minimal: whether the nearest adversarial is sought, by minimal-norm
    attacks on every example (`nearest_case`), instead of any within the threat (`worst_case`). draws: passes that every
    question to a stochastic model is averaged over, in place of the access's own if it is set.
    """

    members: tuple[Attack, ...]
    stop: Stop = "success"
    minimal: bool = False
    draws: int | None = None

    family: ClassVar[str] = ENSEMBLE

    @property
    def minimal_norm(self) -> bool:
        """Whether the smallest perturbation is sought."""
        return self.minimal

    @property
    def norms(self) -> frozenset[str]:
        """The norms that all of them know."""
        return frozenset.intersection(*(attack.norms for attack in self.members))

    @property
    def knowledge(self) -> type[Access]:
        """Scores where they are enough for all, else everything."""
        return ScoreBased if all(attack.knowledge is ScoreBased for attack in self.members) else WhiteBox

    @property
    def targeted(self) -> bool:
        """Whether all of them take targets."""
        return all(attack.targeted for attack in self.members)

    def __call__(self, access: WhiteBox | ScoreBased, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the worst, or the nearest, image found for each example, shape (n, c, h, w)."""
        check_norm(self, threat)
        if self.draws is not None:
            access = access.averaging(self.draws)
        if self.minimal:
            return nearest_case(self._stopping(), access, x, goal, threat, rng)
        return worst_case(self._stopping(), access, x, goal, threat, rng, self.stop)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """Those of all members, and a look at the images of each."""
        return passes_together(self._stopping(), threat, classes, "success" if self.minimal else self.stop)

    def _stopping(self) -> list[Attack]:
        return [with_stop(attack, self.stop) for attack in self.members]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """The worst case over a list of attacks, per example (after Croce & Hein 2020, arXiv:2003.01690).

    attacks: as registered, with arguments such as ``pgd(steps=100)``; each works on the examples that withstood those before
    it. stop: of all of them; with ``never`` all attack every example. minimal: whether the nearest adversarial is sought, by
    minimal-norm attacks alone, which all attack every example. draws: passes that every question to a stochastic model is
    averaged over (EOT, Athalye et al. 2018, arXiv:1707.07397), in place of those that are found on held-out images; a
    deterministic model is asked once.

    order: ``measured`` lets the harness try the attacks on held-out images of the model beforehand and run those first that
    break the most images per forward and backward (`by_yield`); ``given`` keeps the order of the list, and so does a call
    without such a calibration. The order changes the cost, not which examples a deterministic model loses. Scored examples
    have no say in it, nor have seconds, so that it is the same in every batch and on every run. Values that the attacks
    themselves leave open, such as the constant of ``lbfgs``, are found on the same images.

    Raises ValueError for an empty list, an unknown attack, one with other arguments, one that knows labels alone, or with
    `minimal` one that is none of a minimal norm, or `draws` below one.
    """

    attacks: tuple[str, ...] = ("apgd-ce", "fab-t", "square")
    stop: Stop = "success"
    order: Order = "measured"
    minimal: bool = False
    draws: int | None = None

    family: ClassVar[str] = ENSEMBLE

    def __post_init__(self) -> None:
        given: object = self.attacks
        if isinstance(given, str) or not given:
            raise ValueError(f"Expected `attacks` to be a list of one attack or more, got {given!r}")
        if self.order not in ("measured", "given"):
            raise ValueError(f"Expected `order` to be measured or given, got {self.order!r}")
        if self.draws is not None and self.draws < 1:
            raise ValueError(f"Expected `draws` >= 1, got {self.draws}")
        for text, attack in zip(self.attacks, self.components, strict=True):
            if not issubclass(attack.knowledge, WhiteBox | ScoreBased):
                raise ValueError(f"Expected attacks that know gradients or scores, got {text!r}, which knows labels")
            if self.minimal and not attack.minimal_norm:
                raise ValueError(f"Expected minimal-norm attacks where `minimal` is set, got {text!r}")

    @property
    def components(self) -> list[Attack]:
        """The attacks themselves."""
        return [with_stop(named(text), self.stop) for text in self.attacks]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the attacks."""
        return tuple(text.partition("(")[0] for text in self.attacks)

    @property
    def minimal_norm(self) -> bool:
        """Whether the smallest perturbation is sought."""
        return self.minimal

    @property
    def norms(self) -> frozenset[str]:
        """The norms that all of them know."""
        return self._ensemble(self.components).norms

    @property
    def knowledge(self) -> type[Access]:
        """Scores where they are enough for all, else everything."""
        return self._ensemble(self.components).knowledge

    @property
    def targeted(self) -> bool:
        """Whether all of them take targets."""
        return self._ensemble(self.components).targeted

    @property
    def need(self) -> Need | None:
        """Held-out images and the model, where the order is to be measured or an attack has open values."""
        open_values = any(need_of(attack) for attack in self.components)
        return Need("validation", model=True) if open_values or self._orders() else None

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """Those of all components, and a look at the images of each."""
        return self._ensemble(self.components).passes(threat, classes)

    def short(self) -> Self:
        """A cheap setting, for tests: three short attacks in place of the list."""
        return replace(self, attacks=("pgd(steps=4)", "fab-t(steps=3,targets=2)", "square(queries=20)"))

    def calibrate(self, held_out: HeldOut) -> dict[str, Tensor]:
        """The `order` as positions in the list, (m,) int64, and open values as ``POSITION_NAME``."""
        values: dict[str, Tensor] = {}
        members = []
        for position, attack in enumerate(self.components):
            found = open_values(attack, held_out)
            values |= {f"{position}_{name}": value for name, value in found.items()}
            members.append(calibrated(attack, found))
        order = list(range(len(members)))
        if self._orders():
            trials = [held_out.attacked(self._ensemble([member])) for member in members]
            broken, passes = (torch.stack([getattr(trial, name) for trial in trials]) for name in ("broken", "passes"))
            # Inputs that are already misclassified were returned unchanged, and are never attacked.
            asked = ~(trials[0].broken & (trials[0].x_adv == held_out.x).flatten(1).all(dim=1))
            order = by_yield(broken[:, asked], passes[:, asked])
        return {"order": torch.tensor(order), **values}

    def calibrated(self, values: Mapping[str, Tensor]) -> Ensemble:
        """The attacks in the order, and with the values, that `calibrate` found."""
        members = []
        for position, attack in enumerate(self.components):
            own = {name.partition("_")[2]: value for name, value in values.items() if name.startswith(f"{position}_")}
            members.append(calibrated(attack, own))
        return self._ensemble([members[position] for position in values["order"].tolist()])

    def __call__(self, access: WhiteBox | ScoreBased, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the worst image found for each example, shape (n, c, h, w), inside the ball around `x` and the box."""
        return self._ensemble(self.components)(access, x, goal, threat, rng)

    def _orders(self) -> bool:
        return self.order == "measured" and self.stop == "success" and not self.minimal and len(self.attacks) > 1

    def _ensemble(self, members: Sequence[Attack]) -> Ensemble:
        return Ensemble(members=tuple(members), stop=self.stop, minimal=self.minimal, draws=self.draws)


def by_yield(broken: Tensor, passes: Tensor) -> list[int]:
    """The order in which attacks break the most examples per pass, each counted on what those before it leave.

    As an attack does the same to an example in any place, trying each by itself on all examples tells what any order costs;
    the order is greedy. Attacks that break nothing more come last, those that break more per pass by themselves before the
    others; equal ones in the order given.

    broken: whether attack i breaks example j by itself, (m, n), bool. passes: what it spends on it, (m, n), int64.
    """
    left, order = torch.ones_like(broken[0]), []
    alone = (broken.sum(dim=1) / passes.sum(dim=1).clamp(min=1)).tolist()
    waiting = list(range(len(broken)))
    while waiting:
        gained = ((broken & left).sum(dim=1) / (passes * left).sum(dim=1).clamp(min=1)).tolist()
        best = max(waiting, key=lambda attack: (gained[attack], alone[attack], -attack))
        waiting.remove(best)
        order.append(best)
        left = left & ~broken[best]
    return order


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
