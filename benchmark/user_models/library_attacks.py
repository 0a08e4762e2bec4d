"""Attacks of foolbox, torchattacks and adv-lib by name: ``foolbox/LinfPGD``, ``torchattacks/PGD``, ``adv-lib/ddn``.

An adapter is an attack like any other: a frozen dataclass whose fields are the arguments of the library's own attack, with
the library's defaults. The harness gives it the norm, epsilon, the box and the number of classes, counts every pass
through the model, and verifies what comes back. The libraries draw from global generators, which are seeded for each batch,
so that runs repeat, but an image's draws depend on the batch that it stands in.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, make_dataclass
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.attack import check_norm
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel
from advbench.attacks.watch import BudgetSpent
from advbench.registry.sources import package_hash
from advbench.user_models.blockwise import generators

_ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
_ALL = frozenset(_ORDERS)
_GIVEN = frozenset({"model", "inputs", "images", "labels", "targeted", "callback", "n_classes", "num_classes", "verbose"})
"""Arguments that the harness gives, or that only say what is printed."""
_HOW = {
    "foolbox": "pip install 'advbench[peers]'",
    "torchattacks": "pip install --no-deps torchattacks",
    "adv-lib": "pip install --no-deps adv-lib",
}


@dataclass(frozen=True, slots=True)
class Traits:
    """What an attack of a library is: the norms it knows, the argument that takes the norm or epsilon, where it has one.

    make: the library's class or function. epsilon: None for attacks of minimal norm.
    """

    make: Callable[..., Any]
    norms: frozenset[str]
    epsilon: str | None = None
    norm: str | None = None
    minimal: bool = False


class Foreign(ABC):
    """An attack of another library. Subclasses are made by `resolve`, with the library's arguments for fields."""

    name: ClassVar[str]
    traits: ClassVar[Traits]
    identity: ClassVar[str]
    norms: ClassVar[frozenset[str]]
    minimal_norm: ClassVar[bool]
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = False

    @property
    def arguments(self) -> dict[str, object]:
        """What the user may set, by the library's names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return what the library's attack makes of the images, shape (n, c, h, w).

        Raises ValueError for a threat or a goal that it does not know; the library's own errors come through.
        """
        return self.attacked(access, x, goal, threat, rng)[0]

    def attacked(
        self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG
    ) -> tuple[Tensor, Tensor | None]:
        """The images, and which of them the library says fool the model, (n,) bool; None where it does not say."""
        if threat.norm != "none" or threat.norm not in self.norms:
            check_norm(self, threat)
        if isinstance(goal, Targeted):
            raise ValueError(f"Expected an untargeted goal for {self.name}, got a targeted one")
        if threat.box != (0.0, 1.0):
            raise ValueError(f"Expected a threat with the box [0, 1] for {self.name}, got {threat.box}")
        if not len(x):
            return x.clone(), None
        counted = Counted(access).eval()
        with generators(_seed(rng), x.device):
            try:
                x_adv, claims = self._attack(counted, x.clone(), goal.y.clone(), threat)
            finally:
                counted.settle()
        return x_adv.detach().clone(), claims

    @abstractmethod
    def _attack(self, model: Counted, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor | None]:
        """The library's images, and which of them it says are successes, if it says so."""

    def _given(self, model: Counted, x: Tensor, norms: Mapping[str, object], threat: ThreatModel) -> dict[str, object]:
        """The arguments of the harness's that the library's attack takes."""
        traits, accepted = self.traits, inspect.signature(self.traits.make).parameters
        given: dict[str, object] = {name: model.classes(x) for name in ("n_classes", "num_classes") if name in accepted}
        given |= {"targeted": False} if "targeted" in accepted else {}
        given |= {traits.epsilon: threat.epsilon} if traits.epsilon else {}
        return given | ({traits.norm: norms[threat.norm]} if traits.norm else {})


