"""What every attack has to do, as checks that anybody can run on any attack: ours, a plug-in's, another library's.

Each check is a known way in which attacks go wrong: a budget overstepped, pixels at 0 or 1 that never move, an example that
depends on its batch. They run on a small random network, with the attack's iterations cut down so that all takes seconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import DetectorView
from advbench.attacks.attack import Attack
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.capabilities import Claiming, Configured, returned_by, short_of
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel, Untargeted
from advbench.attacks.watch import Watch
from advbench.registry import registry
from advbench.registry.specs import Spec

EPSILON = {"linf": 0.1, "l2": 0.7, "l1": 3.0, "l0": 5.0, "none": None}
SHAPE = (3, 6, 6)

_MANY = 24
_SLACK = 3
"""How many of `_MANY` images an attack may lose by a change that should make no difference."""
_CLEARLY = 1.01
"""How many times as far as one that was asked about a returned adversarial image may be."""


class Broken(Exception):
    """A check does not hold, and why."""


class Inapplicable(Exception):
    """A check says nothing about this attack, and why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one check ended. attack: the name of what was checked, an attack or another component. status: ``holds``,
    ``fails`` or ``n/a``; reason: of the latter two.
    """

    attack: str
    check: str
    status: str
    reason: str = ""


# --- what attacks are tried on


class Net(nn.Module):
    """A small network with every kind of state: batch normalisation, dropout, buffers.

    noise: the deviation of what is added to the images when it is called with an rng. scale, shift: of the logits.
    `asked` counts the images that it has seen; it breaks after `fails_after` of them.
    """

    def __init__(self, classes: int = 4, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(96, classes)
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        self.scale, self.shift = scale, shift
        self.asked, self.fails_after = 0, 10**9

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Logits (n, classes)."""
        self.asked += len(x)
        if self.asked > self.fails_after:
            raise OverflowError("the model broke")
        if rng is not None:
            x = x + 0.05 * rng.normal(tuple(x.shape[1:]), x.dtype)
        logits: Tensor = self.head(self.features(x))
        return self.scale * logits + self.shift


class Flat(nn.Module):
    """A model without a slope: its gradient is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """The same logits for every image, (n, 3)."""
        return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0], dtype=x.dtype)


def images(n: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images with many pixels at exactly 0 and 1."""
    x = torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return (1.6 * x - 0.3).clamp(0, 1).to(dtype)


def labels(model: nn.Module, x: Tensor, wrong: tuple[int, ...] = (1, 4)) -> Tensor:
    """The model's own labels, except for some examples that it gets wrong."""
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(x)
    y = logits.argmax(dim=1)
    for row in wrong:
        y[row : row + 1] = (y[row : row + 1] + 1) % logits.shape[1]
    model.train()
    if isinstance(model, Net):
        model.asked = 0
    return y


def threat_of(attack: Attack, norm: str, box: tuple[float, float] | None = (0.0, 1.0)) -> ThreatModel:
    """The threat at which an attack is tried in a norm."""
    return ThreatModel(norm, None if attack.minimal_norm else EPSILON[norm], box)  # type: ignore[arg-type]


