"""Our attacks and their namesakes in other libraries, at equal steps and hyper-parameters.

A minimal-norm attack is judged by the distances that it finds, an attack of fixed radius by the images that it breaks.
The references are called through the libraries' public functions; what a library's class sets for the standard AutoAttack is
read from that class.
"""

from __future__ import annotations

import importlib
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.apgd import APGD, APGDDLR, APGDT
from advbench.attacks.auto import Auto
from advbench.attacks.autoattack import AutoAttack
from advbench.attacks.carlini_wagner import CarliniWagner
from advbench.attacks.ddn import DDN
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fab import FAB, FABT
from advbench.attacks.fmn import FMN
from advbench.attacks.hop_skip_jump import HopSkipJump
from advbench.attacks.pgd import PGD
from advbench.attacks.square import Square
from advbench.attacks.threat import Norm

ORDER: dict[Norm, float] = {"l2": 2, "linf": float("inf"), "l1": 1}
LABEL: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
PREFIX: dict[Norm, str] = {"linf": "LInf", "l2": "L2", "l1": "L1"}
MENDED = "adv-lib, mended"
"""adv-lib's FMN with the paper's projection on the l2 ball; its own moves points inside the ball to the sphere."""
PACKAGES = {"foolbox": "foolbox", "adv-lib": "adv-lib", MENDED: "adv-lib", "pyautoattack": "pyautoattack"}

SEARCHES, SEARCH_STEPS = 5, 200
"""Of Carlini & Wagner's attack."""
JUMPS = 8
"""Iterations of HopSkipJump; ours is given as many queries as the reference took."""


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What a reference is run on: model, images x (n, c, h, w) with labels y (n,), number of classes, norm, radius, seed.

    queries: of Square.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int
    norm: Norm
    epsilon: float | None
    queries: int
    seed: int


Reference = Callable[[Setting], Tensor]
"""Images that the peer proposes, (n, c, h, w)."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """An attack of ours and its references by library.

    ours: (norm, queries) -> attack; the queries are the recipe's, for HopSkipJump those that the reference took per image.
    norms: in which they are compared. minimal: whether distances count. fewest: the classes that the references need.
    """

    ours: Callable[[Norm, int], Any]
    references: dict[str, Reference]
    norms: frozenset[Norm]
    minimal: bool
    fewest: int = 2

    def libraries(self, norm: Norm) -> list[str]:
        """Those with a reference in a norm."""
        return [library for library in self.references if norm == "l2" or library != MENDED]


@contextmanager
def quiet(seed: int) -> Iterator[None]:
    """The seed for all global generators, which are given back afterwards, and no warnings."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def version_of(library: str) -> str:
    """The installed version of a peer."""
    return version(PACKAGES[library])


def adv_lib() -> Any:
    """adv-lib's attacks; visdom, which only draws, is replaced where it is not there."""
    if "visdom" not in sys.modules:
        try:
            importlib.import_module("visdom")
        except ImportError:
            stub = types.ModuleType("visdom")
            vars(stub)["Visdom"] = object
            sys.modules["visdom"] = stub
    return importlib.import_module("adv_lib.attacks")


def standard(setting: Setting) -> Any:
    """pyautoattack's standard AutoAttack, whose parts are called one by one."""
    peer = importlib.import_module("pyautoattack")
    ensemble = peer.AutoAttack(
        setting.model,
        norm=LABEL[setting.norm],
        eps=setting.epsilon or 1e9,
        version="standard",
        device="cpu",
        seed=setting.seed,
    )
    wrong = setting.classes - 1
    ensemble.fab.n_target_classes = min(ensemble.fab.n_target_classes, wrong)
    ensemble.apgd_targeted.n_target_classes = min(ensemble.apgd_targeted.n_target_classes, wrong)
    return ensemble


def _ascended(loss: str) -> Reference:
    def run(setting: Setting) -> Tensor:
        attack = standard(setting).apgd
        attack.loss, attack.seed = loss, setting.seed
        return attack.perturb(setting.x, setting.y)

    return run


def _targeted(setting: Setting) -> Tensor:
    return standard(setting).apgd_targeted.perturb(setting.x, setting.y)