class FoolboxAttack(Foreign):
    """An attack of foolbox (Rauber et al. 2017, arXiv:1707.04131); of those with an epsilon, the images clipped to it."""

    def _attack(self, model: Counted, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor | None]:
        foolbox = importlib.import_module("foolbox")
        given = {self.traits.norm: getattr(foolbox.distances, threat.norm)} if self.traits.norm else {}
        attack = self.traits.make(**self.arguments, **given)
        wrapped = foolbox.PyTorchModel(model, bounds=threat.box, device=x.device)
        epsilon = None if self.minimal_norm else threat.epsilon
        raw, clipped, claims = attack(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=epsilon)
        return (raw if self.minimal_norm else clipped), claims


class TorchattacksAttack(Foreign):
    """An attack of torchattacks (Kim 2020, arXiv:2010.01950)."""

    def _attack(self, model: Counted, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor | None]:
        names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
        attack = self.traits.make(model, **self.arguments, **self._given(model, x, names, threat))
        attack.set_device(x.device)
        return attack(x, y), None


class AdvLibAttack(Foreign):
    """An attack of adv-lib (Rony and Ben Ayed, github.com/jeromerony/adversarial-library)."""

    def _attack(self, model: Counted, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor | None]:
        norms = {norm: norm for norm in _ORDERS} if self.traits.norm == "distance" else _ORDERS
        found = self.traits.make(model, x, y, **self.arguments, **self._given(model, x, norms, threat))
        return (found[0] if isinstance(found, tuple) else found), None