def run(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    goal: Goal,
    threat: ThreatModel,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    stochastic: bool = False,
    draws: int = 1,
    detector: DetectorView | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """What an attack makes of images x, as the harness would call it.

    index: of the images in their data set. stochastic, draws, detector: as `Access` takes them. watch: what follows it.
    """
    rng = ExampleRNG.make(seed, "attack", torch.arange(len(x)) if index is None else index)
    found: Tensor
    with attack.knowledge(model, rng.fork("model"), stochastic=stochastic, draws=draws, detector=detector) as access:
        access.watch = watch
        found = attack(access, x, goal, threat, rng.fork("attack"))
    return found


def shortened(spec: Spec) -> Attack:
    """The cheap setting of a spec's attack, with the arguments that the spec gives, and its open values found."""
    attack = short_of(registry.attacks.create(spec))
    if isinstance(attack, Configured):
        own = {field.name for field in dataclasses.fields(attack)}
        attack = dataclasses.replace(attack, **{name: value for name, value in spec.keywords.items() if name in own})
    return calibrate(attack, _held_out())


def _held_out() -> HeldOut:
    """Images that are not those of the checks, for attacks with values to find."""
    model, x = Net().double(), images(_MANY, torch.float64).flip(2, 3)
    return HeldOut(x=x, y=labels(model, x), index=torch.arange(_MANY), threat=ThreatModel("linf", 0.1), model=model)


def _setting(attack: Attack, norm: str, dtype: torch.dtype = torch.float32) -> tuple[Net, Tensor, Untargeted, ThreatModel]:
    model, x = Net().to(dtype), images(dtype=dtype)
    return model, x, Untargeted(labels(model, x)), threat_of(attack, norm)


# --- the checks, each of (attack, norm)


def check_budget(attack: Attack, norm: str) -> None:
    """No image lies outside the ball."""
    model, x, goal, threat = _setting(attack, norm)
    _within(run(attack, model, x, goal, threat), x, dataclasses.replace(threat, box=None))


def check_box(attack: Attack, norm: str) -> None:
    """No pixel lies outside [0, 1]."""
    model, x, goal, threat = _setting(attack, norm)
    x_adv = run(attack, model, x, goal, threat)
    outside = ((x_adv < 0) | (x_adv > 1)).flatten(1).any(dim=1)
    if outside.any():
        raise Broken(f"{int(outside.sum())} of {len(x)} images have pixels in [{x_adv.min():.6g}, {x_adv.max():.6g}]")


def check_dtype(attack: Attack, norm: str) -> None:
    """Shape and type of the images are kept, in single and in double precision."""
    for dtype in (torch.float32, torch.float64):
        model, x, goal, threat = _setting(attack, norm, dtype)
        x_adv = run(attack, model, x, goal, threat)
        if (x_adv.shape, x_adv.dtype) != (x.shape, dtype):
            raise Broken(f"{tuple(x.shape)} {dtype} became {tuple(x_adv.shape)} {x_adv.dtype}")
        if x_adv.requires_grad:
            raise Broken("the images come with a graph")
        _within(x_adv, x, threat)


def check_batches(attack: Attack, norm: str) -> None:
    """What becomes of an example depends neither on the others in its batch nor on their order."""
    dtype = _precision(attack, norm)
    model, x, goal, threat = _setting(attack, norm, dtype)
    expected = run(attack, model, x, goal, threat)
    order = torch.tensor([3, 8, 0, 5, 1, 7, 2, 6, 4])
    for size in (9, 1, 7):
        for rows in torch.split(order, size):
            found = run(attack, model, x[rows], goal.select(rows), threat, index=rows)
            model.eval()
            with torch.no_grad():
                same = goal.select(rows).achieved(model(found)) == goal.select(rows).achieved(model(expected[rows]))
            model.train()
            moved = (found - expected[rows]).flatten(1).abs().amax(dim=1)
            if dtype == torch.float64 and bool((moved > 1e-7).any()):
                raise Broken(f"{int((moved > 1e-7).sum())} of {len(rows)} images differ by up to {moved.max():.2g}")
            if not same.all():
                raise Broken(f"{int((~same).sum())} of {len(rows)} outcomes differ")


def check_seeds(attack: Attack, norm: str) -> None:
    """A seed repeats, the global random state makes no difference, and is left as it was."""
    model, x, goal, threat = _setting(attack, norm)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(attack, model, x, goal, threat)
    if not torch.equal(torch.get_rng_state(), before):
        raise Broken("torch's global random state changes")
    torch.manual_seed(1)
    if not torch.equal(run(attack, model, x, goal, threat), first):
        raise Broken("the same seed gives other images")


def check_classes(attack: Attack, norm: str) -> None:
    """Any number of classes will do: 2, 3, 5, 100."""
    x, threat = images(4), threat_of(attack, norm)
    for classes in (2, 3, 5, 100):
        model = Net(classes)
        try:
            x_adv = run(attack, model, x, Untargeted(labels(model, x, wrong=(1,))), threat)
        except Exception as error:
            raise Broken(f"with {classes} classes: {told(error)}") from error
        _within(x_adv, x, threat)


def check_shifted_logits(attack: Attack, norm: str) -> None:
    """Lowering all logits by 1000, which changes no answer, does not make a model harder to attack."""
    plain, shifted = (_fooled(attack, norm, Net(shift=shift), images(_MANY)) for shift in (0.0, -1000.0))
    _enough(plain)
    if shifted < plain - _SLACK:
        raise Broken(f"fools {shifted} of {_MANY} with logits lower by 1000, {plain} else")


def check_extreme_pixels(attack: Attack, norm: str) -> None:
    """Images with pixels at exactly 0 and 1 are not harder to attack than those slightly away from these values."""
    x = images(_MANY).round()
    exact, nudged = (_fooled(attack, norm, Net(), each) for each in (x, x.clamp(2e-3, 1 - 2e-3)))
    _enough(nudged)
    if exact < nudged - _SLACK:
        raise Broken(f"fools {exact} of {_MANY} with pixels at 0 and 1, {nudged} with pixels at 0.002 and 0.998")


def check_stochastic_model(attack: Attack, norm: str) -> None:
    """A stochastic model is attacked within the budget, and a seed repeats."""
    model, x, goal, threat = _setting(attack, norm)
    first, second = (run(attack, model, x, goal, threat, stochastic=True, draws=2) for _ in range(2))
    _within(first, x, threat)
    if not torch.equal(first, second):
        raise Broken("the same seed gives other images")


def check_zero_gradient(attack: Attack, norm: str) -> None:
    """A model without a slope and a saturated one do no harm: no NaN, no error."""
    x, threat = images(4), threat_of(attack, norm)
    for name, model in (("flat", Flat()), ("saturated", Net(scale=1e6, shift=-1e7))):
        try:
            x_adv = run(attack, model, x, Untargeted(torch.zeros(4, dtype=torch.int64)), threat)
        except Exception as error:
            raise Broken(f"with a {name} model: {told(error)}") from error
        _within(x_adv, x, threat)


def check_model_untouched(attack: Attack, norm: str) -> None:
    """The model and the images are unchanged, after an exception of the model's too."""
    model, x, goal, threat = _setting(attack, norm)
    model.features[1].eval()
    before, clean = _fingerprint(model), x.clone()
    x_adv = run(attack, model, x, goal, threat)
    _untouched(model, before)
    if not torch.equal(x, clean):
        raise Broken("the clean images change")
    if x_adv.data_ptr() == x.data_ptr():
        raise Broken("the clean images themselves come back")
    for asked in (1, 2 * len(x)):
        model.asked, model.fails_after = 0, asked
        try:
            run(attack, model, x, goal, threat)
        except OverflowError:
            pass
        else:
            if model.asked > asked:
                raise Broken("it swallows the model's exception")
        _untouched(model, before)


def check_success_flag(attack: Attack, norm: str) -> None:
    """Where the attack says itself which images fool the model, a fresh look says the same."""
    if not isinstance(attack, Claiming):
        raise Inapplicable("it makes no claims")
    model, x, goal, threat = _setting(attack, norm)
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with attack.knowledge(model, rng.fork("model")) as access:
        x_adv, claims = attack.attacked(access, x, goal, threat, rng.fork("attack"))
    if claims is None:
        raise Inapplicable("it makes no claims")
    model.eval()
    with torch.no_grad():
        wrong = claims != goal.achieved(model(x_adv))
    if wrong.any():
        raise Broken(f"it is wrong about {int(wrong.sum())} of {len(x)} images")


def check_bookkeeping(attack: Attack, norm: str) -> None:
    """No image that it returns is clearly worse than one that it asked about."""
    if norm == "none":
        raise Inapplicable("images of this norm are not ranked")
    model, x = Net(), images(_MANY)
    goal, threat = Untargeted(labels(model, x, wrong=())), threat_of(attack, norm)
    watch = Watch(x, goal, threat)
    x_adv = run(attack, model, x, goal, threat, watch=watch)
    model.eval()
    with torch.no_grad():
        visited, returned = (goal.achieved(model(each)) for each in (watch.x_adv, x_adv))
    lost, what = visited & ~returned, "adversarial images that it asked about, and returned others"
    if attack.minimal_norm:
        reach = [balls.distance(each - x, threat.norm).double() for each in (watch.x_adv, x_adv)]
        lost |= visited & (reach[1] > _CLEARLY * reach[0])
        what = f"adversarial images that it asked about, and returned none, or one more than {_CLEARLY - 1:.0%} farther"
    told = f"lost {int(lost.sum())} of {len(x)} {what}"
    if lost.any() and returned_by(attack):
        raise Inapplicable(f"it returns {returned_by(attack)} by its definition, and {told}")
    if lost.any():
        raise Broken(f"bad bookkeeping: it {told}")


CHECKS: Mapping[str, Callable[[Attack, str], None]] = {
    "budget": check_budget,
    "box": check_box,
    "dtype": check_dtype,
    "batches": check_batches,
    "seeds": check_seeds,
    "classes": check_classes,
    "shifted logits": check_shifted_logits,
    "pixels at 0 and 1": check_extreme_pixels,
    "stochastic model": check_stochastic_model,
    "zero gradient": check_zero_gradient,
    "model untouched": check_model_untouched,
    "success flag": check_success_flag,
    "bookkeeping": check_bookkeeping,
}
"""The checks by name: (attack, norm), raising `Broken` where they do not hold."""


def examine(spec: Spec) -> list[Verdict]:
    """The verdicts of all checks on one attack, in every norm that it knows; a check fails where one norm does.

    Raises ValueError if there is no such attack.
    """
    attack = shortened(spec)
    return [_verdict(str(spec), attack, name, check) for name, check in CHECKS.items()]


def _verdict(label: str, attack: Attack, name: str, check: Callable[[Attack, str], None]) -> Verdict:
    failures, inapplicable = [], ""
    for norm in sorted(attack.norms):
        try:
            check(attack, norm)
        except Inapplicable as reason:
            inapplicable = f"{norm}: {reason}"
        except Broken as reason:
            failures.append(f"{norm}: {reason}")
        except Exception as error:
            failures.append(f"{norm}: {told(error)}")
    if failures:
        return Verdict(label, name, "fails", "; ".join(failures))
    return Verdict(label, name, "n/a" if inapplicable else "holds", inapplicable)


def tables(components: Iterable[Sequence[Verdict]]) -> list[tuple[list[str], list[list[str]]]]:
    """The verdicts on components as tables: the columns, and a row for each component that had the same checks."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for verdicts in components:
        checks = tuple(verdict.check for verdict in verdicts)
        found.setdefault(checks, []).append([verdicts[0].attack, *(verdict.status for verdict in verdicts)])
    return [(["attack" if checks == tuple(CHECKS) else "name", *checks], rows) for checks, rows in found.items()]


def lines(verdicts: Iterable[Verdict], status: str = "fails") -> list[str]:
    """A line for every check that ended with `status`, and why."""
    return [f"{each.attack}, {each.check}: {each.reason}" for each in verdicts if each.status == status]


def specs_of(texts: Sequence[str] | None) -> list[Spec]:
    """The attacks of a list of specs, all registered ones if there is none."""
    if texts:
        return [Spec.parse(text) for text in texts]
    return [Spec(name) for name in registry.attacks.names()]


# --- how they look


def _within(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    if x_adv.shape != x.shape:
        raise Broken(f"images {tuple(x.shape)} became {tuple(x_adv.shape)}")
    if torch.isnan(x_adv).any():
        raise Broken(f"NaN in {int(torch.isnan(x_adv).flatten(1).any(dim=1).sum())} of {len(x)} images")
    bad = balls.violations(x_adv, x, threat, tolerance=1e-6)
    if bad.any():
        far = f", by up to {_excess(x_adv, x, threat):.3g}" if math.isfinite(threat.epsilon_or_inf) else ""
        raise Broken(f"{int(bad.sum())} of {len(x)} images outside{far}")


def _excess(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> float:
    return max(0.0, float(balls.distance(x_adv - x, threat.norm).max()) - threat.epsilon_or_inf)


def _fooled(attack: Attack, norm: str, model: Net, x: Tensor) -> int:
    """How many images an attack fools a model with."""
    goal = Untargeted(labels(model, x, wrong=()))
    x_adv = run(attack, model, x, goal, threat_of(attack, norm))
    model.eval()
    with torch.no_grad():
        return int(goal.achieved(model(x_adv)).sum())


def _enough(fooled: int) -> None:
    if fooled <= _SLACK:
        raise Inapplicable(f"it fools {fooled} of {_MANY} in so short a run: set its steps")


def _precision(attack: Attack, norm: str) -> torch.dtype:
    """Double precision, where the attack takes it."""
    model, x, goal, threat = _setting(attack, norm, torch.float64)
    try:
        run(attack, model, x, goal, threat)
    except Exception:
        return torch.float32
    return torch.float64


_Fingerprint: TypeAlias = tuple[list[bool], list[tuple[bool, Tensor | None]], list[Tensor]]
"""Modes of the modules, flags and gradients of the parameters, and all state."""


def _fingerprint(model: nn.Module) -> _Fingerprint:
    modes = [module.training for module in model.modules()]
    gradients = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return modes, gradients, [value.clone() for value in model.state_dict().values()]


def _untouched(model: nn.Module, before: _Fingerprint) -> None:
    after = _fingerprint(model)
    if after[0] != before[0]:
        raise Broken("the model's modes (train, eval) change")
    if after[1] != before[1]:
        raise Broken("the parameters' gradients or flags change")
    if not all(torch.equal(one, other) for one, other in zip(after[2], before[2], strict=True)):
        raise Broken("the model's weights or buffers change")


def told(error: BaseException) -> str:
    """An exception in one line of at most 160 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
