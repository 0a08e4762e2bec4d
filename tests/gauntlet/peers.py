"""The peers as attacks for the harness, which counts, watches and verifies them like ours.

foolbox, torchattacks and adv-lib come by the names that users give (`advbench.user_models.library_attacks`); here stand the
parts of pyautoattack, through the same counted model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from torch import Tensor

from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Norm, ThreatModel
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.user_models.library_attacks import Counted
from tests.gauntlet.pairs import PAIRS, Setting, quiet, squares

_SHORT_CW = "steps=200,binary_search_steps=5"
PEERS: dict[Norm, tuple[str, ...]] = {
    "linf": (
        *(f"foolbox/{name}" for name in ("LinfFastGradientAttack", "LinfPGD", "LinfDeepFoolAttack", "LInfFMNAttack")),
        *(f"torchattacks/{name}" for name in ("FGSM", "PGD", "MIFGSM", "APGD", "FAB", "Square")),
        *(f"adv-lib/{name}" for name in ("fmn", "df", "fab", "apgd", "apgd_targeted", "pdpgd")),
    ),
    "l2": (
        *(f"foolbox/{name}" for name in ("L2FastGradientAttack", "L2PGD", "L2DeepFoolAttack", "L2FMNAttack", "DDNAttack")),
        f"foolbox/L2CarliniWagnerAttack({_SHORT_CW})",
        *(f"torchattacks/{name}" for name in ("PGDL2", "CW", "DeepFool")),
        *(f"adv-lib/{name}" for name in ("ddn", "fmn", "df", "fab", "apgd", "apgd_targeted", "alma", "pdgd", "pdpgd")),
    ),
    "l1": (
        *(f"foolbox/{name}" for name in ("L1FastGradientAttack", "SparseL1DescentAttack", "L1FMNAttack")),
        f"foolbox/EADAttack({_SHORT_CW})",
        *(f"adv-lib/{name}" for name in ("fmn", "fab", "apgd", "alma", "pdpgd")),
    ),
}
"""Attacks of the libraries by norm, with the libraries' arguments but where those take hours."""
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
"""Those of pyautoattack."""
_NOT_ALONE = ("worst-case", "autoattack-rand", "lbfgs", "estimated-noise", "correlated-noise")
"""Attacks that need a list of others, random models, held-out images, or no norm."""
QUERIES = 1000
"""Of Square, ours and pyautoattack's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PyAutoAttackPart:
    """A part of pyautoattack's standard ensemble. seed: of the global generators that it draws from."""

    part: str = "apgd-ce"
    seed: int = 0

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = False

    @property
    def minimal_norm(self) -> bool:
        """Whether it is a walk to the boundary."""
        return self.part.startswith("fab")

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """The images that the part proposes, (n, c, h, w)."""
        counted = Counted(access).eval()
        with quiet(self.seed):
            classes = counted.classes(x)
            setting = Setting(counted, x, goal.y, classes, threat.norm, threat.epsilon, QUERIES, self.seed)
            try:
                run = squares if self.part == "square" else PAIRS[self.part].references["pyautoattack"]
                return run(setting).detach()
            finally:
                counted.settle()


@contextmanager
def registered() -> Iterator[None]:
    """pyautoattack among the registered attacks, as a plug-in would be."""
    known = {name: place for name, place in registry.attacks.table.items() if name not in registry.attacks.own}
    vars(registry.attacks)["_plugins"] = {**known, "pyautoattack": f"{__name__}:PyAutoAttackPart"}
    try:
        yield
    finally:
        del vars(registry.attacks)["_plugins"]


def theirs(norm: Norm) -> list[str]:
    """The peers' attacks in a norm, by the names with which they run; those that are not installed are not among them."""
    found = []
    for text in (*PEERS[norm], *(f"pyautoattack(part='{part}')" for part in PARTS)):
        with suppress(ValueError):
            registry.attacks.create(Spec.parse(text))
            found.append(text)
    return found if find_spec("pyautoattack") else [text for text in found if not text.startswith("pyautoattack")]


def ours(norm: Norm) -> list[str]:
    """Registered attacks of a norm, but for those that need more than a model and images."""
    found = []
    for name in registry.attacks.own:
        if name in _NOT_ALONE:
            continue
        if norm in registry.attacks.create(Spec(name)).norms:
            found.append(f"square(queries={QUERIES})" if name == "square" else name)
    return found