class Counted(nn.Module):
    """The model of an access as another library sees it: images -> logits, every pass counted.

    A call with other than whole copies of the access's images cannot say whose passes these are: `settle` spreads them
    evenly over the examples. The logits of a stochastic model are means over fresh draws.
    """

    def __init__(self, access: WhiteBox) -> None:
        super().__init__()
        self.inner = access.model
        self.place = nn.Parameter(torch.empty(0, device=access.index.device), requires_grad=False)  # shows the device
        self._access = access
        self._asked = 0
        self._spare = {"forwards": 0, "backwards": 0}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (m, classes) of images (m, c, h, w), any number of them."""
        access, draws = self._access, self._access.draws
        if (access.detector is not None or access.per_example) and len(x) != len(access):
            what = "behind a detector" if access.detector is not None else "of a model that answers each in a way of its own"
            raise RuntimeError(f"Expected {len(access)} images at a time {what}, got {len(x)}")
        logits = self._answer(x) if draws == 1 else torch.stack([self._answer(x) for _ in range(draws)]).mean(dim=0)
        self._count("forwards", draws * len(x))
        if logits.requires_grad:
            owners = None if access.watch is None else self._owners(x)
            hook: Callable[[Tensor], Tensor | None] = lambda slope: self._back(slope, draws, owners)  # noqa: E731
            logits.register_hook(hook)  # type: ignore[no-untyped-call]
        return logits

    def _back(self, slope: Tensor, draws: int, owners: Tensor | None) -> Tensor | None:
        """Count a pass back from logits with the slopes (m, classes); the slopes that are paid, None if all are."""
        self._count("backwards", draws * len(slope))
        watch = self._access.watch
        if watch is None or owners is None:
            return None
        try:
            paid = watch.pays_back(owners, draws)
        except BudgetSpent:  # which the next question raises again, outside of the engine of gradients
            return torch.zeros_like(slope)
        return None if paid is None else slope.where(paid.unsqueeze(1), 0)

    def _owners(self, x: Tensor) -> Tensor:
        """Whose image each is, by the rows of the ledger: whole copies are in order, of others the clean image tells."""
        access = self._access
        assert access.watch is not None
        if len(x) % len(access) == 0:
            return access.rows.repeat(len(x) // len(access))
        return access.watch.owners(x)

    def classes(self, x: Tensor) -> int:
        """The number of logits, at the price of a forward."""
        with torch.no_grad():
            return int(self(x).shape[1])

    def settle(self) -> None:
        """Write the passes that belong to no example in particular into the ledger."""
        for name, spare in self._spare.items():
            column, rows = getattr(self._access.ledger, name), self._access.rows
            share = torch.full_like(rows, spare // len(rows))
            share[: spare % len(rows)] += 1
            column.index_add_(0, rows, share)
            self._spare[name] = 0

    def _answer(self, x: Tensor) -> Tensor:
        access, rng = self._access, None
        if access.stochastic or access.per_example:
            rows = torch.arange(len(x), device=x.device)
            rng = access.rng.select(rows % len(access)).at(self._asked + rows // len(access))
            self._asked += -(-len(x) // len(access))
        if access.watch is None:
            return access.uncounted(x, rng)

        def ask(some: Tensor | None) -> Tensor:
            if some is None:
                return access.uncounted(x, rng)
            return access.uncounted(x[some], None if rng is None else rng.select(some))

        whole = access.stochastic or access.detector is not None or access.per_example
        return access.watch.answers(ask, x, self._owners(x), whole=whole)

    def _count(self, name: str, passes: int) -> None:
        rows = self._access.rows
        if passes % len(rows) == 0:
            getattr(self._access.ledger, name).index_add_(0, rows, torch.full_like(rows, passes // len(rows)))
        else:
            self._spare[name] += passes


@cache
def resolve(name: str) -> type[Foreign]:
    """The attack of a name ``LIBRARY/NAME`` as a frozen dataclass whose fields are the library's arguments.

    Raises ValueError, in one line, if the library is missing, or has no such attack, or one that needs more than images.
    """
    library, _, attack = name.partition("/")
    base, traits_of = _BASES[library]
    traits = traits_of(_imported(library, name), attack)
    found = [_field(name, parameter) for parameter in inspect.signature(traits.make).parameters.values()]
    own = {
        "name": name,
        "traits": traits,
        "identity": f"{library} {metadata.version(library)} {package_hash(_package(library))[:16]}",
        "norms": traits.norms,
        "minimal_norm": traits.minimal,
        "__doc__": f"{name}: {(inspect.getdoc(traits.make) or base.__doc__ or '').partition(chr(10))[0]}",
        "__module__": __name__,
    }
    reserved = _GIVEN | {traits.epsilon, traits.norm}
    return make_dataclass(
        attack,
        [(parameter, object, default) for parameter, default in filter(None, found) if parameter not in reserved],
        bases=(base,),
        namespace=own,
        frozen=True,
        kw_only=True,
    )


def _field(name: str, parameter: inspect.Parameter) -> tuple[str, object] | None:
    """An argument that the user may set, and its default; None for one that cannot be written down."""
    if parameter.name in _GIVEN or parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return None
    default = parameter.default
    if default is inspect.Parameter.empty:
        if parameter.name in ("norm", "eps", "ε"):
            return None
        raise ValueError(f"Expected an attack that needs images alone, got {name}, which needs {parameter.name!r}")
    if isinstance(default, bool | int | float | str | None | tuple) and default != float("inf"):
        return parameter.name, default
    return None


def _package(library: str) -> str:
    """The package of a library by its name on PyPI."""
    return library.replace("-", "_")


def _imported(library: str, name: str) -> ModuleType:
    """A library's module. ValueError, in one line, if it is missing or broken."""
    module = "adv_lib.attacks" if library == "adv-lib" else library
    stub = None
    if library == "adv-lib" and importlib.util.find_spec("visdom") is None:
        stub = ModuleType("visdom")  # adv-lib asks for it in order to draw, which nobody does here
        vars(stub)["Visdom"] = object
        sys.modules["visdom"] = stub
    try:
        return importlib.import_module(module)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"Expected {library} for the attack {name}, got {reason}: {_HOW[library]}") from None
    finally:
        if stub is not None:
            del sys.modules["visdom"]