def squares(setting: Setting) -> Tensor:
    """Square, its schedule as in AutoAttack.

    In l2 and l1 the library's first tiles leave an image whose sides are no multiple of 5, which raises an error; here they
    end at the border.
    """
    attack = standard(setting).square
    attack.n_queries = setting.queries
    height, width = setting.x.shape[2:]
    tile = height // 5
    offset = (height - 5 * tile) // 2
    inside = {side // tile: (side - offset) // tile for side in (height, width)}
    module = importlib.import_module("pyautoattack.square")
    vars(module)["range"] = lambda *limits: range(inside.get(limits[0], limits[0])) if len(limits) == 1 else range(*limits)
    try:
        return attack.perturb(setting.x, setting.y)
    finally:
        del vars(module)["range"]


def _fab(setting: Setting) -> Tensor:
    return standard(setting).fab.attack_single_run(setting.x, setting.y)


def _fab_targeted(setting: Setting) -> Tensor:
    """The nearest image of the runs to each target."""
    fab = standard(setting).fab
    best, distance = setting.x.clone(), torch.full((len(setting.x),), torch.inf)
    for target in range(2, fab.n_target_classes + 2):
        fab.target_class = target
        found = fab.attack_single_run(setting.x, setting.y, is_targeted=True)
        broken = setting.model(found).argmax(dim=1) != setting.y
        length = balls.distance(found - setting.x, setting.norm).where(broken, torch.inf)
        best[length < distance] = found[length < distance]
        distance = distance.minimum(length)
    return best


def _foolbox(setting: Setting, name: str, **arguments: Any) -> Tensor:
    foolbox = importlib.import_module("foolbox")
    wrapped = foolbox.PyTorchModel(setting.model, bounds=(0, 1), device="cpu")
    attack = getattr(foolbox.attacks, name)(**arguments)
    criterion = foolbox.Misclassification(setting.y)
    if setting.epsilon is None:
        return attack.run(wrapped, setting.x, criterion)
    return attack(wrapped, setting.x, criterion, epsilons=setting.epsilon)[1]


def _pgd(setting: Setting) -> Tensor:
    if setting.norm == "l1":
        return _foolbox(setting, "SparseL1DescentAttack", steps=40, rel_stepsize=0.1, random_start=True)
    name = {"linf": "LinfPGD", "l2": "L2PGD"}[setting.norm]
    return _foolbox(setting, name, steps=40, rel_stepsize=0.1, random_start=True)


def _mended_fmn(setting: Setting) -> Tensor:
    """adv-lib's, whose l2 projection leaves points inside the ball where they are."""
    attacks = adv_lib()
    module = importlib.import_module("adv_lib.attacks.fast_minimum_norm")
    own = module.l2_projection_

    def projection(delta: Tensor, radius: Tensor) -> Tensor:
        length = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
        return delta.flatten(1).mul_((radius / length).clamp_(max=1).unsqueeze(1))

    module.l2_projection_ = lambda δ, ε: projection(δ, ε)
    try:
        return attacks.fmn(setting.model, setting.x, setting.y, ORDER[setting.norm], steps=100)
    finally:
        module.l2_projection_ = own


def _carlini_wagner(setting: Setting) -> Tensor:
    attack = adv_lib().carlini_wagner_l2
    return attack(
        setting.model,
        setting.x,
        setting.y,
        learning_rate=CarliniWagner().learning_rate,
        max_iterations=SEARCH_STEPS,
        binary_search_steps=SEARCHES,
    )


def _jumps(setting: Setting) -> Tensor:
    return _foolbox(setting, "HopSkipJumpAttack", steps=JUMPS, constraint=setting.norm)


_ALL: frozenset[Norm] = frozenset({"linf", "l2", "l1"})
_L2: frozenset[Norm] = frozenset({"l2"})


def _sparse(norm: Norm, many: int, few: int) -> int:
    return many if norm == "l1" else few


PAIRS: dict[str, Pair] = {
    "ddn": Pair(
        lambda norm, queries: DDN(),
        {"adv-lib": lambda s: adv_lib().ddn(s.model, s.x, s.y, steps=100, levels=None)},
        _L2,
        minimal=True,
    ),
    "fmn": Pair(
        lambda norm, queries: FMN(),
        {
            "adv-lib": lambda s: adv_lib().fmn(s.model, s.x, s.y, ORDER[s.norm], steps=100),
            "foolbox": lambda s: _foolbox(s, f"{PREFIX[s.norm]}FMNAttack", steps=100),
            MENDED: _mended_fmn,
        },
        _ALL,
        minimal=True,
    ),
    "deepfool": Pair(
        lambda norm, queries: DeepFool(),
        {
            "adv-lib": lambda s: adv_lib().df(s.model, s.x, s.y, steps=50, norm=ORDER[s.norm]),
            "foolbox": lambda s: _foolbox(s, {"l2": "L2DeepFoolAttack", "linf": "LinfDeepFoolAttack"}[s.norm], steps=50),
        },
        frozenset({"linf", "l2"}),
        minimal=True,
    ),
    "fab": Pair(lambda norm, queries: FAB(), {"pyautoattack": _fab}, _ALL, minimal=True),
    "fab-t": Pair(lambda norm, queries: FABT(), {"pyautoattack": _fab_targeted}, _ALL, minimal=True),
    "carlini-wagner": Pair(
        lambda norm, queries: CarliniWagner(steps=SEARCH_STEPS, search_steps=SEARCHES),
        {
            "adv-lib": _carlini_wagner,
            "foolbox": lambda s: _foolbox(s, "L2CarliniWagnerAttack", steps=SEARCH_STEPS, binary_search_steps=SEARCHES),
        },
        _L2,
        minimal=True,
    ),
    "pgd": Pair(lambda norm, queries: PGD(), {"foolbox": _pgd}, _ALL, minimal=False),
    "apgd-ce": Pair(
        lambda norm, queries: APGD(restarts=_sparse(norm, 5, 1)), {"pyautoattack": _ascended("ce")}, _ALL, minimal=False
    ),
    "apgd-dlr": Pair(
        lambda norm, queries: APGDDLR(restarts=_sparse(norm, 5, 1)),
        {"pyautoattack": _ascended("dlr")},
        _ALL,
        minimal=False,
        fewest=3,
    ),
    "apgd-t": Pair(
        lambda norm, queries: APGDT(targets=_sparse(norm, 5, 9)), {"pyautoattack": _targeted}, _ALL, minimal=False, fewest=4
    ),
    "square": Pair(
        lambda norm, queries: Square(queries=queries, rescale=False),
        {"pyautoattack": squares},
        _ALL,
        minimal=False,
    ),
    "autoattack": Pair(lambda norm, queries: AutoAttack(queries=queries), {}, _ALL, minimal=False),
    "auto": Pair(lambda norm, queries: Auto(), {}, _ALL, minimal=False),
    "hop-skip-jump": Pair(
        lambda norm, queries: HopSkipJump(queries=queries),
        {"foolbox": _jumps},
        frozenset({"l2", "linf"}),
        minimal=True,
    ),
}
"""The reference of `autoattack` and `auto` is put together from the runs of its parts (`references.ensemble`)."""
