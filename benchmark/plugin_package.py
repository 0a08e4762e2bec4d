"""A package with components of the user's own, as ``advbench new`` writes it: one of every kind, small and complete."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "NAME"
version = "0.1.0"
dependencies = ["advbench"]

[project.entry-points."advbench.attacks"]
NAME-attack = "MODULE.attack:SignWalk"

[project.entry-points."advbench.defenses"]
NAME-training = "MODULE.training:Smoothed"
NAME-purifier = "MODULE.purifier:Darkened"

[project.entry-points."advbench.architectures"]
"NAME/net" = "MODULE.network:net"

[project.entry-points."advbench.datasets"]
NAME-stripes = "MODULE.stripes:stripes"

[tool.setuptools]
packages = ["MODULE"]
"""

_ATTACK = '''\
"""An attack: a frozen dataclass of hyper-parameters with `norms`, called with images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel, cross_entropy


@dataclass(frozen=True, kw_only=True)
class SignWalk:
    """Steepest steps from the image, projected on the ball and the box.

    steps: gradient steps. step_size: as a share of epsilon.
    """

    steps: int = 10
    step_size: float = 0.25

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2"})

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        x_adv = x.clone()
        for _ in range(self.steps):
            gradient = access.loss_gradient(x_adv, goal, cross_entropy).gradient
            step = self.step_size * threat.epsilon * balls.steepest(gradient, threat)
            x_adv = balls.project(x_adv + step, x, threat)
        return x_adv
'''

_TRAINING = '''\
"""A training-time defense: an objective, minimised by the one training loop."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advbench.defenses.training.trained import Trained
from advbench.zoo.training import Step


@dataclass(frozen=True, kw_only=True)
class Smoothed(Trained):
    """Training on labels that are smoothed.

    smoothing: the share of every label that is spread over all classes, in [0, 1).
    """

    smoothing: float = 0.1

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        return {"loss": cross_entropy(model(x), y, label_smoothing=self.smoothing)}
'''

_PURIFIER = '''\
"""A test-time defense: a purifier in front of a trained model, with the surrogates of an adaptive attacker."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from advbench.defenses.defended import Defended
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import purified


class Power(nn.Module):
    """Images (n, c, h, w) with every pixel raised to a power; a slope that is never infinite keeps gradients finite."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(1e-3, 1) ** self.gamma


@dataclass(frozen=True, kw_only=True)
class Darkened(TestTimeDefense):
    """Darker images.

    gamma: the power of every pixel. base: the spec of the defense that trained the model behind it.
    """

    gamma: float = 1.5
    base: str = "none"

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        return purified(inputs["base"], Power(self.gamma), stochastic=False)
'''

_NETWORK = '''\
"""An architecture: a function of the images' shape and the number of classes."""

from torch import nn


def net(shape: tuple[int, int, int], n_classes: int, width: int = 32) -> nn.Module:
    """Two dense layers. width: units of the first."""
    c, h, w = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, width), nn.ReLU(), nn.Linear(width, n_classes))
'''

_STRIPES = '''\
"""A data set: a function of the data folder that returns fixed splits of images in [0, 1]."""

from pathlib import Path

import torch
from torch import Tensor

from advbench.zoo.data import DataSet
from advbench.zoo.splits import with_validation


def stripes(data_dir: Path | None) -> DataSet:
    """Noisy stripes, horizontal or vertical, 12x12 pixels; drawn, so that no file is needed."""
    return with_validation("stripes", _drawn(400, seed=0), _drawn(100, seed=1), n_classes=2)


def _drawn(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    rows = (torch.arange(12) // 2 % 2).float().view(1, 1, 12, 1).expand(n, 1, 12, 12)
    images = torch.where((y == 0).view(n, 1, 1, 1), rows, rows.transpose(2, 3))
    noise = 0.2 * torch.randn(images.shape, generator=generator)
    return (0.25 + 0.5 * images + noise).clamp(0, 1), y
'''

_FILES = {
    "pyproject.toml": _PROJECT,
    "MODULE/__init__.py": '"""Components of advbench."""\n',
    "MODULE/attack.py": _ATTACK,
    "MODULE/training.py": _TRAINING,
    "MODULE/purifier.py": _PURIFIER,
    "MODULE/network.py": _NETWORK,
    "MODULE/stripes.py": _STRIPES,
}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TAKEN = ("advbench", "torch", "numpy", "attacks", "defenses", "zoo", "results", "reports", "benchmark")


def package(name: str) -> dict[str, str]:
    """The files of a package of a name, by their place in its folder.

    Raises ValueError, in one line, for a name that no package can have: small letters, digits and dashes.
    """
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(module) or module in _TAKEN:
        raise ValueError(f"Expected a name of small letters, digits and dashes, such as my-attacks, got {name!r:.80}")

    def named(text: str) -> str:
        return text.replace("MODULE", module).replace("NAME", name)

    return {named(place): named(text) for place, text in _FILES.items()}


def write_package(name: str, folder: Path) -> list[Path]:
    """Write the package NAME into the folder NAME of a folder; returns its files.

    Raises ValueError for a name as `package` does, FileExistsError if something of that name is there.
    """
    files = package(name)
    root = folder / name
    if root.exists():
        raise FileExistsError(f"Expected no {name} in {folder}, got one: choose another name")
    written = []
    for place, text in files.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