def _foolbox(module: ModuleType, name: str) -> Traits:
    make, base = getattr(module.attacks, name, None), module.attacks.base
    if not (inspect.isclass(make) and issubclass(make, base.AttackWithDistance)) or inspect.isabstract(make):
        raise ValueError(f"Expected an attack of foolbox, got {name!r}: see foolbox.attacks")
    minimal = issubclass(make, base.MinimizationAttack)
    if "distance" in inspect.signature(make).parameters:
        return Traits(make, _ALL, norm="distance", minimal=minimal)
    try:
        made: Any = make()
        order = float(made.distance.p)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"The attack foolbox/{name} cannot be made: {reason}") from error
    return Traits(make, frozenset(norm for norm, each in _ORDERS.items() if each == order), minimal=minimal)


_L2 = ("PGDL2", "PGDRSL2", "CW", "DeepFool")
_L1 = ("EADL1", "EADEN")
_L0 = ("JSMA", "OnePixel", "Pixle", "SparseFool")


def _torchattacks(module: ModuleType, name: str) -> Traits:
    make = getattr(module, name, None)
    if not (inspect.isclass(make) and issubclass(make, module.attack.Attack)) or make is module.attack.Attack:
        raise ValueError(f"Expected an attack of torchattacks, got {name!r}: see torchattacks.__all__")
    accepted = inspect.signature(make).parameters
    epsilon = next((each for each in ("eps", "max_epsilon") if each in accepted), None)
    if "norm" in accepted:
        return Traits(make, frozenset({"linf", "l2"}), epsilon, "norm")
    by_norm = {"l2": _L2, "l1": _L1, "l0": _L0, "none": ("GN", "VANILA")}
    norm = next((norm for norm, those in by_norm.items() if name in those), "linf")
    return Traits(make, frozenset({norm}), epsilon, minimal=epsilon is None and norm != "none")


_ADV_LIB: Mapping[str, tuple[frozenset[str], str | None, str | None]] = {
    "alma": (frozenset({"l1", "l2"}), None, "distance"),
    "apgd": (frozenset({"linf", "l2", "l1"}), "eps", "norm"),
    "apgd_targeted": (frozenset({"linf", "l2", "l1"}), "eps", "norm"),
    "carlini_wagner_l2": (frozenset({"l2"}), None, None),
    "carlini_wagner_linf": (frozenset({"linf"}), None, None),
    "ddn": (frozenset({"l2"}), None, None),
    "df": (frozenset({"linf", "l2"}), None, "norm"),
    "fab": (frozenset({"linf", "l2", "l1"}), None, "norm"),
    "fga": (frozenset({"l0"}), None, None),
    "fmn": (_ALL, None, "norm"),
    "pdgd": (frozenset({"l2"}), None, None),
    "pdpgd": (_ALL, None, "norm"),
    "pgd_linf": (frozenset({"linf"}), "ε", None),
    "sdf": (frozenset({"l2"}), None, None),
    "sigma_zero": (frozenset({"l0"}), None, None),
    "str_attack": (frozenset({"l2"}), None, None),
    "tr": (frozenset({"linf", "l2"}), None, "p"),
    "vfga": (frozenset({"l0"}), None, None),
}
"""name -> norms, argument of epsilon, argument of the norm."""


def _adv_lib(module: ModuleType, name: str) -> Traits:
    make = getattr(module, name, None)
    if name not in _ADV_LIB or make is None:
        raise ValueError(f"Expected an attack of adv-lib among {', '.join(_ADV_LIB)}, got {name!r}")
    norms, epsilon, norm = _ADV_LIB[name]
    return Traits(make, norms, epsilon, norm, minimal=epsilon is None)


_BASES: Mapping[str, tuple[type[Foreign], Callable[[ModuleType, str], Traits]]] = {
    "foolbox": (FoolboxAttack, _foolbox),
    "torchattacks": (TorchattacksAttack, _torchattacks),
    "adv-lib": (AdvLibAttack, _adv_lib),
}


def _seed(rng: ExampleRNG) -> int:
    """A seed for a batch: of the stream and of the examples in it."""
    text = f"{rng.key[0]:08x}{rng.key[1]:08x}/{rng.index.tolist()}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
